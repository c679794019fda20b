"""Memory that stays behind, told from what comes and goes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Leak:
    """Memory of which there is more after every load and unload."""

    name: str
    size: int  # bytes of one
    loads: int
    grown: tuple[int, ...]  # by how many, in each window of so many loads

    @property
    def bytes(self) -> int:
        """Bytes that stayed in all."""
        return self.size * sum(self.grown)

    def __str__(self) -> str:
        loads = self.loads * len(self.grown)
        return (
            f"{self.name}: {sum(self.grown)} of {self.size} bytes stayed after {loads} more loads"
        )


def leaks(seen: dict[str, Any]) -> list[Leak]:
    """Return what grew by one or more with every load, the most bytes first.

    What grows by less, or not in every window, is the kernel's own coming and going; that
    may take one from a window and give it to the next.
    """
    held = seen.get("held") or {}
    if "loads" not in held:
        return []
    loads = int(held["loads"])
    found = [
        Leak(name, one["size"], loads, _growth(one["objects"]))
        for name, one in held["caches"].items()
    ]
    found.append(Leak("pages", 4096, loads, _growth(held["pages"])))
    sure = [
        one
        for one in found
        if sum(one.grown) >= loads * len(one.grown) and min(one.grown, default=-1) >= loads - 1
    ]
    return sorted(sure, key=lambda one: (-one.bytes, one.name))


def _growth(counts: Sequence[int]) -> tuple[int, ...]:
    return tuple(after - before for before, after in itertools.pairwise(counts))
