"""Which messages the receiver took, in its own order, and which got lost on their way."""

from __future__ import annotations

from lab.correlate import Flow, Inputs
from lab.correlate.inputs import RECEIVER
from lab.correlate.spans import missing


def taken(inputs: Inputs, flow: Flow) -> tuple[int, ...]:
    """Return the messages in the order in which the receiver took them.

    The receiver counts what it takes and cannot know what was sent, so that behind a lost
    datagram it holds each message under another's number.  Which it was say the records of
    its copies; where these are not as many as it took, none is known to be lost.
    """
    every = tuple(range(inputs.identity.count))
    guest = inputs.with_role(RECEIVER)
    work = None if guest is None else guest.role(RECEIVER)
    if work is None or inputs.manifest.protocol != "udp" or work.total in (None, len(every)):
        return every
    spans: dict[int, list[tuple[int, int]]] = {}
    for entry in flow.delivered:
        spans.setdefault(entry.message, []).append((entry.offset, entry.offset + entry.size))
    whole = [number for number in spans if not missing([(0, inputs.identity.size)], spans[number])]
    return tuple(whole) if len(whole) == len(spans) == work.total else every


def ended_in(inputs: Inputs, flow: Flow, total: int) -> int | None:
    """Return the first message of a stream that the receiver did not get whole; None: not known.

    It is known where the records have just as many bytes delivered as the program says it got:
    then each message that lacks some has a gap of its own, and no other lacks any.
    """
    size = inputs.identity.size
    spans: dict[int, list[tuple[int, int]]] = {}
    for entry in flow.delivered:
        spans.setdefault(entry.message, []).append((entry.offset, entry.offset + entry.size))
    lacking = (missing([(0, size)], found) for found in spans.values())
    got = size * len(spans) - sum(end - start for holes in lacking for start, end in holes)
    first = total // size
    return first if got == total and first in {gap.message for gap in flow.gaps} else None
