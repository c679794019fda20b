"""A lab of their own for the tests that crash guests."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import attempt, crash, process, topology
from lab.crash import corpus
from lab.journal import Journal
from tests.conftest import children

SERIES = "6.12"
NAME = f"crash-{os.getpid()}"
Try = Callable[[str], attempt.Result]


def entry(name: str) -> corpus.Entry:
    """Return one entry of the corpus."""
    return next(one for one in corpus.load() if one.name == name)


def prebuild(on: attempt.Bench) -> None:
    """Build the corpus in one go, but for what is not to compile on this kernel."""
    series = on.setup.image.series
    files = [
        one.path
        for one in corpus.load()
        if one.path.suffix == ".c" and one.verdict[series] != "build-failed"
    ]
    crash.prepare_all(sorted(set(files)), on.setup.image, journal=Journal())


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("crash-runs")
    before = os.environ.get("LAB_RUNS")
    os.environ["LAB_RUNS"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LAB_RUNS"]
    else:
        os.environ["LAB_RUNS"] = before


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """Fail a test that leaves a child, other than the guests of the bench, restored anew."""
    before = children()
    yield
    left = children() - before
    for name in topology.names():
        pair = topology.Lab(name)
        for guest in pair.guests.values():
            left -= set(process.holders(guest.folder.lock))
    assert not left, f"left behind: {sorted(left)}"


@pytest.fixture(scope="module")
def bench(runs: Path) -> Iterator[attempt.Bench]:
    """Yield a pair of guests of which one may be crashed, over and over."""
    with attempt.bench(NAME, kernel=SERIES, journal=Journal()) as on:
        prebuild(on)
        yield on
    assert not [name for name in topology.names() if name == f"try-{os.getpid()}"]


@pytest.fixture
def tried(bench: attempt.Bench) -> Try:
    """Try an entry of the corpus, by name."""

    def one(name: str) -> attempt.Result:
        known = entry(name)
        return attempt.run(
            bench, known.path, corpus.trial(known), journal=Journal(), command="test"
        )

    return one


def changed(name: str, **fields: object) -> crash.Trial:
    """Return the trial of an entry with some things otherwise."""
    return dataclasses.replace(corpus.trial(entry(name)), **fields)  # type: ignore[arg-type]
