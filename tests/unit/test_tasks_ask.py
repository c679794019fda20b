"""The tasks that measure, each by the playbook that it runs."""

from __future__ import annotations

import contextlib

import pytest
from invoke.context import Context

import tasks
from lab import commands, playbook
from lab.commands import Console, measure

ASKED = {
    ("run-nic", ""): "nic",
    ("run-trap", ""): "trap",
    ("run-loopback", ""): "loopback",
    ("run-socket", ""): "socket",
    ("run-steps", "loopback"): "steps-loopback",
    ("run-steps", "link"): "steps-link",
    ("run-chain", ""): "chain",
}


@pytest.mark.parametrize(("task", "over"), ASKED)
def test_a_task_runs_the_playbook_it_is_called_after(
    monkeypatch: pytest.MonkeyPatch, task: str, over: str
) -> None:
    """Guest tests look at runs of these playbooks that `lab.claims` took."""
    asked: list[tuple[str, measure.Options]] = []

    def run(console: Console, lab: str, name: str, options: measure.Options) -> None:
        asked.append((name, options))

    monkeypatch.setattr(measure, "run", run)
    # It would take the signals.
    monkeypatch.setattr(commands, "told", lambda **_: contextlib.nullcontext())
    words = {"over": over} if over else {}

    tasks.ns["lab." + task](Context(), kernel="6.1", **words)

    ((name, options),) = asked
    assert ASKED[task, over] == name == playbook.load(name).name
    assert "6.1" == options.kernel
