"""Addresses of guest kernel text to names, from /proc/kallsyms as captured."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab import kernel
from lab.rundir import fields as checked

MAX_SYMBOLS = 64 << 20  # bytes; a Debian kernel's are 7 to 12 MB
FARTHEST = 1 << 20  # bytes from a symbol's start at which its name means nothing any more
# Of a module: behind its last function lies code that the kernel makes, such as trampolines.
FARTHEST_IN_MODULE = 1 << 13
LATER_TEXT = 1 << 16  # bytes; our own modules have a tenth of that
TEXT = b"tTwW"


class Symbols:
    """Looks addresses up; the file is read and sorted at the first one.

    Its lines are not parsed: an address is 16 digits at the start of each, so
    sorting the lines sorts the symbols.
    """

    def __init__(self, path: Path, modules: Mapping[int, str] | None = None) -> None:
        """`modules` are names by address of text that was loaded after the capture."""
        self.path = path
        self._modules = sorted((modules or {}).items())
        self._lines: list[bytes] | None = None
        self._known: dict[int, str | None] = {}

    def name(self, address: int) -> str | None:
        """Return `symbol+0x1f [module]`; None where no symbol covers the address."""
        if address not in self._known:
            self._known[address] = self._find(address)
        return self._known[address]

    def show(self, address: int) -> str:
        """Return the name, or the bare address where there is none; empty for 0."""
        if address == 0:
            return ""
        known = self._known.get(address)
        return known or self.name(address) or f"0x{address:x}"

    @property
    def known(self) -> bool:
        """Tell whether there are symbols at all."""
        return any(self._load())

    def address(self, name: str) -> int:
        """Return where a symbol of the kernel itself lies; 0 where there is none."""
        wanted = b" " + name.encode()
        for line in self._load():
            if line.endswith(wanted):
                return int(line[:16], 16)
        return 0

    def at(self, address: int) -> str:
        """Return the symbol that begins at an address, of data too; empty where none does."""
        lines, start = self._load(), b"%016x" % address
        found = lines[bisect_left(lines, start) :][:1]
        if not found or not found[0].startswith(start):
            return ""
        return found[0][19:].partition(b"\t")[0].decode("ascii", "replace")

    def names(self) -> set[str]:
        """Return the names of all functions, those of modules too."""
        found = set()
        for line in self._load():
            if line[17:18] in (b"t", b"T", b"w", b"W"):
                found.add(line[19:].partition(b"\t")[0].decode("ascii", "replace"))
        return found

    def addresses(self, names: Iterable[str]) -> dict[str, int]:
        """Return where symbols of the kernel itself lie; those that are not there are left out."""
        wanted = {b" %s" % name.encode() for name in names}
        found: dict[str, int] = {}
        for line in self._load():
            if line[18:] in wanted:  # `ffffffff81000000 T name`
                found.setdefault(line[19:].decode(), int(line[:16], 16))
        return found

    def stack_size(self) -> int:
        """Return the bytes of a kernel stack, which lies at a multiple of it."""
        return kernel.stack_size(self.addresses(name for pair in kernel.STACKS for name in pair))

    def _load(self) -> list[bytes]:
        if self._lines is None:
            found = b""
            if self.path.is_file():
                found = checked.read_bytes(self.path, most=MAX_SYMBOLS)
            self._lines = sorted(found.split(b"\n"))
        return self._lines

    def _find(self, address: int) -> str | None:
        lines = self._load()
        number = bisect_right(lines, b"%016x\xff" % address) - 1
        best: tuple[int, str] | None = None
        while number >= 0:
            parsed = _parse(lines[number])
            number -= 1
            if parsed is None:
                continue
            start, text, name = parsed
            if address - start >= FARTHEST or start == 0 or (best and start != best[0]):
                break
            # Of several names of one address the shortest, then the first: always the same.
            if text and (best is None or (len(name), name) < (len(best[1]), best[1])):
                best = start, name
        later = [(base, name) for base, name in self._modules if 0 <= address - base < LATER_TEXT]
        if later and (best is None or best[0] < later[-1][0]):
            base, name = later[-1]
            return f"[{name}]+0x{address - base:x}"
        if best is None:
            return None
        name, _, module = best[1].partition("\t")
        if module and address - best[0] >= FARTHEST_IN_MODULE:
            return None
        offset = f"{name}+0x{address - best[0]:x}"
        return f"{offset} {module}" if module else offset


def _parse(line: bytes) -> tuple[int, bool, str] | None:
    # `ffffffff81000000 T name` or `ffffffffc0000000 t name\t[module]`
    parts = line.split(b" ", 2)
    if len(parts) != 3 or len(parts[0]) != 16 or len(parts[1]) != 1:
        return None
    try:
        return int(parts[0], 16), parts[1] in TEXT, parts[2].decode("ascii", "replace")
    except ValueError:
        return None
