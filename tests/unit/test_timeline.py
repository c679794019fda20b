"""One timeline of both guests and the host: an offset that is wrong is said, or changes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import ledger
from lab.clock import fit
from lab.correlate.inputs import load
from lab.ledger import Ledger
from lab.report.evidence import Archive
from lab.report.moments import Timeline, timeline
from lab.rundir import RunDir
from tests.unit import cooked
from tests.unit.cooked import edit

ROOM_NS = 200  # between the host's gates and what the programs did between them
SKEWS = (-(10**9), -(10**6), -10_000, -100, 0, 100, 10_000, 10**6, 10**9)


@dataclass(frozen=True)
class Run:
    """A run over the link whose gates are on the host's clock."""

    run: RunDir

    def skew(self, guest: str, ns: int) -> None:
        def later(value: dict[str, list[dict[str, int]]]) -> None:
            for sample in value["samples"]:
                sample["before_ns"] += ns
                sample["after_ns"] += ns

        edit(self.run, f"{guest}/tsc.json", later)

    def bound(self, guest: str) -> int:
        folder = self.run.guest(guest)
        line = fit(folder.tsc())
        assert line is not None
        last = max(record.tsc for one in load(self.run).guests for record in one.records)
        return line.host(last).bound_ns

    @property
    def ledger(self) -> Ledger:
        return ledger.build(self.run)

    def timeline(self, found: Ledger) -> Timeline:
        return timeline(found.messages[0], Archive(self.run))


@pytest.fixture
def gated(tmp_path: Path) -> Run:
    """Give the gates times as near to what the programs did as they can be."""
    run = cooked.nic(tmp_path).serve()
    moments = {
        guest.name: [
            guest.clock.host(record.tsc).ns
            for record in guest.records
            if record.hook in ("csum_and_copy_from_iter_full", "_copy_to_iter")
        ]
        for guest in load(run).guests
        if guest.clock is not None
    }
    (sent,), (read,) = moments["sender"], moments["receiver"]
    times = {
        "armed": (sent - 10**6, sent - ROOM_NS),
        "sent": (sent + ROOM_NS, read - ROOM_NS),
        "received": (read + ROOM_NS, read + 10**6),
    }
    gates = [
        {"gate": gate, "before_ns": before, "after_ns": after}
        for gate, (before, after) in times.items()
    ]
    for name in moments:
        edit(run, f"{name}/tsc.json", lambda value: value.update(gates=gates))
    return Run(run)


def said(found: Ledger) -> set[str]:
    return {one.what for one in found.disagreements}


def test_right_clocks_are_no_disagreement(gated: Run) -> None:
    found = gated.ledger

    assert found.proven
    assert set() == said(found)


@pytest.mark.parametrize("guest", ["sender", "receiver"])
@pytest.mark.parametrize("way", [-1, 1])
def test_an_offset_wrong_by_more_than_its_bound_is_said(gated: Run, guest: str, way: int) -> None:
    gated.skew(guest, way * (gated.bound(guest) + ROOM_NS + 10))
    found = gated.ledger

    assert "clock" in said(found)
    assert not found.proven
    told = next(one for one in found.disagreements if one.what == "clock")
    assert told.text.startswith(f"the clock of {guest} is off by ")
    assert f"{guest}/tsc.json" in told.evidence


@pytest.mark.parametrize("guest", ["sender", "receiver"])
@pytest.mark.parametrize("way", [-1, 1])
def test_an_offset_within_its_bound_is_not(gated: Run, guest: str, way: int) -> None:
    gated.skew(guest, way * (gated.bound(guest) - 10))

    assert "clock" not in said(gated.ledger)


@pytest.mark.parametrize("guest", ["sender", "receiver"])
@pytest.mark.parametrize("ns", SKEWS)
def test_no_effect_is_shown_before_its_cause_in_silence(gated: Run, guest: str, ns: int) -> None:
    """Either the ledger says so, or the timeline says that the order lies within its bound."""
    gated.skew(guest, ns)
    found = gated.ledger
    shown = gated.timeline(found)
    at = {moment.kind: moment.ns for moment in shown.moments if moment.kind.startswith("dma")}
    inverted = at["dma-write"] < at["dma-read"]

    assert not inverted or said(found) & {"order", "clock"} or shown.certain is False
    if abs(ns) >= 10**9:
        assert said(found) & {"order", "clock"}


def test_without_gates_the_wire_alone_holds_the_clocks_together(gated: Run) -> None:
    for name in ("sender", "receiver"):
        edit(gated.run, f"{name}/tsc.json", lambda value: value.pop("gates"))
    gated.skew("receiver", -(10**9))

    assert {"order"} == said(gated.ledger)


def test_a_gate_that_is_no_gate_is_named(gated: Run) -> None:
    edit(gated.run, "sender/tsc.json", lambda value: value.update(gates=[{"gate": 3}]))

    with pytest.raises(Exception, match=r"tsc\.json"):
        ledger.build(gated.run)
    assert json.loads(gated.run.file("sender/tsc.json").read_text())["gates"]
