"""A lab of their own for the tests that start guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import accelerator, experiment, image, process, topology
from lab.deadline import Deadline, wait_until
from lab.journal import Journal
from tests import schema

INVOKE = Path(sys.executable).parent / "invoke"
TOP = Path(__file__).parent.parent.parent
LAB = f"test-{os.getpid()}"


@dataclass(frozen=True)
class Done:
    """What a whole `invoke` process left."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """Its stdout as JSON."""
        return json.loads(self.out)

    @property
    def run(self) -> Path:
        """The run directory that a run's last line of stdout names."""
        return Path(self.out.strip().splitlines()[-1])


Invoke = Callable[..., Done]
Once = Callable[..., Done]
Taken = dict[tuple[str, ...], Callable[[], Done]]


def abandoned() -> list[str]:
    """Return the pairs that runs made for themselves and left; each has its process's number.

    That of a process which lives is somebody else's.
    """
    names = [name for name in topology.names() if name.startswith("run-")]
    return [name for name in names if not Path(f"/proc/{name.removeprefix('run-')}").exists()]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield where runs go; every ledger that the session left keeps to the schema."""
    folder = tmp_path_factory.mktemp("runs")
    yield folder
    for path in folder.rglob("ledger.json"):
        schema.check(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def invoke(runs: Path) -> Invoke:
    """Run `invoke WORDS` as a user would, in a lab of this session."""

    def run(
        *words: str, lab: str = LAB, cwd: Path = TOP, within_s: float = 300.0, **environ: str
    ) -> Done:
        elsewhere = {} if cwd == TOP else {"PYTHONPATH": str(cwd)}  # another checkout
        done = subprocess.run(
            [str(INVOKE), *words],
            cwd=cwd,
            capture_output=True,
            text=True,
            env={**os.environ, "LAB_NAME": lab, "LAB_RUNS": str(runs), **elsewhere, **environ},
            timeout=within_s,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """Take the session's lab down and check that nothing of it stays."""
    yield
    for name in topology.names():
        if name.startswith(LAB):
            with topology.opened(name) as pair:
                pair.bring_down()
    left = [*abandoned(), *(name for name in topology.names() if name.startswith(LAB))]
    assert not left, f"labs left behind: {left}"


@pytest.fixture(scope="session")
def usual() -> topology.Setup:
    """Return what `lab.up` makes a pair of."""
    built = image.ensure(image.DEFAULT_SERIES, journal=Journal())
    speed = accelerator.choose(built, journal=Journal())
    return topology.standard(built, speed, journal=Journal())


def stands(name: str, setup: topology.Setup) -> bool:
    """Say whether `lab.up` would leave a lab as it is: asked here, that costs no process."""
    if name not in topology.names():
        return False
    with topology.opened(name) as pair:
        return not (experiment.unlike(pair, setup) or pair.ails(deadline=Deadline(10)))


def bring_up(invoke: Invoke, setup: topology.Setup) -> None:
    if not stands(LAB, setup):
        done = invoke("lab.up")
        assert 0 == done.code, done.err


@pytest.fixture
def up(invoke: Invoke, usual: topology.Setup) -> Invoke:
    """Bring the lab up, whatever the test before did to it."""
    bring_up(invoke, usual)
    return invoke


@pytest.fixture(scope="session")
def taken() -> Taken:
    """Return what `once` need not run, by the words of `invoke`: others took these runs."""
    return {}


@pytest.fixture(scope="session")
def once(invoke: Invoke, usual: topology.Setup, taken: Taken) -> Once:
    """Run `invoke WORDS` in the lab that is up, the first time a test asks for these words.

    For what many tests look at and none changes.
    """
    done: dict[tuple[str, ...], Done] = {}

    def run(*words: str) -> Done:
        if words not in done and words in taken:
            done[words] = taken[words]()
        elif words not in done:
            bring_up(invoke, usual)
            done[words] = invoke(*words)
        return done[words]

    return run


def qemus(lab: str) -> list[int]:
    """Return the processes that hold a guest's lock of `lab`."""
    base = topology.Lab(lab).base
    locks = [base / f"{name}.lock" for name in ("sender", "receiver")]
    return [pid for lock in locks for pid in process.holders(lock)]


def wait_gone(pids: list[int]) -> None:
    """Return when these processes are gone: a lock is let go a moment before its holder."""
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids),
        what=f"processes {pids} to be gone",
        deadline=Deadline(5),
    )
