"""A message's way as stations and arrows: what a drawing of it, or a comparison, shows.

Places that play the same part (the seven frames of one datagram) are one station, movements
between the same two stations by the same function are one arrow; each says which it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lab.ledger import Message, Movement, Place


class Lane(StrEnum):
    """Where on the way a station lies."""

    OUT = "out"  # before the turn: the sending side
    TURN = "turn"  # the wire; over loopback the skb that is handed over
    IN = "in"  # behind it: the receiving side


@dataclass(frozen=True, kw_only=True, slots=True)
class Station:
    """Places of one message that play one part; `rank` counts movements from the start."""

    number: int
    lane: Lane
    rank: int
    guest: str
    kind: str
    places: tuple[int, ...]  # numbers in the message's `places`


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrow:
    """Movements between two stations by one function."""

    source: int
    target: int
    kind: str
    function: str
    guest: str
    movements: tuple[int, ...]  # numbers in the message's `movements`
    copies: tuple[int, ...]  # which copy of the bytes they are; empty where they are none


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """All stations and arrows of a message; `gaps` are stations nothing was seen to reach."""

    stations: tuple[Station, ...]
    arrows: tuple[Arrow, ...]
    gaps: tuple[int, ...]

    def lane(self, lane: Lane) -> list[list[Station]]:
        """Return a lane's stations by rank, lowest first."""
        rows: dict[int, list[Station]] = {}
        for station in self.stations:
            if station.lane is lane:
                rows.setdefault(station.rank, []).append(station)
        return [rows[rank] for rank in sorted(rows)]


def way(message: Message) -> Way:
    """Return the way of a message."""
    ranks = _ranks(message)
    lanes = _lanes(message, ranks)
    groups: dict[tuple[Lane, int, str, str], list[int]] = {}
    for number, place in enumerate(message.places):
        key = (lanes[number], ranks[number], place.guest, place.place)
        groups.setdefault(key, []).append(number)
    stations = tuple(
        Station(number=n, lane=lane, rank=rank, guest=guest, kind=kind, places=tuple(places))
        for n, ((lane, rank, guest, kind), places) in enumerate(groups.items())
    )
    of = {place: station.number for station in stations for place in station.places}
    reached = {movement.target for movement in message.movements if not _stays(movement)}
    gaps = tuple(
        station.number
        for station in stations
        if 0 not in station.places and not reached.intersection(station.places)
    )
    return Way(stations=stations, arrows=tuple(_arrows(message, of)), gaps=gaps)


def heads(message: Message) -> list[int]:
    """Return the first movement of each arrow: where the arrow's evidence begins."""
    return sorted(arrow.movements[0] for arrow in way(message).arrows)


def copy_numbers(message: Message) -> list[int]:
    """Return which copy of its bytes each movement is: fragments share one number."""
    reached: dict[int, int] = {}
    out = []
    for movement in message.movements:
        before = reached.get(movement.source)
        if before is None:  # where the sender starts, or behind a gap
            before = 0 if movement.source == 0 else max(reached.values(), default=0)
        number = before + (movement.kind == "copy")
        reached[movement.target] = max(reached.get(movement.target, 0), number)
        out.append(number)
    return out


def _stays(movement: Movement) -> bool:
    return movement.source == movement.target


def _arrows(message: Message, of: dict[int, int]) -> Iterator[Arrow]:
    numbers = copy_numbers(message)
    groups: dict[tuple[int, int, str, str, str], list[int]] = {}
    for number, movement in enumerate(message.movements):
        ends = of[movement.source], of[movement.target]
        key = (*ends, movement.kind, movement.function, movement.guest)
        groups.setdefault(key, []).append(number)
    for (source, target, kind, function, guest), mine in groups.items():
        copies = tuple(sorted({numbers[n] for n in mine})) if kind == "copy" else ()
        yield Arrow(
            source=source,
            target=target,
            kind=kind,
            function=function,
            guest=guest,
            movements=tuple(mine),
            copies=copies,
        )


def _ranks(message: Message) -> list[int]:
    """Return how many movements at most lead to each place; behind a gap, one more than before."""
    ranks: list[int | None] = [None] * len(message.places)
    farthest: dict[str, int] = {}  # guest -> the highest rank given there
    if ranks:
        ranks[0] = 0
    for movement in message.movements:
        source = ranks[movement.source]
        if source is None:
            source = _behind_gap(message.places[movement.source], farthest)
            ranks[movement.source] = source
        if not _stays(movement):
            known = ranks[movement.target]
            ranks[movement.target] = max(source + 1, known or 0)
        for number in (movement.source, movement.target):
            guest = message.places[number].guest
            farthest[guest] = max(farthest.get(guest, 0), ranks[number] or 0)
    out = []
    for place, rank in zip(message.places, ranks, strict=True):
        out.append(_behind_gap(place, farthest) if rank is None else rank)
    return out


def _behind_gap(place: Place, farthest: dict[str, int]) -> int:
    return farthest.get(place.guest, max(farthest.values(), default=0)) + 1


def _lanes(message: Message, ranks: list[int]) -> list[Lane]:
    if message.over == "link":
        first = message.places[0].guest if message.places else ""
        return [
            Lane.TURN if place.place == "wire" else Lane.OUT if place.guest == first else Lane.IN
            for place in message.places
        ]
    handed = {movement.source for movement in message.movements if movement.kind == "handover"}
    turns = [ranks[number] for number in handed]
    out = []
    for number, place in enumerate(message.places):
        if number == 0:
            lane = Lane.OUT
        elif place.place == "user":
            lane = Lane.IN
        elif number in handed or not turns:
            lane = Lane.TURN
        else:
            lane = Lane.OUT if ranks[number] <= min(turns) else Lane.IN
        out.append(lane)
    return out
