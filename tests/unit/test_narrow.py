"""What tasks print at a terminal fits it, and is left as it is where a program reads it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import access, claims, ledger
from lab.accesses import TOUCH_HEAD
from lab.commands import Console, read
from lab.commands.claims import Options
from lab.commands.claims import claims as judge
from lab.journal import Journal
from lab.rundir import RunDir
from tests.unit import cooked
from tests.unit.cooked_socket import cook

MINE = """\
title: A text
experiments:
  lo: {playbook: loopback}
claims:
- id: A1
  at: block 1
  says: there are two copies of every byte, one into the kernel and one out of it, and not one more
  tests: [{on: lo, measure: copies, is: 2}]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Return a run that claims are made of."""
    monkeypatch.setenv("LAB_RUNS", str(tmp_path))
    run = cooked.loopback(tmp_path / "lo").serve()
    run.write_text("ledger.json", ledger.build(run).to_json())
    (tmp_path / "mine.yaml").write_text(MINE)
    told = {"mine/lo": {"name": "lo", "state": claims.DONE}}
    RunDir(tmp_path).write_json(claims.INDEX, {"experiments": told})
    return run


def with_log(run: RunDir) -> None:
    """Give a run a log of who touched the sender's buffer."""
    buffer = run.guest("sender").workloads()[0].ready.buffer
    physical = buffer.pages[0][1] + buffer.virtual % access.PAGE
    touch = {"virt": buffer.virtual, "phys": physical, "bytes": bytes(16), "count": 16,
             "caller": tuple(0xFFFF_FFFF_8100_0010 + at for at in (0, 16, 32))}  # fmt: skip
    run.guest("sender").file("access.bin").write_bytes(access.encode_log([touch, touch]))


def accesses(to: Console, run: RunDir) -> None:
    with_log(run)
    read.accesses(to, "lo", "sender/user")


TASKS: dict[str, Callable[[Console, RunDir], None]] = {
    "lines": lambda to, run: read.lines(to, "lo", "", everything=True),
    "accesses": accesses,
    "claims": lambda to, run: judge(
        to,
        "",
        Options(texts=(str(run.path.parent / "mine.yaml"),), on=str(run.path.parent)),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_lines_fit_a_terminal_and_no_record_is_broken(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    console = Console(json=False, journal=Journal(stream=io.StringIO()))
    TASKS[task](console, run)
    piped = capsys.readouterr().out

    for width in (60, 80):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        TASKS[task](console, run)
        shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert width >= max(len(line) for line in shown.splitlines() if os.sep + "tmp" not in line)
        for word in piped.split():
            if "#" in word or "=" in word or "0x" in word:
                assert word in shown
    assert 80 < max(map(len, piped.splitlines()))


@pytest.mark.parametrize("name", ["lo", "socket"])
def test_the_lines_of_a_run_for_a_program(
    run: RunDir, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    cook(run.path.parent / "socket").serve()
    read.lines(Console(json=False, journal=Journal()), name, "", everything=False)
    told = capsys.readouterr()
    read.lines(Console(json=True, journal=Journal()), name, "", everything=False)
    found = capsys.readouterr()

    assert told.out.splitlines() == json.loads(found.out) != []
    assert told.err == found.err
    read.lines(Console(json=True, journal=Journal()), name, "no such text", everything=True)
    assert [] == json.loads(capsys.readouterr().out)


def test_who_touched_a_place_is_told_with_the_names_of_its_columns(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    accesses(Console(json=False, journal=Journal()), run)
    place, head, line, *rows = capsys.readouterr().out.splitlines()

    assert place.startswith("sender/user message 0 physical ")
    assert list(TOUCH_HEAD) == head.split()
    assert {"─"} == set(line)
    assert ["load", "#0"] == [rows[0].split()[1], rows[0].split()[-1]]
    assert 2 == len(rows)

    accesses(Console(json=True, journal=Journal()), run)
    assert 3 == len(json.loads(capsys.readouterr().out))
