"""A bench whose guests do not come up: what the next test is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab import snapshot, topology
from lab.errors import DeadlineExceeded
from lab.journal import Journal
from lab.testing import Bench, Lab, Needs


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


@pytest.mark.parametrize(("nonce", "restored"), [("same", []), ("another", ["sender"])])
def test_a_guest_whose_snapshot_another_lab_made_anew_is_restored_from_that(
    monkeypatch: pytest.MonkeyPatch, nonce: str, restored: list[str]
) -> None:
    """Unused as it is: a post-mortem would look for the kernel where the new one has it."""
    done: list[str] = []
    state = SimpleNamespace(snapshot="s", guests={"sender": SimpleNamespace(nonce="same")})
    stored = SimpleNamespace(guests={"sender": SimpleNamespace(nonce=nonce)})
    pair: Any = SimpleNamespace(
        guests={}, require_state=lambda: state, restore_guest=lambda name, _: done.append(name),
        untouch=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr(snapshot, "load", lambda _: stored)
    guest: Any = SimpleNamespace(
        name="sender", used=False, machine=SimpleNamespace(alive=True), forget=lambda: None
    )
    lab = Lab(pair, pair, journal=Journal())
    lab.guests = {"sender": guest}

    Bench("mine", journal=Journal())._restore(lab, ["sender"])

    assert restored == done
