"""Many cells, one table: every topology brought up once, every size and protocol on it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from lab import experiment, paths, playbook, report, rundir, spec, topology
from lab.correlate.hooks import DRIVER_XMIT
from lab.errors import LabError
from lab.experiment import message as exchange
from lab.journal import Journal
from lab.ledger import Ledger, Message
from lab.report.blocks import Block, Table, paragraph
from lab.report.tables import WIDTH, some, span
from lab.rundir.making import being_made

SCHEMA = 1
LO = "lo"
PROVEN, UNPROVEN, FAILED, UNAVAILABLE = "proven", "unproven", "failed", "unavailable"
HEAD = ("KERNEL", "LINK", "BACKEND", "PROTO", "SIZE", "COPIES", "READS", "WRITES", "FRAMES", "BY")
RIGHT = frozenset({"SIZE", "COPIES", "READS", "WRITES", "FRAMES"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What records of one run say of how its bytes went; compared between sizes."""

    copies: int  # the most any byte was copied
    least_copies: int
    reads: int
    least_reads: int
    writes: int
    least_writes: int
    handovers: int
    frames: int  # frames that carried message bytes
    frame: int  # bytes of the first of them, 0: none
    calls: tuple[tuple[str, int], ...]  # function that copied message bytes, calls
    filled: str  # the kind of memory the sender's first copy filled
    taken: tuple[str, ...]  # how the receiving driver took frames in
    buffers: tuple[int, ...]  # bytes of the RX buffers they came in, as the descriptors say


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One cell and what came of it."""

    asked: spec.Playbook
    state: str
    reason: str = ""
    release: str = ""
    run: str = ""
    seconds: float = 0.0
    facts: Facts | None = None

    @property
    def link(self) -> str:
        return LO if self.asked.workload.over == "loopback" else self.asked.link.device

    @property
    def backend(self) -> str:
        return "-" if self.asked.workload.over == "loopback" else self.asked.link.backend

    @property
    def path(self) -> tuple[str, str, str, str]:
        """Return kernel, link, backend and transport: all but the size."""
        return str(self.asked.kernel), self.link, self.backend, self.transport

    @property
    def transport(self) -> str:
        work = self.asked.workload
        return rundir.transport(work.protocol, family=work.family, connected=work.connect)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A folder of runs, and what each cell came to."""

    folder: Path
    results: tuple[Result, ...]

    @property
    def proven(self) -> bool:
        """Every cell that can run here is complete and without disagreement."""
        return not any(one.state in (UNPROVEN, FAILED) for one in self.results)


# --- Cells ----------------------------------------------------------------------------------


def cells(asked: spec.Playbook) -> list[spec.Playbook]:
    """Return one playbook for each cell: every value with every other that goes with it."""
    of = asked.sweep
    out = []
    for kernel in of.kernel or (asked.kernel,):
        for over in of.over or (asked.workload.over,):
            # Over loopback no device and no backend takes part: one path, not one of each.
            alone = over == "loopback"
            for device in (asked.link.device,) if alone else of.device or (asked.link.device,):
                for backend in (
                    (asked.link.backend,) if alone else of.backend or (asked.link.backend,)
                ):
                    link = dataclasses.replace(asked.link, device=device, backend=backend)
                    for work in _workloads(asked, over):
                        cell = dataclasses.replace(asked, kernel=kernel, link=link, workload=work)
                        out += [cell] * of.repeat
    return out


def _workloads(asked: spec.Playbook, over: spec.Over) -> Iterator[spec.Workload]:
    of, own = asked.sweep, asked.workload
    for family in of.family or (own.family,):
        for protocol in of.protocol or (own.protocol,):
            # A TCP socket is connected whatever is asked: one way, not two.
            connects = (own.connect,) if protocol == "tcp" else of.connect or (own.connect,)
            for connect in connects:
                for size in of.size or (own.size,):
                    yield dataclasses.replace(
                        own,
                        over=over,
                        family=family,
                        protocol=protocol,
                        connect=connect,
                        size=size,
                    )


def run(
    asked: spec.Playbook,
    *,
    lab_name: str,
    journal: Journal,
    command: str,
    locked: bool = False,
    offline: bool = False,
) -> Sweep:
    """Measure every cell; a cell that fails is told in the table and the others go on.

    A topology is brought up once for all its cells, and not reset between them: each run
    has a seed, a nonce and probes of its own, so what a cell leaves in RAM is no other's.
    """
    folder = _folder(asked)
    journal.to_file(folder / "journal.jsonl")
    with being_made(folder, called="sweep"):
        wanted = cells(asked)
        results: dict[int, Result] = {}
        for number, cell in enumerate(wanted):
            reason = playbook.why_not(cell) or topology.backend_absent(cell.link.backend)
            if reason:
                results[number] = Result(asked=cell, state=UNAVAILABLE, reason=reason)
        rest = [number for number in range(len(wanted)) if number not in results]
        rest.sort(key=lambda number: _topology(wanted[number]))
        progress = _Progress(journal, len(rest))
        progress.begin(len({_topology(wanted[number]) for number in rest}), len(results))
        for _, group in groupby(rest, key=lambda number: _topology(wanted[number])):
            mine = list(group)
            station = _Station(
                lab_name=lab_name, journal=journal, command=command, folder=folder,
                locked=locked, offline=offline,
            )  # fmt: skip
            for number, result in station.measure(mine, wanted):
                results[number] = result
                progress.tell(result)
                _keep(asked, folder, results)  # what was measured stays, however the sweep ends
        return _keep(asked, folder, results)


def _keep(asked: spec.Playbook, folder: Path, results: dict[int, Result]) -> Sweep:
    found = Sweep(folder=folder, results=tuple(results[n] for n in sorted(results)))
    out = rundir.RunDir(folder)
    out.write_json("index.json", to_json(asked, found))
    out.write_text("table.txt", render(found))
    return found


def _topology(cell: spec.Playbook) -> tuple[str, str, str]:
    # All else of the link is the same in every cell.
    return str(cell.kernel), cell.link.device, cell.link.backend


def _folder(asked: spec.Playbook) -> Path:
    digest = hashlib.sha256(asked.source).hexdigest()
    folder = rundir.create(paths.runs(), asked.name, digest, guests=(), last=False).path
    (folder / "playbook.yaml").write_bytes(asked.source)
    return folder


@dataclass(frozen=True, kw_only=True, slots=True)
class _Station:
    """Where the cells of one topology are measured."""

    lab_name: str
    journal: Journal
    command: str
    folder: Path
    locked: bool
    offline: bool

    def measure(
        self, numbers: Sequence[int], wanted: Sequence[spec.Playbook]
    ) -> Iterator[tuple[int, Result]]:
        """Yield a result for each of the cells; after a failure the pair is brought up anew."""
        left = list(numbers)
        again = False
        while left:
            first = wanted[left[0]]
            before = len(left)
            try:
                setup, modules = experiment.setup_for(
                    first, journal=self.journal, locked=self.locked, offline=self.offline
                )
                with experiment.stand(
                    setup, modules, lab_name=self.lab_name, journal=self.journal
                ) as ready:
                    while left:
                        result = self._cell(ready, wanted[left[0]])
                        yield left.pop(0), result
                        if result.state == FAILED:
                            break
            except LabError as error:
                if len(left) < before:  # the pair went after its last cell did
                    continue
                if not again:  # no cell had its turn: a busy host may have been too slow
                    again = True
                    self.journal.say(f"brought up once more: {_one_line(error)}")
                    continue
                yield left.pop(0), Result(asked=first, state=FAILED, reason=_one_line(error))
            again = False

    def _cell(self, ready: experiment.Stand, cell: spec.Playbook) -> Result:
        start = time.monotonic()
        run_dir = experiment.new_run(
            cell, ready.setup, self.folder, guests=exchange.guests(cell), last=False
        )
        journal = Journal(stream=io.StringIO())
        journal.to_file(run_dir.path / "journal.jsonl")
        release = ready.setup.image.release
        try:
            with being_made(run_dir.path):
                exchange.take(ready, cell, run_dir, journal=journal, command=self.command)
                outcome = exchange.answer(run_dir, cell.expect, journal=journal)
        except LabError as error:
            return Result(
                asked=cell, state=FAILED, reason=_one_line(error), release=release,
                run=run_dir.name, seconds=time.monotonic() - start,
            )  # fmt: skip
        reason = _why_unproven(outcome)
        return Result(
            asked=cell,
            state=UNPROVEN if reason else PROVEN,
            reason=reason,
            release=release,
            run=run_dir.name,
            seconds=time.monotonic() - start,
            facts=facts(outcome.ledger, run_dir),
        )


def _one_line(error: LabError) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _why_unproven(outcome: exchange.Answer) -> str:
    ledger = outcome.ledger
    if ledger.incomplete:
        first = next((one for one in ledger.incomplete if one.between), ledger.incomplete[0])
        return f"incomplete: {first.guest}: {first.why}"
    if ledger.disagreements:
        return f"disagreement: {ledger.disagreements[0].guest}: {ledger.disagreements[0].text}"
    return "; ".join(f"expected {failure}" for failure in outcome.failures)


class _Progress:
    """Says what each cell came to, and how long the others may take."""

    def __init__(self, journal: Journal, count: int) -> None:
        self.journal = journal
        self.count = count
        self.done = 0
        self.seconds = 0.0  # that cells took; all else was bringing up
        self.topologies = 0
        self.up: set[tuple[str, str, str]] = set()
        self.start = time.monotonic()

    def begin(self, topologies: int, unavailable: int) -> None:
        self.topologies = topologies
        cannot = f", {unavailable} more cannot run here" if unavailable else ""
        self.journal.say(
            f"{some(self.count, 'cell')} on {some(topologies, 'topology', 'topologies')}{cannot}"
        )

    def tell(self, result: Result) -> None:
        self.done += 1
        self.seconds += result.seconds
        self.up.add(_topology(result.asked))
        bringing_up = (time.monotonic() - self.start - self.seconds) / len(self.up)
        left = self.seconds / self.done * (self.count - self.done)
        left += bringing_up * (self.topologies - len(self.up))
        where = " ".join(word for word in result.path if word != "-")
        self.journal.say(
            f"{self.done:>4} of {self.count}  {where} {result.asked.workload.size} bytes: "
            f"{_counted(result) or result.state}  {result.seconds:.1f} s{_left(left)}"
        )


def _left(seconds: float) -> str:
    if not seconds:
        return ""
    return f", {seconds:.0f} s left" if seconds < 90 else f", {seconds / 60:.0f} min left"


# --- What the records say -------------------------------------------------------------------


def facts(ledger: Ledger, run_dir: rundir.RunDir) -> Facts:
    """Gather what moved a run's messages; every number is one of the ledger."""
    totals = [message.totals for message in ledger.messages]
    calls: Counter[str] = Counter()
    for message in ledger.messages:
        for movement in message.movements:
            if movement.kind == "copy":
                calls[report.function_name(movement)] += 1
    first = ledger.messages[0]
    wires = {
        place.evidence[0]
        for message in ledger.messages
        for place in message.places
        if place.place == "wire"
    }
    return Facts(
        copies=max(one.guest_cpu_copies for one in totals),
        least_copies=min(one.least_guest_cpu_copies for one in totals),
        reads=max(one.device_reads for one in totals),
        least_reads=min(one.least_device_reads for one in totals),
        writes=max(one.device_writes for one in totals),
        least_writes=min(one.least_device_writes for one in totals),
        handovers=max(one.handovers for one in totals),
        frames=len(wires),
        frame=_frame(first) if wires else 0,
        calls=tuple(calls.items()),
        filled=_filled(first),
        taken=_taken(first),
        buffers=_buffers(first, run_dir),
    )


def _frame(message: Message) -> int:
    sent = [seen.len for seen in message.skb.sender if seen.at in DRIVER_XMIT]
    return sent[0] if sent else 0


def _filled(message: Message) -> str:
    for movement in message.movements:
        if movement.kind == "copy":
            return message.places[movement.target].place
    return ""


def _taken(message: Message) -> tuple[str, ...]:
    """Say how page_to_skb() made skbs of the frames: by copying, or around the buffer."""
    ways = []
    buffers = [place for place in message.places if place.place == "rx-buffer"]
    for seen in message.skb.receiver:
        if not seen.at.endswith(":page_to_skb"):
            continue
        if seen.data_len:
            ways.append("frags in the RX buffer")
        elif any(seen.data <= place.virtual < seen.data + seen.len for place in buffers):
            ways.append("an skb built on the RX buffer")
        else:
            ways.append("a copy of the frame")
    return tuple(dict.fromkeys(ways))


def _buffers(message: Message, run_dir: rundir.RunDir) -> tuple[int, ...]:
    """Return the lengths of the descriptors that the device's writes rest on."""
    lengths: set[int] = set()
    known: dict[str, rundir.Rings] = {}
    for movement in message.movements:
        for evidence in movement.evidence if movement.kind == "dma-write" else ():
            file, _, at = evidence.partition("#")
            if not file.endswith("/rings.json"):
                continue
            gate, kind, number = at.split("/")
            if movement.guest not in known:
                known[movement.guest] = run_dir.guest(movement.guest).rings()
            for queue in known[movement.guest].kind(kind):
                for one in queue.gates:
                    if one.name == gate:
                        lengths |= {d.length for d in one.descriptors if d.id == int(number)}
    return tuple(sorted(lengths))


def changes(results: Sequence[Result]) -> Iterator[str]:
    """Yield where, along the sizes of a path, something other than the size changes."""
    proven = [one for one in results if one.state == PROVEN and one.facts is not None]
    for path, group in groupby(proven, key=lambda one: one.path):
        ordered = sorted(group, key=lambda one: one.asked.workload.size)
        for before, after in pairwise(ordered):
            words = _difference(before.facts, after.facts)
            if words:
                sizes = f"{before.asked.workload.size} to {after.asked.workload.size} bytes"
                yield f"{' '.join(word for word in path if word != '-')}, {sizes}: {words}"


def _difference(old: Facts | None, new: Facts | None) -> str:
    if old is None or new is None:
        return ""
    was, now = {name for name, _ in old.calls}, {name for name, _ in new.calls}
    words = [f"{name} copies" for name, _ in new.calls if name not in was]
    words += [f"{name} no longer copies" for name, _ in old.calls if name not in now]
    if old.taken != new.taken and new.taken:
        room = " and ".join(str(size) for size in new.buffers)
        words.append(
            f"the receiving driver makes {' and '.join(new.taken)}"
            + (f", of {room} bytes" if room else "")
        )
    if old.filled != new.filled:
        words.append(f"the sender's bytes lie in {new.filled}")
    if (old.frames > 1) != (new.frames > 1):
        words.append(f"{some(new.frames, 'frame')} instead of {old.frames}")
    if not words:
        return ""
    if old.frame and new.frame and new.frame != old.frame:
        words.insert(0, f"frame of {old.frame}, then {new.frame} bytes")
    return "; ".join(words)


# --- Telling --------------------------------------------------------------------------------


def _counted(result: Result) -> str:
    found = result.facts
    if found is None or result.state != PROVEN:
        return ""
    by = ", ".join(_called(found))
    return f"{_copies(found)} copies by {by}"


def _copies(found: Facts) -> str:
    return span(found.least_copies, found.copies)


def _called(found: Facts) -> list[str]:
    return [f"{name} ×{calls}" if calls > 1 else name for name, calls in found.calls]


def render(found: Sweep) -> str:
    """Return table.txt: the table, then where something changes, then how many are proven."""
    rows = list(_rows(found.results))
    widths = [max(len(row[n]) for row in (HEAD, *rows)) for n in range(len(HEAD) - 1)]
    room = max(24, WIDTH - sum(widths) - len(widths))
    lines = [*_row(HEAD, widths, room)]
    lines.append("─" * WIDTH)
    for row in rows:
        lines += _row(row, widths, room)
    lines += [line for text in _notes(found) for line in _wrapped(text) or [""]]
    return "\n".join(lines) + "\n"


def told(found: Sweep) -> list[Block]:
    """Return the same for a terminal, to be shown at any width."""
    out: list[Block] = [Table(HEAD, tuple(_rows(found.results)), right=" ".join(RIGHT))]
    for text in _notes(found):
        out += paragraph(text)
    return out


def _notes(found: Sweep) -> Iterator[str]:
    known = list(changes(found.results))
    if known:
        yield from ("", "Where more than the size changes, by the records of these runs:")
        yield from (f"· {text}" for text in known)
    states = Counter(one.state for one in found.results)
    yield ""
    yield f"{some(len(found.results), 'cell')}: " + ", ".join(
        f"{states[state]} {state}" for state in STATES if states[state]
    )
    yield (
        "COPIES by guest CPUs and READS and WRITES by devices: how often each byte; FRAMES that "
        "carried message bytes; ×N calls. One bring-up for all cells of a topology, no reset "
        "between them."
    )


STATES = (PROVEN, UNPROVEN, FAILED, UNAVAILABLE)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for (kernel, link, backend), group in groupby(results, key=lambda one: one.path[:3]):
        mine = list(group)
        reasons = {one.reason for one in mine}
        if all(one.state == UNAVAILABLE for one in mine) and len(reasons) == 1:
            yield kernel, link, backend, "all", "all", "-", "-", "-", "-", _reason(mine[0])
            continue
        for one in mine:
            work = one.asked.workload
            head = kernel, link, backend, one.transport, str(work.size)
            if one.state != PROVEN or one.facts is None:
                yield (*head, "-", "-", "-", "-", _reason(one))
                continue
            seen = one.facts
            devices = span(seen.least_reads, seen.reads), span(seen.least_writes, seen.writes)
            counts = _copies(seen), *devices, str(seen.frames)
            yield (*head, *counts, ", ".join(_called(seen)))


def _reason(result: Result) -> str:
    word = {UNAVAILABLE: "cannot run here", FAILED: "FAILED", UNPROVEN: "NOT PROVEN"}
    return f"{word[result.state]}: {result.reason}"


def _row(cells: Sequence[str], widths: Sequence[int], room: int) -> list[str]:
    left = [
        cell.rjust(width) if name in RIGHT else cell.ljust(width)
        for name, cell, width in zip(HEAD, cells, widths, strict=False)
    ]
    indent = " " * (sum(widths) + len(widths))
    last = textwrap.wrap(cells[-1], room, break_on_hyphens=False) or [""]
    return [
        (f"{' '.join(left)} {text}" if number == 0 else f"{indent}{text}").rstrip()
        for number, text in enumerate(last)
    ]


def to_json(asked: spec.Playbook, found: Sweep) -> dict[str, Any]:
    """Return the content of index.json."""
    return {
        "schema": SCHEMA,
        "playbook": asked.name,
        "proven": found.proven,
        "reset": "once for each kernel and device, not between cells",
        "cells": [
            {
                "kernel": str(one.asked.kernel),
                "release": one.release,
                "link": one.link,
                "backend": one.backend,
                "family": one.asked.workload.family,
                "protocol": one.asked.workload.protocol,
                "connect": one.asked.workload.connect,
                "size": one.asked.workload.size,
                "count": one.asked.workload.count,
                "state": one.state,
                "reason": one.reason,
                "run": one.run,
                "seconds": round(one.seconds, 3),
                "facts": None
                if one.facts is None
                else {**dataclasses.asdict(one.facts), "calls": dict(one.facts.calls)},
            }
            for one in found.results
        ],
        "changes": list(changes(found.results)),
    }
