"""From loads and stores to what they did with the messages: copies, reads, device writes.

Pure, and without any probe's help.  Three steps: runs of one call that adjoin are joined
to stretches (a copy may cross pages, or leave its odd bytes for last); messages are found
in what the stretches held; a store of message bytes is paired with the load they came
from.  What was loaded and went nowhere was a read.  What was loaded and no CPU had stored,
a device wrote, unless it was there before the window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypedDict

from lab.access import LEAST, PAGE, WINDOWS, Access, AccessLog, Ranges
from lab.message import Messages, Run
from lab.symbols import Symbols

USER_END = 1 << 47  # x86-64 with four levels of page tables
LOOK_BACK = 16  # stretches of one call that a run may still join

Extents: TypeAlias = tuple[tuple[int, int], ...]  # (physical address, size), in order
# Physical start and end of memory known to hold a message's bytes, the message, the offset.
Hold: TypeAlias = tuple[int, int, int, int]
Names: TypeAlias = Callable[[int], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What all findings say: who, where in the code, when, on what evidence."""

    guest: str
    function: str  # of the instructions that did it
    instructions: tuple[int, int]  # lowest and highest
    callers: tuple[str, ...]  # "page_to_skb+0x27c [virtio_net]", innermost first
    message: int
    offset: int  # of the first byte, in the message
    payload_size: int  # bytes of the message
    exact: bool  # False: other messages have these bytes as well
    first: int  # number of the first access of the window that took part
    last: int
    tsc: int  # the host's, of the first access
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CopySeen(_Seen):
    """Message bytes were loaded, and stored elsewhere."""

    source_virtual: int  # of the whole copy, headers included
    source: Extents
    target_virtual: int
    target: Extents
    size: int
    payload_at: int  # bytes of headers before the message's
    same_call: bool  # False: one call loaded, another stored; see `Accesses.spills`

    @property
    def from_user(self) -> bool:
        return self.source_virtual < USER_END

    @property
    def to_user(self) -> bool:
        return self.target_virtual < USER_END


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSeen(_Seen):
    """Message bytes were loaded and stored nowhere: a checksum, a program that looks."""

    virtual: int
    physical: Extents
    times: int  # accesses it took; more than one reading of the same bytes counts on


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeSeen(_Seen):
    """Message bytes were stored that no CPU had loaded: a program made them."""

    virtual: int
    physical: Extents


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceWriteSeen(_Seen):
    """Message bytes were found in memory and no CPU had stored them there.

    `function` and the rest say who found them first; `after` is the last access that saw
    or stored something else there, 0 where there was none in the window.
    """

    virtual: int
    physical: Extents  # of all that was found and not stored, headers included
    size: int
    payload_at: int
    after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accesses:
    """All that the accesses of one guest did with the messages, in order.

    `spills` are message bytes that one call loaded, another stored, and nobody copied on:
    an interrupt saves the registers of the copy it comes into.  They explain what a census
    finds on a kernel stack, and are no step of the message's way.
    """

    copies: tuple[CopySeen, ...]
    spills: tuple[CopySeen, ...]
    reads: tuple[ReadSeen, ...]
    made: tuple[MadeSeen, ...]
    device_writes: tuple[DeviceWriteSeen, ...]
    complete: bool  # nothing was lost, so that "no store" means that there was none


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


@dataclass(slots=True)
class _Stretch:
    """Runs of one call, in one direction, whose bytes adjoin."""

    records: list[Access]
    virtual: int
    bytes: bytearray
    pages: dict[int, int] = field(default_factory=dict)  # virtual page -> physical page

    @property
    def end(self) -> int:
        return self.virtual + len(self.bytes)

    @property
    def first(self) -> int:
        return min(record.first for record in self.records)

    @property
    def last(self) -> int:
        return max(record.last for record in self.records)

    def extents(self, start: int, end: int) -> Extents:
        """Return the physical extents of the virtual range."""
        out: list[tuple[int, int]] = []
        while start < end:
            size = min(end, (start // PAGE + 1) * PAGE) - start
            physical = self.pages[start // PAGE] * PAGE + start % PAGE
            if out and out[-1][0] + out[-1][1] == physical:
                out[-1] = (out[-1][0], out[-1][1] + size)
            else:
                out.append((physical, size))
            start += size
        return tuple(out)

    def within(self, start: int, end: int) -> list[Access]:
        """Return the records that overlap the virtual range."""
        return [r for r in self.records if r.virtual < end and start < r.virtual + r.size]

    def join(self, other: _Stretch) -> bool:
        """Take in another stretch if it adjoins, and agrees where both have bytes."""
        low, high = max(self.virtual, other.virtual), min(self.end, other.end)
        if low > high:
            return False
        mine = self.bytes[low - self.virtual : high - self.virtual]
        if mine != other.bytes[low - other.virtual : high - other.virtual]:
            return False
        if any(self.pages.get(page, frame) != frame for page, frame in other.pages.items()):
            return False
        left, right = (self, other) if self.virtual <= other.virtual else (other, self)
        both = left.bytes + right.bytes[max(0, left.end - right.virtual) :]
        self.virtual, self.bytes = left.virtual, both
        self.pages |= other.pages
        self.records += other.records
        return True


@dataclass(slots=True)
class _Piece:
    """Message bytes in a stretch."""

    stretch: _Stretch
    run: Run
    used: list[tuple[int, int]] = field(default_factory=list)  # offsets that a store carried on

    @property
    def virtual(self) -> int:
        return self.stretch.virtual + self.run.start

    @property
    def extents(self) -> Extents:
        return self.stretch.extents(self.virtual, self.virtual + self.run.size)

    @property
    def records(self) -> list[Access]:
        return self.stretch.within(self.virtual, self.virtual + self.run.size)

    @property
    def first(self) -> int:
        """The number of the first access that saw some of it."""
        return min(record.first for record in self.records)

    @property
    def last(self) -> int:
        return max(record.last for record in self.records)

    @property
    def stop(self) -> int:
        """The offset in the message behind it."""
        return self.run.offset + self.run.size

    def at(self, offset: int) -> int:
        """Return the virtual address of the message's byte `offset`."""
        return self.virtual + offset - self.run.offset


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
    names = _Namer(symbols, user)
    return _Analysis(log, messages, names, present=present, holds=holds).run()


def touched(
    log: AccessLog, start: int, end: int, *, symbols: Symbols, user: Names | None = None
) -> list[str]:
    """Return a line for each run that touched physical `[start, end)`, in order.

    Columns: microseconds since the window began, what was done, from which byte of the
    place, how many bytes in how many accesses, by whom, called from where, the evidence.
    """
    name = _Namer(symbols, user).name
    lines = []
    for one in log.touching(start, end):
        after_us = (log.host_ns(one.tsc) - log.header.armed_ns) / 1000
        callers = " < ".join(name(caller) for caller in one.callers if caller)
        who = name(one.instruction) + (f" < {callers}" if callers else "")
        lines.append(
            f"{after_us:>10.1f} {'store' if one.store else 'load ':<5} "
            f"{one.physical - start:>+6} {one.size:>5} in {one.count:<5} {who}  #{one.number}"
        )
    return lines


class _Namer:
    """Names addresses of kernel, modules and user programs."""

    def __init__(self, symbols: Symbols, user: Names | None) -> None:
        self.symbols = symbols
        self.user = user

    def name(self, address: int) -> str:
        named = None
        if address >= USER_END:
            named = self.symbols.name(address)
        elif self.user is not None:
            named = self.user(address)
        return named or f"{'user ' if address < USER_END else ''}{address:#x}"

    def function(self, address: int) -> str:
        """Return the name without the offset in the function."""
        name = self.name(address)
        plain, plus, rest = name.partition("+")
        _, space, module = rest.partition(" ")
        return f"{plain}{space}{module}" if plus else name


class _Analysis:
    """One guest's log on its way."""

    def __init__(
        self,
        log: AccessLog,
        messages: Messages,
        names: _Namer,
        *,
        present: Ranges,
        holds: Iterable[Hold],
    ) -> None:
        self.log = log
        self.messages = messages
        self.holds = list(holds)
        self.present = list(present)
        self.names = names
        self.find = _Finder(messages)
        self.least = min(messages.size, LEAST)

    def run(self) -> Accesses:
        stretches = sorted(_stretches(self.log.records), key=lambda stretch: stretch.first)
        pieces = self._pieces(stretches)
        loads = [piece for piece in pieces if not piece.stretch.records[0].store]
        stores = [piece for piece in pieces if piece.stretch.records[0].store]
        copies, made = self._pair(loads, stores)
        reads = [read for load in loads for read in self._unused(load)]
        copies, spills = _sorted_out(sorted(copies, key=lambda seen: seen.first))
        return Accesses(
            copies=tuple(copies),
            spills=tuple(spills),
            reads=tuple(sorted(reads, key=lambda seen: seen.first)),
            made=tuple(made),
            device_writes=tuple(self._appeared(loads)),
            complete=self.log.complete,
        )

    # --- Where message bytes are --------------------------------------------------------------

    def _pieces(self, stretches: list[_Stretch]) -> list[_Piece]:
        """Find message bytes in each stretch, by content, else by address."""
        pieces: list[_Piece] = []
        known = list(self.holds)
        small: dict[tuple[int, int], list[_Piece]] = defaultdict(list)  # loads of each call
        for stretch in stretches:
            found = [_Piece(stretch, run) for run in self.find.runs(bytes(stretch.bytes))]
            if not found and known and self.messages.size >= LEAST:
                if stretch.records[0].store:
                    found = _carried(stretch, small[_call(stretch)])
                else:
                    found = self._known(stretch, known)
                    small[_call(stretch)] += found
            if stretch.records[0].store:
                for piece in found:
                    offset = piece.run.offset
                    for start, size in piece.extents:
                        known.append((start, start + size, piece.run.index, offset))
                        offset += size
            pieces += found
        return pieces

    def _known(self, stretch: _Stretch, known: list[Hold]) -> list[_Piece]:
        at = 0
        for physical, size in stretch.extents(stretch.virtual, stretch.end):
            for start, end, index, offset in reversed(known):
                low, high = max(physical, start), min(physical + size, end)
                first = at + low - physical
                data = bytes(stretch.bytes[first : first + high - low])
                there = offset + low - start
                if data and data == self.messages.bytes(index)[there : there + len(data)]:
                    run = Run(first, first + len(data), index, there, exact=True)
                    return [_Piece(stretch, run)]
            at += size
        return []

    # --- Copies -----------------------------------------------------------------------------

    def _pair(
        self, loads: list[_Piece], stores: list[_Piece]
    ) -> tuple[list[CopySeen], list[MadeSeen]]:
        of_message: dict[int, list[_Piece]] = defaultdict(list)
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

    def _copy(self, load: _Piece, store: _Piece, start: int, stop: int) -> CopySeen:
        source, target = load.stretch, store.stretch
        # From the message's bytes outwards, as far as both sides have the same ones.
        a, b = load.at(start) - source.virtual, store.at(start) - target.virtual
        before = _same(source.bytes[:a][::-1], target.bytes[:b][::-1])
        size = stop - start
        after = _same(source.bytes[a + size :], target.bytes[b + size :])
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
            same_call=_call(source) == _call(target),
        )

    # --- Reads ------------------------------------------------------------------------------

    def _unused(self, load: _Piece) -> Iterator[ReadSeen]:
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

    def _appeared(self, loads: list[_Piece]) -> Iterator[DeviceWriteSeen]:
        known = _Memory()
        for start, end in self.present:
            known.hold(start, end)
        pieces: dict[int, list[_Piece]] = defaultdict(list)
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

    def _appearance(self, piece: _Piece, known: _Memory) -> DeviceWriteSeen | None:
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


def _stretches(records: Iterable[Access]) -> list[_Stretch]:
    """Join the runs of each call, in either direction, that adjoin."""
    groups: dict[tuple[int, int, bool], list[_Stretch]] = defaultdict(list)
    for record in records:
        if not record.in_ram:
            continue
        new = _Stretch(
            [record],
            record.virtual,
            bytearray(record.bytes),
            {record.virtual // PAGE: record.physical // PAGE},
        )
        group = groups[record.vcpu, record.call, record.store]
        joined = True
        while joined:  # what has grown may now adjoin another
            joined = False
            for old in group[: -LOOK_BACK - 1 : -1]:
                if old.join(new):
                    group.remove(old)
                    new, joined = old, True
                    break
        group.append(new)
    return [stretch for group in groups.values() for stretch in group]


def _call(stretch: _Stretch) -> tuple[int, int]:
    return stretch.records[0].vcpu, stretch.records[0].call


def _carried(store: _Stretch, loads: list[_Piece]) -> list[_Piece]:
    """Return what a store holds of a load of the same call, when it holds all of it."""
    for load in reversed(loads):
        data = bytes(load.stretch.bytes)
        at = bytes(store.bytes).find(data) if len(data) >= LEAST else 0
        if at >= 0 and (len(data) >= LEAST or store.bytes == data):
            run = load.run
            moved = Run(run.start + at, run.end + at, run.index, run.offset, exact=run.exact)
            return [_Piece(store, moved)]
    return []


def _by_likelihood(store: _Piece, loads: list[_Piece]) -> list[_Piece]:
    """Return the loads that a store's bytes may come from, the likeliest first.

    Those of the same call, then the latest before it by the same CPU; another CPU's never,
    nor what was loaded from the very place the bytes were stored to.
    """
    call, last, target = _call(store.stretch), store.last, store.virtual - store.run.offset
    possible = [
        load
        for load in loads
        if _call(load.stretch)[0] == call[0]
        and load.first < last
        and load.virtual - load.run.offset != target
    ]
    return sorted(possible, key=lambda load: (_call(load.stretch) != call, last - load.first))


def _sorted_out(seen: list[CopySeen]) -> tuple[list[CopySeen], list[CopySeen]]:
    """Return copies and spills: what two calls did together is a copy if it led anywhere."""
    copies = [copy for copy in seen if copy.same_call or copy.to_user]
    spills = [copy for copy in seen if not copy.same_call and not copy.to_user]
    while True:
        led = [spill for spill in spills if any(_leads(spill, copy) for copy in copies)]
        if not led:
            return sorted(copies, key=lambda copy: copy.first), spills
        copies += led
        spills = [spill for spill in spills if spill not in led]


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


def _what(piece: _Piece, start: int, stop: int) -> _What:
    return _What(
        message=piece.run.index, offset=start, payload_size=stop - start, exact=piece.run.exact
    )


def _same(left: bytes | bytearray, right: bytes | bytearray) -> int:
    """Return how many bytes both begin with."""
    size = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        size += 1
    return size


class _Memory:
    """What is known to be in memory, from what was stored and loaded so far."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}  # physical address -> byte, whose
        self._present: list[tuple[int, int]] = []
        self.touched: dict[int, int] = {}  # physical address -> number of the last access

    def hold(self, start: int, end: int) -> None:
        """Expect that anything may be in `[start, end)`, until it is overwritten."""
        self._present.append((start, end))

    def see(self, record: Access) -> None:
        for at, byte in enumerate(record.bytes, record.physical):
            self._known[at] = byte, record.number
            self.touched[at] = record.first

    def unexplained(self, where: Sequence[int], found: Sequence[int]) -> list[bool]:
        """Tell of each byte found whether something unseen put it there.

        Where one byte is not what an access left, what else that access left there is gone
        too: a zero among the new bytes is not the old one.
        """
        strange: list[bool] = []
        whose: list[int | None] = []
        gone: set[int | None] = set()
        for address, byte in zip(where, found, strict=True):
            old, number = self._known.get(address, (None, None))
            if old is None:
                strange.append(not any(start <= address < end for start, end in self._present))
            else:
                strange.append(old != byte)
                if old != byte:
                    gone.add(number)
            whose.append(number)
        return [
            odd or (number is not None and number in gone)
            for odd, number in zip(strange, whose, strict=True)
        ]


class _Finder:
    """Finds messages, whole or in part, in what a stretch held."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages
        self._windows: dict[bytes, tuple[int, int]] = {}
        left = WINDOWS
        if messages.size >= LEAST:
            for index in range(messages.count if messages.payload is None else 1):
                text = messages.bytes(index)[:left]
                for at in range(len(text) - LEAST + 1):
                    self._windows.setdefault(text[at : at + LEAST], (index, at))
                left -= len(text)
                if left <= 0:
                    break

    def runs(self, data: bytes) -> list[Run]:
        """Return the runs of message bytes in `data`, in order, none overlapping another."""
        if self.messages.size < LEAST:
            return list(self._short(data))
        found: list[Run] = []
        for run in self.messages.runs(data):
            if run.size >= LEAST and (not found or run.start >= found[-1].end):
                found.append(run)
        # The middle or the end of a message holds no needle: see lab.access.keep.
        head = found[0].start if found else len(data)
        tail = found[-1].end if found else 0
        out = [*self._fragment(data, 0, head), *found]
        if not found or tail < len(data):
            done = out[-1].end if out else 0
            out += self._fragment(data, len(data) - LEAST, len(data), least=max(tail, done))
        return out

    def _fragment(self, data: bytes, at: int, end: int, *, least: int = 0) -> list[Run]:
        # The message bytes around the LEAST at `at`, within [least, end).
        if at < least or at + LEAST > end:
            return []
        known = self._windows.get(data[at : at + LEAST])
        if known is None:
            return []
        index, offset = known
        text = self.messages.bytes(index)
        after = _same(data[at:end], text[offset:])
        before = _same(data[least:at][::-1], text[:offset][::-1])
        exact = self.messages.payload is None
        return [Run(at - before, at + after, index, offset - before, exact=exact)]

    def _short(self, data: bytes) -> Iterator[Run]:
        for index in range(self.messages.count if self.messages.payload is None else 1):
            text = self.messages.bytes(index)
            at = data.find(text)
            while at >= 0:
                yield Run(at, at + len(text), index, 0, exact=self.messages.count == 1)
                at = data.find(text, at + len(text))
