"""Virtqueues as strips: which descriptors the driver gave, which the device used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.rundir import Rings
from lab.rundir.artefacts import Descriptor, Queue, RingGate

ORDER = ("armed", "sent", "received")
MOST = 6  # descriptors of a message that are marked and told


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One queue at one gate: runs of (first slot, how many, state).

    `marked` are the descriptors that held the message's buffer at this gate.
    """

    gate: str
    available: int
    used: int
    runs: tuple[tuple[int, int, str], ...]
    marked: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """One queue at every gate."""

    guest: str
    name: str
    size: int
    strips: tuple[Strip, ...]
    told: tuple[str, ...]


def rings(guest: str, found: Rings, used: Sequence[str]) -> list[Ring]:
    """Return the queues of a guest; `used` are gate/queue/descriptor of a message."""
    out = []
    for queue in found.queues:
        mine = [words for words in (one.split("/") for one in used) if words[1] == queue.kind]
        held = _held(queue, mine[:MOST])
        out.append(
            Ring(
                guest=guest,
                name=f"{queue.kind.upper()} ring {queue.index}",
                size=queue.size,
                strips=tuple(_strip(gate, queue, held) for gate in in_order(queue)),
                told=tuple(dict.fromkeys(_told(queue, words) for words in mine[:MOST])),
            )
        )
    return out


def _held(queue: Queue, cited: Sequence[Sequence[str]]) -> frozenset[tuple[int, int]]:
    """Return number and address of the descriptors that are cited, as they were when they were."""
    wanted = {(gate, int(number)) for gate, _, number in cited}
    return frozenset(
        (one.id, one.address)
        for gate in queue.gates
        for one in gate.descriptors
        if (gate.name, one.id) in wanted
    )


def in_order(queue: Queue) -> list[RingGate]:
    """Return the gates of a queue as the run came to them."""
    return sorted(queue.gates, key=_order)


def _order(gate: RingGate) -> int:
    return ORDER.index(gate.name) if gate.name in ORDER else len(ORDER)


def _strip(gate: RingGate, queue: Queue, held: frozenset[tuple[int, int]]) -> Strip:
    posted = gate.posted()
    states = ["unknown" if posted is None else "free"] * max(queue.size, len(gate.descriptors))
    # One that was used and given once more is the device's again.
    for numbers, state in ((dict(gate.used), "used"), (posted or (), "posted")):
        for number in numbers:
            if number < len(states):
                states[number] = state
    runs: list[tuple[int, int, str]] = []
    for slot, state in enumerate(states):
        if runs and runs[-1][2] == state:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, state)
        else:
            runs.append((slot, 1, state))
    mine = [one.id for one in gate.descriptors if (one.id, one.address) in held]
    return Strip(
        gate=gate.name,
        available=gate.avail_idx,
        used=gate.used_idx,
        runs=tuple(runs),
        marked=tuple(n for n in mine if n < len(states) and states[n] != "free"),
    )


def address(queue: Queue, gate: RingGate, one: Descriptor) -> str:
    """Return the address a descriptor holds, and what it stood for where that is another."""
    if not queue.translated:
        return f"physical 0x{one.address:x}"
    physical = gate.mapped(one.address)
    stood = "nothing any more" if physical is None else f"physical 0x{physical:x}"
    return f"device address 0x{one.address:x} for {stood}"


def _told(queue: Queue, words: Sequence[str]) -> str:
    gate, _, number = words
    for moment in queue.gates:
        if moment.name == gate:
            for one in moment.descriptors:
                if one.id == int(number):
                    where = address(queue, moment, one)
                    return f"descriptor {one.id} at gate '{gate}': {where}, {one.length} bytes"
    return f"descriptor {number} at gate '{gate}'"
