"""The file that the plugin and the host share, byte by byte.

The same in C is `witness/access_log.h`; a unit test compares the two.  A record is a
run: adjoining accesses of one page, in one direction, by one call of one function::

    header    4,096 bytes   command and state, room, counters, both clocks at both ends
    records   88 bytes each
    content   the bytes the records saw, back to back
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, TypeAlias

from lab.errors import TraceCorrupt

MAGIC = int.from_bytes(b"LBACCESS", "little")
VERSION = 1
HEADER_SIZE = 4096
PAGE = 4096
DIGEST_SIZE = 16
LEAST = 8  # bytes of a message in a row that cannot be there by chance
WINDOWS = 1 << 18  # bytes of messages of which every LEAST in a row are looked up

Ranges: TypeAlias = Iterable[tuple[int, int]]  # physical addresses, [start, end)
Data: TypeAlias = bytes | bytearray | memoryview
Row: TypeAlias = tuple[int, ...]

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
    ("digest", "16s"),
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
OFFSETS = {
    name: struct.calcsize("<" + "".join(code for _, code in HEADER_FIELDS[:index]))
    for index, (name, _) in enumerate(HEADER_FIELDS)
}


class Flag(IntFlag):
    """What a run of accesses was."""

    STORE = 1
    IO = 2  # a device's register: no bytes
    OUTSIDE = 4  # memory that is not the guest's RAM: no bytes
    SPLIT = 8  # holds the second part of an access that crossed pages


_ALL_FLAGS = int(Flag.STORE | Flag.IO | Flag.OUTSIDE | Flag.SPLIT)
WITHOUT_BYTES = int(Flag.IO | Flag.OUTSIDE)


class State(IntEnum):
    """What the plugin does."""

    ABSENT = 0
    ASLEEP = 1
    ARMED = 2


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
    digest: bytes = b""  # of a filtered log; zeros in any other

    @property
    def filtered(self) -> bool:
        return self.raw_records > 0


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
                f"{where}: offset {OFFSETS[field]}: {field}: "
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
    values["state"] = State(values["state"])
    return Header(**values)


def sections(data: Data, header: Header, *, where: str) -> tuple[memoryview, memoryview]:
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


def fault_of(fields: Row, content: int) -> str | None:
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
    elif flags & WITHOUT_BYTES:
        pass
    elif virtual % PAGE != physical % PAGE:
        fault = (
            f"phys: expected {virtual % PAGE:#x} in its page, as virt, found {physical % PAGE:#x}"
        )
    elif at + size > content:
        fault = f"content: expected at most {content - size}, found {at}"
    return fault


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
        "digest": b"",  # of what it was read from
    }
    if unknown := values.keys() - known.keys():
        raise TypeError(f"no field of a header: {', '.join(sorted(unknown))}")
    known |= values
    return HEADER_LAYOUT.pack(*known.values()).ljust(HEADER_SIZE, b"\0")


def seal_of(data: Data) -> bytes:
    """Return what `digest` is in a log of these bytes: of all of them but itself."""
    at = OFFSETS["digest"]
    found = hashlib.sha256(data[:at])
    found.update(data[at + DIGEST_SIZE :])
    return found.digest()[:DIGEST_SIZE]


def sealed(data: bytes) -> bytes:
    """Return a log with its digest: a record taken out of it, or changed, is noticed by itself."""
    at = OFFSETS["digest"]
    return data[:at] + seal_of(data) + data[at + DIGEST_SIZE :]


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
