"""Guest time to host time: right to within the bound, and the bound is honest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lab import clock
from lab.clock import Instant
from lab.rundir import TscSample


def _sample(host_ns: int, tsc: int, *, before: int = 10_000, after: int = 10_000) -> TscSample:
    return TscSample(before_ns=host_ns - before, tsc=tsc, after_ns=host_ns + after)


def test_two_samples_make_a_line() -> None:
    line = clock.fit([_sample(1_000_000_000, 500), _sample(2_000_000_000, 2_000_000_500)])

    assert line is not None
    assert 1_500_000_000 == line.host(1_000_000_500).ns
    assert 20_000 <= line.host(1_000_000_500).bound_ns < 30_000


def test_the_bound_grows_beyond_the_samples() -> None:
    line = clock.fit([_sample(1_000_000_000, 500), _sample(1_001_000_000, 2_000_500)])

    assert line is not None
    assert line.host(2_000_000_500).bound_ns > 100 * line.host(500).bound_ns


def test_one_sample_or_one_tsc_decides_nothing() -> None:
    assert clock.fit([]) is None
    assert clock.fit([_sample(1, 1)]) is None
    assert clock.fit([_sample(100_000, 1), _sample(200_000, 1)]) is None


def test_a_clock_that_runs_backwards_is_none() -> None:
    assert clock.fit([_sample(200_000, 1), _sample(100_000, 9)]) is None


def test_before_means_before_in_every_case() -> None:
    assert Instant(100, 10).surely_before(Instant(121, 10))
    assert not Instant(100, 10).surely_before(Instant(120, 10))


@given(
    rate=st.fractions(min_value="1/10", max_value=5),
    pings=st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(0, 50_000), st.integers(0, 50_000)),
        min_size=2,
        max_size=6,
        unique_by=lambda ping: ping[0],
    ),
    asked=st.integers(0, 2 * 10**9),
)
def test_the_true_time_lies_within_the_bound(
    rate: object, pings: list[tuple[int, int, int]], asked: int
) -> None:
    from fractions import Fraction

    assert isinstance(rate, Fraction)
    samples = []
    for tsc, before, after in pings:
        true = 10**12 + int(tsc * rate)
        samples.append(_sample(true, tsc, before=before + 1, after=after + 1))
    line = clock.fit(samples)
    if line is None:
        return
    found = line.host(asked)

    assert abs(found.ns - (10**12 + asked * rate)) <= found.bound_ns + 1
