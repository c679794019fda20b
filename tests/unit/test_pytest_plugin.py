"""The pytest plugin where no guest can be: what is skipped, what fails, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


def run(folder: Path, text: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin on a test file, on a host without QEMU."""
    (folder / "test_it.py").write_text(text)
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    code = (
        "import shutil, sys, pytest; find = shutil.which;"
        "shutil.which = lambda name, *a, **k:"
        " None if name.startswith('qemu') else find(name, *a, **k);"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    return subprocess.run(
        [
            *(sys.executable, "-c", code, "-p", "lab.pytest_plugin", "-p", "no:cacheprovider"),
            *("-c", os.devnull, "-q", "-rs", str(folder), *words),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TOP), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


ASKS = "def test_it(guest): assert False\n"


def test_without_qemu_a_test_is_skipped_by_name(tmp_path: Path) -> None:
    done = run(tmp_path, ASKS)
    assert 0 == done.returncode, done.stdout
    assert "needs lab: qemu-system-x86_64 is not installed" in done.stdout


def test_what_must_run_fails_instead(tmp_path: Path) -> None:
    done = run(tmp_path, ASKS, LAB_MUST_RUN="kvm,lab")
    assert 1 == done.returncode, done.stdout
    assert "and LAB_MUST_RUN asks for lab" in done.stdout


def test_a_test_that_asks_for_no_guest_is_left_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): pass\n", LAB_MUST_RUN="lab")
    assert 0 == done.returncode, done.stdout
    assert not (Path(os.environ["LAB_RUNTIME"])).exists()


@pytest.mark.parametrize("marker", ["lab_kernel", 'lab_kernel("6.1", "6.12")', "lab_link(1)"])
def test_a_marker_takes_one_word(tmp_path: Path, marker: str) -> None:
    done = run(tmp_path, f"import pytest\n@pytest.mark.{marker}\n{ASKS}")
    assert 1 == done.returncode, done.stdout
    assert "takes one word" in done.stdout


def test_the_markers_are_known(tmp_path: Path) -> None:
    text = 'import pytest\n@pytest.mark.lab_accelerator("tcg")\ndef test_it(): pass\n'
    assert 0 == run(tmp_path, text, "--strict-markers").returncode


def test_down_ends_without_a_test(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): assert False\n", "--lab-down")
    assert 0 == done.returncode, done.stdout
    assert "no lab was left up" in done.stdout
