"""The pytest plugin: guests for tests, one lab per worker, crashes in the report.

docs/pytest.md is for those who write tests with it.  Nothing of the lab is imported, and no
guest started, before a test asks for one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from lab.spec import AnyKernel
    from lab.testing import Bench, Guest, Lab, Needs

Scope = Literal["session", "package", "module", "class", "function"]
PREFIX = "pytest-"
ACCELERATORS = ("kvm", "tcg")
NEEDS = ("lab", *ACCELERATORS)  # words of LAB_MUST_RUN
KEPT = "lab_kept"
MARKERS = (
    "lab_kernel(series): run the guests on this kernel, such as 6.1",
    "lab_link(device): join the guests by this device, such as e1000e",
    "lab_accelerator(name): skip unless guests run under this, kvm or tcg",
)
BENCH = pytest.StashKey["Bench"]()
KEPT_FOR = pytest.StashKey[str]()  # the test whose guests are kept as it left them
WORDS = pytest.StashKey[list[str]]()  # for people, at the end
LAST_NEWS = pytest.StashKey[list[tuple[str, object]]]()  # of a bench that is closed


# -- options -------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options, all of them --lab-…, and the lab_kernel of an ini file."""
    group = parser.getgroup("lab", "guests (skblab)")
    group.addoption(
        "--lab-keep",
        action="store_true",
        help="leave the guests of the first test that fails, else of the last, and say how to"
        " get in",
    )
    group.addoption(
        "--lab-down", action="store_true", help="take down what --lab-keep left, and end"
    )
    group.addoption(
        "--lab-kernel",
        metavar="SERIES",
        help="the guests' kernel (default: 6.12), or a bzImage of your own",
    )
    group.addoption("--lab-modules", metavar="FOLDER", default="", help="of your own kernel")
    group.addoption("--lab-headers", metavar="FOLDER", default="", help="of your own kernel")
    parser.addini("lab_kernel", "the guests' kernel, such as 6.12 or 6.1", default="")
    parser.addini("lab_must_run", "words of the project's own for LAB_MUST_RUN", type="args")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known; refuse what LAB_MUST_RUN cannot demand."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    known = (*NEEDS, *config.getini("lab_must_run"))
    if unknown := must_run() - {*known}:
        raise pytest.UsageError(
            f"LAB_MUST_RUN has {', '.join(sorted(unknown))}: expected {', '.join(known)}"
        )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Take down what was kept, instead of running tests, with --lab-down."""
    if not config.getoption("--lab-down"):
        return None
    from lab.testing.bench import take_down

    print("\n".join(f"down: {name}" for name in take_down(PREFIX)) or "no lab was left up")
    return 0


# -- fixtures ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Yield what other fixtures lend from: the one pair of guests of this process."""
    from lab import paths, rundir, topology
    from lab.journal import Journal
    from lab.testing import Bench

    rundir.usable(paths.runs())  # a crash has its post-mortem there
    topology.collect_garbage()  # what a killed session left
    config = request.config
    bench = Bench(
        f"{PREFIX}{os.getpid()}", journal=Journal(), keep=bool(config.getoption("--lab-keep"))
    )
    config.stash[BENCH] = bench
    try:
        yield bench
    finally:
        if bench.keep and bench.lab is not None:
            _keep_word(config, bench.lab.ways_in())
        crashed = _crash_of(bench.lab)  # of the last test, as it was taken down
        config.stash[LAST_NEWS] = [] if bench.lab is None else bench.lab.take_news()
        del config.stash[BENCH]
        bench.close()
        if crashed is not None:
            raise crashed


def guest_fixture(guest: str = "receiver", *, scope: Scope = "function") -> Callable[..., Any]:
    """Return a fixture that lends `guest` for a wider scope: put back once, not for every test.

    Its name is that of the variable it is bound to, in a test module or a conftest.py::

        guest = guest_fixture(scope="module")
    """

    @pytest.fixture(scope=scope)
    def lent(request: pytest.FixtureRequest, lab_bench: Bench) -> Iterator[Guest]:
        with _lent(request, lab_bench, guest) as lab:
            yield lab.guest(guest)

    return lent


guest = guest_fixture()
receiver = guest_fixture("receiver")
sender = guest_fixture("sender")


@pytest.fixture
def lab(request: pytest.FixtureRequest, lab_bench: Bench) -> Iterator[Lab]:
    """Both guests and the link between them."""
    with _lent(request, lab_bench) as lab:
        yield lab


@contextlib.contextmanager
def _lent(request: pytest.FixtureRequest, bench: Bench, *guests: str) -> Iterator[Lab]:
    from lab.errors import NeedUnmet

    config = request.config
    if kept := config.stash.get(KEPT_FOR, ""):
        pytest.skip(f"--lab-keep: the guests are as {kept} left them")
    with contextlib.ExitStack() as held:
        try:
            with _heard(config):
                lab = held.enter_context(bench.lent(_needs(request), *guests))
        except NeedUnmet as error:
            if error.need in must_run():
                message = f"{error}, and LAB_MUST_RUN asks for {error.need}"
                pytest.fail(message, pytrace=False)
            pytest.skip(str(error))
        _name(lab, request.node)
        yield lab


def _needs(request: pytest.FixtureRequest) -> Needs:
    from lab import playbook
    from lab.testing import Needs

    config = request.config
    given = config.getoption("--lab-kernel")
    usual = given or config.getini("lab_kernel") or str(Needs().kernel)
    kernel: AnyKernel = _marked(request.node, "lab_kernel", usual)
    if kernel == given:
        modules, headers = config.getoption("--lab-modules"), config.getoption("--lab-headers")
        kernel = playbook.kernel_of(given, modules, headers)
    accelerator = _marked(request.node, "lab_accelerator", "")
    if accelerator not in ("", *ACCELERATORS):
        raise pytest.UsageError(
            f"{request.node.nodeid}: lab_accelerator is '{accelerator}':"
            f" expected {' or '.join(ACCELERATORS)}"
        )
    return Needs(
        kernel=kernel,
        device=_marked(request.node, "lab_link", Needs().device),
        accelerator=accelerator,
    )


def _marked(node: pytest.Item | pytest.Collector, name: str, usual: str) -> str:
    marker = node.get_closest_marker(name)
    if marker is None:
        return usual
    if len(marker.args) != 1 or not isinstance(marker.args[0], str) or marker.kwargs:
        raise pytest.UsageError(f"{node.nodeid}: {name} takes one word, such as in {MARKERS}")
    return marker.args[0]


def must_run() -> set[str]:
    """Return the needs that LAB_MUST_RUN says may not be skipped: lab, kvm, tcg."""
    words = os.environ.get("LAB_MUST_RUN", "").split(",")
    return {word.strip() for word in words} - {""}


@contextlib.contextmanager
def _heard(config: pytest.Config) -> Iterator[None]:
    """Let people see what takes long, such as an image that is built or memory waited for."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield


def _name(lab: Lab, node: pytest.Item | pytest.Collector) -> None:
    lab.test = node.nodeid
    path = Path(node.path)
    lab.beside = path if path.is_dir() else path.parent


# -- crashes ----------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let no fixture hide a crash by skipping its test."""
    __tracebackhide__ = True
    with _crash_before_all(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the test in which a guest came to harm, whatever else became of it."""
    __tracebackhide__ = True
    if (lab := _lent_lab(item)) is not None:
        _name(lab, item)
    with _crash_before_all(item):
        outcome = yield
    if (crashed := _crash_of(_lent_lab(item))) is not None:
        pytest.fail(f"the test passed, but {crashed}", pytrace=False)
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Notice what fixtures did to a guest as they were taken down, those of wider scope too."""
    __tracebackhide__ = True
    with _crash_before_all(item):
        outcome = yield
    if (crashed := _crash_of(_lab_of(item))) is not None:
        raise crashed
    return outcome


@contextlib.contextmanager
def _crash_before_all(item: pytest.Item) -> Iterator[None]:
    """Raise an unexpected crash instead of what a test ends by: an error, a skip, an xfail."""
    __tracebackhide__ = True
    try:
        yield
    except pytest.exit.Exception:
        raise
    except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:
        from lab.errors import GuestCrashed

        crashed = _crash_of(_lab_of(item))
        if crashed is None or isinstance(error, GuestCrashed):
            raise
        raise crashed from error


def _lab_of(item: pytest.Item) -> Lab | None:
    """Return the lab if there is one."""
    bench = item.config.stash.get(BENCH, None)
    return None if bench is None else bench.lab


def _lent_lab(item: pytest.Item) -> Lab | None:
    """Return the lab if a guest of it is in somebody's hands."""
    bench = item.config.stash.get(BENCH, None)
    return bench.lab if bench is not None and bench.lending else None


def _crash_of(lab: Lab | None) -> Exception | None:
    """Return the first crash of a guest that no expect_crash accepted; it is told once."""
    if lab is None:
        return None
    from lab.errors import LabError

    found: list[Exception] = []
    for guest in lab.guests.values():
        try:
            guest.settle()
        except LabError as error:
            found.append(error)
    return found[0] if found else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Name artefacts for JUnit XML, and add what an error of the lab says beside its message."""
    lab = _lab_of(item)
    if lab is not None:
        item.user_properties.extend(lab.take_news())
    if LAST_NEWS in item.config.stash:
        news = item.config.stash[LAST_NEWS]
        item.user_properties.extend(news)
        del item.config.stash[LAST_NEWS]
    error = call.excinfo.value if call.excinfo is not None else None
    ours = error is not None and hasattr(error, "lines") and hasattr(error, "exit_code")
    if call.excinfo is not None and ours:
        # An error of the lab is about the test's line that met it: our own frames go.
        here = Path(__file__).parent
        steps = call.excinfo.traceback.filter(lambda step: here not in Path(step.path).parents)
        call.excinfo.traceback = steps or call.excinfo.traceback
    report = yield
    if ours:
        report.sections.append(("skblab", "\n".join(_more(error))))
    if lab is not None and report.failed and item.config.getoption("--lab-keep"):
        item.config.stash.setdefault(KEPT_FOR, item.nodeid)
        report.sections.append(("--lab-keep", lab.ways_in()))
    return report


def _more(error: Any) -> list[str]:
    lines: list[str] = [f"exit code {error.exit_code} ({type(error).__name__})"]
    if error.log is not None:
        lines.append(f"log: {error.log}")
    if error.hint is not None:
        lines.append(f"try: {error.hint}")
    return lines


# -- at the end -------------------------------------------------------------------------------


def _keep_word(config: pytest.Config, text: str) -> None:
    """Tell the process that prints: this one, or the controller of this worker."""
    output = getattr(config, "workeroutput", None)
    if output is not None:
        output[KEPT] = text
    else:
        config.stash.setdefault(WORDS, []).append(text)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker of pytest-xdist kept."""
    del error
    text = getattr(node, "workeroutput", {}).get(KEPT)
    if text:
        node.config.stash.setdefault(WORDS, []).append(text)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how to get into guests that were left up."""
    for text in config.stash.get(WORDS, []):
        terminalreporter.section("guests are up")
        terminalreporter.write_line(text)
