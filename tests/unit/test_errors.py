"""The tree of errors: one root, one exit code per fault, three lines for people."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoke.exceptions import Exit
from invoke.main import program
from invoke.parser import Parser

import tasks
from lab import errors
from lab.commands import measure, told
from lab.errors import (
    CommandFailed,
    DeadlineExceeded,
    GuestLost,
    HostError,
    Interrupted,
    LabError,
    ToolMissing,
    hinted,
)
from lab.rundir.making import being_made
from tests.unit import cooked


def tree(cls: type[LabError] = LabError) -> Iterator[type[LabError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def types(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Let this be the process of `invoke WORDS`."""
    monkeypatch.setattr("sys.argv", ["invoke", *words])
    parsed = Parser(contexts=tasks.ns.to_contexts()).parse_argv([*words])
    monkeypatch.setattr(program, "tasks", parsed, raising=False)


def test_in_an_invocation_with_json_only_json_is_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    types(monkeypatch, "lab.up", "lab.run-nic", "--json")
    with told() as plain, told(json=True) as out:
        plain.result("lab 'x' was already up", {})
        plain.told("a table", ())
        plain.line("one of many")
        out.result("", {"complete": True})
    caught = capsys.readouterr()
    assert {"complete": True} == json.loads(caught.out)
    assert ["lab 'x' was already up", "a table", "one of many"] == caught.err.splitlines()


@pytest.mark.parametrize(
    "words",
    [
        ["lab.up"],
        ["lab.up", "lab.put", "sender", "--json", "/x"],
        ["lab.up", "test", "--select", "--json"],
    ],
)
def test_without_json_results_are_on_stdout_whatever_a_value_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    types(monkeypatch, *words)
    with told() as plain:
        plain.result("lab 'x' was already up", {})
    assert "lab 'x' was already up\n" == capsys.readouterr().out


def test_a_report_is_not_told_between_a_program_and_its_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path))
    run = cooked.loopback(tmp_path / "lo").serve()
    types(monkeypatch, "lab.report", "lo", "lab.runs", "--json")
    with told() as plain:
        measure.recompute(plain, "lo")
    caught = capsys.readouterr()
    assert "" == caught.out
    assert str(run.path) == caught.err.splitlines()[-1]


def test_a_program_reads_the_json_of_one_task_of_many(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("invoke"),
         *("lab.check", "--playbook", "nic", "lab.ps", "--json")],
        cwd=Path(tasks.__file__).parent,
        env={**os.environ, "LAB_RUNTIME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert ("[]\n", "nic: ok\n") == (done.stdout, done.stderr)


def test_each_branch_has_an_exit_code_of_its_own() -> None:
    branches = [c for c in LabError.__subclasses__() if c.__module__ == errors.__name__]

    codes = [branch.exit_code for branch in branches]

    assert len(codes) == len(set(codes))
    assert not set(codes) & {0, 1, errors.BUG, errors.INTERRUPTED}


def test_a_class_has_the_exit_code_of_its_branch() -> None:
    for branch in LabError.__subclasses__():
        for cls in tree(branch):
            assert branch.exit_code == cls.exit_code


def test_the_drawing_names_every_class_and_number() -> None:
    drawing = errors.__doc__ or ""

    for cls in tree():
        assert re.search(rf"\b{cls.__name__}\b", drawing), cls
    for branch in LabError.__subclasses__():
        if branch.__module__ == errors.__name__:
            line = next(line for line in drawing.splitlines() if branch.__name__ in line)
            assert re.search(rf"\b{branch.exit_code}\b", line), line


def test_an_error_prints_what_where_and_what_to_try() -> None:
    error = ToolMissing("no gcc", log="/x/build.log", hint="apt-get install gcc")

    assert [
        "ToolMissing: no gcc",
        "  log: /x/build.log",
        "  try: apt-get install gcc",
    ] == error.lines()


def test_an_error_without_log_or_hint_prints_no_empty_lines() -> None:
    assert ["HostError: too small"] == HostError("too small").lines()


def test_a_guest_error_names_its_guest() -> None:
    error = GuestLost("sender", "the agent's line is dead")

    assert "sender" == error.guest
    assert "sender: the agent's line is dead" == str(error)


def test_a_failed_command_tells_the_end_of_its_output() -> None:
    error = CommandFailed("receiver", "insmod x.ko", 1, "x" * 1000 + "bad\n")

    assert 1 == error.returned
    assert str(error).endswith("xbad")
    assert 700 > len(str(error))


def test_a_missed_deadline_is_a_timeout_too() -> None:
    with pytest.raises(TimeoutError):
        raise DeadlineExceeded("waited 1.0 s for nothing")


def test_hinted_fills_what_is_missing_and_keeps_what_is_there() -> None:
    with pytest.raises(HostError) as caught, hinted(log="a.log", hint="outer"):
        raise HostError("x", hint="inner")

    assert ("a.log", "inner") == (caught.value.log, caught.value.hint)


def test_hinted_leaves_errors_of_others_alone() -> None:
    with pytest.raises(ValueError, match="not ours"), hinted(hint="outer"):
        raise ValueError("not ours")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["lab.run-nic", "--payload", ""], "--payload"),
        (["lab.run-nic", "--payload="], "--payload"),
        (["lab.down", "--lab", ""], "--lab"),
        (["lab.exec", "sender", ""], "word 3 of the command"),
    ],
)
def test_an_option_given_nothing_is_a_fault_of_the_command(
    monkeypatch: pytest.MonkeyPatch, words: list[str], named: str
) -> None:
    monkeypatch.setattr("sys.argv", ["invoke", *words])

    with pytest.raises(Exit, match=f"{named}: expected a value, found nothing") as caught, told():
        pytest.fail("it was started")
    assert 2 == caught.value.code


def test_a_command_that_leaves_options_out_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["invoke", "lab.run-nic", "--payload=a=", "--size", "16"])

    with told():
        pass


def test_an_interrupt_says_where_lies_what_was_begun(tmp_path: Path) -> None:
    with pytest.raises(Exit) as ended, told(), being_made(tmp_path):
        raise Interrupted

    assert errors.INTERRUPTED == ended.value.code
    assert f"interrupted\n  run, as far as it came: {tmp_path}" == ended.value.message
