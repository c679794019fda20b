"""Guest time to host time, with its bound.

A guest's TSC is the host's plus a constant, so one straight line per guest is
enough.  Each sample says only that the guest read `tsc` somewhere between two
readings of the host's clock; the line goes through the middles of the first
and the last sample, and what the samples do not decide becomes the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from lab.rundir import TscSample


@dataclass(frozen=True, slots=True)
class Instant:
    """A time on the host's monotonic clock, right to within `bound_ns` either way."""

    ns: int
    bound_ns: int

    def surely_before(self, other: Instant) -> bool:
        """Tell whether this came first wherever in their bounds both lie."""
        return self.ns + self.bound_ns < other.ns - other.bound_ns


@dataclass(frozen=True)
class ClockMap:
    """The straight line from one guest's TSC to the host's clock."""

    base_tsc: int
    base_ns: Fraction
    ns_per_tick: Fraction
    half_width_ns: Fraction  # the widest sample's, halved, and the worst residual
    rate_error: Fraction  # ns of bound per tick of distance from the base

    def host(self, tsc: int) -> Instant:
        """Return the host time of a guest's TSC."""
        ticks = tsc - self.base_tsc
        (base, width), (rate, error) = self._whole
        # In whole numbers: the same result as with fractions, ten times as fast.
        ns = _round(base + rate * ticks, self._scale)
        return Instant(ns, (width + error * abs(ticks)) // self._scale + 1)

    @cached_property
    def _scale(self) -> int:
        return math.lcm(
            *(
                one.denominator
                for one in (self.base_ns, self.ns_per_tick, self.half_width_ns, self.rate_error)
            )
        )

    @cached_property
    def _whole(self) -> tuple[tuple[int, int], tuple[int, int]]:
        def scaled(value: Fraction) -> int:
            return value.numerator * (self._scale // value.denominator)

        return (
            (scaled(self.base_ns), scaled(self.half_width_ns)),
            (scaled(self.ns_per_tick), scaled(self.rate_error)),
        )


def fit(samples: Sequence[TscSample]) -> ClockMap | None:
    """Return the map the samples decide; None when they decide no rate.

    Two samples at different TSCs are the least that do.
    """
    ordered = sorted(samples, key=lambda sample: sample.tsc)
    if len(ordered) < 2 or ordered[-1].tsc == ordered[0].tsc:
        return None
    first, last = ordered[0], ordered[-1]
    ticks = last.tsc - first.tsc
    rate = (_middle(last) - _middle(first)) / ticks
    if rate <= 0:
        return None
    line = [
        abs(_middle(sample) - (_middle(first) + rate * (sample.tsc - first.tsc))) + _half(sample)
        for sample in ordered
    ]
    return ClockMap(
        base_tsc=first.tsc,
        base_ns=_middle(first),
        ns_per_tick=rate,
        half_width_ns=max(line),
        rate_error=(_half(first) + _half(last)) / ticks,
    )


def _round(number: int, scale: int) -> int:
    """Return `number / scale`, rounded as round() does: of two equally near, the even one."""
    whole, rest = divmod(number, scale)
    return whole + (2 * rest > scale or (2 * rest == scale and whole & 1))


def _middle(sample: TscSample) -> Fraction:
    return Fraction(sample.before_ns + sample.after_ns, 2)


def _half(sample: TscSample) -> Fraction:
    return Fraction(sample.after_ns - sample.before_ns, 2)
