"""The message experiment: send, receive, and account for every byte in a ledger."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lab import (
    foreign,
    ledger,
    message,
    report,
    rundir,
    spec,
    topology,
    witness,
    workload,
)
from lab.blocks import Block
from lab.deadline import Deadline
from lab.errors import LabError
from lab.experiment import conditions, watchers
from lab.experiment.outcome import Later, Outcome
from lab.experiment.stand import (
    Stand,
    common_manifest,
    foreign_files,
    keep_logs,
    keep_symbols,
)
from lab.guest import Guest
from lab.journal import Journal
from lab.ledger import expected
from lab.rings import Rings
from lab.rundir import conditions as said_of

# Which modules watch where: both on the one guest of a loopback run.
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "loopback": {"sender": ("send_trace", "recv_trace")},
    "link": {"sender": ("send_trace",), "receiver": ("recv_trace",)},
}
CLOCK_SAMPLES = 5
SWITCH_S = 10.0  # the access log is armed in 0.05 s
MOST_TOLD = 5
MORE_ROOM = "once more; where records were dropped fewer messages, or probes: {records: N}"
# The access log is full after some 150 short messages: about 20,000 accesses each, 4,000 runs
# of them.  A long one takes room for its bytes as well, several times.
MOST_LOGGED = 100  # messages
MOST_LOGGED_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the ledger says, and what of `expect:` did not hold."""

    run: rundir.RunDir
    ledger: ledger.Ledger
    failures: tuple[str, ...]
    told: tuple[Block, ...]  # report.txt

    @property
    def trouble(self) -> tuple[str, ...]:
        if self.ledger.interrupted:
            return ("the run was interrupted",)
        out = [] if self.ledger.complete else ["the ledger is incomplete"]
        out += [f"expected {failure}" for failure in self.failures[:MOST_TOLD]]
        if len(self.failures) > MOST_TOLD:
            out.append(f"and {len(self.failures) - MOST_TOLD} more expectations failed")
        if self.ledger.disagreements:
            out.append("witnesses disagree")
        return tuple(out)

    @property
    def lost(self) -> bool:
        """Whether records were, so that the same run taken again may be whole."""
        return any(self.ledger.lost.values())


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guests that take part: one on loopback, two on the link."""
    return tuple(MODULES[asked.workload.over])


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
    rings: dict[str, Rings] = field(default_factory=dict)
    logs: dict[str, witness.AccessLog] = field(default_factory=dict)
    pages: dict[str, witness.PageNames] = field(default_factory=dict)
    clock: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    held: list[dict[str, Any]] = field(default_factory=list)  # gates, on the host's clock
    beside: Beside | None = None
    also: tuple[str, ...] = ()

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
    def modules(self) -> dict[str, tuple[str, ...]]:
        """Which modules watch in which guest."""
        wanted = dict(MODULES[self.asked.workload.over])
        wanted[self.receiver.name] += self.also
        return wanted

    @property
    def messages(self) -> message.Messages:
        asked = self.asked.workload
        return message.Messages(
            seed=self.seed if asked.payload is None else None,
            payload=asked.payload,
            size=asked.size,
            count=asked.count,
        )


class Beside(Protocol):
    """What else is done with the guests while a message is on its way."""

    stops: bool  # whether the guests, and their clocks with them, stand still meanwhile

    def armed(self, guests: Sequence[Guest]) -> None:
        """Begin; nothing was sent yet, and the access log is on."""

    def sent(self, receiver: workload.Side) -> None:
        """Go on; all was sent, and the sender has said so."""

    def received(self) -> None:
        """End; all was received, and the access log is still on."""

    def close(self) -> None:
        """Let go of the guests, however the run ended."""


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
    beside: Beside | None = None,
    also: Sequence[str] = (),
) -> None:
    """Take one measurement on a pair that is ready; every artefact of the run is written.

    `also` are modules that the receiver gets besides.
    """
    taken = _Measurement(
        asked=asked,
        run=run_dir,
        stand=ready,
        journal=journal,
        deadline=Deadline.of_run(asked.deadline_s),
        seed=secrets.randbits(64),
        nonce=secrets.token_bytes(16),
        beside=beside,
        also=tuple(also),
    )
    manifest = _manifest(taken, command=command)
    run_dir.write_manifest(manifest)
    try:
        _measure(taken, ready.modules, manifest)
    except BaseException:
        _keep_logs(taken)
        raise
    finally:
        if beside is not None:
            beside.close()


@ledger.without_collector()
def answer(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Answer:
    """Compute ledger and report of a run from its directory alone."""
    read = sum(guest.trace.stat().st_size for guest in run_dir.guests() if guest.has("trace.bin"))
    with journal.step("ledger", scale=read):
        result = ledger.build(run_dir)
        run_dir.write_pieces("ledger.json", result.pieces())
        found = ledger.expectations(result, expect)
        without = expected.not_judged(result, run_dir.manifest())
        if found or without or result.interrupted:
            run_dir.write_json(expected.FILE, expected.as_json(found, without))
    with journal.step("report"):
        told = report.told(result, run_dir, found)
        run_dir.write_text("report.txt", report.text(told))
        archive = report.Archive(run_dir)
        run_dir.write_text("report.html", report.page(result, run_dir, found, archive))
        run_dir.write_text("trace.perfetto.json", report.trace(result, run_dir, archive))
        frames = report.wire(result, run_dir)
        if frames is not None:
            run_dir.file("wire.pcapng").write_bytes(frames)
    failures = tuple(str(one) for one in found if not one.held)
    return Answer(run=run_dir, ledger=result, failures=failures, told=tuple(told))


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Compute ledger and report of a run, and say why it is not proven."""
    found = answer(run_dir, expect, journal=journal)

    def value() -> dict[str, Any]:
        return {**found.ledger.as_json(), "failed_expectations": list(found.failures)}

    return Outcome(
        run=run_dir,
        result="ledger.json",
        value=Later(value),
        trouble=found.trouble,
        hint=MORE_ROOM if found.lost else f"invoke lab.lines {rundir.called(run_dir)}",
        told=found.told,
        lost=found.lost,
    )


def _manifest(taken: _Measurement, *, command: str) -> dict[str, Any]:
    work = taken.asked.workload
    return {
        **common_manifest(taken.stand, taken.asked, guests=guests(taken.asked), command=command),
        "over": work.over,
        "family": work.family,
        "protocol": work.protocol,
        "connect": work.connect,
        "size": work.size,
        "count": work.count,
        "idle_ms": workload.IDLE_MS,
        "seed": f"{taken.seed:016x}" if work.payload is None else None,
        "payload_masked": None if work.payload is None else message.mask(work.payload),
        "probes": {
            "kind": taken.asked.probes.kind,
            "modules": {k: list(v) for k, v in taken.modules.items()},
            "without": list(taken.asked.probes.without),
            "comm": taken.asked.probes.comm,
        },
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
        _count_dropped(taken)
    strangers = _load_foreign(taken, manifest)
    loaded = watchers.load(
        taken.modules,
        taken.asked,
        taken.stand,
        modules,
        symbols={guest.name: taken.run.guest(guest.name).symbols for guest in taken.guests},
        nonce=taken.nonce,
        journal=journal,
        deadline=deadline,
    )
    watchers.describe(loaded, manifest, modules)
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
                sent=None if taken.beside is None else taken.beside.sent,
                deadline=deadline,
            )
            _sample_clocks(taken)
    finally:
        for capture in captures:
            with contextlib.suppress(LabError):
                capture.stop()
            capture.keep(taken.run.guest(capture.guest.name).wire)
    with journal.step("read out traces"):
        _both(
            taken,
            lambda guest: watchers.read_out(
                loaded[guest.name], taken.run.guest(guest.name), deadline=deadline
            ),
        )
        _count_dropped(taken)
    for name, probes in strangers.items():
        said = foreign.read_out(taken.pair.guests[name], probes, deadline=deadline)
        for file, text in said.items():
            taken.run.guest(name).file(file).write_text(text, encoding="utf-8")
    _write_witnesses(taken, sides, manifest)
    _keep_logs(taken)
    manifest["files"] = taken.run.digests(guests(taken.asked))
    taken.run.write_manifest(manifest)


def _load_foreign(
    taken: _Measurement, manifest: dict[str, Any]
) -> dict[str, list[foreign.Foreign]]:
    """Load the user's own probes in every guest."""
    if not taken.asked.probes.foreign:
        return {}
    files = foreign_files(taken.asked, taken.stand.setup.image, journal=taken.journal)
    with taken.journal.step("load foreign probes"):
        loaded = _both(
            taken,
            lambda guest: foreign.load(
                guest, files, journal=taken.journal, deadline=taken.deadline
            ),
        )
    manifest["probes"]["foreign"] = {
        name: {one.name: one.absent or "present" for one in probes}
        for name, probes in loaded.items()
        if probes is not None
    }
    manifest["digests"]["foreign"] = {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }  # of a .c: of the module it was built to
    return {name: probes for name, probes in loaded.items() if probes is not None}


def _both(taken: _Measurement, work: Any) -> dict[str, Any]:
    names = {guest.name for guest in taken.guests}
    return taken.pair.both(lambda guest: work(guest) if guest.name in names else None)


def _conditions(taken: _Measurement, manifest: dict[str, Any]) -> None:
    """Record what decides which copy function runs: the link's offloads, driver, symbols."""

    def gather(guest: Guest) -> str:
        text = taken.stand.ethtool.get(guest.name)
        if text is None:
            alone = taken.asked.workload.over == "loopback"
            link = spec.Link() if alone else taken.asked.link
            text = conditions.set_link(guest, link, deadline=taken.deadline)
            taken.stand.ethtool[guest.name] = text
        (taken.run.guest(guest.name).file("ethtool.txt")).write_text(text, encoding="utf-8")
        keep_symbols(
            taken.stand,
            guest,
            taken.run.guest(guest.name).symbols,
            journal=taken.journal,
            deadline=taken.deadline,
        )
        taken.pages[guest.name] = witness.PageNames(taken.run.guest(guest.name).symbols)
        return text

    told = _both(taken, gather)
    said = told[taken.sender.name]
    manifest["link"] |= said_of.as_found(said) | {"offloads": said_of.offloads(said)}
    if program := said_of.as_found(told[taken.receiver.name]).get("xdp"):
        manifest["link"].setdefault("options", {})["xdp"] = program


def _count_dropped(taken: _Measurement) -> None:
    """Add to what netem counts at each end of the link; a link without it has no such file."""
    link = taken.asked.link
    if taken.asked.workload.over == "loopback" or not (link.delay_s or link.loss):
        return

    def count(guest: Guest) -> None:
        text = conditions.counted(guest, deadline=taken.deadline)
        with taken.run.guest(guest.name).file(said_of.QDISC).open("a", encoding="utf-8") as file:
            file.write(text)

    _both(taken, count)


def _gate(taken: _Measurement, name: str) -> None:
    """Read the rings and search RAM while sender and receiver are held."""

    def look(guest: Guest) -> None:
        log = taken.logs.get(guest.name)
        if log is None:
            wanted = unlogged(taken.asked) is None
            log = taken.logs[guest.name] = witness.AccessLog(guest, wanted=wanted)
        if name == "received":
            log.disarm(deadline=taken.deadline.within(SWITCH_S))
        if taken.asked.workload.over == "link":
            held = taken.rings.get(guest.name)
            taken.rings[guest.name] = witness.read_rings(guest, held, name)
        if name == "armed":
            log.arm(deadline=taken.deadline.within(SWITCH_S))
            return
        with guest.memory() as memory:
            names = taken.pages.get(guest.name)
            found = witness.census(memory, taken.messages, name, names)
        taken.census.setdefault(guest.name, []).append(found)

    before = time.monotonic_ns()
    if taken.beside is not None and name == "received":
        taken.beside.received()
    with taken.journal.step(f"gate {name}"):
        _both(taken, look)
    # Where a debugger holds the guests their clocks stand, and no line is true of them.
    if taken.beside is None or not taken.beside.stops:
        gate = {"gate": name, "before_ns": before, "after_ns": time.monotonic_ns()}
        taken.held.append(gate)
    if taken.beside is not None and name == "armed":
        taken.beside.armed(taken.guests)


def unlogged(asked: spec.Playbook) -> str | None:
    """Say why the access log is left asleep; None where it is not.

    Where it is the only account it logs as much as it has room for, and the ledger says what
    it lost.
    """
    work = asked.workload
    if asked.probes.kind == "none":
        return None
    if work.count > MOST_LOGGED:
        return f"{work.count} messages are more than it has room for"
    if work.count * work.size > MOST_LOGGED_BYTES:
        return f"{work.count * work.size >> 20} MiB of messages are more than it has room for"
    return None


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
        folder.write_json("tsc.json", {"samples": taken.clock[guest.name], "gates": taken.held})
        kept = taken.logs[guest.name].keep(
            taken.messages,
            held=taken.rings[guest.name] if on_link else None,
            buffers=[page for side in sides if side.guest is guest for page in side.pages()],
        )
        if kept is not None:
            folder.file("access.bin").write_bytes(kept)
    lacking = [name for name, log in taken.logs.items() if log.control is None]
    absent = topology.access_log_absent(taken.stand.setup.accelerator) or unlogged(taken.asked)
    manifest["witnesses"] = {
        **watchers.witnesses(taken.asked.probes.kind),
        "access-log": f"absent: {absent or 'the lab was up without it'}" if lacking else "present",
        "census": "present" if needle is not None else "absent: message below 8 bytes",
        "wire": "present",
        "rings": "present" if on_link else "absent: no device on loopback",
    }


def _keep_logs(taken: _Measurement) -> None:
    for log in taken.logs.values():
        log.close()
    keep_logs(taken.run, taken.guests)
