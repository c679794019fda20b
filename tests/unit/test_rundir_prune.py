"""Which runs go, and which stay whatever is asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lab.rundir import point_last
from lab.rundir.prune import drop_ram, prune, runs


def make(base: Path, name: str, *, result: str = "ledger.json", ram: int = 0) -> Path:
    path = base / name
    (path / "receiver").mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    if result:
        (path / result).write_text("{}")
    if ram:
        (path / "receiver" / "ram").write_bytes(b"k" * ram)
        (path / "receiver" / "vmcore").write_bytes(b"k" * ram)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for number in range(5):
        make(tmp_path, f"2026010{number}T000000Z-nic-0")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("not a run")
    return tmp_path


def left(base: Path) -> list[str]:
    return [path.name[7] for path in runs(base)]


def test_the_oldest_go_and_what_is_no_run_stays(base: Path) -> None:
    removed = prune(base, keep=2)

    assert ["3", "4"] == left(base)
    assert 3 == len(removed.paths)
    assert removed.bytes > 0
    assert (base / "notes" / "mine.txt").is_file()
    assert ((), 0) == (prune(base, keep=2).paths, prune(base, keep=9).bytes)


def test_last_stays(base: Path) -> None:
    point_last(base / "20260101T000000Z-nic-0")
    prune(base, keep=0)

    assert ["1"] == left(base)


def test_a_run_under_way_stays_and_one_that_died_goes(base: Path) -> None:
    make(base, "20250101T000000Z-try-0", result="")
    died = make(base, "20250102T000000Z-try-0", result="")
    old = time.time() - 4000
    os.utime(died, (old, old))
    prune(base, keep=5)

    assert [base / "20250101T000000Z-try-0"] == [path for path in runs(base) if "2025" in path.name]


def test_a_sweep_is_one_of_them(base: Path) -> None:
    sweep = base / "20250101T000000Z-sweep-0"
    make(sweep, "cell")
    (sweep / "index.json").write_text("{}")
    prune(base, keep=5)

    assert not sweep.exists()


def test_only_the_newest_keep_their_ram_and_all_keep_the_rest(tmp_path: Path) -> None:
    for number in range(4):
        make(tmp_path, f"{number}-try-0", result="postmortem.json", ram=8192)
    removed = drop_ram(tmp_path, keep=2)

    assert ["2-try-0", "3-try-0"] == sorted(p.parts[-3] for p in tmp_path.glob("*/*/ram"))
    assert ["2-try-0", "3-try-0"] == sorted(p.parts[-3] for p in tmp_path.glob("*/*/vmcore"))
    assert 4 * 8192 == removed.bytes
    assert 4 == len(list(tmp_path.glob("*/postmortem.json")))
