"""What holds for every unit test that builds a ledger."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab import ledger
from lab.rundir import RunDir
from tests import schema


@pytest.fixture(autouse=True)
def _ledgers_keep_to_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validate every ledger that a test builds, of many messages the first."""
    build = ledger.build

    def checked(run: RunDir) -> ledger.Ledger:
        built = build(run)
        schema.check(replace(built, messages=built.messages[:2]).as_json())
        return built

    monkeypatch.setattr(ledger, "build", checked)
