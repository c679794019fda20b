"""A bench whose guests do not come up: what the next test is told."""

from __future__ import annotations

from typing import Any

import pytest

from lab import topology
from lab.errors import DeadlineExceeded
from lab.journal import Journal
from lab.testing import Bench, Needs


def test_guests_that_did_not_come_up_are_tried_again_and_are_not_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def fails(pair: topology.Lab, *_: Any, **__: Any) -> None:
        tried.append(pair.name)
        raise DeadlineExceeded("the agent of sender did not come")

    monkeypatch.setattr(topology.Lab, "bring_up", fails)
    monkeypatch.setattr(Bench, "_setup", lambda *_: None)
    with Bench("mine", journal=Journal()) as bench:
        for _ in range(3):
            with pytest.raises(DeadlineExceeded, match="of sender"), bench.lent(Needs()):
                pass
    assert ["mine"] * 3 == tried
