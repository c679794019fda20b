"""What guest CPUs loaded and stored, as the QEMU plugin logged it; and its switch.

The file's layout is `witness/access_log.h`; a unit test compares the two.  A record is a
run: adjoining accesses of one page, in one direction, by one call of one function::

    header    4,096 bytes   command and state, room, counters, both clocks at both ends
    records   88 bytes each
    content   the bytes the records saw, back to back

The plugin writes a large one into memory; `keep` makes of it the small one of a run
directory, in the same layout: what concerns the messages, in the order of time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Self, TypeAlias

from lab.deadline import Deadline, wait_until
from lab.errors import HostError, TraceCorrupt

MAGIC = int.from_bytes(b"LBACCESS", "little")
VERSION = 1
HEADER_SIZE = 4096
PAGE = 4096
# Room, allocated as it is used.  One small message takes 50,000 to 110,000 records of 88 bytes
# and 1.4 MB of content, 23 of 4,099 bytes over TCP about 280,000.
RECORDS = 1 << 20
CONTENT = 32 << 20  # bytes
SIZE = HEADER_SIZE + RECORDS * 88 + CONTENT  # bytes that a log may come to take
LEAST = 8  # bytes of a message in a row that cannot be there by chance
LIMIT = 1 << 20  # bytes of a filtered log, and LIMIT_PER_BYTE for each byte of messages
LIMIT_PER_BYTE = 16
WINDOWS = 1 << 18  # bytes of messages of which every LEAST in a row are looked up
POKE_S = 0.02

Ranges: TypeAlias = Iterable[tuple[int, int]]  # physical addresses, [start, end)
Data: TypeAlias = bytes | bytearray | memoryview

HEADER_FIELDS = (
    ("magic", "Q"),
    ("version", "I"),
    ("header_size", "I"),
    ("record_size", "I"),
    ("command", "I"),
    ("asked", "I"),
    ("state", "I"),
    ("answered", "I"),
    ("api", "I"),
    ("capacity", "Q"),
    ("content_capacity", "Q"),
    ("records", "Q"),
    ("content", "Q"),
    ("accesses", "Q"),
    ("logged", "Q"),
    ("lost", "Q"),
    ("calls", "Q"),
    ("armed_tsc", "Q"),
    ("armed_ns", "Q"),
    ("slept_tsc", "Q"),
    ("slept_ns", "Q"),
    ("switch_ns", "Q"),
    ("raw_records", "Q"),
    ("left_out", "Q"),
    ("zero", "16s"),
)
RECORD_FIELDS = (
    ("tsc", "Q"),
    ("virt", "Q"),
    ("phys", "Q"),
    ("ip", "Q"),
    ("caller", "3Q"),
    ("first", "I"),
    ("last", "I"),
    ("content", "I"),
    ("call", "I"),
    ("count", "I"),
    ("size", "H"),
    ("reach", "H"),
    ("vcpu", "B"),
    ("flags", "B"),
    ("narrowest", "B"),
    ("widest", "B"),
    ("zero", "I"),
)
HEADER_LAYOUT = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS))
RECORD_LAYOUT = struct.Struct("<" + "".join(code for _, code in RECORD_FIELDS))
_OFFSETS = {
    name: struct.calcsize("<" + "".join(code for _, code in HEADER_FIELDS[:index]))
    for index, (name, _) in enumerate(HEADER_FIELDS)
}
# Of many records only these fields are looked at: unpacking the others takes most of the time.
_SCANNED = ("virt", "phys", "content", "call", "size", "flags")
_VIRT, _PHYS, _CONTENT, _CALL, _SIZE, _FLAGS = range(6)
_SCAN = struct.Struct(
    "<"
    + "".join(
        code if name in _SCANNED else f"{struct.calcsize('<' + code)}x"
        for name, code in RECORD_FIELDS
    )
)
_Row: TypeAlias = tuple[int, ...]


class Flag(IntFlag):
    """What a run of accesses was."""

    STORE = 1
    IO = 2  # a device's register: no bytes
    OUTSIDE = 4  # memory that is not the guest's RAM: no bytes
    SPLIT = 8  # holds the second part of an access that crossed pages


_ALL_FLAGS = int(Flag.STORE | Flag.IO | Flag.OUTSIDE | Flag.SPLIT)
_WITHOUT_BYTES = int(Flag.IO | Flag.OUTSIDE)


class State(IntEnum):
    """What the plugin does."""

    ABSENT = 0
    ASLEEP = 1
    ARMED = 2


def plugin_api(version: str) -> int:
    """Return the plugin interface to build for; raise `HostError` where none was tried.

    `version` is what `qemu-system-x86_64 --version` says, "7.2.22 (Debian …)".
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise HostError(f"expected a QEMU version such as 7.2.22, found '{version}'")
    number = int(found[1]), int(found[2])
    if (7, 2) <= number < (9, 0):
        return 1
    if (9, 0) <= number < (11, 0):  # 9.0 no longer takes 1, and still takes 2 in 10.0
        return 2
    raise HostError(
        f"the access log was not tried with QEMU {found[0]}, only with 7.2 to 10",
        hint="the other witnesses need no plugin: the run goes on without the access log",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What the header of a log says; see `witness/access_log.h`."""

    command: int
    asked: int
    state: State
    answered: int
    api: int
    capacity: int
    content_capacity: int
    records: int
    content: int
    accesses: int
    logged: int
    lost: int
    calls: int
    armed_tsc: int
    armed_ns: int
    slept_tsc: int
    slept_ns: int
    switch_ns: int
    raw_records: int
    left_out: int

    @property
    def filtered(self) -> bool:
        return self.raw_records > 0


@dataclass(frozen=True, slots=True)
class Access:
    """A run of accesses: adjoining bytes of one page, one direction, one call."""

    source: str  # "receiver/access.bin"
    number: int
    tsc: int  # of the first access, the host's
    virtual: int
    physical: int
    instruction: int  # the lowest; the highest is `reach` behind it
    reach: int
    callers: tuple[int, ...]  # return addresses, innermost first, 0 where not known
    first: int  # number of the first access in the window, from 1
    last: int
    call: int
    count: int
    size: int
    vcpu: int
    flags: Flag
    narrowest: int  # bytes of the smallest access
    widest: int
    bytes: bytes

    @property
    def id(self) -> str:
        """The evidence id."""
        return f"{self.source}#{self.number}"

    @property
    def store(self) -> bool:
        return Flag.STORE in self.flags

    @property
    def end(self) -> int:
        """The physical address behind it."""
        return self.physical + self.size

    @property
    def in_ram(self) -> bool:
        return not self.flags & _WITHOUT_BYTES

    def touches(self, start: int, end: int) -> bool:
        """Tell whether it lies in the guest's RAM and overlaps `[start, end)` there."""
        return self.in_ram and self.physical < end and start < self.end


@dataclass(frozen=True, slots=True)
class AccessLog:
    """One guest's accesses in one window."""

    path: Path
    guest: str
    header: Header
    records: tuple[Access, ...]  # in the order of their first access

    @property
    def lost(self) -> int:
        """Accesses, or kept runs, that there was no room for."""
        return self.header.lost + self.header.left_out

    @property
    def complete(self) -> bool:
        """Nothing was lost and the window was closed."""
        return self.lost == 0 and self.header.state is State.ASLEEP and self.header.slept_ns > 0

    def host_ns(self, tsc: int) -> int:
        """Return the host's monotonic time of a record's TSC."""
        h = self.header
        ticks = h.slept_tsc - h.armed_tsc
        if ticks <= 0:
            return h.armed_ns
        return h.armed_ns + (tsc - h.armed_tsc) * (h.slept_ns - h.armed_ns) // ticks

    def touching(self, start: int, end: int) -> Iterator[Access]:
        """Yield who touched the physical addresses `[start, end)`, in order."""
        return (access for access in self.records if access.touches(start, end))


def parse_header(data: Data, *, where: str = "access log") -> Header:
    """Read a log's header; raise `TraceCorrupt` for one that this version does not write."""
    if len(data) < HEADER_SIZE:
        raise TraceCorrupt(
            f"{where}: offset 0: expected a header of {HEADER_SIZE} bytes, found {len(data)} bytes"
        )
    values = dict(
        zip((name for name, _ in HEADER_FIELDS), HEADER_LAYOUT.unpack_from(data), strict=True)
    )

    def check(field: str, allowed: range, expected: object) -> None:
        if values[field] not in allowed:
            raise TraceCorrupt(
                f"{where}: offset {_OFFSETS[field]}: {field}: "
                f"expected {expected}, found {values[field]:#x}"
            )

    for field, expected in (
        ("magic", MAGIC),
        ("version", VERSION),
        ("header_size", HEADER_SIZE),
        ("record_size", RECORD_LAYOUT.size),
    ):
        check(field, range(expected, expected + 1), hex(expected))
        del values[field]
    check("state", range(len(State)), f"at most {max(State)}")
    records, content = values["capacity"], values["content_capacity"]
    check("records", range(records + 1), f"at most {records}, its capacity")
    check("content", range(content + 1), f"at most {content}, its capacity")
    del values["zero"]
    values["state"] = State(values["state"])
    return Header(**values)


def _sections(data: Data, header: Header, *, where: str) -> tuple[memoryview, memoryview]:
    """Return the records and the content of a log."""
    view = memoryview(data)
    end = HEADER_SIZE + header.records * RECORD_LAYOUT.size
    if len(view) < end:
        raise TraceCorrupt(
            f"{where}: offset {HEADER_SIZE}: expected {header.records} records, "
            f"{end - HEADER_SIZE} bytes, found {len(view) - HEADER_SIZE} bytes"
        )
    at = HEADER_SIZE + header.capacity * RECORD_LAYOUT.size
    if len(view) < at + header.content:
        raise TraceCorrupt(
            f"{where}: offset {at}: expected {header.content} bytes of content, "
            f"found {max(0, len(view) - at)} bytes"
        )
    return view[HEADER_SIZE:end], view[at : at + header.content]


def read(path: Path, *, guest: str) -> AccessLog:
    """Read a log and check all of it.

    Raises `TraceCorrupt`, with offset, expected and found, for a file that is cut short or
    holds what no plugin writes.  Losses are no corruption: see `AccessLog.lost`.
    """
    data = path.read_bytes()
    where = f"{guest}/{path.name}"
    header = parse_header(data, where=where)
    table, content = _sections(data, header, where=where)
    records = []
    logged = before = 0
    for number, fields in enumerate(RECORD_LAYOUT.iter_unpack(table)):
        (tsc, virtual, physical, ip, one, two, three, first, last, at, call, count, size, reach,
         vcpu, flags, narrowest, widest, _) = fields  # fmt: skip
        fault = _fault(fields, len(content))
        if fault is None and header.filtered and first < before:
            fault = f"first: expected at least {before}, the record before it, found {first}"
        if fault is not None:
            offset = HEADER_SIZE + number * RECORD_LAYOUT.size
            raise TraceCorrupt(f"{where}: offset {offset}: {fault}")
        before = first
        logged += count
        has = 0 if flags & _WITHOUT_BYTES else size
        records.append(
            Access(
                where, number, tsc, virtual, physical, ip, reach, (one, two, three), first, last,
                call, count, size, vcpu, Flag(flags), narrowest, widest,
                bytes(content[at : at + has]),
            )
        )  # fmt: skip
    if not header.filtered and logged != header.logged:
        raise TraceCorrupt(
            f"{where}: offset {_OFFSETS['logged']}: logged: expected {logged}, which the records "
            f"hold, found {header.logged}"
        )
    if header.accesses < header.logged + header.lost + header.calls:
        raise TraceCorrupt(
            f"{where}: offset {_OFFSETS['accesses']}: accesses: expected at least "
            f"{header.logged + header.lost + header.calls}, found {header.accesses}"
        )
    records.sort(key=lambda access: (access.first, access.number))
    return AccessLog(path, guest, header, tuple(records))


def _fault(fields: _Row, content: int) -> str | None:
    """Return what is wrong with a record."""
    (_, virtual, physical, _, _, _, _, first, last, at, _, count, size, _, _, flags,
     *_) = fields  # fmt: skip
    fault = None
    if flags & ~_ALL_FLAGS:
        fault = f"flags: expected at most {_ALL_FLAGS:#x}, found {flags:#x}"
    elif not 1 <= size <= PAGE - virtual % PAGE:
        fault = f"size: expected 1 to {PAGE - virtual % PAGE} (one page), found {size}"
    elif not 1 <= first <= last:
        fault = f"first: expected 1 to {last}, which is last, found {first}"
    elif count == 0 and not flags & Flag.SPLIT:
        fault = "count: expected at least 1, found 0"
    elif flags & _WITHOUT_BYTES:
        pass
    elif virtual % PAGE != physical % PAGE:
        fault = (
            f"phys: expected {virtual % PAGE:#x} in its page, as virt, found {physical % PAGE:#x}"
        )
    elif at + size > content:
        fault = f"content: expected at most {content - size}, found {at}"
    return fault


# --- Filtering ------------------------------------------------------------------------------


def keep(
    raw: Data,
    texts: Sequence[bytes],
    *,
    needle: bytes | None = None,
    ranges: Ranges = (),
    sources: Ranges = (),
    limit: int | None = None,
) -> bytes:
    """Return the log of a run directory: of `raw`, what concerns the messages `texts`.

    Kept are, as long as there is room: runs that hold at least eight bytes of a message in
    a row; then all that touched `ranges` or `sources`; then all that touched, at any time,
    the memory where messages were seen, or that go on where such a run ended; then what
    those who loaded from `sources` stored.  So for each place a message was loaded from,
    every store to that place is in the log.

    `needle` is what every message can be found by (`Messages.needle`).  `sources` are where
    messages may come from, user buffers and a device's: from there, less than eight bytes
    are followed by address, be they a whole message or the last of one.
    """
    header = parse_header(raw)
    table, view = _sections(raw, header, where="access log")
    rows = list(_SCAN.iter_unpack(table))
    content = bytes(view)
    from_ = _Places(sources).touched_by(rows)
    listed = _Places(ranges).touched_by(rows)
    if texts and len(texts[0]) < LEAST:
        found = _follow(rows, content, from_, texts)
    else:
        found = _holding(rows, content, texts, needle)
    around = _around(rows, found)
    calls = {rows[number][_CALL] for number in from_ if not rows[number][_FLAGS] & Flag.STORE}
    carried = [number for number, row in enumerate(rows) if row[_CALL] in calls and row[_FLAGS] & 1]
    if limit is None:
        limit = LIMIT + LIMIT_PER_BYTE * sum(map(len, texts))
    return _packed(header, table, content, [found, listed, from_, around, carried], limit)


class _Places:
    """Physical ranges, and which records touch one."""

    def __init__(self, ranges: Ranges) -> None:
        self._pages: dict[int, list[tuple[int, int]]] = {}
        for start, end in ranges:
            for page in range(start // PAGE, -(-end // PAGE)):
                self._pages.setdefault(page, []).append((start, end))

    @classmethod
    def of(cls, rows: list[_Row], numbers: Iterable[int]) -> Self:
        return cls((rows[n][_PHYS], rows[n][_PHYS] + rows[n][_SIZE]) for n in numbers)

    def touched_by(self, rows: list[_Row]) -> list[int]:
        pages = self._pages
        if not pages:
            return []
        # Of the many, first the few in the right pages.
        near = [number for number, row in enumerate(rows) if row[_PHYS] >> 12 in pages]
        return [number for number in near if self._touched_by(rows[number])]

    def _touched_by(self, row: _Row) -> bool:
        if row[_FLAGS] & _WITHOUT_BYTES:
            return False
        start, end = row[_PHYS], row[_PHYS] + row[_SIZE]
        return any(start < stop and begin < end for begin, stop in self._pages[start >> 12])


def _holding(
    rows: list[_Row], content: bytes, texts: Sequence[bytes], needle: bytes | None
) -> list[int]:
    """Return the records that hold at least LEAST bytes of a message in a row."""
    found: set[int] = set()
    if needle:
        # Content of all records at once; a hit must lie within one of them.
        owners = sorted(
            (row[_CONTENT], number)
            for number, row in enumerate(rows)
            if not row[_FLAGS] & _WITHOUT_BYTES
        )
        at = content.find(needle)
        while at >= 0:
            owner = bisect_right(owners, (at, len(rows))) - 1
            row = rows[owners[owner][1]]
            if at + max(len(needle), LEAST) <= row[_CONTENT] + row[_SIZE]:
                found.add(owners[owner][1])
            at = content.find(needle, at + 1)
    # What holds no needle holds the middle or the end of a message, so it begins with that,
    # or, when it grew downwards, ends with it.
    windows = _windows(texts)
    found.update(
        number
        for number, row in enumerate(rows)
        if (size := row[_SIZE]) >= LEAST
        and (
            content[(at := row[_CONTENT]) : at + LEAST] in windows
            or (size > LEAST and content[at + size - LEAST : at + size] in windows)
        )
        and not row[_FLAGS] & _WITHOUT_BYTES
    )
    return sorted(found)


def _windows(texts: Sequence[bytes]) -> set[bytes]:
    """Return every LEAST bytes in a row of the messages, the first WINDOWS bytes of them."""
    windows: set[bytes] = set()
    left = WINDOWS
    for text in dict.fromkeys(texts):
        part = text[:left]
        windows.update(part[at : at + LEAST] for at in range(len(part) - LEAST + 1))
        left -= len(part)
        if left <= 0:
            break
    return windows


def _follow(
    rows: list[_Row], content: bytes, inside: list[int], texts: Sequence[bytes]
) -> list[int]:
    """Return the records that hold a whole message and are tied to known places.

    From a run in a place that is known: to runs of the same call, and to runs in the places
    those make known, until nothing new turns up.
    """
    known = set(texts)
    holding = [
        number
        for number, row in enumerate(rows)
        if not row[_FLAGS] & _WITHOUT_BYTES
        and any(text in content[row[_CONTENT] : row[_CONTENT] + row[_SIZE]] for text in known)
    ]
    found = set(inside) & set(holding)
    while True:
        calls = {rows[number][_CALL] for number in found}
        here = [rows[number] for number in holding]
        touched = {holding[n] for n in _Places.of(rows, found).touched_by(here)}
        more = touched | {number for number in holding if rows[number][_CALL] in calls}
        if more <= found:
            return sorted(found)
        found |= more


def _around(rows: list[_Row], found: list[int]) -> list[int]:
    """Return the records that touch where `found` lie, or go on where they end."""
    touched = set(_Places.of(rows, found).touched_by(rows))
    calls = {rows[number][_CALL] for number in found}
    begins = {(rows[n][_CALL], rows[n][_FLAGS] & 1, rows[n][_VIRT]) for n in found}
    ends = {(rows[n][_CALL], rows[n][_FLAGS] & 1, rows[n][_VIRT] + rows[n][_SIZE]) for n in found}
    for number, row in enumerate(rows):
        if row[_CALL] in calls:
            call, store, virtual = row[_CALL], row[_FLAGS] & 1, row[_VIRT]
            if (call, store, virtual) in ends or (call, store, virtual + row[_SIZE]) in begins:
                touched.add(number)
    return sorted(touched)


def _packed(
    header: Header, table: memoryview, content: bytes, wanted: list[list[int]], limit: int
) -> bytes:
    """Return a log of the records `wanted`, those of the first list first to find room."""
    room = limit - HEADER_SIZE
    chosen: dict[int, tuple[_Row, bytes]] = {}
    left_out: set[int] = set()
    for number in (number for numbers in wanted for number in numbers):
        if number in chosen or number in left_out:
            continue
        offset = number * RECORD_LAYOUT.size
        row: _Row = RECORD_LAYOUT.unpack_from(table, offset)
        if (fault := _fault(row, len(content))) is not None:
            raise TraceCorrupt(f"access log: offset {HEADER_SIZE + offset}: {fault}")
        short = _SCAN.unpack_from(table, offset)
        at = short[_CONTENT]
        data = b"" if short[_FLAGS] & _WITHOUT_BYTES else content[at : at + short[_SIZE]]
        if RECORD_LAYOUT.size + len(data) > room:
            left_out.add(number)
            continue
        room -= RECORD_LAYOUT.size + len(data)
        chosen[number] = row, data
    records, pool = bytearray(), bytearray()
    first, where = 7, 9  # places of `first` and `content` in a row
    for number in sorted(chosen, key=lambda number: (chosen[number][0][first], number)):
        row, data = chosen[number]
        records += RECORD_LAYOUT.pack(*row[:where], len(pool), *row[where + 1 :])
        pool += data
    kept = encode_header(
        header,
        capacity=len(chosen),
        records=len(chosen),
        content_capacity=len(pool),
        content=len(pool),
        raw_records=max(1, header.records),
        left_out=len(left_out),
    )
    return kept + bytes(records) + bytes(pool)


def encode_header(base: Header | None = None, **values: Any) -> bytes:
    """Return a header's bytes: those of `base`, with `values` changed."""
    known: dict[str, Any] = {
        name: 0 if base is None else getattr(base, name, 0) for name, _ in HEADER_FIELDS
    }
    known |= {
        "magic": MAGIC,
        "version": VERSION,
        "header_size": HEADER_SIZE,
        "record_size": RECORD_LAYOUT.size,
        "zero": b"",
    }
    if unknown := values.keys() - known.keys():
        raise TypeError(f"no field of a header: {', '.join(sorted(unknown))}")
    known |= values
    return HEADER_LAYOUT.pack(*known.values()).ljust(HEADER_SIZE, b"\0")


def encode_log(records: Sequence[Mapping[str, Any]] = (), **header: Any) -> bytes:
    """Cook a log, for tests.

    A record is a mapping of a record's fields, `bytes` and `store` among them.  What is left
    out follows: size and count from the bytes, `first` from the order, `phys` from `virt`.
    """
    table, pool = bytearray(), bytearray()
    number = logged = 0
    known = {name for name, _ in RECORD_FIELDS} | {"bytes", "store"}
    for record in records:
        if unknown := record.keys() - known:
            raise TypeError(f"no field of a record: {', '.join(sorted(unknown))}")
        data = bytes(record.get("bytes", b""))
        size = record.get("size", len(data))
        first = record.get("first", number + 1)
        number = record.get("last", first)
        values: dict[str, Any] = {
            "tsc": 1000 + 10 * first,
            "phys": record.get("virt", 0) & 0xFFF_FFFF,
            "ip": 0xFFFF_FFFF_8100_0000,
            "last": number,
            "content": len(pool),
            "call": 1,
            "count": 1,
            "narrowest": 1,
            "widest": 8,
            **record,
            "size": size,
            "first": first,
            "flags": int(record.get("flags", 0)) | int(bool(record.get("store"))),
        }
        callers = (*values.get("caller", ()), 0, 0, 0)[:3]
        logged += values["count"]
        table += RECORD_LAYOUT.pack(
            *(
                value
                for name, _ in RECORD_FIELDS
                for value in (callers if name == "caller" else (values.get(name, 0),))
            )
        )
        pool += data
    values = {
        "state": State.ASLEEP,
        "api": 1,
        "capacity": len(records),
        "content_capacity": len(pool),
        "records": len(records),
        "content": len(pool),
        "accesses": logged + header.get("lost", 0) + header.get("calls", 0),
        "logged": logged,
        "armed_tsc": 1000,
        "armed_ns": 500,
        "slept_tsc": 1_001_000,
        "slept_ns": 500_500,
    }
    return encode_header(**{**values, **header}) + bytes(table) + bytes(pool)


# --- The switch -----------------------------------------------------------------------------


class Control:
    """The host's end of a log that a plugin writes.

    `check` raises when the guest is dead; `poke` makes a vCPU that sleeps wake up for a
    moment, since the plugin looks at its orders when a vCPU idles or resumes.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if create:
            self._create()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < HEADER_SIZE:
                raise TraceCorrupt(f"{path}: offset 0: expected a log, found a shorter file")
            self._map = mmap.mmap(fd, HEADER_SIZE)
        finally:
            os.close(fd)
        try:
            self.header()
        except TraceCorrupt:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a fresh log for a guest about to start, of its full size and no blocks.

        It is ours alone: whoever starts QEMU hands it to the user QEMU runs as.
        """
        return cls(path, create=True)

    def _create(self) -> None:
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, encode_header(capacity=RECORDS, content_capacity=CONTENT))
            os.ftruncate(fd, HEADER_SIZE + RECORDS * RECORD_LAYOUT.size + CONTENT)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(BufferError):
            self._map.close()

    def header(self) -> Header:
        """Return the counters and states as they are now."""
        return parse_header(self._map[:], where=str(self.path))

    @property
    def state(self) -> State:
        return self.header().state

    def arm(
        self,
        *,
        deadline: Deadline,
        check: Callable[[], None] = lambda: None,
        poke: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin a window: from now on every access is logged, what was logged is gone."""
        self._order(State.ARMED, deadline, check, poke)

    def disarm(
        self,
        *,
        deadline: Deadline,
        check: Callable[[], None] = lambda: None,
        poke: Callable[[], object] = lambda: None,
    ) -> None:
        """End the window: nothing is logged from now on, and the log is whole afterwards."""
        self._order(State.ASLEEP, deadline, check, poke)

    def _order(
        self,
        wanted: State,
        deadline: Deadline,
        check: Callable[[], None],
        poke: Callable[[], object],
    ) -> None:
        before = self.header()
        if before.state is State.ABSENT:
            raise HostError(f"no QEMU has loaded the plugin with {self.path}")
        number = (before.asked + 1) & 0xFFFFFFFF
        # In this order: the plugin reads the number first.
        struct.pack_into("<I", self._map, _OFFSETS["command"], int(wanted is State.ARMED))
        struct.pack_into("<I", self._map, _OFFSETS["asked"], number)
        next_poke = deadline.elapsed

        def done() -> bool:
            nonlocal next_poke
            now = self.header()
            if now.answered == number and now.state is wanted:
                return True
            check()
            if deadline.elapsed >= next_poke:
                poke()
                next_poke = deadline.elapsed + POKE_S
            return False

        wait_until(
            done,
            what=f"the access log to be {wanted.name.lower()}",
            deadline=deadline,
            interval_s=0.001,
        )

    def release(self) -> None:
        """Give the memory of what was logged back; for when the log was read, and asleep."""
        size = self.path.stat().st_size
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # A hole in the file: QEMU has it mapped, so it keeps its size.
            with mmap.mmap(fd, size) as whole:
                whole.madvise(mmap.MADV_REMOVE, HEADER_SIZE, size - HEADER_SIZE)
        finally:
            os.close(fd)

    def raw(self) -> bytes:
        """Return the whole log, records and content without the room between them.

        Holes of the file are not read: reading would fill them.
        """
        now = self.header()
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            table = _read(fd, HEADER_SIZE, now.records * RECORD_LAYOUT.size)
            content = _read(fd, HEADER_SIZE + now.capacity * RECORD_LAYOUT.size, now.content)
        finally:
            os.close(fd)
        head = encode_header(now, capacity=now.records, content_capacity=now.content)
        return head + table + content


def _read(fd: int, at: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.pread(fd, size, at)
        if not part:
            raise TraceCorrupt(f"access log: offset {at}: expected {size} more bytes, found none")
        parts.append(part)
        at += len(part)
        size -= len(part)
    return b"".join(parts)


def plugin_argument(plugin: Path | str, *, log: Path, ram: Path) -> str:
    """Return the value of QEMU's -plugin."""
    for path in (plugin, log, ram):
        if "," in str(path):
            raise HostError(f"QEMU takes no ',' in the path of a plugin's file: {path}")
    return f"{plugin},log={log},ram={ram}"
