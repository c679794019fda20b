"""Checked reading of JSON that others wrote: sizes bounded, types proven, faults located."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from lab.errors import TraceCorrupt

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_JSON_SIZE = 64 << 20  # bytes; a census of 1024 messages is under 1 MiB
MAX_U64 = (1 << 64) - 1


def read_bytes(path: Path, *, most: int = MAX_JSON_SIZE) -> bytes:
    """Return a whole file; raise `TraceCorrupt` when it is missing or larger than `most`."""
    try:
        if not path.is_file():
            raise TraceCorrupt(f"{path}: expected a file, found none", log=path)
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise TraceCorrupt(f"{path}: cannot be read: {error.strerror}", log=path) from error
    if len(data) > most:
        raise TraceCorrupt(f"{path}: expected at most {most} bytes, found more", log=path)
    return data


def read_json(path: Path, *, most: int = MAX_JSON_SIZE) -> Json:
    """Return what a JSON file holds; raise `TraceCorrupt` naming it when it is none."""
    data = read_bytes(path, most=most)
    try:
        value: Json = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TraceCorrupt(f"{path}: expected JSON, found: {error}", log=path) from error
    return value


class Fields:
    """One JSON object of a file, read field by field; every fault names file and place."""

    def __init__(self, value: Json, path: Path, where: str = "") -> None:
        self.path = path
        self.where = where
        if not isinstance(value, dict):
            raise self.fault("an object", value)
        self.values = value

    def fault(self, expected: str, found: Json, name: str = "") -> TraceCorrupt:
        """Return the error that says what stands where something else should."""
        place = ".".join(part for part in (self.where, name) if part) or "top"
        shown = json.dumps(found)[:40] if found is not None else "nothing"
        return TraceCorrupt(
            f"{self.path}: {place}: expected {expected}, found {shown}", log=self.path
        )

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise self.fault("text", value, name)
        return value

    def word(self, name: str, among: Sequence[str] = (), *, default: str | None = None) -> str:
        """Return a text that is not empty, and one of those `among` which it must be."""
        value = self.text(name, default)
        if value == default:
            return value
        if not value or (among and value not in among):
            raise self.fault(" or ".join(among) or "a text that is not empty", value, name)
        return value

    def shown(self, name: str) -> str:
        """Return a value that is only shown: text as it is, anything else as JSON."""
        value = self.values.get(name)
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_U64:
            raise self.fault("an integer of 64 bits", value, name)
        return value

    def size(self, name: str, default: int | None = None) -> int:
        value = self.integer(name, default)
        if value < 0:
            raise self.fault("a size", value, name)
        return value

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.fault("true or false", value, name)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fault("a number", value, name)
        return float(value)

    def address(self, name: str) -> int:
        value = self.values.get(name)
        if isinstance(value, str) and value.startswith("0x"):
            try:
                number = int(value, 16)
            except ValueError:
                number = -1
            if 0 <= number <= MAX_U64:
                return number
        raise self.fault("an address, 0x and hexadecimal digits", value, name)

    def inner(self, name: str) -> Fields:
        return Fields(self.values.get(name), self.path, self._below(name))

    def rows(self, name: str) -> list[Json]:
        value = self.values.get(name, [])
        if not isinstance(value, list):
            raise self.fault("a list", value, name)
        return value

    def each(self, name: str) -> Iterator[Fields]:
        """Yield the objects of a list; a missing list is an empty one."""
        for number, value in enumerate(self.rows(name)):
            yield Fields(value, self.path, self._below(f"{name}[{number}]"))

    def integers(self, name: str, width: int) -> Iterator[tuple[int, ...]]:
        """Yield the rows of a table of integers, addresses given as hexadecimal text."""
        for number, row in enumerate(self.rows(name)):
            here = f"{name}[{number}]"
            if not isinstance(row, list) or len(row) != width:
                raise self.fault(f"{width} integers", row, here)
            yield tuple(self._cell(value, here) for value in row)

    def sizes(self, name: str) -> tuple[int, ...]:
        out = []
        for number, value in enumerate(self.rows(name)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_U64:
                raise self.fault("a size", value, f"{name}[{number}]")
            out.append(value)
        return tuple(out)

    def texts(self, name: str) -> tuple[str, ...]:
        out = []
        for value in self.rows(name):
            if not isinstance(value, str):
                raise self.fault("text", value, name)
            out.append(value)
        return tuple(out)

    def _cell(self, value: Json, where: str) -> int:
        if isinstance(value, str) and value.startswith("0x"):
            return Fields({"": value}, self.path, self._below(where)).address("")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_U64:
            raise self.fault("an unsigned integer", value, where)
        return value

    def _below(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name
