"""Records that probes left: reading them from a run, and from guest RAM.

::

    guest RAM                      host                      run directory
    ring header, chunks  -- dump --> section --,
    ring header, chunks  -- dump --> section --+- concatenated -- trace.bin -- read --> Trace

The layout is `kmod/lab_event.h`; a unit test compiles it and compares.  What a
file cannot hold if it is whole raises `TraceCorrupt`; what a probe lost is no
fault of the file, and is counted: `missed`, `dropped`, `torn`.
"""

from __future__ import annotations

import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from lab.errors import TraceCorrupt
from lab.record.entry import TASK_SIGNAL as TASK_SIGNAL
from lab.record.entry import WORDS as WORDS
from lab.record.entry import Args as Args
from lab.record.entry import Barrier as Barrier
from lab.record.entry import Context as Context
from lab.record.entry import Flag as Flag
from lab.record.entry import Kind as Kind
from lab.record.entry import Record as Record
from lab.record.entry import Socket as Socket

MAGIC = 0x474E4952424C4B53  # "SKBLRING" in memory
VERSION = 2
HEADER_SIZE = 8192
CHUNK_SIZE = 256 * 1024
CHUNKS = 128
HOOKS = 48
EVENT_SIZE = 256
EVENTS_PER_CHUNK = CHUNK_SIZE // EVENT_SIZE
BYTES_LEN = 64

# struct lab_event: (C field, struct code), in order
FIELDS = (
    ("commit", "Q"), ("tsc", "Q"), ("seq", "Q"), ("cpu", "I"), ("pid", "I"), ("tgid", "I"),
    ("hook", "H"), ("kind", "B"), ("context", "B"), ("comm", "16s"), ("skb", "Q"), ("head", "Q"),
    ("data", "Q"), ("skb_len", "I"), ("skb_data_len", "I"), ("src", "Q"), ("dst", "Q"),
    ("src_phys", "Q"), ("dst_phys", "Q"), ("size", "I"), ("ret", "i"), ("user", "Q"), ("sk", "Q"),
    ("caller", "Q"), ("dev", "16s"), ("aux", "Q"), ("shinfo", "Q"), ("bytes_len", "H"),
    ("flags", "B"), ("iter_type", "B"), ("frags", "I"), ("bytes", "64s"),
)  # fmt: skip
# struct lab_hook and the head of struct lab_ring_header, up to its padding
HOOK_FIELDS = (("name", "48s"), ("error", "i"), ("flags", "I"), ("hits", "Q"), ("missed", "Q"))
HEADER_FIELDS = (
    ("magic", "Q"), ("nonce", "16s"), ("version", "I"), ("event_size", "I"), ("capacity", "Q"),
    ("claimed", "Q"), ("dropped", "Q"), ("skipped", "Q"), ("hook_count", "I"),
    ("chunk_count", "I"), ("finished", "I"), ("flags", "I"), ("name", "24s"),
    ("module_base", "Q"),
)  # fmt: skip
HOOKS_AT = 256  # offset of the hook table in the header

LAYOUT = struct.Struct("<" + "".join(code for _, code in FIELDS))
HOOK_LAYOUT = struct.Struct("<" + "".join(code for _, code in HOOK_FIELDS))
HEADER_LAYOUT = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS))
CHUNKS_AT = HOOKS_AT + HOOKS * HOOK_LAYOUT.size
_NUMBERS: Mapping[str, Literal["B", "H", "I", "Q"]] = {"B": "B", "H": "H", "I": "I", "Q": "Q"}
# Where each field is, and its code
_PLACES = {
    name: (code, struct.calcsize("<" + "".join(before for _, before in FIELDS[:index])))
    for index, (name, code) in enumerate(FIELDS)
}

HOOK_COPY = 0x01
HOOK_LEFT_OUT = 0x02
HOOK_WAYS = {0x10: "fentry", 0x20: "fexit", 0x40: "tracepoint", 0x80: "kprobe"}

RING_PAGED = 0x01  # written by BPF programs: its chunks are scattered pages
PAGE = 4096
PAGES = 512  # of a chunk of a paged ring
HOOK_ACTIVE_SHIFT = 16

KINDS = {int(kind): kind for kind in Kind}
CONTEXTS = tuple(Context(value) for value in range(256))
AT_ONCE = 8192  # records that are decoded at a time
TEXTS = 4096  # texts, and shown bytes, that are kept at a time while records are decoded


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook that was asked for; `error` is 0 or why it is absent (-errno)."""

    name: str
    error: int = 0
    flags: int = 0
    hits: int = 0
    missed: int = 0

    @property
    def attached(self) -> bool:
        return self.error == 0

    @property
    def copies(self) -> bool:
        """Whether it sees a copy of message bytes."""
        return bool(self.flags & HOOK_COPY)

    @property
    def maxactive(self) -> int:
        """How many calls at once a RETURN hook can follow; more are counted as missed."""
        return self.flags >> HOOK_ACTIVE_SHIFT

    @property
    def left_out(self) -> bool:
        """Whether somebody took it out on purpose."""
        return bool(self.flags & HOOK_LEFT_OUT)

    @property
    def way(self) -> str:
        """How BPF attached it; empty for a module's hook and for one that is absent."""
        return next((way for bit, way in HOOK_WAYS.items() if self.flags & bit), "")


@dataclass(frozen=True, slots=True)
class Header:
    """The first 8 KiB of a ring or a section."""

    name: str
    nonce: bytes
    capacity: int
    claimed: int
    dropped: int
    skipped: int
    finished: bool
    module_base: int
    hooks: tuple[Hook, ...]
    chunks: tuple[int, ...]  # physical addresses
    paged: bool = False  # a chunk is a page of the addresses of its pages

    @property
    def stored(self) -> int:
        """How many records lie in the ring, torn ones included."""
        return min(self.claimed, self.capacity)

    @property
    def missed(self) -> int:
        return sum(hook.missed for hook in self.hooks)


@dataclass(frozen=True, slots=True)
class Section:
    """What one module left; its records are numbers `first` to `first + header.stored - 1`."""

    header: Header
    first: int
    torn: tuple[int, ...]  # numbers of records whose handler never finished
    events: memoryview

    @property
    def name(self) -> str:
        return self.header.name


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace file: its sections and, built when asked for, its records."""

    path: Path
    guest: str
    sections: tuple[Section, ...]

    @property
    def records(self) -> Records:
        """All records in the order of the file, torn ones left out."""
        return Records(self)

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return tuple(hook for section in self.sections for hook in section.header.hooks)

    @property
    def seen(self) -> int:
        """Records asked for, whether there was room or not."""
        return sum(section.header.claimed for section in self.sections)

    @property
    def missed(self) -> int:
        return sum(section.header.missed for section in self.sections)

    @property
    def dropped(self) -> int:
        return sum(section.header.dropped for section in self.sections)

    @property
    def skipped(self) -> int:
        return sum(section.header.skipped for section in self.sections)

    @property
    def torn(self) -> int:
        return sum(len(section.torn) for section in self.sections)

    @property
    def lost(self) -> int:
        """Observations that happened and are not here."""
        return self.missed + self.dropped + self.torn

    @property
    def complete(self) -> bool:
        """Nothing was lost, and the counters are final."""
        return self.lost == 0 and all(section.header.finished for section in self.sections)


class Records(Sequence[Record]):
    """The records of a trace, decoded one at a time as they are looked at."""

    def __init__(self, trace: Trace) -> None:
        self._source = f"{trace.guest}/{trace.path.name}"
        self._sections = trace.sections
        self._count = sum(s.header.stored - len(s.torn) for s in trace.sections)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        from lab.record.decode import decode

        for section in self._sections:
            for at in range(0, section.header.stored, AT_ONCE):
                events = section.events[at * EVENT_SIZE : (at + AT_ONCE) * EVENT_SIZE]
                yield from decode(self._source, section, events, section.first + at)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return the index-th record that is whole; see `numbered` for evidence ids."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if index < 0:
            index += self._count
        if index >= 0:
            for section in self._sections:
                whole = section.header.stored - len(section.torn)
                if index < whole:
                    number = section.first + index
                    for torn in section.torn:
                        number += torn <= number
                    return self._one(section, number)
                index -= whole
        raise IndexError(index)

    def numbered(self, number: int) -> Record:
        """Return the record that an evidence id names; KeyError if it is not there."""
        for section in self._sections:
            within = number - section.first
            if 0 <= within < section.header.stored and number not in section.torn:
                return self._one(section, number)
        raise KeyError(number)

    def _one(self, section: Section, number: int) -> Record:
        from lab.record.decode import decode

        at = (number - section.first) * EVENT_SIZE
        return decode(self._source, section, section.events[at : at + EVENT_SIZE], number)[0]


def text(raw: bytes) -> str:
    """Return a C string of a fixed size."""
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def needle(nonce: bytes) -> bytes:
    """Return the bytes by which a run's ring is found in guest RAM, page aligned."""
    return struct.pack("<Q16s", MAGIC, nonce)


def parse_header(data: bytes | memoryview, *, where: str = "ring", at: int = 0) -> Header:
    """Read the header that lies `at` that offset of `data`.

    Raises `TraceCorrupt`, naming `where`, for anything but a header this version wrote.
    """

    def check(field: str, found: int, allowed: range, expected: object) -> None:
        if found not in allowed:
            offset = at + _HEADER_OFFSETS[field]
            raise TraceCorrupt(
                f"{where}: offset {offset}: {field}: expected {expected}, found {found:#x}"
            )

    def just(value: int) -> range:
        return range(value, value + 1)

    if len(data) < at + HEADER_SIZE:
        raise TraceCorrupt(
            f"{where}: offset {at}: expected a header of {HEADER_SIZE} bytes, "
            f"found {len(data) - at} bytes"
        )
    (magic, nonce, version, event_size, capacity, claimed, dropped, skipped, hook_count,
     chunk_count, finished, flags, name, base) = HEADER_LAYOUT.unpack_from(data, at)  # fmt: skip
    check("magic", magic, just(MAGIC), hex(MAGIC))
    check("version", version, just(VERSION), VERSION)
    check("event_size", event_size, just(EVENT_SIZE), EVENT_SIZE)
    check("hook_count", hook_count, range(HOOKS + 1), f"at most {HOOKS}")
    check("chunk_count", chunk_count, range(CHUNKS + 1), f"at most {CHUNKS}")
    paged = bool(flags & RING_PAGED)
    room = chunk_count * (PAGES * PAGE if paged else CHUNK_SIZE) // EVENT_SIZE
    check("capacity", capacity, range(room + 1), f"at most {room}, which the chunks hold")
    hooks = []
    for index in range(hook_count):
        here = at + HOOKS_AT + index * HOOK_LAYOUT.size
        raw, *rest = HOOK_LAYOUT.unpack_from(data, here)
        if raw.startswith(b"\0"):
            raise TraceCorrupt(f"{where}: offset {here}: expected a hook's name, found none")
        hooks.append(Hook(text(raw), *rest))
    return Header(
        name=text(name),
        nonce=nonce,
        capacity=capacity,
        claimed=claimed,
        dropped=dropped,
        skipped=skipped,
        finished=bool(finished),
        module_base=base,
        hooks=tuple(hooks),
        chunks=struct.unpack_from(f"<{chunk_count}Q", data, at + CHUNKS_AT),
        paged=paged,
    )


_HEADER_OFFSETS = {
    name: struct.calcsize("<" + "".join(code for _, code in HEADER_FIELDS[:index]))
    for index, (name, _) in enumerate(HEADER_FIELDS)
}


def read(path: Path, *, guest: str) -> Trace:
    """Read a trace file whole and check all of it; records are decoded when looked at.

    Raises `TraceCorrupt`, with offset, expected and found, for a file that is cut short
    or holds what no probe writes.  Losses are no corruption: see `Trace.lost`.
    """
    where = f"{guest}/{path.name}"
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError as error:
        raise TraceCorrupt(f"{where}: expected a trace, found none", log=path) from error
    sections: list[Section] = []
    at = first = 0
    while at < len(data):
        header = parse_header(data, where=where, at=at)
        at += HEADER_SIZE
        size = header.stored * EVENT_SIZE
        if len(data) < at + size:
            raise TraceCorrupt(
                f"{where}: offset {at}: expected {header.stored} records, {size} bytes, "
                f"found {len(data) - at} bytes"
            )
        events = data[at : at + size]
        torn = _check_events(events, header, where=where, at=at)
        sections.append(Section(header, first, tuple(first + index for index in torn), events))
        at += size
        first += header.stored
    return Trace(path, guest, tuple(sections))


def _check_events(events: memoryview, header: Header, *, where: str, at: int) -> list[int]:
    """Return the indices of torn records; raise for what no probe writes."""
    commits, hooks, kinds, lengths = (
        _column(events, name) for name in ("commit", "hook", "kind", "bytes_len")
    )
    torn: list[int] = []
    most_hook, count = len(header.hooks), len(commits)
    # All at once, as in most files nothing is wrong; else one by one, to say which it is.
    whole = not count or (
        commits == list(range(1, count + 1))
        and max(hooks) < most_hook
        and max(lengths) <= BYTES_LEN
        and KINDS.keys() >= set(kinds)
    )
    rows = zip(commits, hooks, kinds, lengths, strict=True)
    for index, (commit, hook, kind, length) in enumerate(() if whole else rows):
        here = f"{where}: offset {at + index * EVENT_SIZE}"
        if not commit:
            torn.append(index)
        elif commit != index + 1:
            raise TraceCorrupt(f"{here}: commit: expected {index + 1} or 0, found {commit:#x}")
        elif hook >= most_hook or kind not in KINDS:
            raise TraceCorrupt(
                f"{here}: hook and kind: expected a hook "
                f"below {most_hook} and a kind of 1 to {len(KINDS)}, found {hook} and {kind}"
            )
        elif length > BYTES_LEN:
            raise TraceCorrupt(f"{here}: bytes_len: expected at most {BYTES_LEN}, found {length}")
    turns: dict[int, list[int]] = defaultdict(list)
    for commit, cpu, seq in zip(
        commits, _column(events, "cpu"), _column(events, "seq"), strict=True
    ):
        if commit:
            turns[cpu].append(seq)
    # Every CPU counts its records from 1.  A number that is not here was taken by a
    # record that is torn or dropped; more gaps than those means records went missing.
    gaps = 0
    for cpu, numbers in turns.items():
        if len(set(numbers)) != len(numbers) or min(numbers) < 1:
            raise TraceCorrupt(
                f"{where}: offset {at}: seq of CPU {cpu}: expected numbers from 1 up, "
                f"each once, found {len(numbers)} records with {len(set(numbers))} numbers "
                f"from {min(numbers)}"
            )
        gaps += max(numbers) - len(numbers)
    if gaps > header.dropped + len(torn):
        raise TraceCorrupt(
            f"{where}: offset {at}: seq: expected at most {header.dropped + len(torn)} gaps "
            f"(dropped and torn), found {gaps}"
        )
    return torn


def _column(events: memoryview, name: str) -> list[int]:
    """Return one field of all records: a number as wide as its place is a multiple of."""
    code, offset = _PLACES[name]
    size = struct.calcsize(code)
    found = events.cast(_NUMBERS[code])[offset // size :: EVENT_SIZE // size].tolist()
    if sys.byteorder == "big":
        found = [int.from_bytes(one.to_bytes(size, "big"), "little") for one in found]
    return found


def dump(header: bytes, read_physical: Callable[[int, int], bytes]) -> bytes:
    """Return a ring as a section of a trace file.

    `header` is the ring's 8 KiB; `read_physical(address, size)` reads guest RAM.
    The ring may be live: what is not committed yet becomes a torn record.
    """
    header = bytes(header[:HEADER_SIZE])
    parsed = parse_header(header)
    if parsed.paged:  # its second page is somebody else's
        header = header[:PAGE].ljust(HEADER_SIZE, b"\0")
    parts = [header]
    left = parsed.stored * EVENT_SIZE
    for address, room in places(parsed, read_physical):
        size = min(left, room)
        if not size:
            break
        part = read_physical(address, size)
        if len(part) != size:
            raise TraceCorrupt(
                f"ring {parsed.name}: chunk at {address:#x}: expected {size} bytes, "
                f"found {len(part)}"
            )
        parts.append(part)
        left -= size
    return b"".join(parts)


def places(header: Header, read_physical: Callable[[int, int], bytes]) -> Iterator[tuple[int, int]]:
    """Yield (physical address, size) of the pieces of a ring's memory, in order."""
    for chunk in header.chunks:
        if not header.paged:
            yield chunk, CHUNK_SIZE
            continue
        for page in struct.unpack(f"<{PAGES}Q", read_physical(chunk, PAGE)):
            if page:
                yield page, PAGE


def values_of(record: Record) -> dict[str, Any]:
    """Return what a record says by the names of struct lab_event, as `encode_section` takes it."""
    return {name: getattr(record, name) for name, _ in FIELDS if name not in _OF_THE_RING}


def encode_section(
    events: Sequence[Mapping[str, Any] | Record] = (),
    *,
    name: str = "send_trace",
    nonce: bytes = bytes(range(16)),
    hooks: Sequence[Hook | str] | None = None,
    claimed: int | None = None,
    capacity: int | None = None,
    dropped: int = 0,
    skipped: int = 0,
    finished: bool = True,
    module_base: int = 0xFFFF_FFFF_C000_0000,
) -> bytes:
    """Cook a section of a trace file, for tests.

    An event is a record or a mapping of a record's fields; `hook` is a name, `bytes` are
    in clear.  What is left out follows: hooks from the events, `seq` per CPU, `tsc` from
    the order, kind ENTRY, Flag.SKB where there is an skb.  `{"torn": True}` is a
    record whose handler never finished.
    """
    plain = [values_of(event) if isinstance(event, Record) else dict(event) for event in events]
    if hooks is None:
        hooks = list(dict.fromkeys(event["hook"] for event in plain if "hook" in event))
    table = [Hook(hook) if isinstance(hook, str) else hook for hook in hooks]
    index_of = {hook.name: index for index, hook in enumerate(table)}
    turns: dict[int, int] = {}
    body = b"".join(
        _encode_event(number, event, index_of, turns, nonce) for number, event in enumerate(plain)
    )
    if claimed is None:
        claimed = len(plain) + dropped
    if capacity is None:
        capacity = len(plain)
    chunk_count = -(-capacity // EVENTS_PER_CHUNK)
    head = HEADER_LAYOUT.pack(
        MAGIC, nonce, VERSION, EVENT_SIZE, capacity, claimed, dropped, skipped, len(table),
        chunk_count, finished, 0, name.encode(), module_base,
    ).ljust(HOOKS_AT, b"\0")  # fmt: skip
    head += b"".join(
        HOOK_LAYOUT.pack(hook.name.encode(), hook.error, hook.flags, hook.hits, hook.missed)
        for hook in table
    )
    head = head.ljust(CHUNKS_AT, b"\0")
    chunks = [0x100_0000 + index * CHUNK_SIZE for index in range(chunk_count)]
    head += struct.pack(f"<{chunk_count}Q", *chunks)
    return head.ljust(HEADER_SIZE, b"\0") + body


_NOT_ON_THE_WIRE = {"id", "number", "module", "torn"}
_OF_THE_RING = {"commit", "bytes_len"}  # which say nothing of what was observed


def _encode_event(
    number: int,
    event: dict[str, Any],
    index_of: Mapping[str, int],
    turns: dict[int, int],
    nonce: bytes,
) -> bytes:
    known = {name for name, _ in FIELDS}
    if unknown := event.keys() - known - _NOT_ON_THE_WIRE:
        raise TypeError(f"no field of a record: {', '.join(sorted(unknown))}")
    if event.get("torn"):
        return bytes(EVENT_SIZE)
    cpu = event.get("cpu", 0)
    turns[cpu] = event.get("seq", turns.get(cpu, 0) + 1)
    clear = event.get("bytes", b"")
    values: dict[str, Any] = {
        "tsc": 1000 + 100 * number,
        "kind": Kind.ENTRY,
        "flags": Flag.SKB if event.get("skb") else 0,
        "bytes_len": len(clear),
        **{key: value for key, value in event.items() if key in known},
        "commit": event.get("commit", number + 1),
        "seq": turns[cpu],
        "hook": index_of[event["hook"]],
        "bytes": bytes(byte ^ nonce[i % 16] for i, byte in enumerate(clear)),
    }
    for text in ("comm", "dev"):
        values[text] = values.get(text, "").encode()
    return LAYOUT.pack(*(values.get(name, 0) for name, _ in FIELDS))
