"""Addresses of kernel, modules and user programs to names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from lab.accesses.types import USER_END
from lab.symbols import Symbols

Names: TypeAlias = Callable[[int], str | None]


class Namer:
    """Names addresses of kernel, modules and user programs."""

    def __init__(self, symbols: Symbols, user: Names | None) -> None:
        self.symbols = symbols
        self.user = user

    def name(self, address: int) -> str:
        named = None
        if address >= USER_END:
            named = self.symbols.name(address)
        elif self.user is not None:
            named = self.user(address)
        return named or f"{'user ' if address < USER_END else ''}{address:#x}"

    def function(self, address: int) -> str:
        """Return the name without the offset in the function."""
        name = self.name(address)
        plain, plus, rest = name.partition("+")
        _, space, module = rest.partition(" ")
        return f"{plain}{space}{module}" if plus else name
