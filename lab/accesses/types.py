"""What accesses did with the messages: copies, reads, bytes made, device writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

USER_END = 1 << 47  # x86-64 with four levels of page tables

Extents: TypeAlias = tuple[tuple[int, int], ...]  # (physical address, size), in order
# Physical start and end of memory known to hold a message's bytes, the message, the offset.
Hold: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What all findings say: who, where in the code, when, on what evidence."""

    guest: str
    function: str  # of the instructions that did it
    instructions: tuple[int, int]  # lowest and highest
    callers: tuple[str, ...]  # "page_to_skb+0x27c [virtio_net]", innermost first
    message: int
    offset: int  # of the first byte, in the message
    payload_size: int  # bytes of the message
    exact: bool  # False: other messages have these bytes as well
    first: int  # number of the first access of the window that took part
    last: int
    tsc: int  # the host's, of the first access
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CopySeen(Seen):
    """Message bytes were loaded, and stored elsewhere."""

    source_virtual: int  # of the whole copy, headers included
    source: Extents
    target_virtual: int
    target: Extents
    size: int
    payload_at: int  # bytes of headers before the message's
    bytes: bytes  # what was copied, headers included
    same_call: bool  # False: one call loaded, another stored; see `Accesses.spills`

    @property
    def from_user(self) -> bool:
        return self.source_virtual < USER_END

    @property
    def to_user(self) -> bool:
        return self.target_virtual < USER_END


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSeen(Seen):
    """Message bytes were loaded and stored nowhere: a checksum, a program that looks."""

    virtual: int
    physical: Extents
    times: int  # accesses it took; more than one reading of the same bytes counts on


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeSeen(Seen):
    """Message bytes were stored that no CPU had loaded: a program made them."""

    virtual: int
    physical: Extents


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceWriteSeen(Seen):
    """Message bytes were found in memory and no CPU had stored them there.

    `function` and the rest say who found them first; `after` is the last access that saw
    or stored something else there, 0 where there was none in the window.
    """

    virtual: int
    physical: Extents  # of all that was found and not stored, headers included
    size: int
    payload_at: int
    after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accesses:
    """All that the accesses of one guest did with the messages, in order.

    `spills` are message bytes that one call loaded and another stored, and that never came
    to a user from there: an interrupt, or a probe's trampoline, saves the registers of the
    copy it comes into, and others may copy what was saved.  They explain what a census finds
    on a kernel stack, and are no step of the message's way.
    """

    copies: tuple[CopySeen, ...]
    spills: tuple[CopySeen, ...]
    reads: tuple[ReadSeen, ...]
    made: tuple[MadeSeen, ...]
    device_writes: tuple[DeviceWriteSeen, ...]
    complete: bool  # nothing was lost, so that "no store" means that there was none
