"""tests/conftest.py itself: each of its guards is seen to fire."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import pytest_once

CONFTEST = Path(__file__).parents[1] / "conftest.py"
OPTIONS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--import-mode=importlib", "-q")
MARKS = "[pytest]\nmarkers =\n    long: x\nlab_must_run = guests long\n"


class Tree:
    """A tests/ folder with our conftest.py, run by a pytest of its own."""

    def __init__(self, folder: Path, once: pytest_once.Pytest) -> None:
        self.folder = folder
        self.once = once
        (folder / "pytest.ini").write_text(MARKS, encoding="utf-8")
        (folder / "tests").mkdir()
        shutil.copy(CONFTEST, folder / "tests")

    def test(self, ring: str, body: str) -> None:
        file = self.folder / "tests" / ring / "test_it.py"
        file.parent.mkdir()
        text = "import os, subprocess, pytest\n\n\ndef test_it():\n    " + body + "\n"
        file.write_text(text, encoding="utf-8")

    def run(self, *options: str, must: str = "", limit: str = "") -> str:
        done = self.once.run(
            [*OPTIONS, *options],
            cwd=self.folder,
            env=os.environ
            | {"LAB_MUST_RUN": must, "LAB_TEST_LIMIT_S": limit, "PYTEST_ADDOPTS": ""},
        )
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest_once.Pytest]:
    with pytest_once.started(tmp_path_factory.mktemp("pytest")) as found:
        yield found


@pytest.fixture
def tree(tmp_path: Path, once: pytest_once.Pytest) -> Tree:
    return Tree(tmp_path, once)


def test_a_ring_of_guests_is_left_out_and_said_so(tree: Tree) -> None:
    tree.test("unit", "pass")
    tree.test("guest", "assert False")

    said = tree.run()

    assert "1 passed, 1 skipped" in said
    assert "rings run: unit; not run: guest (no --guests)" in said


def test_a_ring_of_guests_runs_when_asked(tree: Tree) -> None:
    tree.test("crash", "pass")

    assert "rings run: crash; not run: none" in tree.run("--guests")


def test_a_ring_that_must_run_and_does_not_is_a_failure(tree: Tree) -> None:
    tree.test("guest", "pass")

    said = tree.run(must="guests")

    assert "LAB_MUST_RUN asks for guests" in said
    assert "1 passed" not in said


def test_a_skip_inside_a_ring_that_must_run_is_a_failure(tree: Tree) -> None:
    tree.test("guest", "pytest.skip('no QEMU')")

    assert "1 skipped" in tree.run("--guests")
    assert "1 failed" in tree.run("--guests", must="guests")


def test_a_child_left_behind_fails_its_test(tree: Tree) -> None:
    tree.test("unit", "pytest.kept = subprocess.Popen(['sleep', '0.2'])")

    said = tree.run()

    assert "left behind: " in said
    assert "(sleep 0.2)" in said


def test_a_dead_child_nobody_waited_for_counts_too(tree: Tree) -> None:
    tree.test("unit", "os.fork() or os._exit(0)")

    assert "(defunct)" in tree.run()


def test_the_user_is_hidden(tree: Tree) -> None:
    tree.test("unit", "assert 'pytest-of' in os.path.expanduser('~/.ssh')")

    assert "1 passed" in tree.run()


def test_a_test_that_hangs_fails_where_it_does(tree: Tree) -> None:
    tree.test("unit", "os.read(os.pipe()[0], 1)")

    said = tree.run(limit="0.3")

    assert "not done after 0.3 s" in said
    assert "1 failed" in said


def test_two_workers_tell_what_one_process_does(tree: Tree) -> None:
    tree.test("unit", "pass")
    tree.test("guest", "assert False")

    assert "rings run: unit; not run: guest (no --guests)" in tree.run("-n", "2")
