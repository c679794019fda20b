"""What a run came to, whatever kind of experiment it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab import report, rundir
from lab.blocks import Block


class Later(Mapping[str, Any]):
    """A result as JSON values, made when somebody looks: of 10,000 messages it takes a second."""

    def __init__(self, make: Callable[[], Mapping[str, Any]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, Any]:
        return self._make()

    def __getitem__(self, key: str) -> Any:
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A run's directory, its result, and why that is not what was to be proven."""

    run: rundir.RunDir
    result: str  # the file that holds it, such as "ledger.json"
    value: Mapping[str, Any]  # what `--json` prints of it
    trouble: tuple[str, ...]  # empty: proven, and as expected
    hint: str = ""  # what to look at where it is not
    told: tuple[Block, ...] = ()  # report.txt for a terminal of any width
    lost: bool = False  # records were: taken again, the same run may be whole


def tell(run: rundir.RunDir, told: Sequence[Block], *, good: bool) -> tuple[Block, ...]:
    """Write what is told as report.txt and, as a page, report.html; return it."""
    run.write_text("report.txt", report.text(told))
    run.write_text("report.html", report.sheet(run, told, good=good))
    return tuple(told)
