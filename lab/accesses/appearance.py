"""Message bytes that no CPU stored: what a device wrote."""

from __future__ import annotations

from collections.abc import Sequence

from lab.access import Access


class Memory:
    """What is known to be in memory, from what was stored and loaded so far."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}  # physical address -> byte, whose
        self._present: list[tuple[int, int]] = []
        self.touched: dict[int, int] = {}  # physical address -> number of the last access

    def hold(self, start: int, end: int) -> None:
        """Expect that anything may be in `[start, end)`, until it is overwritten."""
        self._present.append((start, end))

    def see(self, record: Access) -> None:
        for at, byte in enumerate(record.bytes, record.physical):
            self._known[at] = byte, record.number
            self.touched[at] = record.first

    def unexplained(self, where: Sequence[int], found: Sequence[int]) -> list[bool]:
        """Tell of each byte found whether something unseen put it there.

        Where one byte is not what an access left, what else that access left there is gone
        too: a zero among the new bytes is not the old one.
        """
        strange: list[bool] = []
        whose: list[int | None] = []
        gone: set[int | None] = set()
        for address, byte in zip(where, found, strict=True):
            old, number = self._known.get(address, (None, None))
            if old is None:
                strange.append(not any(start <= address < end for start, end in self._present))
            else:
                strange.append(old != byte)
                if old != byte:
                    gone.add(number)
            whose.append(number)
        return [
            odd or (number is not None and number in gone)
            for odd, number in zip(strange, whose, strict=True)
        ]
