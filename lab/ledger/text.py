"""ledger.json: entries to JSON, a line for each that is deep enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from json.encoder import encode_basestring
from operator import attrgetter
from typing import Any, Final

# Fields that are guest addresses: hexadecimal text in JSON.
ADDRESSES: Final = frozenset({"virtual", "physical", "skb", "head", "data"})
PLAIN: Final = frozenset({str, int, bool, float, type(None)})
LINES_FROM: Final = 4  # levels down: ledger, messages, message, places; each place is one line
INDENT: Final = "  "
VARIED: Final = frozenset({"evidence", "between", "why", "text"})  # words that few entries share
PATTERNS = 4096  # lines' words that are kept at a time
NOT_SHOWN: Final = {"Sighting": ("side", "message")}  # said by where it stands
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)


def values(entry: object) -> dict[str, object]:
    """Return an entry as JSON values, addresses as hexadecimal text."""
    return {name: _shown(getattr(entry, name)) for name in _fields(type(entry))}


def pieces(ledger: object) -> Iterator[str]:
    """Yield the JSON text of a ledger, a message at a time."""
    kind = type(ledger)
    names = _fields(kind)
    if not any(_is_table(getattr(ledger, name)) for name in names):
        yield _line(kind)(ledger) + "\n"
        return
    start = "{\n"
    for name in names:
        value = getattr(ledger, name)
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
    # Of a named tuple `typing` keeps what stands there as a reference that is yet to be looked up,
    # and mypyc the class.
    if isinstance(of, str):
        return of
    return of.__name__ if isinstance(of, type) else str(of.__forward_arg__)


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


_WORDS_OF: Final = frozenset({"str", "tuple[str, ...]", "bool", "bool | None"})
_WORDS: Final[Mapping[bool | None, str]] = {True: "true", False: "false", None: "null"}
_PLAIN_MAKERS: Final[Mapping[type, Callable[[Any], str]]] = {
    str: encode_basestring,
    int: int.__repr__,
    bool: _WORDS.__getitem__,
    type(None): _WORDS.__getitem__,
}
_MAKERS: Final[dict[str, Callable[[Any], str]]] = {
    "str": encode_basestring,
    "tuple[str, ...]": _texts,
    "bool": _WORDS.__getitem__,
    "bool | None": _WORDS.__getitem__,
}
