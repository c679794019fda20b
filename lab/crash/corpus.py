"""The corpus: known faults, and the verdict each should get on a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import paths
from lab.crash import SEND, Trial
from lab.errors import PlaybookError

KNOWN = frozenset(
    {
        "name", "path", "run", "why", "verdict", "at", "parameters", "kfence", "slub_debug",
        "deadline",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One known fault; `verdict` and `at` by kernel series."""

    name: str
    path: Path
    run: str | None
    why: str
    verdict: Mapping[str, str]
    at: Mapping[str, str]
    parameters: tuple[str, ...]
    kfence: bool
    slub_debug: str
    deadline_s: float


def folder() -> Path:
    """Return where the corpus lies."""
    return paths.data() / "kmod" / "crash"


def load(base: Path | None = None) -> tuple[Entry, ...]:
    """Read corpus.yaml; every fault in it is named."""
    base = folder() if base is None else base
    stored: Any = yaml.safe_load((base / "corpus.yaml").read_text(encoding="utf-8"))
    return tuple(_entry(base, one) for one in stored["modules"])


def _entry(base: Path, one: dict[str, Any]) -> Entry:
    name = str(one.get("name"))
    if unknown := one.keys() - KNOWN:
        raise PlaybookError(f"corpus.yaml: {name}: unknown {', '.join(sorted(unknown))}")
    if not isinstance(one.get("verdict"), dict):
        raise PlaybookError(f"corpus.yaml: {name}: a verdict per kernel is missing")
    verdict = {str(series): str(word) for series, word in one["verdict"].items()}
    at = one.get("at", {})
    if isinstance(at, str):
        at = dict.fromkeys(verdict, at)
    return Entry(
        name=name,
        path=base / str(one.get("path", f"{name}.c")),
        run=one.get("run"),
        why=str(one.get("why", "")),
        verdict=verdict,
        at={str(series): str(place) for series, place in at.items()},
        parameters=tuple(str(word) for word in one.get("parameters", ())),
        kfence=bool(one.get("kfence", False)),
        slub_debug=str(one.get("slub_debug", "")),
        deadline_s=float(one.get("deadline", 20.0)),
    )


def trial(entry: Entry) -> Trial:
    """Return what is done with this module."""
    return Trial(
        parameters=entry.parameters,
        workload=SEND if entry.run == "send" else None,
        soak_s=0.5,
        deadline_s=entry.deadline_s,
        kfence=entry.kfence,
    )
