"""Two accounts of the same calls, the module's and the BPF programs', record against record.

A record of one is paired with the other's of the same function, entry or return, by their
order: the program makes one call after the other, and no clock is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from lab.record import Args, Barrier, Hook, Kind, Record, Socket
from lab.socket import status
from lab.socket.calls import rax
from lab.socket.inputs import BPF, CHAIN, Inputs

WAY = {Kind.ENTRY: "entry", Kind.RETURN: "return"}
VOID = frozenset({"fd_install"})  # whose rax means nothing
POINTERS = frozenset({"sock_alloc", "sock_alloc_file", "alloc_file_pseudo"})
UNREADABLE = frozenset({"cs_after", "lstar"})  # by a program
Key = tuple[str, Kind]


@dataclass(frozen=True, slots=True)
class Difference:
    """What one account has and the other has not, or has otherwise."""

    says: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What came of holding one account against the other."""

    pairs: Mapping[str, str] = field(default_factory=dict)  # the module's record -> the program's
    alone: tuple[str, ...] = ()  # hooks that only one of them has, and which
    differences: tuple[Difference, ...] = ()


def compare(inputs: Inputs) -> Agreement | None:
    """Pair the two accounts; None where there is only one."""
    if inputs.watchers != (CHAIN, BPF):
        return None
    modules, programs = (_by_key(inputs, name) for name in (CHAIN, BPF))
    has = {name: _attached(inputs, name) for name in (CHAIN, BPF)}
    pairs: dict[str, str] = {}
    differences: list[Difference] = []
    for key in dict.fromkeys((*modules, *programs)):
        if not (key in has[CHAIN] and key in has[BPF]):
            continue
        ours, theirs = modules.get(key, []), programs.get(key, [])
        what = f"{key[0]}'s {WAY[key[1]]}"
        if len(ours) != len(theirs):
            more = ours[len(theirs) :] or theirs[len(ours) :]
            says = f"{what}: {len(ours)} records of the module, {len(theirs)} of BPF"
            differences.append(Difference(says, tuple(one.id for one in more[:3])))
            continue
        for one, other in zip(ours, theirs, strict=True):
            pairs[one.id] = other.id
            unlike = ", ".join(_unlike(inputs, one, other))
            if unlike:
                differences.append(Difference(f"{what}: {unlike}", (one.id, other.id)))
    alone = tuple(
        f"{function}'s {WAY[kind]} ({'BPF' if (function, kind) in has[BPF] else 'the module'})"
        for function, kind in dict.fromkeys((*has[CHAIN], *has[BPF]))
        if ((function, kind) in has[CHAIN]) is not ((function, kind) in has[BPF])
    )
    return Agreement(pairs=pairs, alone=alone, differences=tuple(differences))


def _by_key(inputs: Inputs, name: str) -> dict[Key, list[Record]]:
    found: dict[Key, list[Record]] = {}
    mine = (one for one in inputs.records if one.module == name and one.pid == inputs.pid)
    for one in sorted(mine, key=lambda one: one.number):
        if one.kind in WAY:
            found.setdefault((one.hook, one.kind), []).append(one)
    return found


def _attached(inputs: Inputs, name: str) -> dict[Key, Hook]:
    """Return the hooks that watched: those that follow calls to their end are ways out."""
    found: dict[Key, Hook] = {}
    for section in inputs.sections:
        if section.name != name:
            continue
        for hook in section.header.hooks:
            kind = Kind.RETURN if hook.maxactive or hook.way == "fexit" else Kind.ENTRY
            if not hook.error:
                found[hook.name, kind] = hook
    return found


def _unlike(inputs: Inputs, one: Record, other: Record) -> Iterator[str]:
    """Yield what a pair does not agree on."""
    if one.args is not None and other.args is not None:
        yield from _registers(inputs, one, one.args, other, other.args)
    elif one.barrier is not None and other.barrier is not None:
        yield from _fields(one.barrier, other.barrier, UNREADABLE)
        if (one.user, one.aux) != (other.user, other.aux):
            theirs = f"{other.aux:#x} at {other.user:#x}"
            yield f"instruction {one.aux:#x} at {one.user:#x}, by BPF {theirs}"
    else:
        yield "only one has registers"
    if one.socket is not None and other.socket is not None:
        yield from _fields(one.socket, other.socket)
    elif one.socket is not other.socket:
        yield "only one has a socket"
    if one.size != other.size:
        yield f"signal {one.size}, by BPF {other.size}"


def _registers(
    inputs: Inputs, one: Record, ours: Args, other: Record, theirs: Args
) -> Iterator[str]:
    """Yield differences; a program knows of the registers those that are arguments."""
    for number in range(inputs.arguments.get(one.hook, 0)):
        if ours.arg[number] != theirs.arg[number]:
            yield f"argument {number} is {ours.arg[number]:#x}, by BPF {theirs.arg[number]:#x}"
    if one.kind == Kind.RETURN and _result(one) != _result(other):
        yield f"it returned {_result(one)}, by BPF {_result(other)}"
    if ours.signal_pending is not theirs.signal_pending:
        yield "a signal is pending in only one"


def _fields(
    ours: Socket | Barrier, theirs: Socket | Barrier, but: frozenset[str] = frozenset()
) -> Iterator[str]:
    for name, value in asdict(theirs).items():
        if name not in but and getattr(ours, name) != value:
            yield f"{name} is {getattr(ours, name):#x}, by BPF {value:#x}"


def _result(one: Record) -> str:
    """Return as much of rax as the function's type says is its value."""
    if one.hook in VOID:
        return "nothing"
    if one.hook in POINTERS:
        return f"{rax(one):#x}"
    return str(rax(one) & 1 if one.hook == "get_signal" else status.as_int(rax(one)))
