"""FNV-1a of 64 bits, by which workloads vouch for what they hold (guest/message.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mypy_extensions import i64

START: Final = 0xCBF29CE484222325


def digest(data: bytes, start: int = START) -> int:
    """Return the digest of the bytes; `start` is the digest of what came before them."""
    # A number of 64 bits where this is compiled (lab.compiled), which has no others to mask.
    value: i64 = start - (1 << 64) if COMPILED and start >> 63 else start
    mask: i64 = _MASK
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & mask
    return int(value) & _U64


COMPILED: Final = not hasattr(digest, "__code__")
_U64: Final = (1 << 64) - 1
_MASK: Final = -1 if COMPILED else _U64
