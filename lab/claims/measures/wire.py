"""The frame on the wire, and the descriptor a device wrote through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lab import capture
from lab.claims.evidence import Evidence
from lab.claims.measures.base import REACH, Measure, made, parse_hex
from lab.claims.types import Measured
from lab.errors import EvidenceError


def _frame_length(seen: Evidence, _: str) -> Measured:
    frame, evidence = seen.frame()
    return made(len(frame.data), [evidence])


def _frame_part(seen: Evidence, part: str) -> Measured:
    frame, evidence = seen.frame()
    rows = {name: size for name, size, _ in capture.describe(frame)}
    rows["payload"] = len(frame.payload)
    if part not in rows:
        raise EvidenceError(f"the frame has {', '.join(rows)}, no {part}")
    return made(rows[part], [evidence])


def _frame_field(seen: Evidence, name: str) -> Measured:
    frame, evidence = seen.frame()
    headers = frame.headers
    if headers is None or getattr(headers, name, None) is None:
        raise EvidenceError(f"the frame's headers have no {name}")
    return made(getattr(headers, name), [evidence])


def _addresses_on_wire(seen: Evidence, _: str) -> Measured:
    """Return how many of the addresses the ledger knows stand in the message's frame."""
    frame, evidence = seen.frame()
    known = {parse_hex(one[key]) for one in seen.places for key in ("virtual", "physical")}
    known |= {parse_hex(one[key]) for one in seen.sightings() for key in ("skb", "head", "data")}
    found = [
        one
        for one in known
        if one > REACH and any(one.to_bytes(8, order) in frame.data for order in ORDERS)
    ]
    return made(len(found), [evidence])


ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


def _written_descriptor(seen: Evidence) -> tuple[str, int, str]:
    """Return guest, descriptor and evidence id of the device's first write."""
    seen.witness("rings")
    for one in seen.movements("dma-write"):
        for evidence in one["evidence"]:
            if "/rings.json#" in evidence:
                guest, _, at = evidence.partition("/rings.json#")
                return guest, int(at.rpartition("/")[2]), evidence
    raise EvidenceError(f"{seen.name}: no descriptor stands behind the device's write")


def _gates(seen: Evidence, guest: str) -> Mapping[str, tuple[tuple[int, int, int], ...]]:
    queue = seen.guest(guest).rings().kind("rx")[0]
    if {"armed"} >= {gate.name for gate in queue.gates}:
        raise EvidenceError(f"{seen.name} read the rings of {guest} only once")
    return {
        gate.name: tuple((one.address, one.length, one.flags) for one in gate.descriptors)
        for gate in queue.gates
    }


def _length_told(seen: Evidence, guest: str, number: int) -> int:
    """Return the length e1000e wrote into a descriptor, 0 where it wrote none.

    Intel 82574, 7.1.6: it lies where a descriptor that is the device's to fill has zeros.
    """
    for gate in seen.guest(guest).rings().kind("rx")[0].gates:
        for done, length in gate.used:
            if done == number:
                return length
    return 0


def _posted_before(seen: Evidence, _: str) -> Measured:
    """Say whether the buffer lay in the ring, for the device to write, before the send."""
    guest, number, evidence = _written_descriptor(seen)
    address, length, flags = _gates(seen, guest)["armed"][number]
    posted = next(
        gate.posted()
        for gate in seen.guest(guest).rings().kind("rx")[0].gates
        if gate.name == "armed"
    )
    if posted is None:
        raise EvidenceError(f"{seen.name} did not record which descriptors were the device's")
    return made(bool(number in posted and address and length and flags & 2), [evidence])


def _descriptor_changed(seen: Evidence, _: str) -> Measured:
    """Say whether the device marked the descriptor itself when it had written."""
    guest, number, evidence = _written_descriptor(seen)
    gates = _gates(seen, guest)
    if seen.ledger["link"]["device"] == "e1000e":
        return made(_length_told(seen, guest, number) > 0, [evidence])
    later = "sent" if "sent" in gates else "received"
    before, after = gates["armed"][number], gates[later][number]
    if before[0] != after[0]:
        raise EvidenceError(f"{seen.name}: by then the driver had posted another buffer there")
    return made(
        before != after,
        [evidence, evidence.replace("#armed/", f"#{later}/")],
    )


MEASURES: dict[str, Measure] = {
    "frame-length": Measure("bytes of the frame on the wire", _frame_length),
    "frame-part": Measure("bytes of a part of the frame", _frame_part, "part"),
    "frame-field": Measure("a field of the frame's headers", _frame_field, "field"),
    "addresses-on-wire": Measure("how many known addresses the frame holds", _addresses_on_wire),
    "rx-posted-before": Measure("whether the RX buffer was posted before the send", _posted_before),
    "rx-descriptor-changed": Measure(
        "whether the device changed the descriptor it filled", _descriptor_changed
    ),
}
