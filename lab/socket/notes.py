"""Where the book's words and the run's records part ways; each said only where records show it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lab.record import Kind
from lab.socket import hooked, status
from lab.socket.calls import rax
from lab.socket.inputs import BPF

if TYPE_CHECKING:
    from lab.socket.findings import Findings


def notes(found: Findings) -> Iterator[str]:
    """Yield what a reader of the book should know."""
    yield from _inlined(found)
    yield from _of_programs(found)
    yield from _sign(found)
    yield from _release(found)
    if found.inputs.emulated:
        yield "under tcg durations are emulated; order, values and addresses are not."


def _of_programs(found: Findings) -> Iterator[str]:
    """Say what BPF programs cannot see, and what was watched by modules all the same."""
    if BPF not in found.inputs.watchers:
        return
    yield (
        "BPF programs watched the chain; the call is timed, and made to fail, by modules in every "
        "run. No program can read MSR_LSTAR or its own code segment."
    )


def _inlined(found: Findings) -> Iterator[str]:
    gone = [one.name for one in found.functions if one.state == hooked.INLINED]
    if gone:
        yield (
            f"{' and '.join(gone)} {'are' if len(gone) > 1 else 'is'} not in kallsyms and cannot "
            f"be hooked: the compiler put {'them' if len(gone) > 1 else 'it'} into the caller."
        )
    idle = [one.name for one in found.functions if one.state == hooked.NOT_CALLED]
    if idle:
        yield f"{', '.join(idle)}: in kallsyms and hooked, and never entered by this program."


def _sign(found: Findings) -> Iterator[str]:
    """Find an int's error in rax: without a sign in the upper half a long of it is no error."""
    for call in found.calls:
        ended = call.find("__sys_socket", Kind.RETURN)
        if ended is None:
            continue
        value, kind = rax(ended), found.inputs.returns.get("__sys_socket", "int")
        as_int, as_long = status.as_int(value), status.as_long(value)
        if status.is_error(as_int) and not status.is_error(as_long):
            yield (
                f"__sys_socket returns an {kind}: {as_int} left rax = {value:#x} ({ended.id}), "
                f"which as a long is {as_long}; the book's test of a long calls that "
                f"{status.status(as_long)}."
            )
            return


def _release(found: Findings) -> Iterator[str]:
    """Find a sock that was given up before the iput of which the book says that it frees both."""
    for call in found.calls:
        released = call.find("inet_release", Kind.ENTRY)
        put = call.find("iput", Kind.ENTRY)
        if released and put and released.tsc < put.tsc:
            yield (
                f"struct sock is given up by inet_release ({released.id}), before iput "
                f"({put.id}) gives up the inode with struct socket in it: two steps, not one."
            )
            return
