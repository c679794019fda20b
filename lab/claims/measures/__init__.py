"""The closed vocabulary of measured values: what a claim can be held against.

A measure reads one run and returns a value and the records that carry it.  `of` names a
hook, a symbol or a text where a measure asks for one.
"""

from __future__ import annotations

from lab.claims.measures import (
    accesses,
    chains,
    followed,
    lines,
    modules,
    movements,
    places,
    records,
    skbs,
    sockets,
    traps,
    wire,
)
from lab.claims.measures.base import Measure

__all__ = ["MEASURES", "Measure"]

MEASURES: dict[str, Measure] = {
    **movements.MEASURES,
    **accesses.MEASURES,
    **skbs.MEASURES,
    **places.MEASURES,
    **wire.MEASURES,
    **records.MEASURES,
    **sockets.MEASURES,
    **chains.MEASURES,
    **followed.MEASURES,
    **traps.MEASURES,
    **modules.MEASURES,
    **lines.MEASURES,
}
