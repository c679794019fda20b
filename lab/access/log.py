"""A log as evidence: what one guest's CPUs loaded and stored in one window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.access.layout import (
    HEADER_SIZE,
    OFFSETS,
    RECORD_LAYOUT,
    WITHOUT_BYTES,
    Flag,
    Header,
    State,
    fault_of,
    parse_header,
    seal_of,
    sections,
)
from lab.errors import TraceCorrupt


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
        return not self.flags & WITHOUT_BYTES

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


def read(path: Path, *, guest: str) -> AccessLog:
    """Read a log and check all of it.

    Raises `TraceCorrupt`, with offset, expected and found, for a file that is cut short or
    holds what no plugin writes.  Losses are no corruption: see `AccessLog.lost`.
    """
    data = path.read_bytes()
    where = f"{guest}/{path.name}"
    header = parse_header(data, where=where)
    if header.filtered and any(header.digest) and header.digest != seal_of(data):
        raise TraceCorrupt(
            f"{where}: offset {OFFSETS['digest']}: digest: expected {seal_of(data).hex()}, "
            f"that of the file, found {header.digest.hex()}: it is not as it was kept"
        )
    table, content = sections(data, header, where=where)
    records = []
    logged = before = 0
    for number, fields in enumerate(RECORD_LAYOUT.iter_unpack(table)):
        (tsc, virtual, physical, ip, one, two, three, first, last, at, call, count, size, reach,
         vcpu, flags, narrowest, widest, _) = fields  # fmt: skip
        fault = fault_of(fields, len(content))
        if fault is None and header.filtered and first < before:
            fault = f"first: expected at least {before}, the record before it, found {first}"
        if fault is not None:
            offset = HEADER_SIZE + number * RECORD_LAYOUT.size
            raise TraceCorrupt(f"{where}: offset {offset}: {fault}")
        before = first
        logged += count
        has = 0 if flags & WITHOUT_BYTES else size
        records.append(
            Access(
                where, number, tsc, virtual, physical, ip, reach, (one, two, three), first, last,
                call, count, size, vcpu, Flag(flags), narrowest, widest,
                bytes(content[at : at + has]),
            )
        )  # fmt: skip
    if not header.filtered and logged != header.logged:
        raise TraceCorrupt(
            f"{where}: offset {OFFSETS['logged']}: logged: expected {logged}, which the records "
            f"hold, found {header.logged}"
        )
    if header.accesses < header.logged + header.lost + header.calls:
        raise TraceCorrupt(
            f"{where}: offset {OFFSETS['accesses']}: accesses: expected at least "
            f"{header.logged + header.lost + header.calls}, found {header.accesses}"
        )
    records.sort(key=lambda access: (access.first, access.number))
    return AccessLog(path, guest, header, tuple(records))
