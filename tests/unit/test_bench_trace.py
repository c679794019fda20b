"""The figures of `lab.bench-trace`, from bursts and records that are known."""

from __future__ import annotations

import pytest

from lab import bench_trace, record
from lab.bench_trace import Burst
from lab.errors import HostError


def burst(kind: str, seconds: float, events: int = 0, lost: int = 0) -> Burst:
    return Burst(kind=kind, seconds=seconds, events=events, records_lost=lost, messages_lost=lost)


def test_an_event_costs_what_it_adds_to_the_bare_burst() -> None:
    bursts = [burst("none", 1.0), burst("none", 9.0), burst("none", 1.0)]
    bursts += [burst("bpf", 1.5, 100_000), burst("bpf", 1.5, 100_000, lost=3)]

    found = bench_trace.summary(bursts, "bpf", 10_000)

    assert 5.0 == found["cost_per_event_us"]
    assert 6667 == found["messages_per_s"]
    assert 1.5 == found["slowdown"]
    assert (3, 3) == (found["records_lost"], found["messages_lost"])
    assert 0.0 == bench_trace.summary(bursts, "none", 10_000)["cost_per_event_us"]


def test_reading_is_measured_on_as_many_records_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_trace, "READS", (3, 10, 25))
    section = record.encode_section([{"hook": "__netif_rx", "cpu": 0}] * 10)

    found = bench_trace.read_speed(section)

    assert ["3", "10", "25"] == list(found)
    assert all(one["read_per_s"] > 0 for one in found.values())


def test_a_report_is_as_fast_as_its_user_waits() -> None:
    reading = {"90000": {"read_per_s": 1e6}}

    for by_the_clock, held in ((50_000.0, True), (49_999.0, False)):
        reported = {"90000": {"per_s": by_the_clock, "per_cpu_s": 60_000.0}}
        other = {"90000": {"per_s": 100_000.0 - by_the_clock, "per_cpu_s": 1.0}}
        found = bench_trace.targets(reading, reported, other)
        assert held is found["report 50000 records/s of a burst, by the clock"]
        census = bench_trace.targets(reading, other, reported)
        assert held is census["report 50000 records/s of a burst with its census, by the clock"]


def test_without_a_record_there_is_nothing_to_measure() -> None:
    with pytest.raises(HostError, match="no record"):
        bench_trace.read_speed(record.encode_section([], capacity=10, hooks=["__netif_rx"]))
