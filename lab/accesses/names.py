"""Addresses of kernel, modules and user programs to names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from lab.accesses.types import USER_END
from lab.symbols import Symbols

# Where x86-64 puts modules, and what the kernel makes as it runs: trampolines of ftrace, slots of
# kprobes, BPF programs (Documentation/arch/x86/x86_64/mm.rst; lower bound without KASLR).
MODULES, MODULES_END = 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000
MADE = "code made at run time (no symbol)"

Names: TypeAlias = Callable[[int], str | None]


class Namer:
    """Names addresses of kernel, modules and user programs."""

    def __init__(self, symbols: Symbols, user: Names | None) -> None:
        self.symbols = symbols
        self.user = user

    def name(self, address: int) -> str:
        """Return what lies there; `MADE` where only code can be that kallsyms had no name for."""
        named = None
        if address >= USER_END:
            named = self.symbols.name(address)
            # Of a run without symbols nothing has a name, and nothing follows from that.
            if not named and MODULES <= address < MODULES_END and self.symbols.known:
                return MADE
        elif self.user is not None:
            named = self.user(address)
        return named or f"{'user ' if address < USER_END else ''}{address:#x}"

    def function(self, address: int) -> str:
        """Return the name without the offset in the function."""
        name = self.name(address)
        plain, plus, rest = name.partition("+")
        _, space, module = rest.partition(" ")
        return f"{plain}{space}{module}" if plus else name
