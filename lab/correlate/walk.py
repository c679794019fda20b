"""The walk over the records of one run, in the order of their machine."""

from __future__ import annotations

from lab.correlate import audit
from lab.correlate.board import Board
from lab.correlate.copies import BETWEEN_SKBS, PAGE_TO_SKB, Copies
from lab.correlate.devices import Wire, arrivals
from lab.correlate.hooks import DESCRIBED, DMA_MAP, DMA_UNMAP, OUTBUF, RECEIVE_BUF
from lab.correlate.inputs import GuestInputs, Inputs, load
from lab.correlate.memory_map import GuestMap
from lab.correlate.receive import Receive
from lab.correlate.skbs import Skbs
from lab.correlate.transmit import Transmit
from lab.correlate.types import Flow
from lab.record import Flag
from lab.rundir import RunDir


def follow(run: RunDir | Inputs) -> Flow:
    """Walk the records of a run and return what moved.

    A walk raises nothing: what does not add up is a gap or a disagreement of the flow.
    Files that are there and cannot be read raise `TraceCorrupt`.
    """
    inputs = load(run) if isinstance(run, RunDir) else run
    board = Board(inputs)
    wire = Wire(board)
    sender, receiver = board.sender, board.receiver
    if sender is not None:
        _walk_sender(sender, board, wire)
    if sender is not None and receiver is not None and receiver is not sender:
        _walk_receiver(receiver, sender, board, wire)
    audit.finish(board)
    return Flow(
        places=tuple(board.places),
        movements=tuple(board.movements),
        sightings=tuple(board.sightings),
        delivered=tuple(board.delivered),
        gaps=tuple(board.gaps),
        disagreements=tuple(board.disagreements),
        unexplained=tuple(audit.unexplained(board)),
        notes=tuple(audit.notes(board)),
        most=tuple(sorted(board.most.items())),
    )


def walk_to_wire(sender: GuestInputs, inputs: Inputs) -> Wire:
    """Walk the sender's records alone and return what its frames carry."""
    board = Board(inputs)
    wire = Wire(board)
    _walk_sender(sender, board, wire)
    return wire


def _walk_sender(guest: GuestInputs, board: Board, wire: Wire) -> None:
    # Over loopback this guest is the receiver too.
    memory = GuestMap(guest, board)
    skbs = Skbs(memory, board)
    copies = Copies(memory, board, skbs)
    wire.load(guest.frames)
    transmit = Transmit(memory, board, skbs, wire)
    for record in memory.records:
        if record.hook in (OUTBUF, DMA_MAP, DESCRIBED):
            transmit.take(record)
        elif record.hook in BETWEEN_SKBS:
            copies.take_between_skbs(record)
        elif record.flags & Flag.SKB:
            skbs.take(record)
        elif copies.take(record):
            skbs.copied_in(copies.made)
    transmit.finish()


def _walk_receiver(guest: GuestInputs, sender: GuestInputs, board: Board, wire: Wire) -> None:
    memory = GuestMap(guest, board)
    skbs = Skbs(memory, board)
    copies = Copies(memory, board, skbs)
    receive = Receive(memory, board, arrivals(wire, guest, sender), sender)
    receive.begin()
    for record in memory.records:
        if record.hook in (RECEIVE_BUF, DMA_UNMAP):
            receive.take(record)
        elif record.hook == PAGE_TO_SKB:
            copies.take_page_to_skb(record)
            skbs.take(record)
        elif record.hook in BETWEEN_SKBS:
            copies.take_between_skbs(record)
        elif record.flags & Flag.SKB:
            skbs.take(record)
        else:
            copies.take(record)
    receive.finish()
