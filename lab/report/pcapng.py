"""wire.pcapng: the link's frames, with what the ledger knows of them as comments."""

from __future__ import annotations

import io
import sys

from dpkt import pcapng

from lab import capture
from lab.ledger import Ledger
from lab.report.stations import copy_numbers
from lab.rundir import RunDir

SNAPLEN = 262_144
# dpkt writes in the byte order of the host.
LITTLE = sys.byteorder == "little"
Block = pcapng.EnhancedPacketBlockLE if LITTLE else pcapng.EnhancedPacketBlock
Option = pcapng.PcapngOptionLE if LITTLE else pcapng.PcapngOption


def wire(ledger: Ledger, run: RunDir) -> bytes | None:
    """Return the frames as the sender's backend saw them; None where there were none."""
    comments = _comments(ledger)
    guests = {evidence.partition("/")[0] for evidence in comments}
    guest = next((name for name in run.manifest().guests if name in guests), None)
    if guest is None or not run.guest(guest).wire.is_file():
        return None
    out = io.BytesIO()
    writer = pcapng.Writer(out, snaplen=SNAPLEN)
    for frame in capture.read(run.guest(guest).wire):
        size = len(frame.data)
        block = Block(caplen=size, pkt_len=size, pkt_data=frame.data)
        said = comments.get(f"{guest}/wire.pcap#{frame.index}")
        if said:
            comment = Option(code=pcapng.PCAPNG_OPT_COMMENT, text=" ".join(said))
            block.opts = [comment, Option(code=pcapng.PCAPNG_OPT_ENDOFOPT)]
        writer.writepkt(block, frame.time_ns / 1e9)
    return out.getvalue()


def _comments(ledger: Ledger) -> dict[str, list[str]]:
    """Return what is to be said of each frame that carries bytes of a message."""
    out: dict[str, list[str]] = {}
    for message in ledger.messages:
        places = [place for place in message.places if place.place == "wire"]
        numbers = copy_numbers(message) if places else []
        for place in places:
            reads = [
                (movement, number)
                for movement, number in zip(message.movements, numbers, strict=True)
                if movement.kind == "dma-read"
                and message.places[movement.target].evidence == place.evidence
            ]
            said = (
                f"skblab: message {message.id}, bytes {place.offset} to "
                f"{place.offset + place.size - 1} of {message.size}."
            )
            for movement, number in reads:
                source = message.places[movement.source]
                said += (
                    f" Read by {movement.function} from physical 0x{source.physical:x} "
                    f"({source.place}), after CPU copy {number}; {movement.evidence[0]}."
                )
            for evidence in place.evidence:
                if "/wire.pcap#" in evidence:
                    out.setdefault(evidence, []).append(said)
    return out
