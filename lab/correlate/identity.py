"""Which message, and which of its bytes, a run of bytes is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lab import fnv
from lab.message import KEPT, Messages


class Run(NamedTuple):
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
        self._digests: dict[tuple[int, ...], int] = {}
        self._kept: dict[int, bytes] = {}
        self._most_kept = max(1, KEPT // size)

    def bytes_of(self, message: int) -> bytes:
        """Return the bytes of one message."""
        found = self._kept.get(message)
        if found is None:
            if len(self._kept) >= self._most_kept:
                self._kept.clear()
            found = self._kept[message] = self.messages.bytes(message)
        return found

    def digest(self, message: int) -> str:
        return f"{fnv.digest(self.bytes_of(message)):016x}"

    def digest_of(self, order: Sequence[int]) -> int:
        """Return the digest of messages one after the other."""
        key = tuple(order)
        if key not in self._digests:  # sender and receiver are asked for the same
            value = fnv.START
            for message in key:
                value = fnv.digest(self.bytes_of(message), value)
            self._digests[key] = value
        return self._digests[key]

    def agrees(self, found: bytes, message: int, offset: int) -> bool:
        """Tell whether bytes read at a place are the message's from `offset` on."""
        whole = self._kept.get(message) or self.bytes_of(message)
        return found.startswith(whole[offset : offset + len(found)])

    def find(self, data: bytes) -> list[Run]:
        """Return the runs of message bytes in a buffer, first one first."""
        if not self.unique:
            return []
        whole = self._whole(data)
        if whole is not None:
            return [whole]
        return [
            Run(run.start, run.index, run.offset, run.size)
            for run in self.messages.runs(data)
            if run.index is not None and run.offset is not None
        ]

    def _whole(self, data: bytes) -> Run | None:
        # Most of what is looked into begins with a block and is one piece of one message:
        # then nothing has to be searched.
        named = self.messages.named(data)
        if named is None:
            return None
        message, offset = named
        piece = self.bytes_of(message)[offset : offset + len(data)]
        return Run(0, message, offset, len(data)) if piece == data else None

    def starts(self, data: bytes) -> Run | None:
        """Return the run of message bytes a buffer starts with."""
        found = self.find(data)
        return found[0] if found and found[0].at == 0 else None
