"""Bounds on what runs take of the disk: old runs go when asked to, old kept RAM by itself."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lab.rundir.making import is_being_made

LAST = "last"
RAM = ("ram", "vmcore")  # of a guest; hundreds of MiB, where all else of a run is less than one
RESULTS = ("ledger.json", "postmortem.json", "report.txt", "index.json", "claims.json")
# What a folder of many runs has, and what it is then.
FOLDERS = {"index.json": "a sweep", "experiments.json": "the runs of lab.claims"}
UNDER_WAY_S = 3600.0  # a run takes at most an hour


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed, and how many bytes of disk that was."""

    paths: tuple[str, ...]
    bytes: int


def runs(base: Path) -> list[Path]:
    """Return the runs below `base`, and folders of them, the oldest first: by their names."""
    return sorted(
        path
        for path in base.glob("*")
        if not path.is_symlink()
        and any((path / name).is_file() for name in ("manifest.json", *FOLDERS))
    )


def prune(base: Path, *, keep: int) -> Removed:
    """Remove all runs but the newest `keep`; those that `last` is or that are under way stay."""
    known = runs(base)
    last = (base / LAST).resolve()
    old = [path for path in known[: max(0, len(known) - keep)] if path != last]
    return _remove([path for path in old if not _under_way(path)])


def drop_ram(base: Path, *, keep: int) -> Removed:
    """Remove the RAM and cores of all attempts but the newest `keep` that have any."""
    having = [path for path in runs(base) if any(path.glob(f"*/{RAM[0]}"))]
    old = having[: max(0, len(having) - keep)]
    return _remove([file for path in old for name in RAM for file in path.glob(f"*/{name}")])


def _under_way(path: Path) -> bool:
    if is_being_made(path):
        return True
    finished = any((path / name).is_file() for name in RESULTS)
    return not finished and time.time() - path.stat().st_mtime < UNDER_WAY_S


def _remove(paths: list[Path]) -> Removed:
    size = 0
    for path in paths:
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        size += sum(file.lstat().st_blocks * 512 for file in files)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return Removed(tuple(str(path) for path in paths), size)
