"""The wheel in somebody else's hands: examples/tally, in an environment outside of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lab import topology
from tests.guest.conftest import TOP

Tried = Callable[..., subprocess.CompletedProcess[str]]

CRASHES = """
import time
import pytest

def test_the_guest_dies_and_the_test_does_not_look(guest):
    guest.run("(sleep 0.1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    time.sleep(2)

def test_after_it(guest):
    assert guest.run("echo as new").stdout == "as new\\n"

def test_the_guest_dies_under_a_command(guest):
    guest.run("echo c > /proc/sysrq-trigger")

def test_another_crash_than_expected(guest):
    with guest.expect_crash(verdict="soft-lockup"):
        guest.run("echo c > /proc/sysrq-trigger")

def test_no_crash_came(guest):
    with guest.expect_crash(within_s=0.3):
        guest.run("true")

def test_a_command_without_end(guest):
    with pytest.raises(TimeoutError):
        guest.run("sleep 60", deadline_s=0.5)
    assert guest.run("printf '%s\\\\n' a; false", check=False).stdout == "a\\n"

@pytest.mark.parametrize(
    ("command", "stdout", "stderr"),
    [
        ("echo hi", "hi\\n", ""),
        ("printf hi", "hi", ""),
        ("true", "", ""),
        ("printf '\\\\n\\\\n'; printf no >&2", "\\n\\n", "no"),
        ("printf '\\\\303\\\\244\\\\377'", "\\xe4\\ufffd", ""),
        ("head -c 200000 /dev/zero | tr '\\\\0' a", "a" * 200000, ""),
    ],
)
def test_what_was_printed(guest, command, stdout, stderr):
    done = guest.run(command)
    assert (done.stdout, done.stderr) == (stdout, stderr)

@pytest.mark.lab_accelerator("kvm" if "tcg" == __import__("os").environ["ACCEL"] else "tcg")
def test_elsewhere(guest):
    assert False

@pytest.fixture
def loaded(guest):
    module = guest.load("late.c")
    yield
    guest.unload(module)

def test_unloading_warns(loaded):
    pass

def test_after_that(guest):
    guest.run("true")

def test_unloading_warns_at_the_very_end(loaded):
    pass
"""
LATE = """
#include <linux/module.h>
static int __init late_init(void)
{
	return 0;
}
static void __exit late_exit(void)
{
	WARN(1, "late: as asked");
}
module_init(late_init);
module_exit(late_exit);
MODULE_DESCRIPTION("warns as it goes");
MODULE_LICENSE("GPL");
"""
WIDE = """
import pytest
from lab.pytest_plugin import guest_fixture

guest = guest_fixture(scope="module")

def test_first(guest):
    guest.run("touch /run/mark")

def test_second(guest, receiver):
    assert guest is receiver
    guest.run("test -e /run/mark")
"""
KEPT = """
def test_it(guest):
    guest.run("touch /run/mark; false")

def test_next(guest):
    guest.run("true")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment with the wheel, and our dependencies alone."""
    home = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(home)]
    subprocess.run([*build, str(TOP)], check=True, capture_output=True)
    (wheel,) = home.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    inside = home / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(inside), "install", "-q", "--no-index"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    (packages,) = (home / "venv").glob("lib/python*/site-packages")
    (packages / "locked.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return inside


@pytest.fixture
def tried(python: Path, tmp_path: Path) -> Tried:
    """Run pytest as a user of the wheel would, in a folder of his own."""

    def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        env |= {"LAB_RUNS": str(tmp_path / "runs"), "TMPDIR": str(tmp_path), **environ}
        env.pop("PYTHONPATH", None)
        if "LAB_MUST_RUN" not in environ:
            env.pop("LAB_MUST_RUN", None)  # it has words of this project's own
        return subprocess.run(
            [str(python), "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def labs() -> list[str]:
    return [name for name in topology.names() if name.startswith("pytest-")]


def test_the_example_passes_from_the_wheel_with_two_workers(tried: Tried, tmp_path: Path) -> None:
    shutil.copytree(TOP / "examples" / "tally", tmp_path / "tally")
    done = tried("-n", "2", "--junitxml=junit.xml", "tally", LAB_MUST_RUN="lab")
    assert 0 == done.returncode, done.stdout
    assert "lab.pytest_plugin" not in sys.modules  # it is the wheel's that ran
    cases = {
        case.get("name"): {one.get("name"): one.get("value") for one in case.iter("property")}
        for case in ET.parse(tmp_path / "junit.xml").iter("testcase")
    }
    crashed = cases["test_the_first_version_dies_of_its_first_datagram"]
    assert "panic" == crashed["lab-crash-receiver"]
    assert Path(str(crashed["lab-crash-postmortem"])).is_file()
    assert (Path(str(cases["test_it_copies_nothing"]["lab-run"])) / "ledger.json").is_file()
    assert [] == labs()


def test_a_crash_fails_the_test_that_caused_it_and_no_other(tried: Tried, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(CRASHES)
    (tmp_path / "late.c").write_text(LATE)
    accel = os.environ.get("LAB_ACCEL", "tcg")
    done = tried("test_it.py", "-rs", "--junitxml=junit.xml", ACCEL=accel, LAB_ACCEL=accel)
    assert 1 == done.returncode, done.stdout
    cases = list(ET.parse(tmp_path / "junit.xml").iter("testcase"))
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert failed == {
        "test_the_guest_dies_and_the_test_does_not_look",
        "test_the_guest_dies_under_a_command",
        "test_another_crash_than_expected",
        "test_no_crash_came",
    }
    late = {case.get("name"): case for case in cases if case.find("error") is not None}
    assert {"test_unloading_warns", "test_unloading_warns_at_the_very_end"} == set(late)
    for case in late.values():
        found = {one.get("name"): one.get("value") for one in case.iter("property")}
        assert "warn" == found["lab-crash-receiver"]
        assert str(found["lab-crash-at"]).startswith("late.c:9")
    assert "receiver: WARN in phase 'unload': late.c:9" in done.stdout
    assert "the test passed, but receiver: PANIC in phase" in done.stdout
    assert "sysrq triggered crash" in done.stdout
    assert "expected verdict soft-lockup, found panic" in done.stdout
    assert "expected a crash, and none came in 0.3 s" in done.stdout
    assert "needs kvm: guests run under tcg here" in done.stdout
    assert "lab/testing/guest.py:" not in done.stdout  # failures point at the test
    assert [] == labs()
    must = tried("test_it.py", "-k", "elsewhere", ACCEL=accel, LAB_MUST_RUN="kvm")
    assert 1 == must.returncode, must.stdout
    assert "LAB_MUST_RUN asks for kvm" in must.stdout


def test_a_guest_of_wider_scope_is_put_back_once(tried: Tried, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(WIDE)
    done = tried("test_it.py")
    assert 0 == done.returncode, done.stdout


def test_kept_guests_are_as_the_test_that_failed_left_them(tried: Tried, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(KEPT)
    try:
        done = tried("test_it.py", "--lab-keep", "-rs")
        assert 1 == done.returncode, done.stdout
        assert "1 failed, 1 skipped" in done.stdout
        assert "the guests are as test_it.py::test_it left them" in done.stdout
        (name,) = labs()
        way_in = re.search(r"receiver: (ssh .*@127\.0\.0\.1)$", done.stdout, re.MULTILINE)
        assert way_in is not None, done.stdout
        if shutil.which("ssh"):
            inside = subprocess.run(
                [*way_in[1].split(), "-o", "BatchMode=yes", "ls /run/mark"],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert "/run/mark\n" == inside.stdout, inside.stderr
    finally:
        down = tried("--lab-down")
    assert f"down: {name}" in down.stdout
    assert [] == labs()
