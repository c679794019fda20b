"""Places, movements and sightings of the walk to the messages of a ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Protocol, TypeVar

from lab.correlate import Flow, Inputs
from lab.correlate import types as flow_types
from lab.correlate.inputs import RECEIVER, SENDER
from lab.correlate.spans import missing
from lab.ledger.entries import Extent, Incomplete, Message, Movement, Place, Skb, Totals

_tuple: Final = tuple.__new__  # a third of what calling a named tuple takes


def of_flow(inputs: Inputs, flow: Flow, faults: tuple[Incomplete, ...]) -> Iterator[Message]:
    """Yield every message of a run, those of which nothing was seen too."""
    places = _by_message(flow.places)
    movements = _by_message(flow.movements)
    sightings = _by_message(flow.sightings)
    delivered = _by_message(flow.delivered)
    broken = {fault.message for fault in faults}
    most = dict(flow.most)
    manifest, size = inputs.manifest, inputs.identity.size
    for number in range(inputs.identity.count):
        mine = places[number]
        index = {place.id: position for position, place in enumerate(mine)}
        yield Message(
            number,
            size,
            manifest.protocol,
            manifest.over,
            number not in broken and None not in broken,
            tuple([_place(place) for place in mine]),
            tuple([_movement(entry, index) for entry in movements[number]]),
            _skb(inputs, sightings[number]),
            _totals(inputs, delivered[number], most.get(number, (0, 0, 0, 0))),
        )


class _OfMessage(Protocol):
    @property
    def message(self) -> int: ...


T = TypeVar("T", bound=_OfMessage)


def _by_message(entries: Iterable[T]) -> dict[int, list[T]]:
    out: dict[int, list[T]] = defaultdict(list)
    for entry in entries:
        out[entry.message].append(entry)
    return out


def _place(place: flow_types.Place) -> Place:
    shown = (
        place.guest,
        place.kind._value_,  # what `value` looks up by a function of Python
        place.region,
        place.virtual,
        place.physical,
        tuple([_tuple(Extent, run) for run in place.extents]),
        place.offset,
        place.size,
        place.verified,
        _once(place.evidence)
        if not place.verified_by
        else _once(place.evidence + place.verified_by),
    )
    return _tuple(Place, shown)


def _movement(movement: flow_types.Movement, index: dict[int, int]) -> Movement:
    shown = (
        movement.guest,
        movement.mover._value_,
        movement.kind._value_,
        movement.function,
        movement.instruction,
        movement.caller,
        index[movement.source.id],
        index[movement.target.id],
        movement.offset,
        movement.size,
        movement.payload_size,
        movement.certainty._value_,
        _once(movement.evidence),
        tuple(sorted(movement.confirmed_by)),
    )
    return _tuple(Movement, shown)


def _once(evidence: list[str]) -> tuple[str, ...]:
    return tuple(evidence if len(evidence) == 1 else dict.fromkeys(evidence))


def _skb(inputs: Inputs, sightings: list[flow_types.Sighting]) -> Skb:
    sent = tuple([seen for seen in sightings if seen.side == SENDER])
    received = tuple([seen for seen in sightings if seen.side == RECEIVER])
    return Skb(
        sender=sent,
        receiver=received,
        same_object=_same_object(inputs, sent, received),
        same_head=_same(inputs, {s.head for s in sent}, {s.head for s in received}),
    )


def _same_object(
    inputs: Inputs, sent: tuple[flow_types.Sighting, ...], received: tuple[flow_types.Sighting, ...]
) -> bool | None:
    # TCP keeps the skb that was filled and transmits a clone: two objects at the sender,
    # of which the receiver reads one.
    first, last = {seen.skb for seen in sent}, {seen.skb for seen in received}
    return _same(inputs, first, last) and first == last


def _same(inputs: Inputs, sent: set[int], received: set[int]) -> bool | None:
    # Equal addresses in two guests are two objects.
    if not sent or not received:
        return None
    return inputs.loopback and received <= sent


def _totals(
    inputs: Inputs, delivered: list[flow_types.Delivered], most: tuple[int, int, int, int]
) -> Totals:
    spans = [(entry.offset, entry.offset + entry.size) for entry in delivered]
    counts = [most]
    if delivered and not missing([(0, inputs.identity.size)], spans):
        counts = [(one.copies, one.reads, one.writes, one.handovers) for one in delivered]
    return _totals_of(tuple(counts))


@lru_cache(maxsize=1024)
def _totals_of(counts: tuple[tuple[int, int, int, int], ...]) -> Totals:
    # Of ten thousand messages most went the same way.
    columns = zip(*counts, strict=True)
    return Totals(*[pick(column) for column in columns for pick in (max, min)])
