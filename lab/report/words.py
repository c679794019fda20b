"""The words reports share: what a place is called, and what a movement."""

from __future__ import annotations

from lab.ledger import Movement

PLACES = {
    "user": "user buffer",
    "skb-linear": "skb linear area",
    "skb-frag": "skb frag",
    "rx-buffer": "RX buffer",
    "bounce": "bounce buffer",
    "kernel": "kernel memory",
    "wire": "the wire",
}
KINDS = {
    "copy": "CPU copy",
    "dma-read": "device reads",
    "dma-write": "device writes",
    "handover": "handover",
}


def function_name(movement: Movement) -> str:
    """Return who copied, as a person says it: "memcpy in page_to_skb"."""
    name = movement.function.partition(":")[2] or movement.function
    outer, arrow, inner = name.partition(">")
    return f"{inner} in {outer}" if arrow else name
