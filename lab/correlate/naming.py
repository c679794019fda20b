"""Whether two witnesses of one copy can mean the same function, caller and size.

A probe names the function that it is at; the access log names the function whose instructions
copied, and the three calls around it.  Where these cannot be compared nothing is said: what
calls another function last (a tail call) is on no stack, and two acts of one copy have a size
each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.accesses import CopySeen
from lab.correlate.inputs import KMOD, GuestInputs
from lab.correlate.types import Movement

COPIES_FOR_OTHERS = "memcpy"  # what a hook at a call calls so, whatever its name in the kernel


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a guest's hooks are called, and by evidence id the copies its log shows."""

    functions: frozenset[str]  # that have a hook of their own
    copying: frozenset[str]  # of these
    seen: dict[str, CopySeen]
    callers: bool  # whether every call around a copy is in the log

    def unlike(self, movement: Movement, twins: Sequence[Movement]) -> Iterator[str]:
        """Yield in what a copy by a probe's account is not that of the log."""
        acts = [act for twin in twins if (act := self._act(twin)) is not None]
        # Of bytes that TCP sends again from and to the same places each account has two copies,
        # by other functions: which is which the addresses do not say.
        faults = [list(self._function(movement, act)) for act in acts]
        if all(faults):
            yield from (fault for found in faults for fault in found)
        alone = twins[0] if acts and len(twins) == 1 else movement
        if alone.payload_size == movement.payload_size and alone.size != movement.size:
            yield f"of {movement.size} bytes, and CPUs copied {alone.size}"

    def _act(self, twin: Movement) -> CopySeen | None:
        return next((self.seen[one] for one in twin.evidence if one in self.seen), None)

    def _function(self, movement: Movement, act: CopySeen) -> Iterator[str]:
        words = movement.function.rpartition(":")[2].split(">")
        stack = [act.function, *act.callers]
        around = [plain(one) for one in stack]
        if words[-1] in around:
            place = around.index(words[-1]) + 1
            caller = stack[place] if place < len(stack) else ""
            if self.callers and movement.caller and caller and movement.caller != caller:
                yield f"called from {movement.caller}, and CPUs were called from {caller}"
            return
        if words[0] in around:
            return
        at_call = words[-1] == COPIES_FOR_OTHERS and COPIES_FOR_OTHERS in act.function
        others = [one for one in around if one in (self.copying if at_call else self.functions)]
        if others:
            yield f"by {movement.function}, and CPUs were in {' < '.join(stack)}"


def plain(name: str) -> str:
    """Return the function of `page_to_skb.isra.0+0x27c [virtio_net]`."""
    return name.partition("+")[0].partition(" ")[0].partition(".")[0]


def names(guest: GuestInputs, copies: Sequence[CopySeen], *, foreign: bool) -> Names:
    """Return what a guest's copies are compared by; `foreign` are the user's own probes."""
    hooks = [hook for hook in guest.hooks if hook.attached and ">" not in hook.name]
    return Names(
        functions=frozenset(hook.name.rpartition(":")[2] for hook in hooks),
        copying=frozenset(hook.name.rpartition(":")[2] for hook in hooks if hook.copies),
        seen={one: copy for copy in copies for one in copy.evidence},
        callers=guest.witness == KMOD and guest.bpf is None and not foreign,
    )


def elsewhere(movement: Movement) -> str:
    """Say where an instruction lies that is not in the function its hook is in; "" where it is."""
    outer = movement.function.rpartition(":")[2].partition(">")[0]
    place = plain(movement.instruction)
    known = place and not place.startswith(("0x", "["))
    return movement.instruction if known and outer and place != outer else ""
