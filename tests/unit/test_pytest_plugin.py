"""The pytest plugin where no guest can be: what is skipped, what fails, what is refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit import pytest_once

TOP = Path(__file__).parents[2]


Run = Callable[..., subprocess.CompletedProcess[str]]
WITHOUT_QEMU = """
import shutil
find = shutil.which
shutil.which = lambda name, *a, **k: None if name.startswith('qemu') else find(name, *a, **k)
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest_once.Pytest]:
    # What the plugin imports where it is used; not what pytest imports in its own way.
    names = ("lab.experiment", "lab.crash", "lab.attempt")
    with pytest_once.started(tmp_path_factory.mktemp("pytest"), *names) as found:
        yield found


@pytest.fixture
def run(once: pytest_once.Pytest) -> Run:
    """Run pytest with the plugin on a test file, on a host without QEMU."""

    def one(
        folder: Path, text: str, *words: str, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        (folder / "test_it.py").write_text(text)
        options = ["-p", "lab.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
        # Else it walks all folders above, in which thousands of other tests have theirs.
        options += ["-p", "no:hypothesispytest", f"--confcutdir={folder}"]
        return once.run(
            [*options, "-q", "-rs", str(folder), *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(TOP), "LAB_MUST_RUN": "", **environ},
            first=WITHOUT_QEMU,
        )

    return one


ASKS = "def test_it(guest): assert False\n"
# A guest that comes to harm by a word: what a test is told of it, and what becomes of the test.
STAND_IN = """
import contextlib
from pathlib import Path
from types import SimpleNamespace as Thing
import pytest
from lab import pytest_plugin
from lab.testing import guest as real

class Guest(real.Guest):
    state = "loaded"
    def _armed(self):
        self._session = Thing(
            watcher=Thing(look=lambda: None), seen=Thing(fatal=False), watch_anew=lambda: None
        )
        return self._session
    def _judged(self):
        return Thing(word=self.state)
    def _comes(self, seconds):
        return self.state != "loaded"
    def _well(self, session):
        return self.state == "loaded"
    def _collected(self):
        if not self.spent:
            self.found = Thing(
                text=f"receiver: {self.state.upper()}", verdict=self.state, run=Thing(path=Path()),
                found=None)
            self.spent, self._unexpected = "it", self.found
        return self.found
    def oops(self):
        self._armed()
        self.state = "oops"
        self._crashed()
    def warn(self):
        self._armed()
        self.state = "warn"

real.postmortem.matches = lambda found, verdict, at: []

@pytest.fixture
def guest(request):
    lab = Thing(test="", take_news=lambda: [])
    lent = Guest(Thing(name="receiver"), lab)
    lab.guests = {"receiver": lent}
    bench = request.config.stash[pytest_plugin.BENCH] = Thing(lending=True, lab=lab)
    yield lent
    bench.lending = False

@pytest.fixture
def warns_late(guest):
    yield
    guest.warn()

@pytest.fixture
def warns_and_fails_late(guest):
    yield
    guest.warn()
    assert False, "mine"

class Late:
    def teardown_method(self):  # the guest was given back already
        self.guest.warn()

@pytest.fixture
def skips(guest):
    guest.warn()
    pytest.skip("no use")
"""


def test_without_qemu_a_test_is_skipped_by_name(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, ASKS)
    assert 0 == done.returncode, done.stdout
    assert "needs lab: qemu-system-x86_64 is not installed" in done.stdout


def test_runs_that_have_no_place_are_refused_before_a_guest_is_up(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path, ASKS, LAB_RUNS=str(tmp_path / "file"))
    assert 1 == done.returncode, done.stdout
    assert "HostError" in done.stdout
    assert "file cannot be the folder of runs: " in done.stdout
    assert "file is no folder" in done.stdout
    assert "try: LAB_RUNS=/another/folder" in done.stdout


def test_what_must_run_fails_instead(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, ASKS, LAB_MUST_RUN="kvm,lab")
    assert 1 == done.returncode, done.stdout
    assert "and LAB_MUST_RUN asks for lab" in done.stdout


def test_what_must_run_may_stand_with_spaces(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, ASKS, LAB_MUST_RUN="kvm, lab ,")
    assert 1 == done.returncode, done.stdout
    assert "and LAB_MUST_RUN asks for lab" in done.stdout


def test_what_cannot_be_demanded_is_refused(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): pass\n", LAB_MUST_RUN="lab,kmv")
    assert pytest.ExitCode.USAGE_ERROR == done.returncode, done.stdout
    assert "LAB_MUST_RUN has kmv: expected lab, kvm, tcg" in done.stderr


def test_a_project_may_have_words_of_its_own(run: Run, tmp_path: Path) -> None:
    words = ("-o", "lab_must_run=browser")
    done = run(tmp_path, "def test_it(): pass\n", *words, LAB_MUST_RUN="browser")
    assert 0 == done.returncode, done.stderr


def test_an_accelerator_that_is_none_is_no_reason_to_skip(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, f'import pytest\n@pytest.mark.lab_accelerator("kvmm")\n{ASKS}')
    assert 1 == done.returncode, done.stdout
    assert "lab_accelerator is 'kvmm': expected kvm or tcg" in done.stdout


def test_a_test_that_asks_for_no_guest_is_left_alone(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): pass\n", LAB_MUST_RUN="lab")
    assert 0 == done.returncode, done.stdout
    assert not (Path(os.environ["LAB_RUNTIME"])).exists()


@pytest.mark.parametrize("marker", ["lab_kernel", 'lab_kernel("6.1", "6.12")', "lab_link(1)"])
def test_a_marker_takes_one_word(run: Run, tmp_path: Path, marker: str) -> None:
    done = run(tmp_path, f"import pytest\n@pytest.mark.{marker}\n{ASKS}")
    assert 1 == done.returncode, done.stdout
    assert "takes one word" in done.stdout


def test_the_markers_are_known(run: Run, tmp_path: Path) -> None:
    text = 'import pytest\n@pytest.mark.lab_accelerator("tcg")\ndef test_it(): pass\n'
    assert 0 == run(tmp_path, text, "--strict-markers").returncode


def test_down_ends_without_a_test(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): assert False\n", "--lab-down")
    assert 0 == done.returncode, done.stdout
    assert "no lab was left up" in done.stdout


HARMED = (
    "guest.oops()",
    "guest.warn()",
    "guest.warn(); pytest.skip('enough')",
    "guest.warn(); pytest.xfail('known')",
    "guest.warn(); pytest.fail('mine')",
    "guest.warn(); assert False",
    "with contextlib.suppress(Exception): guest.oops()",
    "with contextlib.suppress(Exception): guest.oops()\n    pytest.skip('cannot')",
    "with contextlib.suppress(Exception): guest.oops()\n    pytest.xfail('known')",
    "with pytest.raises(Exception): guest.oops()",
    "guest.warn()\n    with guest.expect_crash(): pass",
)


def test_a_crash_that_was_not_expected_fails_its_test(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(STAND_IN)
    tests = [
        f"def test_{at}(guest):\n    {body}\ndef test_{at}_next(guest): pass\n"
        for at, body in enumerate(HARMED)
    ]
    done = run(tmp_path, "import contextlib, pytest\n" + "".join(tests), "-rf", COLUMNS="200")
    assert 1 == done.returncode, done.stdout
    assert f"{len(HARMED)} failed, {len(HARMED)} passed in" in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert all("receiver: OOPS" in line or "receiver: WARN" in line for line in told), told


def test_a_fixture_that_skips_hides_no_crash(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(STAND_IN)
    done = run(tmp_path, "def test_it(skips): pass\n")
    assert 1 == done.returncode, done.stdout
    assert "1 error" in done.stdout
    assert "receiver: WARN" in done.stdout


LATE = """
from conftest import Late
def test_fixture(warns_late): pass
def test_next(guest): pass
def test_fails_too(warns_and_fails_late): pass
class TestLate(Late):
    def test_method(self, guest): self.guest = guest
"""


def test_what_a_fixture_does_as_it_is_taken_down_is_noticed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(STAND_IN)
    done = run(tmp_path, LATE, "-rE", COLUMNS="200")
    assert 1 == done.returncode, done.stdout
    assert "4 passed, 3 errors in" in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    assert all("receiver: WARN" in line for line in told), told
    assert ["test_fixture", "test_fails_too", "test_method"] == [
        line.split(" ")[1].rpartition("::")[2] for line in told
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("with guest.expect_crash(): guest.oops()", "1 passed"),
        ("with guest.expect_crash(): guest.oops()\n    pytest.skip('seen')", "1 skipped"),
        ("pytest.skip('nothing came')", "1 skipped"),
        ("pytest.exit('enough', 7)", "enough"),
    ],
)
def test_what_was_expected_or_never_came_fails_nothing(
    run: Run, tmp_path: Path, body: str, words: str
) -> None:
    (tmp_path / "conftest.py").write_text(STAND_IN)
    done = run(tmp_path, f"import pytest\ndef test_it(guest):\n    {body}\n")
    assert (7 if words == "enough" else 0) == done.returncode, done.stdout
    assert words in done.stdout


def test_what_came_before_expect_crash_is_not_what_it_expects(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(STAND_IN)
    body = "    guest.warn()\n    with guest.expect_crash('warn'): assert False, 'not reached'\n"
    done = run(tmp_path, f"def test_it(guest):\n{body}")
    assert 1 == done.returncode, done.stdout
    assert "before the block of expect_crash: receiver: WARN" in done.stdout
    assert "not reached" not in done.stdout.replace(body.splitlines()[1], "")
