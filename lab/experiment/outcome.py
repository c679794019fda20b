"""What a run came to, whatever kind of experiment it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab import rundir
from lab.report.blocks import Block


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A run's directory, its result, and why that is not what was to be proven."""

    run: rundir.RunDir
    result: str  # the file that holds it, such as "ledger.json"
    value: Mapping[str, Any]  # what `--json` prints of it
    trouble: tuple[str, ...]  # empty: proven, and as expected
    hint: str = ""  # what to look at where it is not
    told: tuple[Block, ...] = ()  # report.txt for a terminal of any width
