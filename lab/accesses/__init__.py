"""From loads and stores to what they did with the messages: copies, reads, device writes.

Pure, and without any probe's help.  Three steps: runs of one call that adjoin are joined
to stretches (a copy may cross pages, or leave its odd bytes for last); messages are found
in what the stretches held; a store of message bytes is paired with the load they came
from.  What was loaded and went nowhere was a read.  What was loaded and no CPU had stored,
a device wrote, unless it was there before the window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

from lab.access import LEAST, Access, AccessLog, Ranges
from lab.accesses.appearance import Memory
from lab.accesses.finder import find, same_start
from lab.accesses.names import Namer, Names
from lab.accesses.stretches import Piece, call_of, stretches
from lab.accesses.types import (
    Accesses,
    CopySeen,
    DeviceWriteSeen,
    Hold,
    MadeSeen,
    ReadSeen,
)
from lab.message import Messages
from lab.symbols import Symbols

__all__ = [
    "TOUCH_HEAD",
    "TOUCH_RIGHT",
    "Accesses",
    "CopySeen",
    "DeviceWriteSeen",
    "Hold",
    "MadeSeen",
    "ReadSeen",
    "analyse",
    "touched",
    "touched_lines",
    "touches",
]


class _Who(TypedDict):
    guest: str
    function: str
    instructions: tuple[int, int]
    callers: tuple[str, ...]
    first: int
    last: int
    tsc: int
    evidence: tuple[str, ...]


class _What(TypedDict):
    message: int
    offset: int
    payload_size: int
    exact: bool


def analyse(
    log: AccessLog,
    messages: Messages,
    *,
    symbols: Symbols,
    present: Ranges = (),
    holds: Iterable[Hold] = (),
    user: Names | None = None,
) -> Accesses:
    """Return what the accesses of one guest did with the messages.

    `present` are physical ranges that held messages before the window (the buffer that is
    sent from); `holds` say which message bytes are where, as others know (that buffer; a
    frame's in the descriptor it was received into): from there, bytes too few to be told by
    themselves are followed by address.  `user` names instructions of user programs.
    """
    names = Namer(symbols, user)
    return _Analysis(log, messages, names, present=present, holds=holds).run()


TOUCH_HEAD = ("US", "DID", "FROM", "LEN", "IN", "BY", "RECORD")
TOUCH_RIGHT = "US FROM LEN IN"


def touches(
    log: AccessLog, start: int, end: int, *, symbols: Symbols, user: Names | None = None
) -> list[tuple[str, ...]]:
    """Return a row for each run that touched physical `[start, end)`, in order.

    Columns: microseconds since the window began, what was done, from which byte of the
    place, how many bytes in how many accesses, by whom, called from where, the evidence.
    """
    name = Namer(symbols, user).name
    rows: list[tuple[str, ...]] = []
    for one in log.touching(start, end):
        after_us = (log.host_ns(one.tsc) - log.header.armed_ns) / 1000
        callers = " < ".join(name(caller) for caller in one.callers if caller)
        who = name(one.instruction) + (f" < {callers}" if callers else "")
        did = "store" if one.store else "load"
        at = f"{one.physical - start:+}"
        rows.append(
            (f"{after_us:.1f}", did, at, str(one.size), str(one.count), who, f"#{one.number}")
        )
    return rows


def touched(
    log: AccessLog, start: int, end: int, *, symbols: Symbols, user: Names | None = None
) -> list[str]:
    """Return `touches` as lines."""
    return touched_lines(touches(log, start, end, symbols=symbols, user=user))


def touched_lines(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows of `touches` as lines."""
    return [
        f"{us:>10} {did:<5} {at:>6} {size:>5} in {count:<5} {who}  {record}"
        for us, did, at, size, count, who, record in rows
    ]


class _Analysis:
    """One guest's log on its way."""

    def __init__(
        self,
        log: AccessLog,
        messages: Messages,
        names: Namer,
        *,
        present: Ranges,
        holds: Iterable[Hold],
    ) -> None:
        self.log = log
        self.messages = messages
        self.holds = list(holds)
        self.present = list(present)
        self.names = names
        self.least = min(messages.size, LEAST)

    def run(self) -> Accesses:
        runs = sorted(stretches(self.log.records), key=lambda stretch: stretch.first)
        pieces = find(runs, self.messages, self.holds)
        loads = [piece for piece in pieces if not piece.stretch.records[0].store]
        stores = [piece for piece in pieces if piece.stretch.records[0].store]
        copies, made = self._pair(loads, stores)
        reads = [read for load in loads for read in self._unused(load)]
        copies, spills = _sorted_out(
            sorted(copies, key=lambda seen: seen.first), self.names.symbols.stack_size()
        )
        return Accesses(
            copies=tuple(copies),
            spills=tuple(spills),
            reads=tuple(sorted(reads, key=lambda seen: seen.first)),
            made=tuple(made),
            device_writes=tuple(self._appeared(loads)),
            complete=self.log.complete,
        )

    # --- Copies -----------------------------------------------------------------------------

    def _pair(
        self, loads: list[Piece], stores: list[Piece]
    ) -> tuple[list[CopySeen], list[MadeSeen]]:
        of_message: dict[int, list[Piece]] = defaultdict(list)
        for load in loads:
            of_message[load.run.index].append(load)
        copies: list[CopySeen] = []
        made: list[MadeSeen] = []
        for store in stores:
            left = [(store.run.offset, store.stop)]
            for load in _by_likelihood(store, of_message[store.run.index]):
                rest: list[tuple[int, int]] = []
                for low, high in left:
                    start, stop = max(low, load.run.offset), min(high, load.stop)
                    if stop - start < min(self.least, high - low):
                        rest.append((low, high))
                        continue
                    load.used.append((start, stop))
                    copies.append(self._copy(load, store, start, stop))
                    rest += [(low, start), (stop, high)]
                left = [(low, high) for low, high in rest if high - low > 0]
            for low, high in left:
                if high - low >= self.least:
                    at = store.at(low)
                    records = store.stretch.within(at, at + high - low)
                    made.append(
                        MadeSeen(
                            **self._who(records, records),
                            **_what(store, low, high),
                            virtual=at,
                            physical=store.stretch.extents(at, at + high - low),
                        )
                    )
        return copies, made

    def _copy(self, load: Piece, store: Piece, start: int, stop: int) -> CopySeen:
        source, target = load.stretch, store.stretch
        # From the message's bytes outwards, as far as both sides have the same ones.
        a, b = load.at(start) - source.virtual, store.at(start) - target.virtual
        before = same_start(source.bytes[:a][::-1], target.bytes[:b][::-1])
        size = stop - start
        after = same_start(source.bytes[a + size :], target.bytes[b + size :])
        low, high = a - before, a + size + after
        from_, to = source.virtual + low, target.virtual + b - before
        whole = high - low
        loaded, stored = source.within(from_, from_ + whole), target.within(to, to + whole)
        return CopySeen(
            **self._who([*loaded, *stored], stored),
            **_what(load, start, stop),
            source_virtual=from_,
            source=source.extents(from_, from_ + whole),
            target_virtual=to,
            target=target.extents(to, to + whole),
            size=whole,
            payload_at=before,
            bytes=bytes(source.bytes[low:high]),
            same_call=call_of(source) == call_of(target),
        )

    # --- Reads ------------------------------------------------------------------------------

    def _unused(self, load: Piece) -> Iterator[ReadSeen]:
        at = load.run.offset
        for start, stop in [*sorted(load.used), (load.stop, load.stop)]:
            if start - at >= min(self.least, load.run.size):
                virtual = load.at(at)
                records = load.stretch.within(virtual, virtual + start - at)
                yield ReadSeen(
                    **self._who(records, records),
                    **_what(load, at, start),
                    virtual=virtual,
                    physical=load.stretch.extents(virtual, virtual + start - at),
                    times=sum(record.count for record in records),
                )
            at = max(at, stop)

    # --- Device writes ----------------------------------------------------------------------

    def _appeared(self, loads: list[Piece]) -> Iterator[DeviceWriteSeen]:
        known = Memory()
        for start, end in self.present:
            known.hold(start, end)
        pieces: dict[int, list[Piece]] = defaultdict(list)
        for piece in loads:
            first = min(
                piece.stretch.within(piece.virtual, piece.virtual + piece.run.size),
                key=lambda record: record.first,
            )
            pieces[first.number].append(piece)
        for record in self.log.records:
            for piece in pieces.get(record.number, ()):
                seen = self._appearance(piece, known)
                if seen is not None:
                    yield seen
            if record.in_ram:
                known.see(record)

    def _appearance(self, piece: Piece, known: Memory) -> DeviceWriteSeen | None:
        stretch, run = piece.stretch, piece.run
        # Physical address of each byte of the stretch, to ask what was known to be there.
        where = [
            physical + at
            for physical, size in stretch.extents(stretch.virtual, stretch.end)
            for at in range(size)
        ]
        strange = known.unexplained(where, stretch.bytes)
        if not any(strange[run.start : run.end]):
            return None
        start = next(at for at in range(run.start, run.end) if strange[at])
        stop = start
        while stop < run.end and strange[stop]:
            stop += 1
        low, high = start, stop
        while low > 0 and strange[low - 1]:
            low -= 1
        while high < len(strange) and strange[high]:
            high += 1
        records = stretch.within(stretch.virtual + start, stretch.virtual + stop)
        from_, to = stretch.virtual + low, stretch.virtual + high
        return DeviceWriteSeen(
            **self._who(records, records),
            **_what(piece, run.offset + start - run.start, run.offset + stop - run.start),
            virtual=from_,
            physical=stretch.extents(from_, to),
            size=high - low,
            payload_at=start - low,
            after=max(known.touched.get(at, 0) for at in where[low:high]),
        )

    # --- Names ------------------------------------------------------------------------------

    def _who(self, records: Sequence[Access], acting: Sequence[Access]) -> _Who:
        low = min(record.instruction for record in records)
        high = max(record.instruction + record.reach for record in records)
        one = min(acting, key=lambda record: record.first)
        early = min(records, key=lambda record: record.first)
        return _Who(
            guest=self.log.guest,
            function=self.names.function(one.instruction),
            instructions=(low, high),
            callers=tuple(self.names.name(address) for address in one.callers if address),
            first=early.first,
            last=max(record.last for record in records),
            tsc=early.tsc,
            evidence=tuple(dict.fromkeys(record.id for record in records)),
        )


def _by_likelihood(store: Piece, loads: list[Piece]) -> list[Piece]:
    """Return the loads that a store's bytes may come from, the likeliest first.

    Those of the same call, then the latest before it by the same CPU; another CPU's never,
    nor what was loaded from the very place the bytes were stored to.
    """
    call, last, target = call_of(store.stretch), store.last, store.virtual - store.run.offset
    possible = [
        load
        for load in loads
        if call_of(load.stretch)[0] == call[0]
        and load.first < last
        and load.virtual - load.run.offset != target
    ]

    def likelihood(load: Piece) -> tuple[int, int, int]:
        apart, early = abs(load.run.start - store.run.start), last - load.first
        if call_of(load.stretch) != call:
            return 1, early, apart
        # Of messages that are alike each goes to its own place, whichever was loaded last.
        return (0, early, apart) if store.run.exact else (0, apart, early)

    return sorted(possible, key=likelihood)


def _sorted_out(seen: list[CopySeen], stack: int) -> tuple[list[CopySeen], list[CopySeen]]:
    """Return copies and spills; both in the order of `seen`, which is that of time.

    `stack` is the size of a kernel stack: each is one aligned area.

    What one call loaded and another stored is a spill, and so is what was copied from one
    to elsewhere on the same stack.  If it goes on from there, to a user or off the stack,
    two calls made a copy together.
    """
    before: dict[int, CopySeen | None] = {}  # by id: the copy that put its source there
    spilled: dict[int, bool] = {}
    done: dict[int, list[CopySeen]] = defaultdict(list)  # message -> copies so far
    for copy in seen:
        last = next((one for one in reversed(done[copy.message]) if _leads(one, copy)), None)
        before[id(copy)] = last
        moved_on = last is not None and spilled[id(last)] and _same_stack(copy, stack)
        spilled[id(copy)] = not copy.to_user and (moved_on or not copy.same_call)
        done[copy.message].append(copy)
        while not spilled[id(copy)] and last is not None and spilled[id(last)]:
            spilled[id(last)] = False
            last = before[id(last)]
    copies = [copy for copy in seen if not spilled[id(copy)]]
    return copies, [copy for copy in seen if spilled[id(copy)]]


def _same_stack(copy: CopySeen, stack: int) -> bool:
    return copy.source_virtual // stack == copy.target_virtual // stack


def _leads(one: CopySeen, other: CopySeen) -> bool:
    """Tell whether `other` took its bytes from where `one` put them."""
    return (
        one.message == other.message
        and one.first < other.first
        and any(
            a < b + b_size and b < a + a_size
            for a, a_size in one.target
            for b, b_size in other.source
        )
    )


def _what(piece: Piece, start: int, stop: int) -> _What:
    return _What(
        message=piece.run.index, offset=start, payload_size=stop - start, exact=piece.run.exact
    )
