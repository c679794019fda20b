"""The worksheet's functions held against those that were seen, or why they were not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from lab.calls import Call, Calls
from lab.errors import EvidenceError


class Fate(StrEnum):
    """What became of a function that the worksheet names."""

    SEEN = "seen"
    NOT_CALLED = "not called"
    NOT_OBSERVABLE = "not observable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """A function the worksheet names, in a table of its own."""

    table: str  # "send" or "receive"
    step: str
    function: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What was found of it; `call` is where it was seen."""

    claimed: Claimed
    fate: Fate
    reason: str
    call: Call | None = None
    guest: str = ""


def load(path: Path) -> tuple[Claimed, ...]:
    """Read the worksheet's lists; `EvidenceError` where the file is not what it should be."""
    try:
        data: Mapping[str, Sequence[Mapping[str, Any]]] = yaml.safe_load(
            path.read_text(encoding="utf-8")
        )
        return tuple(
            Claimed(table=table, step=str(one["step"]), function=str(one["function"]))
            for table, listed in data.items()
            for one in listed
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{path.name}: expected lists of step and function: {error}") from error


def compare(
    claimed: Sequence[Claimed], windows: Mapping[str, tuple[Calls, Call]], known: Iterable[str]
) -> list[Compared]:
    """Say of each function whether it was seen in its table's window.

    `windows` are, for each table, what was followed and the system call that is its root;
    `known` the names of all functions this kernel has.
    """
    names = frozenset(known)
    found = []
    for table, (followed, root) in windows.items():
        called = [call for call in followed.calls if _root(followed, call) == root.number]
        first: dict[str, Call] = {}
        for call in called:
            first.setdefault(plain(call.function), call)
        listed = [one for one in claimed if one.table == table]
        for place, one in enumerate(listed):
            seen = first.get(one.function)
            if seen is not None:
                found.append(
                    Compared(
                        claimed=one,
                        fate=Fate.SEEN,
                        reason=_through(followed, seen),
                        call=seen,
                        guest=followed.guest,
                    )
                )
                continue
            later = next((first[n.function] for n in listed[place:] if n.function in first), None)
            earlier = next(
                (first[n.function] for n in reversed(listed[:place]) if n.function in first), None
            )
            found.append(_absent(one, followed, earlier, later, exists=one.function in names))
    return found


def out_of_order(compared: Sequence[Compared]) -> list[str]:
    """Return each function that was seen before one that the worksheet has earlier."""
    faults = []
    last: dict[str, Compared] = {}
    for one in compared:
        if one.call is None:
            continue
        before = last.get(one.claimed.table)
        if before is not None and before.call and one.call.entered < before.call.entered:
            faults.append(
                f"{one.claimed.function} was called before {before.claimed.function}, which the"
                f" worksheet has earlier"
            )
        last[one.claimed.table] = one
    return faults


def plain(function: str) -> str:
    """Return a function's name without what the compiler put behind it: .isra.0, .part.0."""
    return function.partition(".")[0]


def _root(followed: Calls, call: Call) -> int:
    while call.parent >= 0:
        call = followed.calls[call.parent]
    return call.number


def _through(followed: Calls, call: Call) -> str:
    if call.parent < 0:
        return "entered"
    return f"called by {followed.calls[call.parent].function}"


def _absent(
    one: Claimed, followed: Calls, earlier: Call | None, later: Call | None, *, exists: bool
) -> Compared:
    chain = ""
    if earlier is not None and later is not None and (path := _path(followed, earlier, later)):
        chain = f": {' → '.join(path)}"
    elif earlier is not None:
        inner = [call.function for call in followed.children(earlier.number)]
        chain = f": {earlier.function} calls {', '.join(dict.fromkeys(inner)) or 'nothing'}"
    if exists:
        return Compared(
            claimed=one,
            fate=Fate.NOT_CALLED,
            reason=f"this kernel has it, and nobody called it here{chain}",
        )
    return Compared(
        claimed=one,
        fate=Fate.NOT_OBSERVABLE,
        reason="no code has that name here: compiled into its caller, or this version's source"
        f" has none{chain}",
    )


def _path(followed: Calls, earlier: Call, later: Call) -> list[str]:
    """Return the calls that really led from one to the other; [] where none did."""
    names, call = [later.function], later
    while call.parent >= 0:
        call = followed.calls[call.parent]
        names.append(call.function)
        if call.number == earlier.number:
            return names[::-1]
    return []
