"""The command line in a manifest: a shell makes the same words of it, whatever bytes they hold."""

from __future__ import annotations

import os
import subprocess

import pytest

from lab import rundir
from lab.experiment import describe_command

WORDS = [
    "lab.run-nic",
    "--payload",
    "two words",
    "it's",
    "",
    "é",
    "\t\x1b[2J",
    os.fsdecode(b"\xf7\x01'\\$(reboot)\xff"),
]


def test_a_shell_makes_the_same_words_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/invoke", *WORDS])

    text = describe_command()
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True, timeout=60
    )

    assert text.startswith("invoke lab.run-nic --payload 'two words' ")
    assert text.isprintable()
    assert rundir.to_json(text).encode()
    assert said.stdout.split(b"\0")[:-1] == [b"invoke", *map(os.fsencode, WORDS)]
