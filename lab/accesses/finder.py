"""Message bytes in what was loaded and stored: by content, and below eight bytes by address."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from lab.access import LEAST, PAGE, WINDOWS
from lab.accesses.stretches import Piece, Stretch, call_of
from lab.accesses.types import Hold
from lab.message import Messages, Run

SCANNED = 512  # bytes of a stretch that are searched at every place


def find(stretches: list[Stretch], messages: Messages, holds: Iterable[Hold]) -> list[Piece]:
    """Return the message bytes in each stretch, by content, else by address.

    `holds` and what was stored since say where bytes lie that are too few to be told by
    themselves: a load from there that sees them has them, and so has a store by the same
    call of all that the load saw.
    """
    content = _Content(messages)
    held = _Holds(messages)
    for hold in holds:
        held.put(hold)
    pieces: list[Piece] = []
    small: dict[tuple[int, int], list[Piece]] = defaultdict(list)  # loads of each call
    for stretch in stretches:
        store = stretch.records[0].store
        found = [Piece(stretch, run) for run in content.runs(bytes(stretch.bytes))]
        if not found and store:
            found = _carried(stretch, small.get(call_of(stretch), []))
        elif not found:
            found = held.seen_by(stretch)
            if found:
                small[call_of(stretch)] += found
        if store:
            held.stored(stretch, found)
        pieces += found
    return pieces


class _Holds:
    """Which message bytes lie at which physical address, by page."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._pages: dict[int, list[Hold]] = {}

    def put(self, hold: Hold) -> None:
        start, end, index, offset = hold
        for page in range(start // PAGE, -(-end // PAGE)):
            low, high = max(start, page * PAGE), min(end, (page + 1) * PAGE)
            self._pages.setdefault(page, []).append((low, high, index, offset + low - start))

    def stored(self, stretch: Stretch, pieces: list[Piece]) -> None:
        """Forget what a store wrote over, and note what it put there."""
        for start, size in stretch.extents(stretch.virtual, stretch.end):
            self._clear(start, start + size)
        for piece in pieces:
            offset = piece.run.offset
            for start, size in piece.extents:
                self.put((start, start + size, piece.run.index, offset))
                offset += size

    def _clear(self, start: int, end: int) -> None:
        for page in range(start // PAGE, -(-end // PAGE)):
            if page not in self._pages:
                continue
            kept: list[Hold] = []
            for low, high, index, offset in self._pages[page]:
                if low < min(start, high):
                    kept.append((low, min(start, high), index, offset))
                if max(end, low) < high:
                    kept.append((max(end, low), high, index, offset + max(end, low) - low))
            self._pages[page] = kept

    def seen_by(self, stretch: Stretch) -> list[Piece]:
        """Return what a load saw of the bytes that are known to lie there, in order."""
        found: list[Piece] = []
        at = 0
        for physical, size in stretch.extents(stretch.virtual, stretch.end):
            holds = {
                hold
                for page in range(physical // PAGE, -(-(physical + size) // PAGE))
                for hold in self._pages.get(page, ())
            }
            for start, end, index, offset in sorted(holds):
                low, high = max(physical, start), min(physical + size, end)
                first, there = at + low - physical, offset + low - start
                data = bytes(stretch.bytes[first : first + high - low]) if low < high else b""
                if data and data == self._messages.bytes(index)[there : there + len(data)]:
                    run = Run(first, first + len(data), index, there, exact=True)
                    found.append(Piece(stretch, run))
            at += size
        return found


def _carried(store: Stretch, loads: list[Piece]) -> list[Piece]:
    """Return what a store holds of loads of the same call, the latest that fit."""
    stored = bytes(store.bytes)
    for load in reversed(loads):
        data = bytes(load.stretch.bytes)
        shift = 0 if stored == data else None
        if shift is None and min(len(data), len(stored)) >= LEAST:
            at, back = stored.find(data), data.find(stored)
            shift = at if at >= 0 else -back if back >= 0 else None
        if shift is None:
            continue
        found = []
        for piece in loads:
            run = piece.run
            low, high = max(run.start + shift, 0), min(run.end + shift, len(stored))
            if piece.stretch is load.stretch and low < high:
                offset = run.offset + low - run.start - shift
                found.append(Piece(store, Run(low, high, run.index, offset, exact=run.exact)))
        if found:
            return found
    return []


class _Content:
    """Finds messages, whole or in part, by eight bytes or more of them in a row."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages
        self._windows: dict[bytes, tuple[int, int]] = {}
        left = WINDOWS
        if messages.size >= LEAST:
            for index in range(messages.count if messages.payload is None else 1):
                text = messages.bytes(index)[:left]
                for at in range(len(text) - LEAST + 1):
                    self._windows.setdefault(text[at : at + LEAST], (index, at))
                left -= len(text)
                if left <= 0:
                    break

    def runs(self, data: bytes) -> list[Run]:
        """Return the runs of message bytes in `data`, in order, none overlapping another."""
        if self.messages.size < LEAST:
            return []
        found: list[Run] = []
        for run in self.messages.runs(data):
            if run.size >= LEAST and (not found or run.start >= found[-1].end):
                found.append(run)
        # The middle or the end of a message holds no needle: see lab.access.keep.
        out: list[Run] = []
        done = 0
        for run in found:
            out += [*self._between(data, done, run.start), run]
            done = run.end
        return [*out, *self._between(data, done, len(data))]

    def _between(self, data: bytes, low: int, high: int) -> Iterator[Run]:
        # What is small is searched all through: saved registers hold eight bytes here, eight
        # there.  What is large begins or ends with the part of a message, or holds a needle.
        at = low
        while at + LEAST <= high:
            found = self._fragment(data, at, high, least=low)
            yield from found
            if found:
                low = at = found[0].end
            else:
                at = at + 1 if high - low <= SCANNED else max(at + 1, high - LEAST)

    def _fragment(self, data: bytes, at: int, end: int, *, least: int = 0) -> list[Run]:
        # The message bytes around the LEAST at `at`, within [least, end).
        if at < least or at + LEAST > end:
            return []
        known = self._windows.get(data[at : at + LEAST])
        if known is None:
            return []
        index, offset = known
        text = self.messages.bytes(index)
        after = same_start(data[at:end], text[offset:])
        before = same_start(data[least:at][::-1], text[:offset][::-1])
        exact = self.messages.payload is None
        return [Run(at - before, at + after, index, offset - before, exact=exact)]


def same_start(left: bytes | bytearray, right: bytes | bytearray) -> int:
    """Return how many bytes both begin with."""
    size = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        size += 1
    return size
