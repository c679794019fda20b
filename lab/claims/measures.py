"""The closed vocabulary of measured values: what a claim can be held against.

A measure reads one run and returns a value and the records that carry it.  `of` names a
hook, a symbol or a text where a measure asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lab import capture
from lab.claims.evidence import Evidence, Movement, Place, Sighting
from lab.claims.types import Measured, Value
from lab.errors import EvidenceError
from lab.record import Context

Function = Callable[[Evidence, str], Measured]
MOST_EVIDENCE = 8
REACH = 1 << 16  # bytes behind skb->head at which its data may lie
LOW_28 = (1 << 28) - 1
ITER_TYPE_SHIFT = 1  # records hold the guest's enum iter_type + 1


@dataclass(frozen=True, slots=True)
class Measure:
    """One word of the vocabulary; `of` says what must be named with it."""

    what: str
    function: Function
    of: str = ""


def _made(value: Value, evidence: Iterable[str]) -> Measured:
    ids = tuple(dict.fromkeys(evidence))
    if not ids:
        raise EvidenceError(f"nothing carries the value {value!r}")
    return Measured(value=value, evidence=ids[:MOST_EVIDENCE])


def _hex(text: str) -> int:
    return int(text, 16)


# --- Movements ------------------------------------------------------------------------------


def _total(name: str, *kinds: str) -> Function:
    def measure(seen: Evidence, _: str) -> Measured:
        moved = [one for kind in kinds for one in seen.movements(kind)]
        # None of a kind: what shows it is the chain of all the others.
        return _made(
            int(seen.message["totals"][name]), _first_of_each(moved or seen.message["movements"])
        )

    return measure


def _first_of_each(movements: Iterable[Movement]) -> list[str]:
    return [one["evidence"][0] for one in movements]


def _function(movement: Movement) -> str:
    return str(movement["function"]).rpartition(":")[2]


def _copied_by(seen: Evidence, _: str) -> Measured:
    copies = seen.copies
    return _made(tuple(dict.fromkeys(map(_function, copies))), _first_of_each(copies))


def _copy_out(seen: Evidence, _: str) -> Measured:
    first = seen.copies[0]
    return _made(_function(first), first["evidence"])


def _copy_in(seen: Evidence, _: str) -> Measured:
    last = seen.copies[-1]
    return _made(_function(last), last["evidence"])


def _copy_out_caller(seen: Evidence, _: str) -> Measured:
    first = seen.copies[0]
    return _made(str(first["caller"]).partition("+")[0], first["evidence"])


def _copy_in_caller(seen: Evidence, _: str) -> Measured:
    last = seen.copies[-1]
    return _made(str(last["caller"]).partition("+")[0], last["evidence"])


def _copy_out_size(seen: Evidence, _: str) -> Measured:
    first = seen.record_of(seen.copies[0])
    return _made(first.ret, [first.id])


def _copy_in_size(seen: Evidence, _: str) -> Measured:
    last = seen.record_of(seen.copies[-1])
    return _made(last.ret, [last.id])


def _copy_in_reads(seen: Evidence, _: str) -> Measured:
    last = seen.copies[-1]
    place = seen.places[last["source"]]
    return _made(str(place["place"]), [*last["evidence"][:1], *place["evidence"][:1]])


def _one_kernel_place(seen: Evidence, _: str) -> Measured:
    first, last = seen.copies[0], seen.copies[-1]
    return _made(
        first["target"] == last["source"],
        [*first["evidence"][:1], *last["evidence"][:1]],
    )


def _arguments(seen: Evidence, _: str) -> Measured:
    """Say whether what the first copy's registers held is what the message's places are."""
    first = seen.copies[0]
    found = seen.record_of(first)
    source, target = (seen.places[first[end]] for end in ("source", "target"))
    at = first["offset"]
    good = (
        found.dst == _hex(target["virtual"]) + at - target["offset"]
        and found.user == _hex(source["virtual"]) + at - source["offset"]
        and found.size == first["size"]
        and bool(target["content_verified"])
    )
    return _made(good, [found.id, *target["evidence"]])


# --- skbs -----------------------------------------------------------------------------------


def _skb(name: str) -> Function:
    def measure(seen: Evidence, _: str) -> Measured:
        value = seen.message["skb"][name]
        if value is None:
            raise EvidenceError(f"{seen.name} does not know {name}: a side was not seen")
        rows = seen.sightings()
        return _made(bool(value), [rows[0]["evidence"], rows[-1]["evidence"]])

    return measure


def _data_values(seen: Evidence, _: str) -> Measured:
    rows = {str(one["data"]): str(one["evidence"]) for one in seen.sightings()}
    return _made(len(rows), rows.values())


def _skb_len(seen: Evidence, at: str) -> Measured:
    row = seen.sighting(at)
    return _made(int(row["len"]), [row["evidence"]])


def _payload_offset(seen: Evidence, at: str) -> Measured:
    """Return where the payload begins, counted from skb->data at a hook."""
    row = seen.sighting(at)
    place = _payload_of(seen, row)
    return _made(
        _hex(place["virtual"]) - _hex(row["data"]), [row["evidence"], *place["evidence"][:1]]
    )


def _payload_of(seen: Evidence, row: Sighting) -> Place:
    head = _hex(row["head"])
    for place in seen.places:
        linear = place["place"] in ("skb-linear", "rx-buffer") and place["offset"] == 0
        here = place["guest"] == row["guest"] and linear
        if here and head <= _hex(place["virtual"]) < head + REACH:
            return place
    raise EvidenceError(f"{seen.name}: the payload is not in the linear area at {row['at']}")


# --- Places ---------------------------------------------------------------------------------


def _in_ram(seen: Evidence) -> list[Place]:
    return [place for place in seen.places if place["place"] != "wire"]


def _places(seen: Evidence, _: str) -> Measured:
    """Return how many physical addresses, on whichever machine, the message had."""
    found = {(one["guest"], one["physical"]): str(one["evidence"][0]) for one in _in_ram(seen)}
    return _made(len(found), found.values())


def _machines(seen: Evidence, _: str) -> Measured:
    found = {one["guest"]: str(one["evidence"][0]) for one in _in_ram(seen)}
    return _made(len(found), found.values())


def _region(seen: Evidence, which: str) -> Measured:
    ends = [one for one in seen.places if one["place"] == "user"]
    kernel = [one for one in _in_ram(seen) if one["place"] != "user"]
    rows = {"sender": ends[:1], "receiver": ends[-1:], "kernel": kernel}.get(which)
    if not rows:
        raise EvidenceError(f"{seen.name} has no place of the {which}: sender, receiver, kernel")
    regions = tuple(dict.fromkeys(str(one["region"]) for one in rows))
    value = regions[0] if len(regions) == 1 else regions
    return _made(value, [one["evidence"][0] for one in rows])


def _direct(seen: Evidence) -> list[tuple[str, int, int]]:
    """Return evidence, kernel and physical address of the message's places in the direct map."""
    found = [
        (one["evidence"][0], _hex(one["virtual"]), _hex(one["physical"]))
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
    return _made(not wrong, [one for one, *_ in wrong or rows])


def _constants(seen: Evidence, _: str) -> Measured:
    """Return how many differences of virtual and physical address one kernel has, at most."""
    found: dict[str, set[int]] = {}
    for one, virtual, physical in _direct(seen):
        found.setdefault(one.partition("/")[0], set()).add(virtual - physical)
    return _made(max(map(len, found.values())), [one for one, *_ in _direct(seen)])


# --- The wire and the device ----------------------------------------------------------------


def _frame_length(seen: Evidence, _: str) -> Measured:
    frame, evidence = seen.frame()
    return _made(len(frame.data), [evidence])


def _frame_part(seen: Evidence, part: str) -> Measured:
    frame, evidence = seen.frame()
    rows = {name: size for name, size, _ in capture.describe(frame)}
    rows["payload"] = len(frame.payload)
    if part not in rows:
        raise EvidenceError(f"the frame has {', '.join(rows)}, no {part}")
    return _made(rows[part], [evidence])


def _frame_field(seen: Evidence, name: str) -> Measured:
    frame, evidence = seen.frame()
    headers = frame.headers
    if headers is None or getattr(headers, name, None) is None:
        raise EvidenceError(f"the frame's headers have no {name}")
    return _made(getattr(headers, name), [evidence])


def _addresses_on_wire(seen: Evidence, _: str) -> Measured:
    """Return how many of the addresses the ledger knows stand in the message's frame."""
    frame, evidence = seen.frame()
    known = {_hex(one[key]) for one in seen.places for key in ("virtual", "physical")}
    known |= {_hex(one[key]) for one in seen.sightings() for key in ("skb", "head", "data")}
    found = [
        one
        for one in known
        if one > REACH and any(one.to_bytes(8, order) in frame.data for order in ORDERS)
    ]
    return _made(len(found), [evidence])


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
    return _made(bool(address and length and flags & 2), [evidence])


def _descriptor_changed(seen: Evidence, _: str) -> Measured:
    """Say whether the device marked the descriptor itself when it had written."""
    guest, number, evidence = _written_descriptor(seen)
    gates = _gates(seen, guest)
    if seen.ledger["link"]["device"] == "e1000e":
        return _made(_length_told(seen, guest, number) > 0, [evidence])
    later = "sent" if "sent" in gates else "received"
    before, after = gates["armed"][number], gates[later][number]
    if before[0] != after[0]:
        raise EvidenceError(f"{seen.name}: by then the driver had posted another buffer there")
    return _made(
        before != after,
        [evidence, evidence.replace("#armed/", f"#{later}/")],
    )


# --- Records --------------------------------------------------------------------------------


def _iter_type(seen: Evidence, hook: str) -> Measured:
    """Return the iov_iter's type in the record of the message's copy at a hook."""
    for one in seen.copies:
        if _function(one) == hook:
            found = seen.record_of(one)
            return _made(found.iter_type - ITER_TYPE_SHIFT, [found.id])
    raise EvidenceError(f"{seen.name}: the message was not copied at {hook}")


def _context(seen: Evidence, hook: str) -> Measured:
    """Say in what context a hook saw the message: process or softirq."""
    rows = [str(one["evidence"]) for one in seen.sightings() if _named(one["at"], hook)]
    rows += [one["evidence"][0] for one in seen.copies if _named(one["function"], hook)]
    if not rows:
        raise EvidenceError(f"{seen.name}: {hook} did not see the message")
    found = seen.record(rows[0])
    return _made("softirq" if Context.SOFTIRQ in found.context else "process", [found.id])


def _named(at: str, hook: str) -> bool:
    return hook in (at, at.rpartition(":")[2])


def _lo_lengths(seen: Evidence, _: str) -> Measured:
    """Return the lengths of the skbs sent over loopback, the message's and all others."""
    rows: dict[int, str] = {}
    for one in seen.records():
        if one.hook == "__dev_queue_xmit" and one.dev == "lo":
            rows.setdefault(one.skb_len, one.id)
    return _made(tuple(sorted(rows)), [rows[size] for size in sorted(rows)])


def _lo_protocol(seen: Evidence, length: str) -> Measured:
    """Return the protocols of the skbs of a length that were sent over loopback."""
    rows: dict[str, str] = {}
    for one in seen.records():
        if one.hook == "__dev_queue_xmit" and one.dev == "lo" and one.skb_len == int(length):
            # Ethernet 14, and the protocol is byte 9 of the IPv4 header.
            rows.setdefault({6: "tcp", 17: "udp"}.get(one.bytes[23], "other"), one.id)
    value = tuple(sorted(rows))
    return _made(value[0] if len(value) == 1 else value, rows.values())


# --- Symbols --------------------------------------------------------------------------------


def _alike(seen: Evidence, symbol: str) -> Measured:
    """Say whether a symbol has one address in all guests, which run the same kernel."""
    found = {name: seen.address_of(name, symbol) for name in seen.guests}
    if len(found) < 2:
        raise EvidenceError(f"{seen.name} has one guest: nothing to compare")
    return _made(
        len(set(found.values())) == 1,
        [f"{name}/symbols#{symbol}=0x{address:x}" for name, address in found.items()],
    )


# --- A module that was tried ----------------------------------------------------------------


def _try_verdict(seen: Evidence, _: str) -> Measured:
    return _made(str(seen.postmortem["verdict"]), ["postmortem.json#verdict"])


def _fault_address(seen: Evidence, _: str) -> Measured:
    """Say what kind of address the module faulted on: NULL, user or kernel."""
    fault = seen.postmortem["fault"]
    if not fault or not fault["address"]:
        raise EvidenceError(f"{seen.name} did not fault on an address")
    address = _hex(fault["address"])
    kind = "NULL" if address < 1 << 12 else "user" if address < 1 << 47 else "kernel"
    return _made(kind, [f"postmortem.json#fault.address={fault['address']}"])


def _log_lines(seen: Evidence, text: str) -> Measured:
    """Return how many lines of the kernel's log hold a text."""
    rows = [evidence for evidence, line in seen.log() if text in line]
    return _made(len(rows), rows or ["receiver/kernel.log"])


def _fact(seen: Evidence, name: str) -> Measured:
    """Return what a module of facts printed: a line `[FACT] name=value`."""
    for evidence, line in seen.log():
        _, found, said = line.partition("[FACT] ")
        if found and said.partition("=")[0] == name:
            word = said.partition("=")[2].strip()
            value: Value = word
            if word in ("yes", "no"):
                value = word == "yes"
            elif word.lstrip("-").isdigit():
                value = int(word)
            return _made(value, [evidence])
    raise EvidenceError(f"{seen.name}: no module printed a fact called {name}")


# --- A socket followed through the kernel ---------------------------------------------------


def _named_row(seen: Evidence, kind: str, name: str) -> Mapping[str, Any]:
    found = seen.result("socket.json")
    if not found["complete"]:
        raise EvidenceError(f"{seen.name} is not proven")
    for row in found[kind]:
        if row["name"] == name:
            return dict(row)
    raise EvidenceError(f"{seen.name} has none of its {kind} called {name}")


def _proof(seen: Evidence, name: str) -> Measured:
    row = _named_row(seen, "proofs", name)
    return _made(bool(row["holds"]), row["evidence"])


def _kernel_calls(seen: Evidence, name: str) -> Measured:
    """Return how often socket(2) called a function; 0 where it has no symbol of its own."""
    row = _named_row(seen, "functions", name)
    return _made(int(row["calls"]), row["evidence"] or [f"socket.json#functions/{name}"])


# --- The worksheet's own lines --------------------------------------------------------------


def _own_lines(seen: Evidence, of: str) -> list[Mapping[str, Any]]:
    """Return the lines of a kind, or of a kind and a length: "COPY1", "COPY1 22"."""
    found = seen.result("as_written.json")
    if not found["complete"]:
        raise EvidenceError(f"{seen.name} is not explained: {'; '.join(found['trouble'])}")
    kind, _, length = of.partition(" ")
    rows = [
        one
        for one in found["lines"]
        if one["kind"] == kind and (not length or str(one["length"]) == length)
    ]
    if not rows:
        raise EvidenceError(f"{seen.name} has no line {of}")
    return rows


def _line_what(seen: Evidence, of: str) -> Measured:
    """Say what the lines of a kind and length were; several words where they differ."""
    rows = _own_lines(seen, of)
    words = tuple(dict.fromkeys(str(one["what"]) for one in rows))
    ids = [one[key] for one in rows for key in ("log", "evidence")]
    return _made(words[0] if len(words) == 1 else words, ids)


def _line_lengths(seen: Evidence, of: str) -> Measured:
    rows = {int(one["length"]): str(one["log"]) for one in _own_lines(seen, of)}
    return _made(tuple(rows), rows.values())


def _from_rodata(seen: Evidence, _: str) -> Measured:
    """Say whether the sender's message lay in the .rodata of its program."""
    rodata = str(seen.result("as_written.json")["rodata"])
    rows = [one for one in _own_lines(seen, "COPY1") if one["what"] == "message"]
    return _made(bool(rodata), [*filter(None, [rodata]), *(one["evidence"] for one in rows)])


MEASURES: dict[str, Measure] = {
    "copies": Measure(
        "how often guest CPUs copied the message", _total("guest_cpu_copies", "copy")
    ),
    "device-reads": Measure(
        "how often a device read it from RAM", _total("device_reads", "dma-read")
    ),
    "device-writes": Measure(
        "how often a device wrote it to RAM", _total("device_writes", "dma-write")
    ),
    "handovers": Measure(
        "how often it changed owners without moving", _total("handovers", "handover")
    ),
    "copied-by": Measure("the functions that copied it, in order", _copied_by),
    "copy-out": Measure("the function of the first copy", _copy_out),
    "copy-in": Measure("the function of the last copy", _copy_in),
    "copy-out-caller": Measure("who called the first copy", _copy_out_caller),
    "copy-in-caller": Measure("who called the last copy", _copy_in_caller),
    "copy-out-bytes": Measure("what the first copy returned", _copy_out_size),
    "copy-in-bytes": Measure("what the last copy returned", _copy_in_size),
    "copy-in-reads": Measure("the kind of memory the last copy read", _copy_in_reads),
    "one-kernel-place": Measure(
        "whether the last copy reads where the first wrote", _one_kernel_place
    ),
    "registers-hold-arguments": Measure(
        "whether RDI, RSI and the iterator of the first copy are place, length and user buffer",
        _arguments,
    ),
    "same-skb": Measure("whether the receiver had the sender's skb", _skb("same_object")),
    "same-head": Measure("whether the receiver's skb had the sender's head", _skb("same_head")),
    "skb-data-values": Measure("how many values skb->data had on the way", _data_values),
    "skb-len": Measure("skb->len at a hook", _skb_len, "hook"),
    "payload-offset": Measure("bytes from skb->data to the payload at a hook", _payload_offset,
                              "hook"),
    "physical-places": Measure("how many physical addresses the message had", _places),
    "machines": Measure("how many machines' RAM held the message", _machines),
    "region": Measure("the region of a side's place", _region, "side"),
    "physical-is-low-28-bits": Measure(
        "whether each physical address is the low 28 bits of its kernel address", _low_bits
    ),
    "direct-map-constants": Measure(
        "how many differences of kernel and physical address a guest has", _constants
    ),
    "frame-length": Measure("bytes of the frame on the wire", _frame_length),
    "frame-part": Measure("bytes of a part of the frame", _frame_part, "part"),
    "frame-field": Measure("a field of the frame's headers", _frame_field, "field"),
    "addresses-on-wire": Measure("how many known addresses the frame holds", _addresses_on_wire),
    "rx-posted-before": Measure("whether the RX buffer was posted before the send",
                                _posted_before),
    "rx-descriptor-changed": Measure("whether the device changed the descriptor it filled",
                                     _descriptor_changed),
    "iter-type": Measure("iter_type of the message's copy at a hook", _iter_type, "hook"),
    "context": Measure("process or softirq, at a hook", _context, "hook"),
    "lo-lengths": Measure("skb->len of all that was sent over loopback", _lo_lengths),
    "lo-protocol": Measure("the protocol of what had a length on loopback", _lo_protocol,
                           "length"),
    "symbol-alike": Measure("whether a symbol has one address in both guests", _alike, "symbol"),
    "proof": Measure("whether a proof of lab.run-socket holds", _proof, "proof"),
    "kernel-calls": Measure("how often socket(2) called a function", _kernel_calls, "function"),
    "line-what": Measure("what lines of the worksheet's own modules were", _line_what,
                         "line"),
    "line-lengths": Measure("their lengths", _line_lengths, "line"),
    "sent-from-rodata": Measure("whether the worksheet's sender sent from .rodata", _from_rodata),
    "verdict": Measure("what became of a module that was tried", _try_verdict),
    "fault-address": Measure("the kind of address a module faulted on", _fault_address),
    "log-lines": Measure("lines of the kernel's log with a text", _log_lines, "text"),
    "fact": Measure("what a module of facts printed", _fact, "fact"),
}  # fmt: skip
