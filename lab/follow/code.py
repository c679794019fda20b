"""Kernel code as bytes: where functions begin and end, and what they can call.

A direct call or jump is a byte or two and a distance; every byte that may begin one is taken
for one, since a breakpoint within an instruction is never hit.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MOST_TEXT = 1 << 16  # bytes of one function
KERNEL_HALF = 1 << 47  # addresses of the kernel have all bits above set
# What stands between a call and its target, and what a return goes through.
PASSED = re.compile(r"__x86_return_thunk|srso_|retbleed_|__SCT__|__pfx_|zen_untrain|.*\.cold")
THUNK = re.compile(r"__x86_indirect_(?:call_|jump_)?thunk_(r\w+)")
FAR = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]")  # call, jmp, jcc with four bytes of distance
NEAR = re.compile(rb"[\xeb\x70-\x7f]")  # jmp, jcc with one
# call *%reg and jmp *%reg, of the eight old registers and, with a prefix, the eight new
INDIRECT = re.compile(rb"(\x41?)\xff([\xd0-\xd7\xe0-\xe7])")
OLD = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
NEW = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function of the kernel or, with `module` set, of a module."""

    address: int
    end: int
    name: str
    module: str


class Text:
    """Where functions begin and end, from the text of kallsyms."""

    def __init__(self, kallsyms: bytes) -> None:
        found: dict[int, tuple[str, str]] = {}
        self.values: dict[str, int] = {}  # of all symbols; the first of a name
        for line in kallsyms.decode("ascii", "replace").splitlines():
            where, kind, name = line.split(" ", 2)
            name, _, module = name.partition("\t")
            address = int(where, 16)
            self.values.setdefault(name, address)
            if kind not in "tTwW" or address < KERNEL_HALF or name.startswith("__pfx_"):
                continue
            before = found.get(address)
            if before is None or _rank(name) < _rank(before[0]):
                found[address] = name, module.strip("[]")
        self._starts = sorted(found)
        self._found = found

    def starting(self, address: int) -> Symbol | None:
        """Return the function that begins at `address`."""
        if address not in self._found:
            return None
        name, module = self._found[address]
        after = bisect.bisect_right(self._starts, address)
        end = self._starts[after] if after < len(self._starts) else address + MOST_TEXT
        return Symbol(address, min(end, address + MOST_TEXT), name, module)

    def name(self, address: int) -> str:
        """Return `function+0x1f` for an address within one, "" for any other."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address - self._starts[at] >= MOST_TEXT:
            return ""
        offset = address - self._starts[at]
        name = self._found[self._starts[at]][0]
        return f"{name}+0x{offset:x}" if offset else name

    def named(self, pattern: str) -> list[Symbol]:
        """Return the functions whose names match."""
        wanted = re.compile(pattern)
        return [
            found
            for address in self._starts
            if wanted.fullmatch(self._found[address][0]) and (found := self.starting(address))
        ]


def _rank(name: str) -> tuple[bool, bool, int, str]:
    """Return what orders the names of one address: a thunk's says the most, a mark's the least."""
    mark = name.endswith(("_start", "_end", "_begin"))
    return not THUNK.fullmatch(name), mark, len(name), name


def direct_targets(code: bytes, at: int) -> Iterator[int]:
    """Yield where what may be a call or jump in `code`, which lies at `at`, goes."""
    for pattern, distance in ((FAR, struct.Struct("<i")), (NEAR, struct.Struct("<b"))):
        for hit in pattern.finditer(code):
            end = hit.end() + distance.size
            if end <= len(code):
                far = int(distance.unpack_from(code, hit.end())[0])
                yield (at + end + far) & (1 << 64) - 1


def indirect_sites(code: bytes, at: int) -> Iterator[tuple[int, str]]:
    """Yield address and register of what may be a call or jump through a register."""
    for hit in INDIRECT.finditer(code):
        number = hit[2][0] & 7
        yield at + hit.start(), (NEW if hit[1] else OLD)[number]
        if hit[1]:  # the prefix may be the end of the instruction before
            yield at + hit.start() + 1, OLD[number]
