"""How long a report takes: in proportion to the records, however many there are."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import bench_report, experiment, ledger
from lab.correlate.identity import Identity
from lab.correlate.types import Sighting
from lab.errors import HostError
from lab.journal import Journal
from lab.rundir import RunDir
from tests.unit import counted

SMALL, LARGE = 60, 480  # messages
# Of a call count there is no noise; what a run costs whatever its size makes it less than linear.
CALLS_WITHIN = 1.05
# Of CPU time on a busy host there is: what is quadratic would take eight times as long.
TIME_WITHIN = 3.0
TIMED_SMALL, TIMED_LARGE = 300, 2400
# Of a message more, where page and timeline already show as many as they ever do: calls
# of Python's functions and of C's.  On Python 3.11 there are 881; there were 1375.
FEW, MORE = 510, 560  # messages
CALLS_MOST = 975


def run_of(path: Path, count: int) -> RunDir:
    folder = path / str(count)
    folder.mkdir()
    return bench_report.cook(folder, count)


def calls(run: RunDir) -> int:
    """Return how many calls of Python functions a report takes."""
    return counted.calls(lambda: experiment.analyse(run, journal=Journal(stream=io.StringIO())))


def calls_of_one_more(path: Path) -> float:
    """Return how many calls a message more takes."""
    few, more = (calls(run_of(path, count)) for count in (FEW, MORE))
    return (more - few) / (MORE - FEW)


def seconds(run: RunDir) -> float:
    start = time.process_time()
    experiment.analyse(run, journal=Journal(stream=io.StringIO()))
    return time.process_time() - start


def growth(path: Path, measure: Callable[[RunDir], float], small: int, large: int) -> float:
    """Return how many times as much a message takes among `large` as among `small`."""
    first = measure(run_of(path, small))
    return measure(run_of(path, large)) / first * small / large


@pytest.fixture(autouse=True)
def warm(tmp_path: Path) -> None:
    seconds(run_of(tmp_path, 1))  # what is imported late is no part of a report


def test_a_cooked_burst_is_complete(tmp_path: Path) -> None:
    run = run_of(tmp_path, 3)

    took = bench_report.report(run)
    assert took.wall_s > 0
    assert took.cpu_s > 0
    text = run.read_bytes("report.txt").decode()
    assert "COMPLETE: 3 messages of 64 bytes each copied twice by guest CPUs" in text
    assert "ip_generic_getfrag" in text


def test_a_burst_with_its_census_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench_report.cook(tmp_path, 40, census=True)

    assert bench_report.report(run).wall_s > 0
    found = ledger.build(run)
    places = [place for one in found.messages for place in one.places]
    assert 3 * 40 == sum(place.content_verified for place in places) == len(places)
    assert not found.unexplained
    assert "census" in run.read_bytes("report.txt").decode().partition("Witnesses: ")[2]
    # Of more messages than slots the first are no longer in the programs' buffers.
    monkeypatch.setattr(bench_report, "SLOTS", 64)
    (tmp_path / "more").mkdir()
    more = bench_report.cook(tmp_path / "more", 100, census=True)
    assert 100 + 2 * 64 == sum(
        place.content_verified for one in ledger.build(more).messages for place in one.places
    )


def test_an_incomplete_burst_is_no_measure(tmp_path: Path) -> None:
    run = run_of(tmp_path, 3)
    run.file("sender/trace.bin").write_bytes(b"")

    with pytest.raises(HostError, match="incomplete"):
        bench_report.report(run)


def test_more_messages_than_slots_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_report, "SLOTS", 64)
    monkeypatch.setattr(bench_report, "SECTION_MOST", 100)

    assert bench_report.report(run_of(tmp_path, 200)).cpu_s > 0


def test_a_message_takes_as_many_calls_among_many(tmp_path: Path) -> None:
    assert growth(tmp_path, calls, SMALL, LARGE) < CALLS_WITHIN


def test_a_message_takes_as_long_among_many(tmp_path: Path) -> None:
    assert growth(tmp_path, seconds, TIMED_SMALL, TIMED_LARGE) < TIME_WITHIN


def test_a_message_takes_few_calls(tmp_path: Path) -> None:
    assert calls_of_one_more(tmp_path) < CALLS_MOST


def test_calls_too_many_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agrees = Identity.agrees

    def slow(self: Identity, found: bytes, message: int, offset: int) -> bool:
        return all(agrees(self, found, message, offset) for _ in range(20))

    monkeypatch.setattr(Identity, "agrees", slow)

    assert calls_of_one_more(tmp_path) > CALLS_MOST


def test_what_looks_at_all_messages_for_each_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agrees = Identity.agrees

    def slow(self: Identity, found: bytes, message: int, offset: int) -> bool:
        return all(agrees(self, found, message, offset) for _ in range(self.count))

    monkeypatch.setattr(Identity, "agrees", slow)

    assert growth(tmp_path, calls, SMALL, LARGE) > CALLS_WITHIN


def test_handovers_that_no_hook_saw_are_not_looked_for_among_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = bench_report.HOOKS["send_trace"]
    seen = tuple(hook for hook in hooks if hook != "loopback_xmit")
    monkeypatch.setitem(bench_report.HOOKS, "send_trace", seen)
    looked = 0

    def message(self: Sighting) -> int:
        nonlocal looked
        looked += 1
        return self[1]

    def looks(run: RunDir) -> int:
        before = looked
        seconds(run)
        return looked - before

    monkeypatch.setattr(Sighting, "message", property(message))

    assert growth(tmp_path, looks, SMALL, LARGE) < CALLS_WITHIN


def test_growth_is_of_the_time_a_record_takes() -> None:
    rates = {count: {"per_cpu_s": rate} for count, rate in (("1", 20.0), ("2", 30.0), ("3", 10.0))}

    assert 2.0 == bench_report.growth(rates)
