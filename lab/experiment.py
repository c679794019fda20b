"""The one place that knows the order of stages: from a question to a ledger."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lab
from lab import (
    accelerator,
    build,
    image,
    ledger,
    message,
    paths,
    probe,
    process,
    qemu,
    report,
    rundir,
    snapshot,
    spec,
    topology,
    witness,
    workload,
)
from lab.deadline import Deadline
from lab.errors import HostError, LabError, LabNotUp
from lab.guest import Guest
from lab.journal import Journal

# Which modules watch where: both on the one guest of a loopback run.
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "loopback": {"sender": ("send_trace", "recv_trace")},
    "link": {"sender": ("send_trace",), "receiver": ("recv_trace",)},
}
CLOCK_SAMPLES = 5
REACH_S = 10.0
SWITCH_S = 10.0  # the access log is armed in 0.05 s


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run left: its directory, its ledger, and what of `expect:` did not hold."""

    run: rundir.RunDir
    ledger: ledger.Ledger
    failures: tuple[str, ...]


@dataclass(slots=True)
class _Measurement:
    """One run while it is being taken."""

    asked: spec.Playbook
    run: rundir.RunDir
    stand: Stand
    journal: Journal
    deadline: Deadline
    seed: int
    nonce: bytes
    census: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rings: dict[str, witness.Rings] = field(default_factory=dict)
    logs: dict[str, witness.AccessLog] = field(default_factory=dict)
    clock: dict[str, list[dict[str, int]]] = field(default_factory=dict)

    @property
    def pair(self) -> topology.Lab:
        return self.stand.pair

    @property
    def guests(self) -> list[Guest]:
        """The guests that take part: one on loopback, two on the link."""
        return [self.pair.guests[name] for name in MODULES[self.asked.workload.over]]

    @property
    def sender(self) -> Guest:
        return self.guests[0]

    @property
    def receiver(self) -> Guest:
        return self.guests[-1]

    @property
    def messages(self) -> message.Messages:
        asked = self.asked.workload
        return message.Messages(
            seed=self.seed if asked.payload is None else None,
            payload=asked.payload,
            size=asked.size,
            count=asked.count,
        )


@dataclass(slots=True)
class Stand:
    """A pair that stands ready for runs, and what need be asked of it only once."""

    pair: topology.Lab
    setup: topology.Setup
    modules: dict[str, Path]
    how: str  # it came to be as it is
    restored: bool  # its memory is the snapshot's, as a nonce proves
    pushed: dict[str, set[str]] = field(default_factory=dict)  # guest -> modules it has
    ethtool: dict[str, str] = field(default_factory=dict)
    symbols: dict[str, Path] = field(default_factory=dict)


def setup_for(
    asked: spec.Playbook, *, journal: Journal, locked: bool = False, offline: bool = False
) -> tuple[topology.Setup, dict[str, Path]]:
    """Return what a pair for this playbook is made of, and the modules that watch it."""
    kernel = image.ensure(asked.kernel, journal=journal, locked=locked, offline=offline)
    modules = build.build_modules(kernel, journal=journal) if asked.probes.kind == "kmod" else {}
    speed = accelerator.choose(kernel, journal=journal)
    setup = topology.standard(kernel, speed, journal=journal, device=asked.link.device)
    return setup, modules


@contextlib.contextmanager
def stand(
    setup: topology.Setup,
    modules: dict[str, Path],
    *,
    lab_name: str,
    journal: Journal,
    reset: bool = True,
) -> Iterator[Stand]:
    """Yield a pair that is ready for one run after the other."""
    with _ready_pair(lab_name, setup, journal=journal, reset=reset) as (pair, how, restored):
        yield Stand(pair=pair, setup=setup, modules=modules, how=how, restored=restored)


def run(
    asked: spec.Playbook,
    *,
    lab_name: str,
    journal: Journal,
    command: str,
    reset: bool = True,
    locked: bool = False,
    offline: bool = False,
) -> Outcome:
    """Take one measurement and analyse it; the run directory is kept however it ends."""
    setup, modules = setup_for(asked, journal=journal, locked=locked, offline=offline)
    topology.refuse_busy(lab_name)  # before there is a run directory with nothing in it
    run_dir = new_run(asked, setup, paths.runs())
    journal.to_file(run_dir.path / "journal.jsonl")
    try:
        with stand(setup, modules, lab_name=lab_name, journal=journal, reset=reset) as ready:
            take(ready, asked, run_dir, journal=journal, command=command)
    except LabError as error:
        error.hint = error.hint or "invoke lab.reset, then again"
        error.log = error.log or run_dir.path / "journal.jsonl"
        error.add_note(f"run: {run_dir.path}")
        raise
    return analyse(run_dir, asked.expect, journal=journal)


def new_run(
    asked: spec.Playbook, setup: topology.Setup, base: Path, *, last: bool = True
) -> rundir.RunDir:
    """Make a run directory with the playbook's bytes in it."""
    digest = hashlib.sha256(asked.source + setup.image.digest.encode()).hexdigest()
    run_dir = rundir.create(base, asked.name, digest, guests=tuple(_taking_part(asked)), last=last)
    (run_dir.path / "playbook.yaml").write_bytes(asked.source)
    return run_dir


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Take one measurement on a pair that is ready; every artefact of the run is written."""
    taken = _Measurement(
        asked=asked,
        run=run_dir,
        stand=ready,
        journal=journal,
        deadline=Deadline(asked.deadline_s),
        seed=secrets.randbits(64),
        nonce=secrets.token_bytes(16),
    )
    manifest = _manifest(taken, ready.setup, how=ready.how, command=command)
    run_dir.write_manifest(manifest)
    try:
        _measure(taken, ready.modules, manifest)
    except BaseException:
        _keep_logs(taken)
        raise


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Compute ledger and report of a run from its directory alone."""
    with journal.step("ledger"):
        result = ledger.build(run_dir)
        run_dir.write_text("ledger.json", result.to_json())
        run_dir.write_text("report.txt", report.render(result, run_dir))
    return Outcome(run=run_dir, ledger=result, failures=tuple(ledger.check(result, expect)))


def _taking_part(asked: spec.Playbook) -> list[str]:
    return list(MODULES[asked.workload.over])


@contextlib.contextmanager
def _ready_pair(
    name: str, setup: topology.Setup, *, journal: Journal, reset: bool
) -> Iterator[tuple[topology.Lab, str, bool]]:
    """Yield a pair, how it came to be as it is, and whether its memory is the snapshot's.

    The lab that is up is used if it is what the playbook asks for; else the run brings
    up a pair of its own and takes it down.  Without `reset` only the lab will do.
    """
    if name in topology.names():
        with topology.opened(name) as pair:
            other = unlike(pair, setup)
            if other is None:
                yield pair, *_readied(pair, setup, journal=journal, reset=reset)
                return
        if not reset:
            raise HostError(
                f"lab '{name}' {other}, and --no-reset asks for the lab as it stands",
                hint="invoke lab.up --fresh, or leave --no-reset out",
            )
        journal.say(f"lab '{name}' {other}: using a pair of its own")
    elif not reset:
        raise LabNotUp(f"lab '{name}' is not up, and --no-reset asks for it", hint="invoke lab.up")
    own = f"run-{os.getpid()}"
    with topology.opened(own, create=True) as pair:
        state = pair.bring_up(replace(setup, owner=os.getpid()), journal=journal)
        try:
            yield pair, f"a pair of its own, {state.how}", True
        finally:
            with journal.step("take the pair down"):
                pair.bring_down()


def unlike(pair: topology.Lab, setup: topology.Setup) -> str | None:
    """Say in what a lab differs from what is asked for; None where it does not."""
    state = pair.state
    if state is None:
        return "is not up"
    if state.kernel != setup.image.series:
        return f"has kernel {state.kernel}, not {setup.image.series}"
    if state.image != setup.image.digest:
        return "has an older image"
    if (state.device, state.accelerator) != (setup.device, setup.accelerator.name):
        return f"has {state.device} under {state.accelerator}"
    return None


def _readied(
    pair: topology.Lab, setup: topology.Setup, *, journal: Journal, reset: bool
) -> tuple[str, bool]:
    """Put a lab back to its snapshot if anything was done in it, unless that is not wanted."""
    state = pair.require_state()
    if not reset:
        pair.attach(deadline=Deadline(REACH_S))
        return f"lab '{pair.name}' as it stands", False
    ails = pair.ails(deadline=Deadline(REACH_S))
    if ails is not None:
        journal.say(f"lab '{pair.name}' is reset: {ails}")
    if ails is not None or not state.pristine:
        pair.bring_down()
        state = pair.bring_up(setup, journal=journal)
    return f"lab '{pair.name}' {state.how} to its snapshot", True


def _manifest(
    taken: _Measurement, setup: topology.Setup, *, how: str, command: str
) -> dict[str, Any]:
    kernel, speed = setup.image, setup.accelerator
    asked = taken.asked
    work = asked.workload
    probes = asked.probes
    return {
        "playbook": asked.name,
        "over": work.over,
        "protocol": work.protocol,
        "size": work.size,
        "count": work.count,
        "seed": f"{taken.seed:016x}" if work.payload is None else None,
        "payload_masked": None if work.payload is None else message.mask(work.payload),
        "kernel": kernel.release,
        "accelerator": {"name": speed.name, "why": speed.why},
        "link": {"device": asked.link.device, "backend": asked.link.backend, "offloads": {}},
        "probes": {
            "kind": probes.kind,
            "modules": {k: list(v) for k, v in MODULES[work.over].items()},
            "without": list(probes.without),
            "comm": probes.comm,
        },
        "witnesses": {},
        "drifted": list(kernel.drifted),
        "versions": {"skblab": lab.__version__, "qemu": qemu.installed().version},
        "digests": {
            "image": kernel.digest,
            "playbook": hashlib.sha256(asked.source).hexdigest(),
        },
        "command": command,
        "reset": {"how": how, "proven": "nonce" if taken.stand.restored else "not asked for"},
        "guests": [guest.name for guest in taken.guests],
        "deadline_s": asked.deadline_s,
        # As the command line left it: `lab.report` asks the same again.
        "expect": asdict(asked.expect),
    }


def _measure(taken: _Measurement, modules: dict[str, Path], manifest: dict[str, Any]) -> None:
    """Load probes, send, receive, search, read out; writes every artefact of the run."""
    journal, deadline = taken.journal, taken.deadline
    taken.pair.touch()
    names = [guest.name for guest in taken.guests]
    taken.pair.attach(*names, deadline=deadline.within(10.0))
    # Before the probes: what this reads and sends would fill their rings.
    with journal.step("conditions"):
        _conditions(taken, manifest)
    probes: dict[str, probe.Probe] = {}
    if taken.asked.probes.kind == "kmod":
        with journal.step("load probes"):
            probes = _load(taken, modules)
        manifest["probes"]["hooks"] = {name: probe.hooks(p) for name, p in probes.items()}
        manifest["digests"]["modules"] = {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in modules.items()
        }
    captures = [witness.Capture(guest) for guest in taken.guests]
    for capture in captures:
        capture.start()
    try:
        with journal.step("send and receive"):
            _sample_clocks(taken)
            sides = workload.run(
                taken.asked.workload,
                sender=taken.sender,
                receiver=taken.receiver,
                seed=taken.seed,
                gate=lambda name: _gate(taken, name),
                deadline=deadline,
            )
            _sample_clocks(taken)
    finally:
        for capture in captures:
            with contextlib.suppress(LabError):
                capture.stop()
            capture.keep(taken.run.guest(capture.guest.name).wire)
    with journal.step("read out traces"):
        _both(taken, lambda guest: _read_out(taken, probes.get(guest.name), guest))
    _write_witnesses(taken, sides, manifest)
    _keep_logs(taken)
    manifest["files"] = {
        str(path.relative_to(taken.run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for guest in taken.guests
        for path in sorted(taken.run.guest(guest.name).path.iterdir())
    }
    taken.run.write_manifest(manifest)


def _both(taken: _Measurement, work: Any) -> dict[str, Any]:
    names = {guest.name for guest in taken.guests}
    return taken.pair.both(lambda guest: work(guest) if guest.name in names else None)


def _load(taken: _Measurement, modules: dict[str, Path]) -> dict[str, probe.Probe]:
    wanted = MODULES[taken.asked.workload.over]

    def load(guest: Guest) -> probe.Probe:
        return probe.load(
            guest,
            {name: modules[name] for name in wanted[guest.name]},
            taken.asked.probes,
            nonce=taken.nonce,
            records=probe.records_for(taken.asked.workload.count, taken.asked.workload.size),
            pushed=taken.stand.pushed.setdefault(guest.name, set()),
            deadline=taken.deadline,
        )

    return {name: value for name, value in _both(taken, load).items() if value is not None}


def _conditions(taken: _Measurement, manifest: dict[str, Any]) -> None:
    """Record what decides which copy function runs: the link's offloads, driver, symbols."""

    def gather(guest: Guest) -> dict[str, str]:
        text = taken.stand.ethtool.get(guest.name)
        if text is None:
            shell = guest.require_shell()
            text = shell.run("ethtool -k lab0; ethtool -i lab0", deadline=taken.deadline).stdout
            taken.stand.ethtool[guest.name] = text
        (taken.run.guest(guest.name).file("ethtool.txt")).write_text(text, encoding="utf-8")
        _symbols(taken, guest)
        return offloads(text)

    found = _both(taken, gather)
    manifest["link"]["offloads"] = found[taken.sender.name]


def offloads(text: str) -> dict[str, str]:
    """Return the features of `ethtool -k` that decide how bytes are copied."""
    wanted = {
        "tx-checksumming": "tx-checksum",
        "rx-checksumming": "rx-checksum",
        "scatter-gather": "scatter-gather",
        "tcp-segmentation-offload": "tso",
        "generic-receive-offload": "gro",
    }
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key in wanted and value.strip():
            found[wanted[key]] = value.split()[0]
    return found


def _symbols(taken: _Measurement, guest: Guest) -> None:
    """Keep the guest's symbols; asked of it once per snapshot, since a restore keeps them."""
    state = taken.pair.require_up()
    # By the nonce: a snapshot that was made anew has the same name and other addresses.
    mark = state.guests[guest.name].nonce[:16]
    kept = snapshot.folder() / state.snapshot / f"{guest.name}.{mark}.symbols"
    target = taken.run.guest(guest.name).symbols
    before = taken.stand.symbols.setdefault(guest.name, target)
    if before is not target:
        # 7 MB that are the same for every run on this pair.
        with contextlib.suppress(OSError):
            target.hardlink_to(before)
            return
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(kept, target)
        return
    with taken.journal.step("symbols", guest=guest.name):
        shell = guest.require_shell()
        # 7 MB of text: packing it costs a guest under TCG less than encrypting it.
        packed = "/run/symbols.gz"
        shell.run(f"gzip -1 -c < /proc/kallsyms > {packed}", deadline=taken.deadline)
        shell.get(packed, target, deadline=taken.deadline)
        shell.run(f"rm {packed}", deadline=taken.deadline)
        target.write_bytes(gzip.decompress(target.read_bytes()))
    # The snapshot may have been evicted, or found corrupt, while this lab goes on.
    with contextlib.suppress(FileNotFoundError):
        part = kept.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(target, part)
        part.replace(kept)


def _gate(taken: _Measurement, name: str) -> None:
    """Read the rings and search RAM while sender and receiver are held."""

    def look(guest: Guest) -> None:
        rings = taken.rings.setdefault(guest.name, witness.Rings(guest))
        log = taken.logs.setdefault(guest.name, witness.AccessLog(guest))
        if name == "received":
            log.disarm(deadline=taken.deadline.within(SWITCH_S))
        if taken.asked.workload.over == "link":
            rings.read(name)
        if name == "armed":
            log.arm(deadline=taken.deadline.within(SWITCH_S))
            return
        with guest.memory() as memory:
            found = witness.census(memory, taken.messages, name)
        taken.census.setdefault(guest.name, []).append(found)

    with taken.journal.step(f"gate {name}"):
        _both(taken, look)


def _sample_clocks(taken: _Measurement) -> None:
    for guest in taken.guests:
        for sample in guest.sample_clock(count=CLOCK_SAMPLES, deadline=taken.deadline):
            taken.clock.setdefault(guest.name, []).append(
                {
                    "before_ns": sample.before_ns,
                    "tsc": sample.tsc,
                    "after_ns": sample.after_ns,
                }
            )


def _read_out(taken: _Measurement, loaded: probe.Probe | None, guest: Guest) -> None:
    if loaded is None:
        return
    probe.finish(loaded, deadline=taken.deadline)
    taken.run.guest(guest.name).trace.write_bytes(probe.drain(loaded))
    probe.unload(loaded, deadline=taken.deadline)


def _write_witnesses(
    taken: _Measurement, sides: tuple[workload.Side, ...], manifest: dict[str, Any]
) -> None:
    needle = taken.messages.needle()
    kind = "payload" if taken.asked.workload.payload is not None else "tag"
    on_link = taken.asked.workload.over == "link"
    for guest in taken.guests:
        folder = taken.run.guest(guest.name)
        folder.write_json(
            "workload.json",
            [side.to_json() for side in sides if side.guest is guest],
        )
        folder.write_json(
            "census.json",
            {
                "needles": kind if needle is not None else "absent: too short",
                "gates": taken.census.get(guest.name, []),
            },
        )
        if on_link:
            folder.write_json("rings.json", taken.rings[guest.name].to_json())
        folder.write_json("tsc.json", {"samples": taken.clock[guest.name]})
        kept = taken.logs[guest.name].keep(
            taken.messages,
            rings=taken.rings[guest.name] if on_link else None,
            buffers=[page for side in sides if side.guest is guest for page in side.pages()],
        )
        if kept is not None:
            folder.file("access.bin").write_bytes(kept)
    lacking = [name for name, log in taken.logs.items() if log.control is None]
    absent = topology.access_log_absent(taken.stand.setup.accelerator)
    manifest["witnesses"] = {
        "probe:kmod": "present" if taken.asked.probes.kind == "kmod" else "absent: not asked for",
        "probe:bpf": "absent: not built yet",
        "access-log": f"absent: {absent or 'the lab was up without it'}" if lacking else "present",
        "census": "present" if needle is not None else "absent: message below 8 bytes",
        "wire": "present",
        "rings": "present" if on_link else "absent: no device on loopback",
    }


def _keep_logs(taken: _Measurement) -> None:
    """Copy what QEMU and the guests said, however the run ended."""
    for log in taken.logs.values():
        log.close()
    for guest in taken.guests:
        folder = taken.run.guest(guest.name).path
        for source, name in ((guest.folder.console, "console.log"), (guest.folder.log, "qemu.log")):
            with contextlib.suppress(OSError):
                (folder / name).write_bytes(process.read_given(source))
        argv = guest.argv or _running_argv(guest)
        (folder / "argv").write_text("\n".join(argv) + "\n", encoding="utf-8")


def _running_argv(guest: Guest) -> list[str]:
    for pid in process.holders(guest.folder.lock):
        with contextlib.suppress(OSError):
            raw = Path(f"/proc/{pid}/cmdline").read_bytes()
            return [word.decode("utf-8", "replace") for word in raw.rstrip(b"\0").split(b"\0")]
    return []


def describe_command() -> str:
    """Return the command line of this process, for the manifest."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
