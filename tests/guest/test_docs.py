"""Every command of the documents, run as it stands there, in one lab, once."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.commands_in_docs import TOP, Block, blocks, documents
from tests.guest.conftest import LAB, Done, Taken

BUDGET_S = 480.0  # for all of them; 310 s were measured on two cores with a load of 12
COMMAND_S = 120.0
SHARED = f"{LAB}-docs"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Path:
    """Return a checkout to write into: everything of ours by link, nothing of ours changed."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in TOP.iterdir():
        if path.name not in (".git", "runs", "mine"):
            (folder / path.name).symlink_to(path)
    (runs / "docs").mkdir()
    (folder / "runs").symlink_to(runs / "docs")
    return folder


def run(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env={**os.environ, "PATH": tools, "LAB_NAME": SHARED, "LAB_RUNS": str(checkout / "runs")},
    )


def run_by(command: str) -> tuple[str, ...]:
    """Return the words of `invoke` where a command is a run alone; none where it is more."""
    words = shlex.split(command, comments=True)
    alone = words[:1] == ["invoke"] and not set(command) & set("|<>;&$*")
    tasks = [word for word in words if word.startswith("lab.")]
    return tuple(words[1:]) if alone and 1 == len(tasks) and "lab.run" in words[1] else ()


def play(block: Block, checkout: Path, done: set[str], taken: Taken) -> None:
    """Write a block's file, or run its commands that were not run before."""
    if block.file:
        path = checkout / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return
    for number, command in enumerate(block.commands):
        if command in done:
            continue
        wanted = block.status if number == len(block.commands) - 1 else 0
        found = run(command, checkout)
        assert wanted == found.returncode, (
            f"{block.where}: $ {command}\n{found.stdout}{found.stderr}"
        )
        if words := run_by(command):
            outcome = partial(Done, found.returncode, found.stdout, found.stderr)
            taken.setdefault(words, outcome)
        # Of these each means another run, or another lab.
        if not any(word in command for word in ("runs/last", " last", "lab.up", "lab.down")):
            done.add(command)


def test_every_command_of_the_documents_works(checkout: Path, taken: Taken) -> None:
    start, done = time.monotonic(), set[str]()
    left_out = []
    for path in documents():
        for block in blocks(path.read_text(encoding="utf-8"), path.name):
            if block.not_in_ci:
                left_out.append(f"{block.where}: {block.not_in_ci}")
            else:
                play(block, checkout, done, taken)
    print("\n".join(["not run:", *left_out]))

    assert len(done) >= 10, "the documents have commands"
    assert len(left_out) <= 6, left_out
    assert time.monotonic() - start < BUDGET_S


def test_a_wrong_command_fails(checkout: Path) -> None:
    block = Block(where="x.md:1", commands=("invoke lab.run-nick",))

    with pytest.raises(AssertionError, match=r"x\.md:1: \$ invoke lab\.run-nick"):
        play(block, checkout, set(), {})


def test_a_command_that_should_fail_and_does_not_fails(checkout: Path) -> None:
    with pytest.raises(AssertionError, match=r"\$ true"):
        play(Block(where="x.md:1", commands=("true",), status=6), checkout, set(), {})
