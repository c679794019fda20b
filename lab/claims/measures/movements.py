"""What moved the message, and what each end of it was."""

from __future__ import annotations

from collections.abc import Iterable

from lab.claims.evidence import Evidence, Movement
from lab.claims.measures.base import Function, Measure, made, parse_hex
from lab.claims.types import Measured


def _total(name: str, *kinds: str) -> Function:
    def measure(seen: Evidence, _: str) -> Measured:
        moved = [one for kind in kinds for one in seen.movements(kind)]
        # None of a kind: what shows it is the chain of all the others.
        return made(
            int(seen.message["totals"][name]), _first_of_each(moved or seen.message["movements"])
        )

    return measure


def _first_of_each(movements: Iterable[Movement]) -> list[str]:
    return [one["evidence"][0] for one in movements]


def function_of(movement: Movement) -> str:
    """Return the function that moved, without its module."""
    return str(movement["function"]).rpartition(":")[2]


def _copied_by(seen: Evidence, _: str) -> Measured:
    copies = seen.copies
    return made(tuple(dict.fromkeys(map(function_of, copies))), _first_of_each(copies))


def _copy_out(seen: Evidence, _: str) -> Measured:
    first = seen.copies[0]
    return made(function_of(first), first["evidence"])


def _copy_in(seen: Evidence, _: str) -> Measured:
    last = seen.copies[-1]
    return made(function_of(last), last["evidence"])


def _copy_out_caller(seen: Evidence, _: str) -> Measured:
    first = seen.copies[0]
    return made(str(first["caller"]).partition("+")[0], first["evidence"])


def _copy_in_caller(seen: Evidence, _: str) -> Measured:
    last = seen.copies[-1]
    return made(str(last["caller"]).partition("+")[0], last["evidence"])


def _copy_out_size(seen: Evidence, _: str) -> Measured:
    first = seen.record_of(seen.copies[0])
    return made(first.ret, [first.id])


def _copy_in_size(seen: Evidence, _: str) -> Measured:
    last = seen.record_of(seen.copies[-1])
    return made(last.ret, [last.id])


def _copy_in_reads(seen: Evidence, _: str) -> Measured:
    last = seen.copies[-1]
    place = seen.places[last["source"]]
    return made(str(place["place"]), [*last["evidence"][:1], *place["evidence"][:1]])


def _one_kernel_place(seen: Evidence, _: str) -> Measured:
    first, last = seen.copies[0], seen.copies[-1]
    return made(
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
        found.dst == parse_hex(target["virtual"]) + at - target["offset"]
        and found.user == parse_hex(source["virtual"]) + at - source["offset"]
        and found.size == first["size"]
        and bool(target["content_verified"])
    )
    return made(good, [found.id, *target["evidence"]])


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
}
