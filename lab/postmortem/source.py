"""From `function+offset` to a line of the module's own source, by its debug information."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

ALLOC = 2  # SHF_ALLOC
SYMTAB = 2  # SHT_SYMTAB
FUNCTION = 2  # STT_FUNC
SYMBOL = struct.Struct("<IBBHQQ")
SMALL = 4096  # a fault below that is a member of a struct that was not there
MEMBER = re.compile(r"(?:->|\.)\s*(\w+)")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of source; `file` as the compiler was given it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def of_kernel(self) -> bool:
        """Whether it is a header of the kernel's; in a build tree those have relative paths."""
        return self.file.startswith(("/", "include/", "arch/"))


@dataclass(frozen=True, slots=True)
class _Row:
    address: int
    place: Place | None  # None: the end of a sequence


class Debug:
    """A module's debug information; one that has none answers None to everything.

    In a .ko every section begins at address 0, so each is moved to a range of its own
    before anything is read: else .text and .init.text could not be told apart.
    """

    def __init__(self, path: Path) -> None:
        self._functions: dict[str, tuple[int, int]] = {}
        self._rows: list[_Row] | None = None
        self._dwarf: Any = None
        try:
            data, self._functions = _spread(path.read_bytes())
            elf = ELFFile(BytesIO(data))
            if elf.has_dwarf_info(strict=True):
                self._dwarf = elf.get_dwarf_info()
        except (OSError, ELFError, struct.error, ValueError):
            return

    @property
    def present(self) -> bool:
        return self._dwarf is not None

    def place(self, function: str, offset: int, *, after_call: bool = False) -> Place | None:
        """Return the line of `function+offset`, the one of the call for a return address."""
        known = self._functions.get(function)
        if known is None or self._dwarf is None:
            return None
        return self._at(known[0] + offset - (1 if after_call else 0), known[0])

    def own_place(self, function: str, offset: int) -> Place | None:
        """Return the last line up to there that is not of a kernel header."""
        known = self._functions.get(function)
        if known is None or self._dwarf is None:
            return None
        rows = self._lines()
        number = bisect_right(rows, known[0] + offset, key=lambda row: row.address) - 1
        while number >= 0 and rows[number].address >= known[0]:
            place = rows[number].place
            if place is not None and not place.of_kernel:
                return place
            number -= 1
        return None

    def _at(self, address: int, start: int) -> Place | None:
        rows = self._lines()
        number = bisect_right(rows, address, key=lambda row: row.address) - 1
        if number < 0 or rows[number].address < start:
            return None
        return rows[number].place

    def _lines(self) -> list[_Row]:
        if self._rows is None:
            self._rows = sorted(
                (row for unit in self._dwarf.iter_CUs() for row in _rows_of(self._dwarf, unit)),
                key=lambda row: (row.address, row.place is not None),
            )
        return self._rows

    def member(self, offset: int, line: str) -> str | None:
        """Return `struct name.member` of a member that `line` of source names, at `offset`.

        None where no struct, or more than one, has such a member there.
        """
        names = set(MEMBER.findall(line))
        if self._dwarf is None or not names or not 0 <= offset < SMALL:
            return None
        found: set[str] = set()
        for unit in self._dwarf.iter_CUs():
            for die in unit.iter_DIEs():
                if die.tag == "DW_TAG_member" and _is(die, names, offset):
                    parent = die.get_parent()
                    name = _name(parent)
                    kind = "union" if parent.tag == "DW_TAG_union_type" else "struct"
                    if name:
                        found.add(f"{kind} {name}.{_name(die)}")
        return found.pop() if len(found) == 1 else None


def _is(die: Any, names: set[str], offset: int) -> bool:
    at = die.attributes.get("DW_AT_data_member_location")
    return at is not None and at.value == offset and _name(die) in names


def _name(die: Any) -> str:
    name = die.attributes.get("DW_AT_name")
    return "" if name is None else name.value.decode("utf-8", "replace")


def _rows_of(dwarf: Any, unit: Any) -> list[_Row]:
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return []
    files = program["file_entry"]
    folders = program["include_directory"]
    first = 0 if program["version"] >= 5 else 1  # DWARF 5 counts files and folders from 0
    rows = []
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if state.end_sequence:
            rows.append(_Row(state.address, None))
            continue
        number = state.file - first
        if 0 <= number < len(files):
            file = files[number]
            path = _path(file.name, folders, file.dir_index - first)
            rows.append(_Row(state.address, Place(path, state.line)))
    return rows


def _path(name: bytes, folders: Any, index: int) -> str:
    text = name.decode("utf-8", "replace")
    if not text.startswith("/") and 0 <= index < len(folders):
        folder = str(folders[index].decode("utf-8", "replace"))
        if folder not in ("", "."):
            text = f"{folder}/{text}"
    return text.removeprefix("./")


def _spread(data: bytes) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Give every loaded section addresses of its own; return that and where functions are."""
    image = bytearray(data)
    if data[:4] != b"\x7fELF" or data[4:6] != b"\x02\x01":
        raise ValueError("no ELF of this machine")
    table = struct.unpack_from("<Q", data, 40)[0]
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * i) for i in range(count)]
    functions: dict[str, tuple[int, int]] = {}
    for section in sections:
        if section[1] != SYMTAB:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], SYMBOL.size):
            name, info, other, where, value, length = SYMBOL.unpack_from(data, at)
            if not 0 < where < count or not sections[where][2] & ALLOC:
                continue
            value += (where + 1) << 32
            SYMBOL.pack_into(image, at, name, info, other, where, value, length)
            if info & 15 == FUNCTION:
                end = data.index(b"\0", strings + name)
                functions[data[strings + name : end].decode("ascii", "replace")] = value, length
    return bytes(image), functions
