"""What single records of the probes say, and the symbols of the guests."""

from __future__ import annotations

from lab.claims.evidence import Evidence
from lab.claims.measures.base import Measure, made
from lab.claims.measures.movements import function_of
from lab.claims.types import Measured
from lab.errors import EvidenceError
from lab.record import Context

ITER_TYPE_SHIFT = 1  # records hold the guest's enum iter_type + 1


def _iter_type(seen: Evidence, hook: str) -> Measured:
    """Return the iov_iter's type in the record of the message's copy at a hook."""
    for one in seen.copies:
        if function_of(one) == hook:
            found = seen.record_of(one)
            return made(found.iter_type - ITER_TYPE_SHIFT, [found.id])
    raise EvidenceError(f"{seen.name}: the message was not copied at {hook}")


def _context(seen: Evidence, hook: str) -> Measured:
    """Say in what context a hook saw the message: process or softirq."""
    rows = [str(one["evidence"]) for one in seen.sightings() if _named(one["at"], hook)]
    rows += [one["evidence"][0] for one in seen.copies if _named(one["function"], hook)]
    if not rows:
        raise EvidenceError(f"{seen.name}: {hook} did not see the message")
    found = seen.record(rows[0])
    return made("softirq" if Context.SOFTIRQ in found.context else "process", [found.id])


def _named(at: str, hook: str) -> bool:
    return hook in (at, at.rpartition(":")[2])


def _lo_lengths(seen: Evidence, _: str) -> Measured:
    """Return the lengths of the skbs sent over loopback, the message's and all others."""
    rows: dict[int, str] = {}
    for one in seen.records():
        if one.hook == "__dev_queue_xmit" and one.dev == "lo":
            rows.setdefault(one.skb_len, one.id)
    return made(tuple(sorted(rows)), [rows[size] for size in sorted(rows)])


def _lo_protocol(seen: Evidence, length: str) -> Measured:
    """Return the protocols of the skbs of a length that were sent over loopback."""
    rows: dict[str, str] = {}
    for one in seen.records():
        if one.hook == "__dev_queue_xmit" and one.dev == "lo" and one.skb_len == int(length):
            # Ethernet 14, and the protocol is byte 9 of the IPv4 header.
            rows.setdefault({6: "tcp", 17: "udp"}.get(one.bytes[23], "other"), one.id)
    value = tuple(sorted(rows))
    return made(value[0] if len(value) == 1 else value, rows.values())


def _alike(seen: Evidence, symbol: str) -> Measured:
    """Say whether a symbol has one address in all guests, which run the same kernel."""
    found = {name: seen.address_of(name, symbol) for name in seen.guests}
    if len(found) < 2:
        raise EvidenceError(f"{seen.name} has one guest: nothing to compare")
    return made(
        len(set(found.values())) == 1,
        [f"{name}/symbols#{symbol}=0x{address:x}" for name, address in found.items()],
    )


MEASURES: dict[str, Measure] = {
    "iter-type": Measure("iter_type of the message's copy at a hook", _iter_type, "hook"),
    "context": Measure("process or softirq, at a hook", _context, "hook"),
    "lo-lengths": Measure("skb->len of all that was sent over loopback", _lo_lengths),
    "lo-protocol": Measure("the protocol of what had a length on loopback", _lo_protocol, "length"),
    "symbol-alike": Measure("whether a symbol has one address in both guests", _alike, "symbol"),
}
