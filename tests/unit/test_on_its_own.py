"""A file given without its option, where a task would do all of them without it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from lab.errors import PlaybookError
from tasks import spelled_out

TOP = Path(tasks.__file__).parent


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lab.check", "lab.check"),
        ("lab.check a.yaml", "lab.check --playbook a.yaml"),
        ("lab.check --json a b", "lab.check --json --playbook a --playbook b"),
        ("lab.check --playbook a b", "lab.check --playbook a --playbook b"),
        ("lab.check --playbook=a b --json", "lab.check --playbook=a --playbook b --json"),
        ("lab.check a lab.run a", "lab.check --playbook a lab.run a"),
        ("lab.up lab.check a", "lab.up lab.check --playbook a"),
        ("lab.report lab.check", "lab.report lab.check"),
        ("lab.claims --on runs/x --only A1,A2 c", "lab.claims --on runs/x --only A1,A2 --file c"),
        ("lab.claims --lab test c", "lab.claims --lab test --file c"),
        ("lab.claims --locked c --json", "lab.claims --locked --file c --json"),
        ("lab.try x.c --slub-debug lab.check F", "lab.try x.c --slub-debug lab.check F"),
        ("lab.run a", "lab.run a"),
        ("lab.chek a", "lab.chek a"),
    ],
)
def test_a_word_on_its_own_is_the_value_of_its_option(typed: str, meant: str) -> None:
    assert meant.split() == spelled_out(typed.split())


@pytest.mark.parametrize("name", tasks.ON_ITS_OWN)
def test_the_option_is_one_of_the_task_s_and_is_repeatable(name: str) -> None:
    option = tasks.ON_ITS_OWN[name].removeprefix("--")
    (found,) = (one for one in tasks.ns[name].get_arguments() if option in one.names)
    assert list is found.kind


def test_invoke_takes_it_so(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nprotokol: udp\n", encoding="utf-8")

    def invoke(*words: str) -> tuple[int, str, str]:
        argv = [str(Path(sys.executable).with_name("invoke")), "--search-root", str(TOP), *words]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert (0, "nic: ok\nloopback: ok\n", "") == invoke("lab.check", "nic", "loopback")
    script = "playbook: mine\nquestion: It?\nprobes: {foreign: [a.bt]}\nworkload: {over: link}\n"
    (tmp_path / "own.yaml").write_text(script, encoding="utf-8")
    assert 2 == invoke("lab.check", "own.yaml")[0]
    (tmp_path / "a.bt").touch()
    code, said, told = invoke("lab.check", "own.yaml")
    assert (0, "own.yaml: ok\n") == (code, said)
    assert told.startswith("own.yaml: a.bt will be absent: there is no bpftrace in the guest image")
    assert "also without --playbook" in invoke("lab.check", "--help")[1]
    code, _, told = invoke("lab.check", "nic", "./mine.yaml")
    assert (2, True) == (code, "./mine.yaml:2:1: " in told)
    code, _, told = invoke("lab.claims", "no-such-claims")
    assert (2, True) == (code, "no-such-claims" in told)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("lab.bench-trace --rounds abc", "--rounds: expected a whole number; found 'abc'"),
        ("lab.bench-trace --count=1.5", "--count: expected a whole number; found '1.5'"),
        ("lab.up lab.bench --rounds ''", "--rounds: expected a whole number; found ''"),
        ("lab.try x.c --soak nan", "--soak: expected a number; found 'nan'"),
        ("lab.exec sender true --deadline inf", "--deadline: expected a number; found 'inf'"),
    ],
)
def test_what_should_be_a_number_and_is_none_is_refused(typed: str, said: str) -> None:
    with pytest.raises(PlaybookError, match=f"^{re.escape(said)}$") as wrong:
        tasks.refuse_no_numbers(shlex.split(typed))
    task = next(word for word in reversed(typed.split()) if word.startswith("lab."))
    assert f"invoke --help {task}" == wrong.value.hint


@pytest.mark.parametrize(
    "typed",
    [
        "lab.bench-trace --rounds 2 --count 100 --json",
        "lab.try x.c --soak 0.5 --deadline 3",
        "lab.run nic --size abc",  # a word of the task's own, which it reads itself
        "lab.exec sender 'echo --deadline x'",
        "lab.bench --rounds",  # Invoke says what is missing
    ],
)
def test_other_words_are_none_of_its_business(typed: str) -> None:
    tasks.refuse_no_numbers(shlex.split(typed))


def test_wrong_numbers_and_options_are_arguments(tmp_path: Path) -> None:
    def invoke(*words: str) -> tuple[int, str]:
        argv = [str(Path(sys.executable).with_name("invoke")), "--search-root", str(TOP), *words]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    for words, said in (
        ("lab.bench-trace --rounds abc", "--rounds: expected a whole number; found 'abc'"),
        ("lab.bench-trace --count 0", "--count: expected 1 to 10000 messages; found 0"),
        ("lab.bench-trace --rounds 0", "--rounds: expected at least 1; found 0"),
        ("lab.bench --rounds 0", "--rounds: expected at least 1; found 0"),
        ("lab.run-nic --size x", "invoke --help lab.run-nic"),
        ("lab.run loopback --count 0", "invoke --help lab.run\n"),
    ):
        code, told = invoke(*words.split())
        assert (2, True, False) == (code, said in told, "Traceback" in told), told
    code, told = invoke("lab.bench-trace", "--rounds", "abc", "--json")
    assert (2, "PlaybookError") == (code, json.loads(told.partition("\n}")[0] + "}")["error"])
