"""What a kernel says of its own types: a reader of BTF, its built-in debug information.

A kernel with BPF carries the layout of all its structs in its image, so that they can be
read out of guest RAM without a debug package, for the very build that runs.  The format is
Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from lab.errors import EvidenceError

MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, own length, types, their size, strings
TYPE = struct.Struct("<III")  # name, kind and count, size or type
MEMBER = struct.Struct("<III")  # name, type, offset in bits
ARRAY = struct.Struct("<III")  # type of an element, of the index, how many
POINTER = 8  # bytes, on x86-64


class Kind(IntEnum):
    """What a type is, as the format numbers it."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes behind a type's first twelve: always, and for each of what it counts.
_FIXED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_EACH = {
    Kind.STRUCT: 12,
    Kind.UNION: 12,
    Kind.ENUM: 8,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}
_ALIAS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
_COMPOSITE = frozenset({Kind.STRUCT, Kind.UNION})
_NAMED = frozenset({Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF})


@dataclass(frozen=True, slots=True)
class Field:
    """Where a member of a struct lies.

    `bits` is 0 for a whole member; a bit-field of `bits` bits begins `shift` bits above the
    lowest of the byte at `offset`.
    """

    offset: int  # bytes from the start of the outermost struct
    size: int  # bytes of its type
    type: int
    shift: int = 0
    bits: int = 0


class Btf:
    """The types of one kernel."""

    def __init__(self, data: bytes) -> None:
        """Read `data`, the blob of a kernel image; `EvidenceError` where it is none."""
        if len(data) < HEADER.size:
            raise EvidenceError(f"BTF: expected {HEADER.size} bytes or more, found {len(data)}")
        magic, version, _, length, types, types_size, strings, strings_size = HEADER.unpack_from(
            data
        )
        if (magic, version) != (MAGIC, 1):
            raise EvidenceError(
                f"BTF: expected magic {MAGIC:#x}, version 1; found {magic:#x}, {version}"
            )
        if max(length + types + types_size, length + strings + strings_size) > len(data):
            raise EvidenceError(f"BTF: cut short at {len(data)} bytes")
        self._types = data[length + types : length + types + types_size]
        self._strings = data[length + strings : length + strings + strings_size]
        self._places = array("I", [0])  # of type 0, void, which is not written down
        self._named: dict[int, list[int]] = {}  # offset of the name -> types
        self._index()

    def _index(self) -> None:
        at, end, types = 0, len(self._types), self._types
        sizes = [12 + _FIXED.get(Kind(kind), 0) for kind in range(len(Kind))]
        each = [_EACH.get(Kind(kind), 0) for kind in range(len(Kind))]
        while at < end:
            name, info, _ = TYPE.unpack_from(types, at)
            kind = info >> 24 & 31
            if kind >= len(sizes):
                raise EvidenceError(f"BTF: type {len(self._places)} is of unknown kind {kind}")
            if name and kind in _NAMED:
                self._named.setdefault(name, []).append(len(self._places))
            self._places.append(at)
            at += sizes[kind] + each[kind] * (info & 0xFFFF)

    # --- Questions ----------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the size of a struct or union in bytes."""
        return self._size(self._find(name, _COMPOSITE))

    def offset(self, path: str) -> int:
        """Return where a member lies, in bytes: "page.flags", "sock.__sk_common.skc_dport"."""
        return self.field(path).offset

    def has(self, path: str) -> bool:
        """Tell whether there is such a struct, or such a member of it."""
        try:
            self.field(path) if "." in path else self._find(path, _COMPOSITE)
        except EvidenceError:
            return False
        return True

    def field(self, path: str) -> Field:
        """Return where a member lies; structs and unions without a name are looked through.

        A path does not go through pointers: what a member points to is another struct.
        """
        name, *members = path.split(".")
        kind = self._find(name, _COMPOSITE)
        found = Field(0, self._size(kind), kind)
        for member in members:
            inner = self._member(self._plain(found.type), member, found.offset * 8)
            if inner is None:
                raise EvidenceError(f"BTF: {path}: there is no member '{member}'")
            found = inner
        return found

    def points_to(self, path: str) -> str:
        """Return the name of the struct that a pointer member points to."""
        kind = self._plain(self.field(path).type)
        if self._kind(kind) is not Kind.PTR:
            raise EvidenceError(f"BTF: {path} is no pointer")
        target = self._plain(self._record(kind)[2])
        return self._text(self._record(target)[0]) if target else "void"

    def enum(self, name: str) -> dict[str, int]:
        """Return the values of an enum by name."""
        kind = self._find(name, frozenset({Kind.ENUM, Kind.ENUM64}))
        _, info, _ = self._record(kind)
        at, wide = self._places[kind] + 12, self._kind(kind) is Kind.ENUM64
        values: dict[str, int] = {}
        for _ in range(info & 0xFFFF):
            if wide:
                key, low, high = struct.unpack_from("<III", self._types, at)
                value = low | high << 32
                value -= (value >> 63 << 64) if info >> 31 else 0
            else:
                key, value = struct.unpack_from("<Ii" if info >> 31 else "<II", self._types, at)
            values[self._text(key)] = value
            at += 12 if wide else 8
        return values

    def members(self, name: str) -> Iterator[tuple[str, Field]]:
        """Yield the members of a struct by name, those of unnamed inner ones in place."""
        yield from self._all(self._find(name, _COMPOSITE), 0)

    # --- Types ----------------------------------------------------------------------------------

    def _record(self, kind: int) -> tuple[int, int, int]:
        if kind == 0:
            return 0, 0, 0
        name, info, rest = TYPE.unpack_from(self._types, self._places[kind])
        return name, info, rest

    def _kind(self, kind: int) -> Kind:
        return Kind(self._record(kind)[1] >> 24 & 31)

    def _text(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode("ascii", "replace")

    def _find(self, name: str, kinds: frozenset[Kind]) -> int:
        wanted = b"\0" + name.encode() + b"\0"
        at = self._strings.find(wanted)
        while at >= 0:
            for kind in self._named.get(at + 1, ()):
                plain = self._plain(kind)
                if self._kind(plain) in kinds:
                    return plain
            at = self._strings.find(wanted, at + 1)
        raise EvidenceError(f"BTF: this kernel has no type '{name}'")

    def _plain(self, kind: int) -> int:
        """Return the type behind typedefs and qualifiers."""
        while self._kind(kind) in _ALIAS:
            kind = self._record(kind)[2]
        return kind

    def _size(self, kind: int) -> int:
        kind = self._plain(kind)
        what = self._kind(kind)
        if what is Kind.PTR:
            return POINTER
        if what is Kind.ARRAY:
            element, _, count = ARRAY.unpack_from(self._types, self._places[kind] + 12)
            return self._size(element) * int(count)
        return self._record(kind)[2]

    def _fields(self, kind: int, bits: int) -> Iterator[tuple[str, Field]]:
        # `bits`: where the struct itself begins.
        _, info, _ = self._record(kind)
        if info >> 24 & 31 not in _COMPOSITE:
            return
        at = self._places[kind] + 12
        for _ in range(info & 0xFFFF):
            name, inner, place = MEMBER.unpack_from(self._types, at)
            at += MEMBER.size
            width = 0
            if info >> 31:  # bit-fields: their width is in the uppermost byte
                width, place = place >> 24, place & 0xFFFFFF
            byte, shift = divmod(bits + place, 8)
            yield self._text(name), Field(byte, self._size(inner), inner, shift, width)

    def _member(self, kind: int, wanted: str, bits: int) -> Field | None:
        for name, found in self._fields(kind, bits):
            if name == wanted:
                return found
            if not name:
                inner = self._member(self._plain(found.type), wanted, found.offset * 8)
                if inner is not None:
                    return inner
        return None

    def _all(self, kind: int, bits: int) -> Iterator[tuple[str, Field]]:
        for name, found in self._fields(kind, bits):
            if name:
                yield name, found
            else:
                yield from self._all(self._plain(found.type), found.offset * 8)
