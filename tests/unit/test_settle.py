"""How the experiments of claims are taken: one that lost records is measured again."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import claims, experiment, settle
from lab.experiment import Outcome
from lab.journal import Journal
from lab.rundir import RunDir


@pytest.mark.parametrize(("losses", "runs"), [([], 1), ([1], 2), ([1, 1], 3), ([1, 1, 1], 3)])
def test_a_run_that_lost_records_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[int], runs: int
) -> None:
    made: list[RunDir] = []

    def take(*_: Any, **__: Any) -> None:
        pass

    def analyse(run_dir: RunDir, *_: Any, **__: Any) -> Outcome:
        lost = len(made) <= len(losses)
        trouble = ("the ledger is incomplete",) if lost else ()
        return Outcome(run=run_dir, result="", value={}, trouble=trouble, lost=lost)

    def new_run(*_: Any, **__: Any) -> RunDir:
        made.append(RunDir(tmp_path / f"run-{len(made)}"))
        made[-1].path.mkdir()
        return made[-1]

    kind = experiment.Kind(guests=lambda _: (), take=take, analyse=analyse)
    monkeypatch.setattr(experiment, "kind_of", lambda _: kind)
    monkeypatch.setattr(experiment, "new_run", new_run)
    said = io.StringIO()
    station = settle._Station(
        lab_name="x", journal=Journal(stream=said), command="", folder=tmp_path,
        locked=False, offline=False,
    )  # fmt: skip
    (one,) = [one for one in settle.wanted([claims.load("worksheet")]) if one.name == "lo"]
    ready: Any = SimpleNamespace(setup=None)

    result = station._one(ready, one)

    assert claims.DONE == result.state
    assert runs == len(made)
    assert made[-1].name == result.run
    assert made[-1].path == (tmp_path / "lo").resolve()
    assert runs - 1 == said.getvalue().count("lost records; measured again")
