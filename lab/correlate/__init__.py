"""Follows message bytes by address, from the sender's user buffer to the receiver's.

The sender's user buffer holds the message; every observed copy whose source
overlaps a place that holds message bytes makes a new place; a device read
pairs a descriptor with a place and a frame; a device write pairs a frame with
a filled buffer.  Nothing here knows which functions copy: take a hook away and
the chain breaks at a gap, it never gets shorter.
"""

from __future__ import annotations

from lab.correlate.inputs import Inputs, load
from lab.correlate.types import (
    Certainty,
    Disagreement,
    Flow,
    Gap,
    Kind,
    Movement,
    Mover,
    Place,
    PlaceKind,
    Sighting,
    Unexplained,
)
from lab.correlate.walk import follow, walk_to_wire

__all__ = [
    "Certainty",
    "Disagreement",
    "Flow",
    "Gap",
    "Inputs",
    "Kind",
    "Movement",
    "Mover",
    "Place",
    "PlaceKind",
    "Sighting",
    "Unexplained",
    "follow",
    "load",
    "walk_to_wire",
]
