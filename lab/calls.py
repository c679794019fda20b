"""Function calls as they were followed: the tree, with arguments and return values.

`calls.json` of a guest holds them; `lab.follow` makes it, whoever shows steps reads it.
Numbers called orders count every entry and every return of one guest, from 0, so that they
say what came before what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from lab.errors import TraceCorrupt
from lab.rundir import fields as checked

USER_END = 1 << 47  # x86-64 with four levels of page tables
FILE = "calls.json"
SCHEMA = 1
MOST = 64 << 20  # bytes of a file that is read
Seen: TypeAlias = Mapping[str, Mapping[str, int]]  # parameter -> member -> value


class How(StrEnum):
    """How a function was entered."""

    CALL = "call"
    JUMP = "jump"  # a tail call: it returns to its caller's caller
    INTERRUPT = "interrupt"  # nobody called it


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """An argument or a return value; `type` is C, `value` the register or stack slot."""

    name: str
    type: str
    value: int
    signed: bool = False
    points_to: str = ""  # name of the struct, or of the function, behind a pointer


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of one function; -1 and 0 where something is not known."""

    number: int
    parent: int  # number of the call it was made in, -1: a window begins here
    how: How
    function: str
    module: str  # "" for the kernel itself
    address: int
    site: int  # return address: the instruction behind the call
    task: int  # thread id of current
    comm: str
    entered: int  # order
    entered_ns: int  # host's monotonic clock
    left: int = -1  # order; -1: it was never seen to return
    left_ns: int = 0
    typed: bool = False  # BTF says what it takes; else `arguments` are bare registers
    arguments: tuple[Value, ...] = ()
    returned: Value | None = None
    before: Seen = field(default_factory=dict)  # what structs behind arguments held at entry
    after: Seen = field(default_factory=dict)  # and when it returned

    def argument(self, name: str) -> int | None:
        """Return an argument's value by its name."""
        return next((one.value for one in self.arguments if one.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """What was followed in one guest."""

    guest: str
    kernel: str
    seconds: float  # that following took
    breakpoints: int  # that were set at most
    foreign: int  # stops of other tasks while a window was open
    dropped: int  # entries that found no room
    calls: tuple[Call, ...]

    def children(self, number: int) -> Iterator[Call]:
        return (call for call in self.calls if call.parent == number)

    @property
    def roots(self) -> tuple[Call, ...]:
        return tuple(self.children(-1))

    def inside(self, root: Call) -> list[Call]:
        """Return a call and all that were made in it, however deep."""
        found, numbers = [], {root.number}
        for call in self.calls:  # a parent's number is below its children's
            if call.number == root.number or call.parent in numbers:
                numbers.add(call.number)
                found.append(call)
        return found

    def depth(self, call: Call) -> int:
        """Return how many calls of the window are around this one."""
        depth, parent = 0, call.parent
        while parent >= 0:
            depth, parent = depth + 1, self.calls[parent].parent
        return depth

    def to_json(self) -> dict[str, Any]:
        """Return the content of calls.json."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def read(path: Path) -> Calls:
    """Read calls.json; `TraceCorrupt` for one that holds what nobody writes."""
    data: Any = checked.read_json(path)
    try:
        values = dict(data)
        if values.pop("schema") != SCHEMA:
            raise TraceCorrupt(f"{path}: expected schema {SCHEMA}")
        calls = tuple(_call(one) for one in values.pop("calls"))
        found = Calls(calls=calls, **values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceCorrupt(f"{path}: expected calls as lab.follow writes them: {error}") from error
    for place, call in enumerate(calls):
        if call.number != place or not -1 <= call.parent < place:
            raise TraceCorrupt(f"{path}: call {place}: its number or its parent is wrong")
    return found


def _call(one: Mapping[str, Any]) -> Call:
    values = dict(one)
    returned = values.pop("returned")
    return Call(
        how=How(values.pop("how")),
        arguments=_values(values.pop("arguments")),
        returned=None if returned is None else Value(**returned),
        **values,
    )


def _values(listed: Sequence[Mapping[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(**one) for one in listed)
