"""The ground truth experiment: a module moves what it says, and the lab must find just that."""

from __future__ import annotations

import secrets
from typing import Any

from lab import fnv, known, message, probe, rundir, spec, topology, witness
from lab.deadline import Deadline
from lab.errors import GuestError
from lab.experiment.outcome import Outcome, tell
from lab.experiment.stand import Stand, common_manifest, keep_logs, keep_symbols
from lab.guest import Guest
from lab.journal import Journal

GUEST = "sender"
TRACE = "known_trace"
SWITCH_S = 10.0
GO = "/sys/module/known/parameters/go"
# QEMU's edu device has no migration state: after a restore its BAR is 0 until it is found anew.
FIND_ANEW = (
    "for d in /sys/bus/pci/devices/*; do"
    " [ $(cat $d/vendor)$(cat $d/device) = 0x12340x11e8 ] && echo 1 > $d/remove; done;"
    " echo 1 > /sys/bus/pci/rescan"
)


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guest that takes part."""
    del asked
    return (GUEST,)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Have the module move its messages while probes and access log watch."""
    deadline = Deadline.of_run(asked.deadline_s)
    work = asked.known
    seed = secrets.randbits(63)  # a parameter of type ulong
    count = work.copies + work.transfers
    manifest: dict[str, Any] = {
        **common_manifest(ready, asked, guests=guests(asked), command=command),
        "size": work.size,
        "count": count,
        "seed": f"{seed:016x}",
        "probes": {"kind": asked.probes.kind, "modules": {GUEST: [TRACE]}, "without": []},
    }
    run_dir.write_manifest(manifest)
    ready.pair.touch()
    ready.pair.attach(GUEST, deadline=deadline.within(10.0))
    guest = ready.pair.guests[GUEST]
    folder = run_dir.guest(GUEST)
    log = witness.AccessLog(guest)
    try:
        keep_symbols(ready, guest, folder.symbols, journal=journal, deadline=deadline)
        with journal.step("load the module"):
            moves = _load(ready, guest, work, seed, deadline=deadline)
            folder.write_json(known.MOVES, moves)
            _add_symbols(guest, folder, deadline=deadline)
        watching = None
        if asked.probes.kind == "kmod":
            with journal.step("load probes"):
                watching = probe.load(
                    guest,
                    {TRACE: ready.modules[TRACE]},
                    asked.probes,
                    nonce=secrets.token_bytes(16),
                    records=probe.RECORDS_BESIDE,
                    pushed=ready.pushed.setdefault(GUEST, set()),
                    deadline=deadline,
                )
        with journal.step("move"):
            log.arm(deadline=deadline.within(SWITCH_S))
            # By the agent: a shell's encryption would fill the log.
            agent = guest.require_agent()
            said = agent.get(GO, deadline=deadline).decode("ascii", "replace")
            log.disarm(deadline=deadline.within(SWITCH_S))
        _check_digests(guest, said, seed, work.size, count)
        if watching is not None:
            probe.finish(watching, deadline=deadline)
            folder.trace.write_bytes(probe.drain(watching))
            probe.unload(watching, deadline=deadline)
        with journal.step("keep the access log"):
            messages = message.Messages(seed=seed, size=work.size, count=count)
            logged = _keep(log, folder, messages, moves)
        absent = topology.access_log_absent(ready.setup.accelerator) or "the lab was up without it"
        manifest["witnesses"] = {
            "probe:kmod": "present" if watching is not None else "absent: not asked for",
            "access-log": "present" if logged else f"absent: {absent}",
        }
    finally:
        log.close()
        keep_logs(run_dir, [guest])
    manifest["files"] = run_dir.digests(guests(asked))
    run_dir.write_manifest(manifest)


def _load(
    ready: Stand, guest: Guest, work: spec.Known, seed: int, *, deadline: Deadline
) -> list[tuple[str, int, int, int]]:
    """Load the module and return its word: kind, message, physical source and target."""
    shell = guest.require_shell()
    if work.transfers:
        shell.run(FIND_ANEW, deadline=deadline)
    shell.put(ready.modules["known"], f"{probe.REMOTE}/known.ko", deadline=deadline)
    words = f"seed={seed} copies={work.copies} transfers={work.transfers} size={work.size}"
    shell.run(
        f"insmod {probe.REMOTE}/known.ko {words} hidden={int(work.hidden)}", deadline=deadline
    )
    said = shell.run("cat /sys/module/known/parameters/moves", deadline=deadline).stdout
    rows = [line.split() for line in said.splitlines()]
    if len(rows) != work.copies + work.transfers:
        raise GuestError(guest.name, f"known.ko was to move {work}, and says {said[:200]!r}")
    return [(row[0], int(row[1]), int(row[2], 16), int(row[3], 16)) for row in rows]


def _add_symbols(guest: Guest, folder: rundir.GuestDir, *, deadline: Deadline) -> None:
    # The symbols are those of the snapshot: the module came later.
    shell = guest.require_shell()
    mine = shell.run("grep -F '[known]' /proc/kallsyms", deadline=deadline).stdout
    text = folder.symbols.read_bytes() + mine.encode()
    folder.symbols.unlink()  # it may be a link to what other runs have
    folder.symbols.write_bytes(text)


def _check_digests(guest: Guest, said: str, seed: int, size: int, count: int) -> None:
    """Raise unless every message lies, whole, where the module says that it moved it."""
    for index, line in enumerate(said.splitlines()):
        expected = fnv.digest(message.derive(seed, index, size))
        if line.split() != [str(index), f"{expected:016x}"]:
            raise GuestError(guest.name, f"known.ko moved message {index} wrongly: {line}")
    if len(said.splitlines()) != count:
        raise GuestError(guest.name, f"known.ko was to move {count} messages: {said[:200]!r}")


def _keep(
    log: witness.AccessLog,
    folder: rundir.GuestDir,
    messages: message.Messages,
    moves: list[tuple[str, int, int, int]],
) -> bool:
    """Keep of the log what concerns the messages; tell whether there is one."""
    size = messages.size
    buffers = [(at, at + size) for move in moves for at in move[2:]]
    kept = log.keep(messages, held=None, buffers=buffers)
    if kept is not None:
        folder.file("access.bin").write_bytes(kept)
    return kept is not None


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Hold what was seen against the module's word."""
    del expect  # that all agree is what a run is for
    with journal.step("compare"):
        truth = known.compare(run_dir)
    run_dir.write_json("known.json", truth.to_json())
    told = tell(run_dir, known.told(truth, run_dir.manifest()), good=not truth.trouble)
    return Outcome(
        run=run_dir,
        result="known.json",
        value=truth.to_json(),
        trouble=truth.trouble[:5],
        told=told,
    )
