"""The skbs that carried the message."""

from __future__ import annotations

from lab.claims.evidence import Evidence, Place, Sighting
from lab.claims.measures.base import REACH, Function, Measure, made, parse_hex
from lab.claims.types import Measured
from lab.errors import EvidenceError


def _skb(name: str) -> Function:
    def measure(seen: Evidence, _: str) -> Measured:
        value = seen.message["skb"][name]
        if value is None:
            raise EvidenceError(f"{seen.name} does not know {name}: a side was not seen")
        rows = seen.sightings()
        return made(bool(value), [rows[0]["evidence"], rows[-1]["evidence"]])

    return measure


def _data_values(seen: Evidence, _: str) -> Measured:
    rows = {str(one["data"]): str(one["evidence"]) for one in seen.sightings()}
    return made(len(rows), rows.values())


def _skb_len(seen: Evidence, at: str) -> Measured:
    row = seen.sighting(at)
    return made(int(row["len"]), [row["evidence"]])


def _payload_offset(seen: Evidence, at: str) -> Measured:
    """Return where the payload begins, counted from skb->data at a hook."""
    row = seen.sighting(at)
    place = _payload_of(seen, row)
    return made(
        parse_hex(place["virtual"]) - parse_hex(row["data"]),
        [row["evidence"], *place["evidence"][:1]],
    )


def _payload_of(seen: Evidence, row: Sighting) -> Place:
    head = parse_hex(row["head"])
    for place in seen.places:
        linear = place["place"] in ("skb-linear", "rx-buffer") and place["offset"] == 0
        here = place["guest"] == row["guest"] and linear
        if here and head <= parse_hex(place["virtual"]) < head + REACH:
            return place
    raise EvidenceError(f"{seen.name}: the payload is not in the linear area at {row['at']}")


MEASURES: dict[str, Measure] = {
    "same-skb": Measure("whether the receiver had the sender's skb", _skb("same_object")),
    "same-head": Measure("whether the receiver's skb had the sender's head", _skb("same_head")),
    "skb-data-values": Measure("how many values skb->data had on the way", _data_values),
    "skb-len": Measure("skb->len at a hook", _skb_len, "hook"),
    "payload-offset": Measure(
        "bytes from skb->data to the payload at a hook", _payload_offset, "hook"
    ),
}
