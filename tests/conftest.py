"""Rings of tests by directory, a world without the user's own files, and no child left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest

HERE = Path(__file__).parent
# Rings that start guests; the others run anywhere.
BEHIND_GUESTS = ("guest", "crash")
# A test that takes longer hangs: it fails where it stands. LAB_TEST_LIMIT_S sets another limit.
LIMIT_S = {"guest": 600.0, "crash": 600.0, "replay": 300.0}
LIMIT_ELSEWHERE_S = 120.0
LIMIT_LONG_S = 4 * 3600.0

# Every `invoke` that a test starts would compile all our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What was compiled of the walk takes no patches; tests/compiled_walk.py is for its own tests.
os.environ.setdefault("LAB_COMPILED", "no")

_ran: set[str] = set()
_left_out: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab")
    group.addoption("--guests", action="store_true", help="run the rings that start guests")
    group.addoption("--long", action="store_true", help="run the long forms too")
    # As lab.pytest_plugin has it, which is not there where the wheel is not installed.
    parser.addini("lab_must_run", "words of the project's own for LAB_MUST_RUN", type="args")


def ring(path: Path) -> str:
    """Return the folder below tests/ that a test lies in."""
    try:
        return path.relative_to(HERE).parts[0]
    except ValueError:
        return "elsewhere"


def must_run() -> set[str]:
    """Return what LAB_MUST_RUN says may not be skipped, such as guests."""
    words = os.environ.get("LAB_MUST_RUN", "").split(",")
    return {word.strip() for word in words} - {""}


def missing(item: pytest.Item) -> tuple[str, str] | None:
    """Return what a test needs that was not asked for, as LAB_MUST_RUN calls it, and why."""
    if ring(item.path) in BEHIND_GUESTS and not item.config.getoption("--guests"):
        return "guests", "no --guests"
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        return "long", "no --long"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (lacking := missing(item)) is None:
        return
    requirement, why = lacking
    if requirement in must_run():
        pytest.fail(f"{why}, and LAB_MUST_RUN asks for {requirement}", pytrace=False)
    pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip within a ring that must run into a failure."""
    report = yield
    if call.when == "setup":
        report.__dict__["missing"] = missing(item)  # told to the controller, too, under xdist
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and ring(item.path) in BEHIND_GUESTS
        and "guests" in must_run()
        and not item.get_closest_marker("long")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped, and LAB_MUST_RUN asks for guests: {call.excinfo}"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "setup":
        return
    where = ring(HERE.parent / report.location[0])
    if (lacking := report.__dict__["missing"]) is None:
        _ran.add(where)
    elif lacking[0] == "guests":
        _left_out[where] = lacking[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = {where: why for where, why in _left_out.items() if where not in _ran}
    words = ", ".join(f"{where} ({why})" for where, why in sorted(left_out.items()))
    terminalreporter.write_line(
        f"rings run: {' '.join(sorted(_ran)) or 'none'}; not run: {words or 'none'}"
    )


@pytest.fixture(autouse=True)
def _own_world(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Hide the user's files: no test reads ~/.ssh, and none of these rings writes a cache."""
    if ring(request.path) in BEHIND_GUESTS:
        return
    # A short path: a socket's has room for 107 bytes, and a test's name would take 30.
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    for name in ("CACHE", "RUNTIME", "RAM", "RUNS"):
        monkeypatch.setenv(f"LAB_{name}", str(home / f"lab-{name.lower()}"))
    for name in ("LAB_NAME", "LAB_ACCEL", "LAB_MIRROR", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sole_collector() -> Iterator[None]:
    """Be the only test on this host, in whatever process, that counts what `lab.gc` removes."""
    lock = Path(tempfile.gettempdir()) / f"skblab-tests-{os.geteuid()}.lock"
    with lock.open("a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def _not_for_ever(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs, at the line where it does."""
    limit = LIMIT_S.get(ring(request.path), LIMIT_ELSEWHERE_S)
    if request.node.get_closest_marker("long"):
        limit = LIMIT_LONG_S
    limit = float(os.environ.get("LAB_TEST_LIMIT_S") or limit)

    def ring_the_bell(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"not done after {limit:g} s")

    before = signal.signal(signal.SIGALRM, ring_the_bell)
    signal.setitimer(signal.ITIMER_REAL, limit)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def children() -> set[int]:
    """Return the processes this one has started and not yet waited for."""
    with contextlib.suppress(ChildProcessError):
        # Mostly there is none, which costs one call; all processes of a host are some thousand.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return _children()
    return set()


def _children() -> set[int]:
    found: set[int] = set()
    us = str(os.getpid())
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # After the name in brackets, which may hold anything: state, parent.
        if stat.rpartition(")")[2].split()[1] == us:
            found.add(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """Fail a test that leaves a child behind, running or unburied."""
    before = children()
    yield
    left = children() - before
    if left:
        names = []
        for pid in sorted(left):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            names.append(f"{pid} ({command.strip() or 'defunct'})")
        pytest.fail(f"left behind: {', '.join(names)}", pytrace=False)
