"""The ledger: what a run proves, as frozen values, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

SCHEMA = 1

# Fields that are guest addresses: hexadecimal text in JSON.
ADDRESSES = frozenset({"virtual", "physical", "skb", "head", "data"})
PLAIN = frozenset({str, int, bool, float, type(None)})
LINES_FROM = 4  # levels down: ledger, messages, message, places; each place is one line
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """A physically contiguous run of a place."""

    physical: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where bytes of a message lay; `offset` is the first one's in the message."""

    guest: str
    place: str
    region: str
    virtual: int
    physical: int
    extents: tuple[Extent, ...]
    offset: int
    size: int
    content_verified: bool
    evidence: tuple[str, ...]

    def at(self, offset: int) -> int:
        """Return the virtual address of the message's byte `offset`."""
        return self.virtual + offset - self.offset if self.virtual else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Movement:
    """Bytes that went from one place to another, once; places are numbers in `places`."""

    guest: str
    mover: str
    kind: str
    function: str
    instruction: str
    caller: str
    source: int
    target: int
    offset: int
    size: int
    payload_size: int
    certainty: str
    evidence: tuple[str, ...]
    confirmed_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """An skb at one hook, while it held bytes of the message."""

    guest: str
    at: str
    skb: int
    head: int
    data: int
    len: int
    data_len: int
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Skb:
    """The skbs of both sides; None: one side was not seen."""

    sender: tuple[Sighting, ...]
    receiver: tuple[Sighting, ...]
    same_object: bool | None
    same_head: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """How often the payload was moved on its way, however many calls that took.

    Where some of its bytes took another way than others, the counts are the larger ones
    and `least_guest_cpu_copies` is the smallest.
    """

    guest_cpu_copies: int
    least_guest_cpu_copies: int
    device_reads: int
    device_writes: int
    handovers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message's way from user buffer to user buffer."""

    id: int
    size: int
    protocol: str
    over: str
    complete: bool
    places: tuple[Place, ...]
    movements: tuple[Movement, ...]
    skb: Skb
    totals: Totals


@dataclass(frozen=True, kw_only=True, slots=True)
class Incomplete:
    """Why the ledger does not account for everything."""

    guest: str
    message: int | None
    between: tuple[str, ...]
    bytes: int
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unexplained:
    """Message bytes in guest RAM that no movement put there."""

    guest: str
    message: int
    physical: int
    offset: int
    size: int
    evidence: str
    page: str  # what the kernel used the page for when it was found; "": nobody looked


@dataclass(frozen=True, kw_only=True, slots=True)
class Touch:
    """Message bytes that a CPU loaded and that were not copied on, by the access log.

    A "read" went nowhere: a checksum, a program that looks, a probe that notes them down.  A
    "spill" went with a register onto a kernel stack, and no further.
    """

    kind: str
    guest: str
    message: int
    function: str
    caller: str
    physical: int  # of the bytes read; where a spill put them
    offset: int
    size: int
    times: int  # accesses
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Two witnesses that say different things, or an invariant that does not hold."""

    what: str
    guest: str
    message: int | None
    text: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """What one run proves."""

    schema: int
    playbook: str
    complete: bool
    lost: Mapping[str, int]
    accelerator: Mapping[str, str]
    link: Mapping[str, object]
    witnesses: Mapping[str, str]
    messages: tuple[Message, ...]
    incomplete: tuple[Incomplete, ...]
    unexplained: tuple[Unexplained, ...]
    touches: tuple[Touch, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Complete, and no two witnesses disagree: anything else is exit code 6."""
        return self.complete and not self.disagreements

    @property
    def searched(self) -> bool:
        """Whether RAM was searched: only then does "nothing unexplained" say anything."""
        return self.witnesses.get("census") == "present"

    def as_json(self) -> dict[str, object]:
        """Return the ledger as JSON values, addresses as hexadecimal text."""
        return {name: _shown(getattr(self, name)) for name, _ in _fields(self)}

    def to_json(self) -> str:
        """Return ledger.json, the same text for the same run, byte for byte.

        A place, a movement or a sighting is one line, for people who look into it.
        """
        return _text(self.as_json(), "") + "\n"


_known: dict[type, tuple[tuple[str, bool], ...]] = {}


def _fields(entry: Any) -> tuple[tuple[str, bool], ...]:
    """Return the fields of an entry, and which are addresses."""
    kind = type(entry)
    if kind not in _known:
        _known[kind] = tuple(
            (one.name, one.name in ADDRESSES and one.type == "int") for one in fields(entry)
        )
    return _known[kind]


def _shown(value: object) -> object:
    if type(value) in PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        return [_shown(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(key): _shown(inner) for key, inner in value.items()}
    return {
        name: f"0x{getattr(value, name):x}" if address else _shown(getattr(value, name))
        for name, address in _fields(value)
    }


def _text(value: object, margin: str, depth: int = 0) -> str:
    """Return JSON in which ledger and messages are spread out, and what is in them is not."""
    deeper = margin + "  "
    if _is_table(value):
        rows = [deeper + _text(inner, deeper, depth + 1) for inner in cast("list[object]", value)]
        return "[\n" + ",\n".join(rows) + f"\n{margin}]"
    if depth < LINES_FROM and isinstance(value, dict) and any(map(_is_table, value.values())):
        rows = [f'{deeper}"{k}": {_text(inner, deeper, depth + 1)}' for k, inner in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    return _ENCODER.encode(value)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
