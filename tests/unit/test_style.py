"""What no file of the project may hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
KINDS = {".py", ".c", ".h", ".sh", ".yaml", ".yml", ".md", ".toml", ".in", ""}

RULES = {
    "a path of one machine": re.compile(r"/(?:home|work|root|Users)/[a-z]\w*"),
    "an unfinished thought": re.compile(r"\b(?:TODO|FIXME|XXX)\b"),
    "a conflict left in": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
    "space at the end of a line": re.compile(r"[ \t]$", re.MULTILINE),
    "a carriage return": re.compile(r"\r"),
}
THIS = "tests/unit/test_style.py"
NOT_OURS = {"LICENSE"}


def files() -> list[str]:
    """Return every text file of the project, tracked or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.splitlines() or [
        str(path.relative_to(TOP)) for path in TOP.rglob("*") if ".venv" not in path.parts
    ]
    return sorted(
        name
        for name in set(names) - NOT_OURS
        if (TOP / name).is_file() and Path(name).suffix in KINDS
    )


def faults(name: str, text: str) -> list[str]:
    """Return what stands in a file and should not."""
    found = []
    for rule, pattern in RULES.items():
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {rule}: {match[0].strip()}")
    if text and not text.endswith("\n"):
        found.append(f"{name}: no end to its last line")
    return found


FILES = files()


@pytest.mark.parametrize("name", [name for name in FILES if name != THIS])
def test_a_file_holds_nothing_of_that(name: str) -> None:
    try:
        text = (TOP / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        pytest.skip("not a text")

    assert [] == faults(name, text)


@pytest.mark.parametrize(
    "text",
    ["see /home/anna/x\n", "x  # TODO\n", "<<<<<<< ours\n", "x \n", "x\r\n", "no end"],
)
def test_a_planted_fault_is_seen(text: str) -> None:
    assert 1 == len(faults("x.py", text))


@pytest.mark.parametrize("name", [name for name in FILES if re.search(r"\.(c|h)$", name)])
def test_a_c_file_says_its_licence(name: str) -> None:
    first = (TOP / name).read_text(encoding="utf-8").partition("\n")[0]

    assert "SPDX-License-Identifier: GPL-2.0" in first


@pytest.mark.parametrize("name", ["bootstrap", ".ci/run"])
def test_a_script_can_be_run(name: str) -> None:
    assert (TOP / name).stat().st_mode & 0o111
    assert "0" == str(subprocess.run(["sh", "-n", name], cwd=TOP, check=False).returncode)


def test_the_licence_is_the_one_we_name() -> None:
    text = (TOP / "LICENSE").read_text(encoding="utf-8")

    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "Version 2, June 1991" in text


@pytest.mark.skipif(not (TOP / "README.md").exists(), reason="needs README.md")
def test_the_readme_has_the_two_commands() -> None:
    text = (TOP / "README.md").read_text(encoding="utf-8")

    for command in ("./bootstrap invoke lab.up lab.run-nic", "./bootstrap invoke test"):
        assert command in text
    assert "./bootstrap invoke test" in (TOP / ".ci" / "run").read_text(encoding="utf-8")


def test_no_option_is_a_letter() -> None:
    # Given by Invoke they would differ from task to task.
    import tasks

    letters = {
        f"{one.name} -{name}"
        for one in (tasks.test, *tasks.LAB_TASKS)
        for argument in one.get_arguments()
        for name in argument.names
        if len(name) == 1
    }
    assert letters == set()
