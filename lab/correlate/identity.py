"""Which message, and which of its bytes, a run of bytes is."""

from __future__ import annotations

from dataclasses import dataclass

from lab import message as messages
from lab.message import Messages


@dataclass(frozen=True, slots=True)
class Run:
    """`size` bytes at `at` in a buffer are the message's from `offset` on."""

    at: int
    message: int
    offset: int
    size: int


class Identity:
    """Knows every message of a run by its bytes.

    Messages too short to be searched for, and many of one payload, are like each
    other: `unique` is False, and only socket and order tell them apart.
    """

    def __init__(self, *, seed: int | None, payload: bytes | None, size: int, count: int) -> None:
        self.size = size
        self.count = count
        self.messages = Messages(seed=seed, payload=payload, size=size, count=count)
        self.searchable = self.messages.needle() is not None
        self.unique = self.searchable and (payload is None or count == 1)
        self.alike = payload is not None  # all of them; those of a seed differ where they can

    def bytes_of(self, message: int) -> bytes:
        """Return the bytes of one message."""
        return self.messages.bytes(message)

    def digest(self, message: int) -> str:
        return f"{messages.digest(self.bytes_of(message)):016x}"

    def agrees(self, found: bytes, message: int, offset: int) -> bool:
        """Tell whether bytes read at a place are the message's from `offset` on."""
        expected = self.bytes_of(message)[offset : offset + len(found)]
        return found[: len(expected)] == expected

    def find(self, data: bytes) -> list[Run]:
        """Return the runs of message bytes in a buffer, first one first."""
        if not self.unique:
            return []
        return [
            Run(run.start, run.index, run.offset, run.size)
            for run in self.messages.runs(data)
            if run.index is not None and run.offset is not None
        ]

    def starts(self, data: bytes) -> Run | None:
        """Return the run of message bytes a buffer starts with."""
        found = self.find(data)
        return found[0] if found and found[0].at == 0 else None
