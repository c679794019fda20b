"""The ledger: what a run proves, as frozen values, and its JSON.

Of what a message has many a run has a hundred thousand: those entries are named tuples, which
are made in a third of the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring
from operator import attrgetter
from typing import Any, NamedTuple

from lab.correlate.types import Sighting
from lab.rundir import WORKLOAD

SCHEMA = 1

# Fields that are guest addresses: hexadecimal text in JSON.
ADDRESSES = frozenset({"virtual", "physical", "skb", "head", "data"})
PLAIN = frozenset({str, int, bool, float, type(None)})
LINES_FROM = 4  # levels down: ledger, messages, message, places; each place is one line
INDENT = "  "
VARIED = frozenset({"evidence", "between", "why", "text"})  # words that few entries share
INTERRUPTED = "the run was interrupted and did not end"
LOG = "/access.bin"  # what ends the names of logs of accesses in `lost`
PATTERNS = 4096  # lines' words that are kept at a time
NOT_SHOWN = {"Sighting": ("side", "message")}  # said by where it stands
LACKING = re.compile(rf"(\S+/{re.escape(WORKLOAD)}) (?:is missing|has no \w+):")
_ENCODER = json.JSONEncoder(ensure_ascii=False)


class Extent(NamedTuple):
    """A physically contiguous run of a place."""

    physical: int
    size: int


class Place(NamedTuple):
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


class Movement(NamedTuple):
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


class Skb(NamedTuple):
    """The skbs of both sides; None: one side was not seen."""

    sender: tuple[Sighting, ...]
    receiver: tuple[Sighting, ...]
    same_object: bool | None
    same_head: bool | None


class Totals(NamedTuple):
    """How often each byte was moved on its way, however many calls that took.

    Where some of its bytes took another way than others, the counts are the larger ones
    and `least_…` the smallest.
    """

    guest_cpu_copies: int
    least_guest_cpu_copies: int
    device_reads: int
    least_device_reads: int
    device_writes: int
    least_device_writes: int
    handovers: int
    least_handovers: int

    @property
    def even(self) -> bool:
        """Tell whether all bytes were copied as often."""
        return self.guest_cpu_copies == self.least_guest_cpu_copies

    def spread(self, name: str) -> tuple[int, int]:
        """Return how often some byte and how often another was moved, the least and the most."""
        return getattr(self, f"least_{name}"), getattr(self, name)


class Message(NamedTuple):
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

    @property
    def sent_again(self) -> int:
        """Bytes that devices read besides those that reached the receiver: TCP's second tries."""
        reads = sum(one.payload_size for one in self.movements if one.kind == "dma-read")
        return max(0, reads - self.totals.device_reads * self.size)


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
    lost: Mapping[str, int]  # records
    messages_lost: tuple[int, ...]  # sent, and never taken by the receiver
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
    def lacks(self) -> str:
        """Return the file without which it cannot be told where messages lay, "" where it is there.

        What is not in a ledger that lacks it was not looked for.
        """
        found = (LACKING.match(entry.why) for entry in self.incomplete)
        return next((one[1] for one in found if one), "")

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended the run before it was whole: of it nothing can be expected."""
        return any(entry.why == INTERRUPTED for entry in self.incomplete)

    @property
    def records_lost(self) -> int:
        """How many records of probes are missing: with one of them a ledger is incomplete."""
        return sum(lost for name, lost in self.lost.items() if not name.endswith(LOG))

    @property
    def accesses_lost(self) -> int:
        """How many accesses the logs lack; beside probes these decide nothing."""
        return sum(lost for name, lost in self.lost.items() if name.endswith(LOG))

    @property
    def searched(self) -> bool:
        """Whether RAM was searched: only then does "nothing unexplained" say anything."""
        return self.witnesses.get("census") == "present"

    def as_json(self) -> dict[str, object]:
        """Return the ledger as JSON values, addresses as hexadecimal text."""
        return {name: _shown(getattr(self, name)) for name in _fields(Ledger)}

    def to_json(self) -> str:
        """Return ledger.json, the same text for the same run, byte for byte.

        A place, a movement or a sighting is one line, for people who look into it.
        """
        return "".join(self.pieces())

    def pieces(self) -> Iterator[str]:
        """Yield ledger.json a message at a time: of ten thousand the whole is 36 MB."""
        names = _fields(Ledger)
        if not any(_is_table(getattr(self, name)) for name in names):
            yield _line(Ledger)(self) + "\n"
            return
        start = "{\n"
        for name in names:
            value = getattr(self, name)
            yield f'{start}{INDENT}"{name}": '
            if _is_table(value):
                before = "[\n"
                for row in _rows(value, 1):
                    yield f"{before}{INDENT}{INDENT}{row}"
                    before = ",\n"
                yield f"\n{INDENT}]"
            else:
                yield _text(value, 1)
            start = ",\n"
        yield "\n}\n"


_known: dict[type[Any], Mapping[str, str]] = {}
_lines: dict[type[Any], Callable[[Any], str]] = {}
_flat: dict[type[Any], bool] = {}


def _fields(kind: type[Any]) -> Mapping[str, str]:
    """Return the fields of a kind of entry that are shown, and their types as written; {}: none."""
    if kind not in _known:
        _known[kind] = _look_up(kind)
    return _known[kind]


def _look_up(kind: type[Any]) -> Mapping[str, str]:
    if not (hasattr(kind, "_fields") or hasattr(kind, "__dataclass_fields__")):
        return {}
    hidden = NOT_SHOWN.get(kind.__name__, ())
    return {name: _type(of) for name, of in kind.__annotations__.items() if name not in hidden}


def _type(of: Any) -> str:
    # Of a named tuple `typing` keeps what stands there as a reference that is yet to be looked up.
    return of if isinstance(of, str) else str(of.__forward_arg__)


def _shown(value: object) -> object:
    if type(value) in PLAIN:
        return value
    names = _fields(type(value))
    if names:
        return {
            name: f"0x{getattr(value, name):x}"
            if name in ADDRESSES and of == "int"
            else _shown(getattr(value, name))
            for name, of in names.items()
        }
    if isinstance(value, Mapping):
        return {str(key): _shown(inner) for key, inner in value.items()}
    assert isinstance(value, (tuple, list))
    return [_shown(inner) for inner in value]


def _is_table(value: Any) -> bool:
    of = type(value)
    return (of is tuple or of is list) and bool(value) and bool(_fields(type(value[0])))


def _text(value: Any, depth: int) -> str:
    """Return JSON in which ledger and messages are spread out, and what is in them is not."""
    kind = type(value)
    if kind in _PLAIN_MAKERS:
        return _PLAIN_MAKERS[kind](value)
    if _is_table(value):
        start = "\n" + INDENT * (depth + 1)
        return f"[{start}{f',{start}'.join(_rows(value, depth))}\n{INDENT * depth}]"
    return _spread(value, depth) if depth < LINES_FROM and _fields(kind) else _line(kind)(value)


def _rows(entries: Sequence[Any], depth: int) -> Iterator[str]:
    """Return the entries of a table one by one; those that are deep enough are one line each."""
    if depth + 1 >= LINES_FROM:
        return map(_line(type(entries[0])), entries)
    return (_text(entry, depth + 1) for entry in entries)


def _spread(entry: Any, depth: int) -> str:
    """Return an entry with a line for each of its fields, or one line if it has no table."""
    kind = type(entry)
    if _is_flat(kind):
        return _line(kind)(entry)
    names = tuple(_fields(kind))
    makers = _PLAIN_MAKERS
    texts = [
        makers[type(value)](value) if type(value) in makers else _text(value, depth + 1)
        for value in _values_of(names)(entry)
    ]
    if "[\n" not in [text[:2] for text in texts]:
        return _line(kind)(entry)
    return _spread_out(names, depth) % tuple(texts)


def _is_flat(kind: type[Any]) -> bool:
    """Tell whether no field of such an entry can be a table: it is one line."""
    if kind not in _flat:
        _flat[kind] = all(of in _WORDS_OF or of == "int" for of in _fields(kind).values())
    return _flat[kind]


@cache
def _spread_out(names: tuple[str, ...], depth: int) -> str:
    margin = INDENT * depth
    rows = [f'{margin}{INDENT}"{name}": %s' for name in names]
    return "{\n" + ",\n".join(rows) + f"\n{margin}}}"


def _line(kind: type[Any]) -> Callable[[Any], str]:
    """Return what makes one line of JSON of an entry of this kind.

    What the fields are is looked at once: a ledger of ten thousand messages has more than a
    hundred thousand such lines.
    """
    if kind not in _lines:
        _lines[kind] = _make_line(kind)
    return _lines[kind]


def _make_line(kind: type[Any]) -> Callable[[Any], str]:
    if kind in _PLAIN_MAKERS:
        return _PLAIN_MAKERS[kind]
    names = _fields(kind)
    if not names:
        return lambda value: _ENCODER.encode(_shown(value))
    makers = {name: _MAKERS.get(of, _other) for name, of in names.items() if of != "int"}
    # Lines that have the same words differ in numbers and evidence: those words are made once.
    words = [name for name in makers if names[name] in _WORDS_OF and name not in VARIED]
    others = [name for name in names if name not in words]
    made = [(number, makers[name]) for number, name in enumerate(others) if name in makers]
    words_of, others_of = _values_of(tuple(words)), _values_of(tuple(others))
    patterns: dict[tuple[Any, ...], str] = {}

    def pattern(known: tuple[Any, ...]) -> str:
        parts = {name: '"0x%x"' if name in ADDRESSES else "%d" for name in names}
        parts |= dict.fromkeys(makers, "%s")
        for name, value in zip(words, known, strict=True):
            parts[name] = makers[name](value).replace("%", "%%")
        return "{" + ", ".join([f'"{name}": {part}' for name, part in parts.items()]) + "}"

    def line(entry: Any) -> str:
        known = words_of(entry)
        try:
            shown = patterns[known]
        except KeyError:
            if len(patterns) >= PATTERNS:
                patterns.clear()
            shown = patterns[known] = pattern(known)
        values = list(others_of(entry))
        for number, make in made:
            values[number] = make(values[number])
        return shown % tuple(values)

    return line


@cache
def _values_of(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what takes these fields of an entry; of one alone `attrgetter` makes no tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda entry: tuple([getattr(entry, name) for name in names])


def _other(value: Any) -> str:
    if type(value) in (tuple, list) and value:
        return f"[{', '.join(map(_line(type(value[0])), value))}]"
    return _line(type(value))(value)


def _texts(value: tuple[str, ...]) -> str:
    if len(value) == 1:
        return f"[{encode_basestring(value[0])}]"
    return f"[{', '.join(map(encode_basestring, value))}]"


_WORDS_OF = frozenset({"str", "tuple[str, ...]", "bool", "bool | None"})
_WORDS: Mapping[bool | None, str] = {True: "true", False: "false", None: "null"}
_PLAIN_MAKERS: Mapping[type, Callable[[Any], str]] = {
    str: encode_basestring,
    int: int.__repr__,
    bool: _WORDS.__getitem__,
    type(None): _WORDS.__getitem__,
}
_MAKERS: dict[str, Callable[[Any], str]] = {
    "str": encode_basestring,
    "tuple[str, ...]": _texts,
    "bool": _WORDS.__getitem__,
    "bool | None": _WORDS.__getitem__,
}
