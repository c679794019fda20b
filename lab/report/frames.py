"""Whether a frame gives away an address of the run."""

from __future__ import annotations

from lab.capture import Frame
from lab.ledger import Message


def known_addresses(message: Message) -> list[int]:
    """Return every address that the ledger knows of a message, small numbers left out."""
    found = {place.virtual for place in message.places} | {p.physical for p in message.places}
    for seen in (*message.skb.sender, *message.skb.receiver):
        found |= {seen.skb, seen.head, seen.data}
    return sorted(address for address in found if address > 1 << 16)


def holds(frame: Frame, address: int) -> bool:
    """Tell whether a frame has an address in it, in either byte order."""
    if address >> 64:  # of a damaged record: none of 64 bits
        return False
    return any(address.to_bytes(8, order) in frame.data for order in ("little", "big"))
