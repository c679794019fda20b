"""Where in the machines' RAM the message lay."""

from __future__ import annotations

from lab.claims.evidence import Evidence, Place
from lab.claims.measures.base import Measure, made, parse_hex
from lab.claims.types import Measured
from lab.errors import EvidenceError

LOW_28 = (1 << 28) - 1


def _in_ram(seen: Evidence) -> list[Place]:
    return [place for place in seen.places if place["place"] != "wire"]


def _places(seen: Evidence, _: str) -> Measured:
    """Return how many physical addresses, on whichever machine, the message had."""
    found = {(one["guest"], one["physical"]): str(one["evidence"][0]) for one in _in_ram(seen)}
    return made(len(found), found.values())


def _virtual(seen: Evidence, _: str) -> Measured:
    found = {(one["guest"], one["virtual"]): str(one["evidence"][0]) for one in _in_ram(seen)}
    return made(len(found), found.values())


def _machines(seen: Evidence, _: str) -> Measured:
    found = {one["guest"]: str(one["evidence"][0]) for one in _in_ram(seen)}
    return made(len(found), found.values())


def _region(seen: Evidence, which: str) -> Measured:
    ends = [one for one in seen.places if one["place"] == "user"]
    kernel = [one for one in _in_ram(seen) if one["place"] != "user"]
    rows = {"sender": ends[:1], "receiver": ends[-1:], "kernel": kernel}.get(which)
    if not rows:
        raise EvidenceError(f"{seen.name} has no place of the {which}: sender, receiver, kernel")
    regions = tuple(dict.fromkeys(str(one["region"]) for one in rows))
    value = regions[0] if len(regions) == 1 else regions
    return made(value, [one["evidence"][0] for one in rows])


def _direct(seen: Evidence) -> list[tuple[str, int, int]]:
    """Return evidence, kernel and physical address of the message's places in the direct map."""
    found = [
        (one["evidence"][0], parse_hex(one["virtual"]), parse_hex(one["physical"]))
        for one in seen.places
        if one["region"] == "direct map"
    ]
    if not found or not all(virtual and physical for _, virtual, physical in found):
        raise EvidenceError(f"{seen.name} does not know both addresses of a place")
    return found


def _low_bits(seen: Evidence, _: str) -> Measured:
    """Say whether the low 28 bits of kernel addresses are physical addresses.

    Asked of every address of the direct map that a probe wrote down with its physical one.
    """
    bases = {virtual - physical for _, virtual, physical in _direct(seen)}
    rows = [
        (one.id, virtual, physical)
        for one in seen.records()
        for virtual, physical in ((one.src, one.src_phys), (one.dst, one.dst_phys))
        if virtual and physical and virtual - physical in bases
    ]
    wrong = [row for row in rows if row[1] & LOW_28 != row[2]]
    return made(not wrong, [one for one, *_ in wrong or rows])


def _constants(seen: Evidence, _: str) -> Measured:
    """Return how many differences of virtual and physical address one kernel has, at most."""
    found: dict[str, set[int]] = {}
    for one, virtual, physical in _direct(seen):
        found.setdefault(one.partition("/")[0], set()).add(virtual - physical)
    return made(max(map(len, found.values())), [one for one, *_ in _direct(seen)])


MEASURES: dict[str, Measure] = {
    "physical-places": Measure("how many physical addresses the message had", _places),
    "virtual-places": Measure("how many virtual addresses it had", _virtual),
    "machines": Measure("how many machines' RAM held the message", _machines),
    "region": Measure("the region of a side's place", _region, "side"),
    "physical-is-low-28-bits": Measure(
        "whether each physical address is the low 28 bits of its kernel address", _low_bits
    ),
    "direct-map-constants": Measure(
        "how many differences of kernel and physical address a guest has", _constants
    ),
}
