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
PARAM = struct.Struct("<II")  # name, type
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
_ENUMS = frozenset({Kind.ENUM, Kind.ENUM64})
_NAMED = frozenset({Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF})
# What stands before a type's name in C, or alone where it has none.
_WORDS = {
    Kind.VOID: "void",
    Kind.STRUCT: "struct ",
    Kind.UNION: "union ",
    Kind.FWD: "struct ",
    Kind.ENUM: "enum ",
    Kind.ENUM64: "enum ",
    Kind.FUNC_PROTO: "function",
}
_QUALIFIERS = {
    Kind.CONST: "const",
    Kind.VOLATILE: "volatile",
    Kind.RESTRICT: "restrict",
    Kind.TYPE_TAG: "",
}


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


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function; `name` is "" where the source gives none."""

    name: str
    type: int


@dataclass(frozen=True, slots=True)
class Prototype:
    """What a function takes and gives; `variadic`: there may be more than is listed."""

    name: str
    parameters: tuple[Parameter, ...]
    returns: int  # a type; 0: nothing
    variadic: bool


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
        self._functions: dict[int, int] = {}  # offset of the name -> the first function
        self._asked: dict[str, Field] = {}  # path -> what was found
        self._index()

    def extended(self, data: bytes) -> Btf:
        """Return these types and those of a module, whose `data` goes on counting from here."""
        _, _, _, length, types, types_size, strings, strings_size = HEADER.unpack_from(data)
        all_types = self._types + data[length + types :][:types_size]
        all_strings = self._strings + data[length + strings :][:strings_size]
        sizes = 0, len(all_types), len(all_types), len(all_strings)
        header = HEADER.pack(MAGIC, 1, 0, HEADER.size, *sizes)
        return Btf(header + all_types + all_strings)

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
            elif kind == Kind.FUNC:
                self._functions.setdefault(name, len(self._places))
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

    def has_enum(self, name: str) -> bool:
        """Tell whether there is such an enum."""
        try:
            self._find(name, _ENUMS)
        except EvidenceError:
            return False
        return True

    def field(self, path: str) -> Field:
        """Return where a member lies; structs and unions without a name are looked through.

        A path does not go through pointers: what a member points to is another struct.
        """
        if path in self._asked:
            return self._asked[path]
        name, *members = path.split(".")
        kind = self._find(name, _COMPOSITE)
        found = Field(0, self._size(kind), kind)
        for member in members:
            inner = self._member(self._plain(found.type), member, found.offset * 8)
            if inner is None:
                raise EvidenceError(f"BTF: {path}: there is no member '{member}'")
            found = inner
        self._asked[path] = found
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
        kind = self._find(name, _ENUMS)
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

    def prototype(self, name: str) -> Prototype | None:
        """Return what a function takes and gives; None where the kernel does not say.

        It is silent on functions whose parameters the compiler changed, and on those that
        share their name with a different one.
        """
        kind = next((found for at in self._spelled(name) if (found := self._functions.get(at))), 0)
        if not kind:
            return None
        proto = self._record(kind)[2]
        _, info, returns = self._record(proto)
        at = self._places[proto] + 12
        listed = [PARAM.unpack_from(self._types, at + PARAM.size * i) for i in range(info & 0xFFFF)]
        variadic = bool(listed) and listed[-1] == (0, 0)
        parameters = tuple(
            Parameter(self._text(called), of)
            for called, of in (listed[:-1] if variadic else listed)
        )
        return Prototype(name, parameters, returns, variadic)

    def size_of(self, kind: int) -> int:
        """Return the size of a type in bytes; 0 for void and what has no size."""
        plain = self._plain(kind)
        if self._kind(plain) in (Kind.VOID, Kind.FWD, Kind.FUNC_PROTO):
            return 0
        return self._size(plain)

    def kind_of(self, kind: int) -> Kind:
        """Return what a type is, behind typedefs and qualifiers."""
        return self._kind(self._plain(kind))

    def is_signed(self, kind: int) -> bool:
        """Tell whether a type is a signed integer, or an enum that may be negative."""
        plain = self._plain(kind)
        if self._kind(plain) is Kind.INT:
            return bool(self._word(self._places[plain] + 12) >> 24 & 1)
        return bool(self._record(plain)[1] >> 31)

    def target(self, kind: int) -> int | None:
        """Return what a pointer points to, behind typedefs and qualifiers; None: no pointer."""
        plain = self._plain(kind)
        if self._kind(plain) is not Kind.PTR:
            return None
        return self._plain(self._record(plain)[2])

    def struct_name(self, kind: int) -> str | None:
        """Return the name of a struct or union; None for any other type."""
        plain = self._plain(kind)
        return self._text(self._record(plain)[0]) if self._kind(plain) in _COMPOSITE else None

    def describe(self, kind: int) -> str:
        """Return a type as C writes it: "struct sock *", "const void *", "size_t"."""
        what = self._kind(kind)
        name, _, rest = self._record(kind)
        if what is Kind.PTR:
            inner = self.describe(rest)
            return f"{inner}{'' if inner.endswith('*') else ' '}*"
        if what in _QUALIFIERS:
            inner, word = self.describe(rest), _QUALIFIERS[what]
            return (f"{inner} {word}" if inner.endswith("*") else f"{word} {inner}").strip()
        if what is Kind.ARRAY:
            element, _, count = ARRAY.unpack_from(self._types, self._places[kind] + 12)
            return f"{self.describe(element)}[{count}]"
        return f"{_WORDS.get(what, '')}{self._text(name)}".strip()

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

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._types, at)[0])

    def _spelled(self, name: str) -> Iterator[int]:
        """Yield where a name stands among the strings; modules repeat some of the kernel's."""
        wanted = b"\0" + name.encode() + b"\0"
        at = self._strings.find(wanted)
        while at >= 0:
            yield at + 1
            at = self._strings.find(wanted, at + 1)

    def _find(self, name: str, kinds: frozenset[Kind]) -> int:
        for at in self._spelled(name):
            for kind in self._named.get(at, ()):
                plain = self._plain(kind)
                if self._kind(plain) in kinds:
                    return plain
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
