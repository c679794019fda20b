"""One timeline of both guests and the host: an offset that is wrong is said, or changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import ledger, report
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


# --- Long pauses ----------------------------------------------------------------------------

SLOW_NS = 10**5  # of the host for each tick of a guest, so that 1,000 ticks are a long pause


def pauses(taken: Run, gates: Callable[[int, int], list[dict[str, object]]] | None) -> list[str]:
    """Return what is said of the pauses of a run whose guest ran slowly."""

    def slower(value: dict[str, list[dict[str, int]]]) -> None:
        first = value["samples"][0]["before_ns"]
        for sample in value["samples"]:
            for name in ("before_ns", "after_ns"):
                sample[name] = first + (sample[name] - first) * SLOW_NS
        value.pop("gates")

    for name in ("sender", "receiver"):
        edit(taken.run, f"{name}/tsc.json", slower)
    found = taken.ledger
    shown = taken.timeline(found)
    number = next(n for n, one in enumerate(shown.moments) if one.pause_ns)
    start, end = shown.moments[number - 1].ns, shown.moments[number].ns
    if gates is not None:
        held = gates(start, end)

        def hold(value: dict[str, object]) -> None:
            value["gates"] = held

        for name in ("sender", "receiver"):
            edit(taken.run, f"{name}/tsc.json", hold)
        shown = taken.timeline(found)
    assert all(bool(one.why) == bool(one.pause_ns) for one in shown.moments)
    told = shown.moments[number].why
    page = report.page(found, taken.run)
    assert told.replace("'", "&#39;") in page
    return [told]


def test_a_pause_in_which_a_gate_lies_is_the_gates(gated: Run) -> None:
    def within(start: int, end: int) -> list[dict[str, object]]:
        return [{"gate": "sent", "before_ns": start + 1, "after_ns": end - 1}]

    assert pauses(gated, within) == [
        "at gate 'sent' the lab holds the programs while it looks into RAM"
    ]


def test_a_pause_without_a_gate_is_no_gates(gated: Run) -> None:
    def beside(start: int, end: int) -> list[dict[str, object]]:
        return [
            {"gate": "armed", "before_ns": start - 9, "after_ns": start},
            {"gate": "sent", "before_ns": end, "after_ns": end + 9},
        ]

    assert pauses(gated, beside) == ["no gate lies here: the guest ran slowly, or was not run"]


def test_of_a_run_without_gates_a_pause_is_not_explained(gated: Run) -> None:
    (told,) = pauses(gated, None)

    assert told == "whether the lab held the programs at a gate was not recorded"
