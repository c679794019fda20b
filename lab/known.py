"""Ground truth: what a module says it moves, held against what probes and access log saw.

Pure: reads the run directory that `lab.experiment.known` wrote.  The module's word is the
right answer; a witness that has more or less of it than the module says is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab import access, accesses, record
from lab.blocks import Block, Heading, paragraph, table
from lab.correlate.outside import name_of
from lab.message import Messages
from lab.rundir import GuestDir, Manifest, RunDir
from lab.rundir.fields import read_json
from lab.symbols import Symbols

MOVES = "moves.json"  # in the guest's folder: what the module says
COPY, READ, WRITE = "copy", "device read", "device write"
PROBES, LOG = "probe:kmod", "access-log"
COPIER, MOVER = "known:known_copy", "known:known_dma"


@dataclass(frozen=True, slots=True, order=True)
class Move:
    """One message that was moved; addresses are physical, 0 inside the device."""

    kind: str
    message: int
    source: int
    target: int
    size: int

    def __str__(self) -> str:
        ways = {
            COPY: f"from {self.source:#x} to {self.target:#x}",
            READ: f"of {self.source:#x}",
            WRITE: f"to {self.target:#x}",
        }
        return f"{self.kind} of message {self.message}, {self.size} bytes, {ways[self.kind]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What was said and what was seen; `witnesses` are those that had something to say."""

    said: tuple[Move, ...]
    seen: Mapping[str, tuple[Move, ...]]
    functions: Mapping[str, tuple[str, ...]]  # witness -> who copied
    absent: Mapping[str, str]
    lost: Mapping[str, int]
    records: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # one of each of `seen`
    faults: tuple[str, ...] = ()  # of the run's files

    @property
    def trouble(self) -> tuple[str, ...]:
        """What does not agree with the module's word, one line each."""
        out = [*self.faults]
        out += [f"{name} lost {count} records" for name, count in self.lost.items() if count]
        if not self.seen:
            out.append("no witness saw anything")
        out += [
            f"nobody could see: {move}"
            for move in self.said
            if self.seen and not any(judges(witness, move) for witness in self.seen)
        ]
        for witness, seen in self.seen.items():
            said = [move for move in self.said if judges(witness, move)]
            out += [f"{witness}: the module does not say: {m}" for m in _less(seen, said)]
            out += [f"{witness} has not seen: {m}" for m in _less(said, seen)]
        return tuple(out)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"trouble": list(self.trouble)}


def judges(witness: str, move: Move) -> bool:
    """Tell whether a witness can see such a move.

    The access log sees CPUs only: that bytes came which no CPU stored, not that they left.
    """
    return witness == PROBES or move.kind != READ


def _less(left: tuple[Move, ...] | list[Move], right: tuple[Move, ...] | list[Move]) -> list[Move]:
    rest = list(right)
    out = []
    for move in left:
        if move in rest:
            rest.remove(move)
        else:
            out.append(move)
    return out


def compare(run: RunDir) -> Truth:
    """Read a run of `known` and return who says what."""
    manifest = run.manifest()
    folder = run.only_guest()
    messages = Messages(seed=manifest.seed, size=manifest.size, count=manifest.count)
    said = tuple(_said(folder, manifest))
    seen: dict[str, tuple[Move, ...]] = {}
    functions: dict[str, tuple[str, ...]] = {}
    lost: dict[str, int] = {}
    records: dict[str, tuple[str, ...]] = {}
    faults = [*run.changes()]
    if folder.trace.is_file():
        trace = record.read(folder.trace, guest=folder.name)
        recorded = sorted(_recorded(trace, said))
        seen[PROBES] = tuple(move for move, _ in recorded)
        records[PROBES] = tuple(record_id for _, record_id in recorded)
        copied = (one.hook for one in trace.records if one.hook == COPIER)
        functions[PROBES] = tuple(dict.fromkeys(copied))
        lost[PROBES] = trace.lost
        faults += [
            f"{section.name} was not finished: its losses are unknown"
            for section in trace.sections
            if not section.header.finished
        ]
    if folder.has("access.bin"):
        log = access.read(folder.file("access.bin"), guest=folder.name)
        found = accesses.analyse(
            log,
            messages,
            symbols=Symbols(folder.symbols),
            present=[(move.source, move.source + move.size) for move in said if move.source],
        )
        logged = sorted([*_copied(found), *_written(found)])
        seen[LOG] = tuple(move for move, _ in logged)
        records[LOG] = tuple(record_id for _, record_id in logged)
        functions[LOG] = tuple(dict.fromkeys(name_of(copy) for copy in found.copies))
        lost[LOG] = log.lost + (0 if log.complete else int(log.lost == 0))
    absent = {
        name: told.removeprefix("absent: ")
        for name, told in manifest.witnesses
        if told.startswith("absent")
    }
    faults += [
        f"{name} was a witness of the run and its file is gone"
        for name, told in manifest.witnesses
        if told == "present" and name in (PROBES, LOG) and name not in seen
    ]
    return Truth(
        said=said,
        seen=seen,
        functions=functions,
        absent=absent,
        lost=lost,
        records=records,
        faults=tuple(faults),
    )


def _said(folder: GuestDir, manifest: Manifest) -> Iterator[Move]:
    size = manifest.size
    rows: Any = read_json(folder.file(MOVES))
    for kind, message, source, target in rows:
        if kind == "copy":
            yield Move(COPY, message, source, target, size)
        else:
            yield Move(READ, message, source, 0, size)
            yield Move(WRITE, message, 0, target, size)


def _recorded(trace: record.Trace, said: tuple[Move, ...]) -> Iterator[tuple[Move, str]]:
    # A record has addresses; which message lies there is the module's word.
    at = {move.source: move.message for move in said if move.source}
    at |= {move.target: move.message for move in said if move.target}
    for one in trace.records:
        if one.hook == COPIER:
            message = at.get(one.src_phys, -1)
            yield Move(COPY, message, one.src_phys, one.dst_phys, one.size), one.id
        elif one.hook == MOVER and one.dst_phys:
            yield Move(WRITE, at.get(one.dst_phys, -1), 0, one.dst_phys, one.size), one.id
        elif one.hook == MOVER:
            yield Move(READ, at.get(one.src_phys, -1), one.src_phys, 0, one.size), one.id


def _copied(found: accesses.Accesses) -> Iterator[tuple[Move, str]]:
    for copy in found.copies:
        source, target = copy.source[0][0], copy.target[0][0]
        move = Move(
            COPY, copy.message, source + copy.payload_at, target + copy.payload_at,
            copy.payload_size,
        )  # fmt: skip
        yield move, copy.evidence[0]


def _written(found: accesses.Accesses) -> Iterator[tuple[Move, str]]:
    for write in found.device_writes:
        at = write.physical[0][0] + write.payload_at
        yield Move(WRITE, write.message, 0, at, write.payload_size), write.evidence[0]


def told(truth: Truth, manifest: Manifest) -> list[Block]:
    """Return what report.txt says: the module's word, and each witness's count beside it."""
    trouble = truth.trouble
    copies = sum(move.kind == COPY for move in truth.said)
    devices = len(truth.said) - copies
    said = f"{copies} copies of {manifest.size} bytes, and {devices} device accesses"
    head = f"COMPLETE: {said}, and every witness saw just these."
    if trouble:
        head = f"DISAGREEMENT: the module says {said}."
    out = [*paragraph(head), f"known, Linux {manifest.kernel}, {manifest.accelerator}"]
    out += [block for text in trouble for block in paragraph(f"! {text}")]
    rows = []
    for name, moves in {"the module": truth.said, **truth.seen}.items():
        counts = [sum(move.kind == kind for move in moves) for kind in (COPY, READ, WRITE)]
        cells = [
            "cannot see" if name == LOG and kind == READ else str(count)
            for kind, count in zip((COPY, READ, WRITE), counts, strict=True)
        ]
        rows.append((name, *cells, ", ".join(truth.functions.get(name, ("its word",)))))
    columns = ("WITNESS", "COPIES", "READS", "WRITES", "COPIED BY")
    out += ["", *table(columns, rows, right="COPIES READS WRITES")]
    out += [
        block
        for name, why in truth.absent.items()
        for block in paragraph(f"absent: {name} ({why})")
    ]
    out += ["", Heading("THE MODULE'S WORD, move by move", f"{MOVES}")]
    places = [
        (
            move.kind,
            str(move.message),
            f"{move.source:#x}" if move.source else "the device",
            f"{move.target:#x}" if move.target else "the device",
            str(move.size),
            *(_proof(name, move, truth) for name in truth.seen),
        )
        for move in truth.said
    ]
    return [*out, *table(("MOVE", "MESSAGE", "FROM", "TO", "LEN", *truth.seen), places)]


def _proof(witness: str, move: Move, truth: Truth) -> str:
    """Return the first record of a move that a witness has; of several such moves, of each."""
    if not judges(witness, move):
        return "cannot see"
    pairs = zip(truth.seen[witness], truth.records[witness], strict=True)
    found = [record_id.partition("/")[2] for seen, record_id in pairs if seen == move]
    return ", ".join(found) or "✗"
