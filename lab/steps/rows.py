"""From calls and accesses to numbered steps, each of the worksheet's types.

::

    SYSCALL     a system call is entered            registers, from the saved ones
    CALL        a function is entered               its arguments
    VAR_READ    a struct is passed on               what it holds, first seen or since changed
    VAR_SET     a struct was changed                by the function that returns next
    CHECK       a function that only answers        yes or no: bool, or a security hook's error
    CPU_READ    a CPU loads message bytes           from the access log
    CPU_WRITE   a CPU stores message bytes          from the access log
    RETURN      a function returns                  its value
    CONTINUE    what was interrupted goes on
    DATA_STATE  a packet's head, data and length, when they are new

Nothing here knows which functions there are.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from lab.accesses import CopySeen, ReadSeen
from lab.calls import USER_END, Call, Calls, How, Value
from lab.steps import values

Lookup: TypeAlias = Callable[[int], str]  # "" where it does not know
Clock: TypeAlias = Callable[[int], int]  # the host's TSC to its monotonic time
FREES = frozenset(
    {"kfree", "kmem_cache_free", "kfree_skbmem", "napi_skb_cache_put", "__napi_kfree_skb"}
)
ASLEEP = frozenset({"__schedule"})


class Type(StrEnum):
    """The worksheet's words for what a step is."""

    SYSCALL = "SYSCALL"
    CALL = "CALL"
    VAR_SET = "VAR_SET"
    VAR_READ = "VAR_READ"
    CHECK = "CHECK"
    CPU_READ = "CPU_READ"
    CPU_WRITE = "CPU_WRITE"
    RETURN = "RETURN"
    CONTINUE = "CONTINUE"
    DATA_STATE = "DATA_STATE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One row of the table."""

    number: int = 0
    type: Type
    guest: str
    function: str  # what the step is about, or who does it
    where: str  # file:line, or function and offset
    caller: str
    values: str
    work: str
    depth: int
    ns: int  # host's monotonic clock
    evidence: str
    call: int  # number of the call in calls.json, of an access: the one it happened in
    way: bool = False  # it is of the message's own way


@dataclass(frozen=True, kw_only=True, slots=True)
class Touch:
    """Message bytes that a CPU loaded or stored, and when."""

    ns: int
    store: bool
    virtual: int
    physical: int
    size: int
    function: str
    evidence: str


@dataclass(slots=True)
class _Walk:
    """One guest's events in their order."""

    followed: Calls
    names: Names
    steps: list[Step] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)
    shown: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    parents: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Names:
    """Turns addresses of one guest's kernel into file and line, or function and offset."""

    name: Lookup
    line: Lookup

    def where(self, address: int) -> str:
        return self.line(address) or self.offset(address)

    def offset(self, address: int) -> str:
        return self.name(address) or f"{address:#x}"


def touches(copies: Sequence[CopySeen], reads: Sequence[ReadSeen], clock: Clock) -> list[Touch]:
    """Return what CPUs did with message bytes, in order: a copy is a load and a store."""
    found = []
    for copy in copies:
        at = clock(copy.tsc)
        for store, virtual, extents in (
            (False, copy.source_virtual, copy.source),
            (True, copy.target_virtual, copy.target),
        ):
            found.append(
                Touch(
                    ns=at,
                    store=store,
                    virtual=virtual,
                    physical=extents[0][0],
                    size=copy.size,
                    function=copy.function,
                    evidence=", ".join(copy.evidence[:2]),
                )
            )
    found += [
        Touch(
            ns=clock(read.tsc),
            store=False,
            virtual=read.virtual,
            physical=read.physical[0][0],
            size=read.payload_size,
            function=read.function,
            evidence=", ".join(read.evidence[:2]),
        )
        for read in reads
    ]
    return sorted(found, key=lambda touch: touch.ns)


def walk(
    followed: Calls, seen: Sequence[Touch], names: Names, *, kept: Container[int]
) -> tuple[list[Step], list[str]]:
    """Return the steps of one guest, unnumbered, and where the two witnesses differ.

    `kept` are the numbers of the calls that are wanted.
    """
    state = _Walk(followed, names, parents={call.parent for call in followed.calls})
    for event in _events([call for call in followed.calls if call.number in kept], seen):
        if isinstance(event, Touch):
            _touch(state, event)
        elif event[1]:
            _enter(state, event[0])
        else:
            _leave(state, event[0])
    return state.steps, state.faults


def _events(calls: Sequence[Call], seen: Sequence[Touch]) -> Iterator[tuple[Call, bool] | Touch]:
    """Yield entries, returns and accesses in the order of time."""
    ordered: list[tuple[int, int, tuple[Call, bool] | Touch]] = []
    for call in calls:
        ordered.append((call.entered_ns, call.entered, (call, True)))
        if call.left >= 0:
            ordered.append((call.left_ns, call.left, (call, False)))
    # An access lies between two stops, so no order of the calls is ever equal to its time.
    ordered += [(touch.ns, 1 << 60, touch) for touch in seen]
    yield from (event for _, _, event in sorted(ordered, key=lambda one: one[:2]))


def _step(state: _Walk, call: Call, kind: Type, *, depth: int, ns: int, **texts: str) -> Step:
    parent = state.followed.calls[call.parent] if call.parent >= 0 else None
    step = Step(
        type=kind,
        guest=state.followed.guest,
        function=texts.get("function", call.function),
        where=texts.get("where", state.names.where(call.address)),
        caller=texts.get("caller", parent.function if parent else call.comm),
        values=texts.get("values", ""),
        work=texts.get("work", ""),
        depth=depth,
        ns=ns,
        evidence=texts.get("evidence", f"{state.followed.guest}/calls.json#{call.number}"),
        call=call.number,
    )
    state.steps.append(step)
    return step


def _enter(state: _Walk, call: Call) -> None:
    while state.open and state.open[-1].number != call.parent:
        state.open.pop()
    depth = len(state.open)
    state.open.append(call)
    if call.how is How.INTERRUPT:
        return
    registers = _registers(call)
    if registers is not None:
        given = " ".join(f"{name}={value:#x}" for name, value in registers.items())
        work = f"system call {registers['RAX']} of {call.comm} (pid {call.task})"
        _step(state, call, Type.SYSCALL, depth=depth, ns=call.entered_ns, values=given, work=work)
    elif not (_is_check(call) and call.number not in state.parents):
        _step(
            state,
            call,
            Type.CALL,
            depth=depth,
            ns=call.entered_ns,
            values=_arguments(call),
            work=_how(state, call),
        )
    if call.function in FREES:
        state.dead |= {one.value for one in call.arguments}
    for one in call.arguments:
        if "function *" in one.type and one.points_to:
            _step(
                state,
                call,
                Type.VAR_READ,
                depth=depth + 1,
                ns=call.entered_ns,
                values=f"{one.name} = {one.points_to}",
                work=f"the function that {one.name} points to",
            )
    _states(state, call, call.arguments, after=False, depth=depth + 1)


def _leave(state: _Walk, call: Call) -> None:
    if call not in state.open:
        return
    while state.open.pop() is not call:
        pass
    depth = len(state.open)
    if call.how is How.INTERRUPT or call.function in ASLEEP:
        what = "an interrupt" if call.how is How.INTERRUPT else "others' turn on the CPU"
        _step(
            state,
            call,
            Type.CONTINUE,
            depth=depth,
            ns=call.left_ns,
            where=state.names.where(call.site),
            values=call.function,
            work=f"goes on after {what}",
        )
        return
    returned = call.returned
    if returned is not None and returned.value in state.dead:
        state.dead.discard(returned.value)  # given out anew
    _states(
        state,
        call,
        (*call.arguments, *([returned] if returned else ())),
        after=True,
        depth=depth + 1,
    )
    answer = values.number(returned) if returned is not None else "nothing"
    kind = Type.CHECK if _is_check(call) else Type.RETURN
    _step(
        state,
        call,
        kind,
        depth=depth,
        ns=call.left_ns,
        where=state.names.where(call.site),
        values=f"{answer}" + (f"   of {_arguments(call)}" if kind is Type.CHECK else ""),
        work=_answer(call) if kind is Type.CHECK else f"back at {state.names.offset(call.site)}",
    )


def _touch(state: _Walk, touch: Touch) -> None:
    if not state.open:
        return  # outside every window: the programs' own work
    call = state.open[-1]
    function = touch.function.partition("+")[0]
    on_stack = [one.function for one in state.open]
    if function.partition(" ")[0] not in on_stack:
        state.faults.append(
            f"{touch.evidence}: {function} {'stored' if touch.store else 'loaded'} message bytes,"
            f" and the calls followed there are {' < '.join(reversed(on_stack[-3:]))}"
        )
    space = "user" if touch.virtual < USER_END else "kernel"
    _step(
        state,
        call,
        Type.CPU_WRITE if touch.store else Type.CPU_READ,
        depth=len(state.open),
        ns=touch.ns,
        function=function,
        where=f"RAM {touch.physical:#x}",
        caller=function,
        values=f"{touch.size} bytes at {touch.virtual:#x}, physical {touch.physical:#x}",
        work=f"the CPU {'writes' if touch.store else 'reads'} {space} memory",
        evidence=touch.evidence,
    )


def _states(state: _Walk, call: Call, given: Sequence[Value], *, after: bool, depth: int) -> None:
    held = call.after if after else call.before
    for one in given:
        content = held.get(one.name or "return")
        if content is None or one.value in state.dead:
            continue
        if one.points_to == "pt_regs":
            continue
        key = one.points_to, one.value
        before = state.shown.get(key)
        if before == dict(content):
            continue
        state.shown[key] = dict(content)
        packet = one.points_to == "sk_buff"
        text = values.changed(one.points_to, before or {}, content) if before else ""
        kind = Type.DATA_STATE if packet else Type.VAR_SET if after and before else Type.VAR_READ
        if not after and before and not packet:
            kind = Type.VAR_SET  # by code between two calls
        _step(
            state,
            call,
            kind,
            depth=depth,
            ns=call.left_ns if after else call.entered_ns,
            values=f"{one.points_to} {one.value:#x}: "
            + (text or values.members(one.points_to, content)),
            work=f"{'as ' + call.function + ' leaves' if after else 'as it enters'}"
            f" {one.name or 'what it returns'}",
        )


def _registers(call: Call) -> dict[str, int] | None:
    """Return the registers a system call was made with; None for any other function."""
    for held in call.before.values():
        if "orig_ax" in held and call.parent < 0 and "_sys_" in call.function:
            names = {"RAX": "orig_ax", "RDI": "di", "RSI": "si", "RDX": "dx", "R10": "r10"}
            names |= {"R8": "r8", "R9": "r9"}
            return {shown: held[member] for shown, member in names.items()}
    return None


def _arguments(call: Call) -> str:
    if not call.typed:
        return "no prototype: " + " ".join(f"{a.name}={a.value:#x}" for a in call.arguments[:3])
    return ", ".join(values.shown(one) for one in call.arguments)


def _how(state: _Walk, call: Call) -> str:
    how = "jumped to" if call.how is How.JUMP else "called"
    back = "" if call.parent < 0 else f", to return to {state.names.offset(call.site)}"
    module = f" of module {call.module}" if call.module else ""
    return f"{how}{module}{back}"


def _is_check(call: Call) -> bool:
    if call.returned is not None and call.returned.type == "bool":
        return True
    return call.function.startswith("security_") or call.function == "__check_object_size"


def _answer(call: Call) -> str:
    if call.returned is None:
        return "passed: it returned at all"
    if call.returned.type == "bool":
        return "answers " + values.number(call.returned)
    return "passed" if call.returned.value == 0 else "refused"


def number(steps: Sequence[Step], *, way: frozenset[tuple[str, int]]) -> list[Step]:
    """Return steps in the order of the host's clock, numbered from 1, with their way marked."""
    ordered = sorted(steps, key=lambda step: step.ns)  # stable: equal times keep their order
    return [
        replace(step, number=place, way=(step.guest, step.call) in way)
        for place, step in enumerate(ordered, 1)
    ]
