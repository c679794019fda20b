"""The modules' account and the BPF programs', of one run, held against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from lab.correlate.inputs import BPF, KMOD, GuestInputs, Inputs
from lab.correlate.outside import MOST_EVIDENCE, by_message, comparable, lonely, same_copies
from lab.correlate.types import Disagreement, Flow, Kind, Movement
from lab.record import Hook

# Which hook tells of what a device did, and of a handover.
TELLS = {
    Kind.DMA_READ: "virtqueue_add_outbuf",
    Kind.DMA_WRITE: "virtio_net:receive_buf",
    Kind.HANDOVER: "loopback_xmit",
}
# Functions whose last act is a jump into the copier: who calls it is then their caller.
JUMPS = {"simple_copy_to_iter": ("_copy_to_iter", ("simple_copy_to_iter", "__skb_datagram_iter"))}


def second(inputs: Inputs) -> Inputs | None:
    """Return the run as the BPF programs tell it, where the modules tell it as well."""
    if inputs.manifest.probe_kind != "both":
        return None
    guests = tuple(replace(guest, trace=guest.bpf, witness=BPF) for guest in inputs.guests)
    return replace(inputs, guests=guests)


def agree(
    inputs: Inputs, modules: Flow, programs: Flow
) -> tuple[tuple[Disagreement, ...], tuple[str, ...]]:
    """Confirm each movement that both tell of; return what only one of them does, and notes.

    What only one tells of is a disagreement where the other has a hook for it that is
    attached; where it has none, it is a note.
    """
    hooks = {
        (guest.name, witness): tuple(_attached(trace.hooks if trace is not None else ()))
        for guest in inputs.guests
        for witness, trace in ((KMOD, guest.trace), (BPF, guest.bpf))
    }
    found: list[Disagreement] = []
    notes: dict[str, None] = {}
    for flow, other, absent in ((modules, programs, BPF), (programs, modules, KMOD)):
        copies, rest = by_message(other), _by_way(other)
        for movement in flow.movements:
            same = (
                same_copies(movement, copies)
                if movement.kind is Kind.COPY
                else _same(movement, rest[_way(movement)])
            )
            if same:
                if absent == BPF:  # the modules' flow is the one that is shown
                    _confirm(movement, same)
            elif not _sees(hooks[movement.guest, absent], movement):
                notes[f"{absent} in {movement.guest} has no hook for {_function(movement)}"] = None
            elif comparable(movement) or movement.kind is not Kind.COPY:
                seen = KMOD if absent == BPF else BPF
                found.append(lonely(movement, f"{seen} saw, and {absent} did not: "))
    return tuple(found), tuple(notes)


def complete(inputs: Inputs) -> bool:
    """Tell whether neither account lost a record: only then does silence mean anything."""
    return all(
        trace is not None and trace.complete
        for guest in inputs.guests
        for trace in (guest.trace, guest.bpf)
    )


def lost(guest: GuestInputs) -> Iterator[tuple[str, int]]:
    """Yield each trace's section of a guest and how many records it lost."""
    for trace in (guest.trace, None if guest.bpf is guest.trace else guest.bpf):
        for section in trace.sections if trace is not None else ():
            header = section.header
            yield section.name, header.missed + header.dropped + len(section.torn)


def _attached(hooks: Iterable[Hook]) -> Iterator[str]:
    return (hook.name for hook in hooks if hook.attached and not hook.left_out)


def _function(movement: Movement) -> str:
    return TELLS.get(movement.kind, movement.function)


def _sees(hooks: Collection[str], movement: Movement) -> bool:
    """Tell whether one of these hooks would have seen the movement."""
    if movement.kind is not Kind.COPY:
        return _function(movement) in hooks
    outer, _, leaf = movement.function.rpartition(">")
    caller = outer or movement.caller.partition("+")[0]
    for name in hooks:
        jumped, by = JUMPS.get(name, ("", ()))
        within, _, callee = name.rpartition(">")
        if (
            name in (leaf, movement.function, JUMPS.get(leaf, ("", ()))[0])
            or (callee == leaf and within == caller)
            or (jumped == leaf and caller in by)
        ):
            return True
    return False


def _way(movement: Movement) -> tuple[Kind, str, int]:
    return movement.kind, movement.guest, movement.message


def _by_way(flow: Flow) -> dict[tuple[Kind, str, int], list[Movement]]:
    out: dict[tuple[Kind, str, int], list[Movement]] = defaultdict(list)
    for movement in flow.movements:
        out[_way(movement)].append(movement)
    return out


def _same(movement: Movement, others: Iterable[Movement]) -> list[Movement]:
    return [
        other
        for other in others
        if (other.offset, other.payload_size) == (movement.offset, movement.payload_size)
        and other.source.extents == movement.source.extents
        and other.target.extents == movement.target.extents
    ]


def _confirm(movement: Movement, same: list[Movement]) -> None:
    if any(BPF in other.confirmed_by for other in same):
        movement.confirmed_by.add(BPF)
    ids = [one for other in same for one in other.evidence]
    movement.evidence += [one for one in ids if one not in movement.evidence][:MOST_EVIDENCE]
