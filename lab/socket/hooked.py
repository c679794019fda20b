"""Which functions ran, which are there and did not, and which the compiler left none of."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from lab.record import Hook, Kind
from lab.socket.inputs import Inputs

CALLED = "called"
NOT_CALLED = "there, not called"
INLINED = "inlined: no symbol of its own"
LEFT_OUT = "left out"
UNHOOKED = "there, and no hook"
UNCLEAR = "a hook where there is no symbol"


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """One function of the chain, as kallsyms and the hook on it tell."""

    name: str
    state: str
    calls: int  # by the program
    symbol: int | None  # its address in kallsyms
    error: int  # of the hook's registration: 0, or -errno
    missed: int
    maxactive: int  # calls at once that its return hook can follow, 0: it has none
    evidence: tuple[str, ...]


def functions(inputs: Inputs) -> tuple[Function, ...]:
    """Return every function that who watched the chain asked for, in the order of its table."""
    hooks: dict[str, list[Hook]] = {}
    for section in inputs.sections:
        if section.name == inputs.watchers[0]:
            for hook in section.header.hooks:
                hooks.setdefault(hook.name, []).append(hook)
    addresses = inputs.symbols.addresses(hooks)
    return tuple(_function(inputs, name, hooks[name], addresses.get(name)) for name in hooks)


def _function(inputs: Inputs, name: str, hooks: list[Hook], symbol: int | None) -> Function:
    entered = [
        one
        for one in inputs.records
        if one.module == inputs.watchers[0]
        and one.hook == name
        and one.pid == inputs.pid
        and (one.kind == Kind.ENTRY or len(hooks) == 1)
    ]
    error = next((hook.error for hook in hooks if hook.error), 0)
    return Function(
        name=name,
        state=_state(hooks, error, symbol, calls=len(entered)),
        calls=len(entered),
        symbol=symbol,
        error=error,
        missed=sum(hook.missed for hook in hooks),
        maxactive=max(hook.maxactive for hook in hooks),
        evidence=tuple(one.id for one in entered[:1]),
    )


def _state(hooks: list[Hook], error: int, symbol: int | None, *, calls: int) -> str:
    if any(hook.left_out for hook in hooks):
        return LEFT_OUT
    if symbol is None:
        return INLINED if error == -errno.ENOENT else UNCLEAR
    if error:
        return UNHOOKED
    return CALLED if calls else NOT_CALLED
