"""Everything that proves skblab, in parts of which two run at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from invoke.exceptions import Exit

from lab import paths, process
from lab.commands import Console
from lab.deadline import Deadline, wait_until

LONGEST_S = 24 * 3600.0  # the long forms are given hours
CLEANUP_S = 60.0  # of a part that is told to end
LOOK_S = 0.1
NOTHING_SELECTED = 5  # pytest's exit code
MOST_WORKERS = 8
# Niceness: a quarter of what one of others' processes gets.  With 19 a browser starved.
GIVES_WAY = 6
# Of tests/guest: no measurement, and about as long as the others take longer than crashes.
BESIDE = tuple(
    f"tests/guest/test_{name}.py"
    for name in ("example", "faults", "image", "isolation", "life", "many")
)

# Of tests/unit: those of what `lab.compile` compiles.
COMPILED = ("compiled", "correlate", "holdings", "hostile", "ledger", "one_lie", "passage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the commands that `invoke test` runs."""

    name: str
    argv: Sequence[str]
    idle: bool = False  # most of what others want of the processor is theirs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Running:
    part: Part
    child: subprocess.Popen[bytes]
    log: Path | None  # None: our own stdout
    start: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What came of a part."""

    part: Part
    code: int
    seconds: float


def test(console: Console, *, long: bool, quick: bool, select: str) -> None:
    """Run style, types, C and the rings of tests; every part runs, any failure is one."""
    ended = run(console, lines(long=long, quick=quick, select=select))
    failed = failures(ended, select=select)
    if failed:
        raise Exit(f"failed: {', '.join(failed)}", code=1)


def failures(ended: Sequence[Ended], *, select: str) -> list[str]:
    """Return the parts that failed; one part may have none of the tests that were selected."""
    tests = [one for one in ended if "pytest" in one.part.argv]
    none = {id(one) for one in tests if select and one.code == NOTHING_SELECTED}
    if len(none) == len(tests):
        none.clear()
    return [one.part.name for one in ended if one.code != 0 and id(one) not in none]


def checks() -> list[Part]:
    """Return what runs nothing of ours."""
    python = sys.executable
    return [
        Part(name="style", argv=(python, "-m", "ruff", "check", "lab", "tests", "tasks.py")),
        Part(name="types", argv=(python, "-m", "mypy", "--strict", "lab", "tests", "tasks.py")),
    ]


def lines(*, long: bool, quick: bool, select: str) -> list[list[Part]]:
    """Return the parts: one line after the other's side, in a line one after the other.

    Guests wait much of their time: for their harness, for deadlines, for each other.  So one
    line takes measurements while the other sees what labs and hosts survive, and what needs no
    guest runs in the gaps.
    """
    pytest = (sys.executable, "-m", "pytest", "--durations=25")
    pytest += (*(("-k", select) if select else ()), *(("--long",) if long else ()))
    if quick:
        units = Part(name="tests", argv=(*pytest, *_workers(os.cpu_count())))
        return [[*checks(), units, *compiled(pytest)]]
    guests = (*pytest, "--guests")
    half = _workers((os.cpu_count() or 1) // 2)
    return [
        [
            Part(
                name="guests", argv=(*guests, "tests/guest", *(f"--ignore={one}" for one in BESIDE))
            )
        ],
        [
            *checks(),
            Part(name="units", argv=(*pytest, *half, "tests/unit", "tests/replay"), idle=True),
            *compiled(pytest),
            Part(name="crashes", argv=(*guests, "tests/crash", *BESIDE)),
        ],
    ]


def compiled(pytest: Sequence[str]) -> list[Part]:
    """Return what proves that the walk, compiled, does what it does in Python."""
    files = [f"tests/unit/test_{name}.py" for name in COMPILED]
    return [
        Part(name="compile", argv=(sys.executable, "-m", "invoke", "lab.compile")),
        Part(name="compiled", argv=(*pytest, "-p", "tests.compiled_walk", *files)),
    ]


def _workers(count: int | None) -> tuple[str, ...]:
    return ("-n", str(min(count, MOST_WORKERS))) if count is not None and count > 1 else ()


def run(console: Console, asked: Sequence[Sequence[Part]]) -> list[Ended]:
    """Run lines of parts beside each other; return what came of each, in the order of ending.

    The first line's parts print as they go, the others' when there is quiet.
    """
    left = [list(line) for line in asked]
    running: dict[int, _Running] = {}
    ended: list[Ended] = []
    unsaid: list[_Running] = []
    with tempfile.TemporaryDirectory(prefix="lab-test-") as folder, _stopped_at_last(running):
        while any(left) or running:
            for number, line in enumerate(left):
                if line and number not in running:
                    log = Path(folder) / line[0].name if number else None
                    running[number] = _start(line.pop(0), log)
            number = wait_until(
                lambda: [number for number, one in running.items() if one.child.poll() is not None],
                what="a part to end",
                deadline=Deadline(LONGEST_S),
                interval_s=LOOK_S,
            )[0]
            one = running.pop(number)
            unsaid.append(one)
            ended.append(
                Ended(part=one.part, code=one.child.wait(), seconds=time.monotonic() - one.start)
            )
            if 0 not in running and not left[0]:
                for said in unsaid:
                    _print(said)
                unsaid.clear()
            _tell(console, ended[-1])
    for each in ended:
        _tell(console, each)
    return ended


def _start(part: Part, log: Path | None) -> _Running:
    # When we are killed it is told to end.  Ctrl-C is ours: in a session of its own it hears of
    # it once, from us.
    prefix = [process.tool("setpriv", package="util-linux"), "--pdeathsig", "INT"]
    if part.idle:
        prefix += [process.tool("nice", package="coreutils"), f"--adjustment={GIVES_WAY}"]
    with contextlib.ExitStack() as opened:
        out = opened.enter_context(log.open("wb")) if log is not None else None
        child = subprocess.Popen(
            [*prefix, *part.argv],
            cwd=paths.data(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=None if out is None else subprocess.STDOUT,
            start_new_session=True,
        )
    if part.idle:
        process.set_group_niceness(child.pid, GIVES_WAY)
    return _Running(part=part, child=child, log=log, start=time.monotonic())


@contextlib.contextmanager
def _stopped_at_last(running: dict[int, _Running]) -> Iterator[None]:
    """Tell what still runs to end, as Ctrl-C would, and see that it does."""
    try:
        yield
    finally:
        for one in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.child.pid, signal.SIGINT)
        for one in running.values():
            try:
                one.child.wait(CLEANUP_S)
            except subprocess.TimeoutExpired:
                one.child.kill()
                one.child.wait()


def _print(one: _Running) -> None:
    if one.log is not None:
        print(one.log.read_text(encoding="utf-8", errors="replace"), flush=True)


def _tell(console: Console, one: Ended) -> None:
    outcome = "ok" if one.code == 0 else f"failed ({one.code})"
    console.journal.say(f"{one.part.name:<8} {outcome:<12} {one.seconds:6.1f} s")
