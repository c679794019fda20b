"""The message: derived from a seed or given as a payload, and found again among other bytes.

The layout is in docs/internals.md; `guest/message.h` is the same in C, and a
unit test compares the two.
"""

from __future__ import annotations

from array import array
from builtins import bytes as Bytes  # noqa: N812  # `Messages.bytes` hides the name in its class
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from sys import byteorder

TAG_SIZE = 5  # bytes
BLOCK_SIZE = 16  # bytes
MAX_SIZE = 65536 * BLOCK_SIZE  # bytes; a block's number has 16 bits
MAX_COUNT = 1 << 24  # an index has 24 bits
MASK = 0x5A
NEEDLE_SIZE = 16  # bytes of a payload that are searched for
SEARCHABLE_SIZE = 8  # bytes; below, a message is told by its socket and order
KEPT = 64 << 20  # bytes of messages that are kept once they were derived
CANDIDATES = 64  # places of a needle inside one payload that are tried

_U64 = (1 << 64) - 1
_HEAD_SIZE = 8  # bytes of a block that say the run and the message: tag, index
_PLACE_SIZE = 10  # bytes of a block that say which block of which message it is
# A walk goes over the messages of a run several times, from the first to the last.
_derived: dict[tuple[int, int, int], bytes] = {}


def splitmix64(x: int) -> int:
    """Return the number that follows the state `x`, modulo 2^64."""
    z = (x + 0x9E3779B97F4A7C15) & _U64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _U64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _U64
    return z ^ z >> 31


@lru_cache(maxsize=64)
def tag(seed: int) -> bytes:
    """Return the five bytes that every block of every message of a run begins with."""
    return splitmix64(seed ^ 0x6C61627461670000).to_bytes(8, "little")[:TAG_SIZE]


def derive(seed: int, index: int, size: int) -> bytes:
    """Return message `index` of the run with this seed."""
    key = seed, index, size
    found = _derived.get(key)
    if found is None:
        if len(_derived) * size > KEPT:
            _derived.clear()
        found = _derived[key] = _derive(seed, index, size)
    return found


def _derive(seed: int, index: int, size: int) -> bytes:
    if not 0 <= seed <= _U64:
        raise ValueError(f"seed: expected 64 bits, found {seed:#x}")
    if not 0 <= index < MAX_COUNT:
        raise ValueError(f"index: expected 0 to {MAX_COUNT - 1}, found {index}")
    _check_size(size)
    head = int.from_bytes(tag(seed), "little") | index << 40
    state = seed + (index << 20) + 1
    blocks = -(-size // BLOCK_SIZE)
    words = array("Q", [head]) * (2 * blocks)
    words[1::2] = array("Q", [splitmix64(state + b) << 16 & _U64 | b for b in range(blocks)])
    if byteorder == "big":
        words.byteswap()
    return words.tobytes()[:size]


def from_payload(payload: bytes, size: int) -> bytes:
    """Return a user's own text, repeated or cut to `size` bytes."""
    _check_size(size)
    if not payload:
        raise ValueError("payload: expected at least one byte")
    return (payload * (-(-size // len(payload))))[:size]


def mask(payload: bytes) -> str:
    """Return the form in which a payload reaches a guest: never in clear."""
    return bytes(byte ^ MASK for byte in payload).hex()


def unmask(masked: str) -> bytes:
    """Return the payload that `mask` made unreadable."""
    return bytes(byte ^ MASK for byte in bytes.fromhex(masked))


@dataclass(frozen=True, slots=True)
class Run:
    """Message bytes that lie together: `[start, end)` of the bytes searched.

    `index` is the message and `offset` what of it lies at `start`.  When other
    messages, or other parts of this one, have these bytes too (a payload; a
    block's first bytes alone), `exact` is False and both are the lowest.
    """

    start: int
    end: int
    index: int
    offset: int
    exact: bool

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class Messages:
    """All messages of a run: from a seed, or one payload `count` times."""

    seed: int | None = None
    payload: Bytes | None = None
    size: int
    count: int

    def __post_init__(self) -> None:
        if (self.seed is None) == (self.payload is None):
            raise ValueError("expected a seed or a payload, found both or none")
        _check_size(self.size)
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count: expected 1 to {MAX_COUNT}, found {self.count}")

    def bytes(self, index: int) -> Bytes:
        """Return message `index`."""
        if not 0 <= index < self.count:
            raise IndexError(f"message {index} of {self.count}")
        if self.payload is not None:
            return from_payload(self.payload, self.size)
        assert self.seed is not None
        return derive(self.seed, index, self.size)

    def needle(self) -> Bytes | None:
        """Return what to search memory for, or None: the message is too short to be told apart."""
        if self.size < SEARCHABLE_SIZE:
            return None
        if self._tag is not None:
            return self._tag
        return self.bytes(0)[:NEEDLE_SIZE]

    def locate(self, window: Bytes | bytearray, at: int) -> Run | None:
        """Return the longest run of message bytes around the needle found at `at`.

        Every byte of the run was compared with the message.  None: the needle
        is not there (memory that lives may have changed since it was).
        """
        needle = self.needle()
        if needle is None or not _begins(window, at, needle):
            return None
        found = [
            _extend(window, at, self.bytes(index), index, offset)
            for index, offset in self._candidates(window, at)
        ]
        if found:
            # The first of the longest: candidates come in order of likelihood.
            best = max(found, key=lambda run: run.size)
            exact = self.payload is None or (
                self.count == 1 and sum(run.size == best.size for run in found) == 1
            )
            return best if exact else replace(best, exact=False)
        # A block's first bytes alone; every block of a message has the same.
        index = int.from_bytes(window[at + TAG_SIZE : at + _HEAD_SIZE], "little")
        known = at + _HEAD_SIZE <= len(window) and index < self.count
        size = _HEAD_SIZE if known else TAG_SIZE
        return Run(at, at + size, index if known else 0, 0, exact=False)

    def named(self, data: Bytes) -> tuple[int, int] | None:
        """Return which message, and which of its bytes, `data` says that it begins with.

        None where it begins with no whole head of a block.  What follows is not compared.
        """
        if self._tag is None or len(data) < _PLACE_SIZE or data[:TAG_SIZE] != self._tag:
            return None
        index = int.from_bytes(data[TAG_SIZE:_HEAD_SIZE], "little")
        offset = int.from_bytes(data[_HEAD_SIZE:_PLACE_SIZE], "little") * BLOCK_SIZE
        return (index, offset) if index < self.count and offset < self.size else None

    @cached_property
    def _tag(self) -> Bytes | None:
        return None if self.seed is None else tag(self.seed)

    def runs(self, window: Bytes | bytearray) -> Iterator[Run]:
        """Find every run of message bytes, in order, none twice."""
        needle = self.needle()
        at = -1 if needle is None else window.find(needle)
        while needle is not None and at >= 0:
            run = self.locate(window, at)
            assert run is not None
            yield run
            at = window.find(needle, max(run.end, at + 1))

    def _candidates(self, window: Bytes | bytearray, at: int) -> Iterator[tuple[int, int]]:
        # Messages and offsets whose bytes may be the needle's at `at`.
        if self.payload is not None:
            message, needle = self.bytes(0), self.needle() or b""
            offset = 0
            for _ in range(CANDIDATES):
                yield 0, offset
                offset = message.find(needle, offset + 1)
                if offset < 0:
                    return
            return
        head = window[at : at + _PLACE_SIZE]
        last = (self.size - 1) // BLOCK_SIZE * BLOCK_SIZE
        index = int.from_bytes(head[TAG_SIZE:_HEAD_SIZE], "little")
        if len(head) < _HEAD_SIZE or index >= self.count:
            index = -1
        if index >= 0 and len(head) == _PLACE_SIZE:
            offset = int.from_bytes(head[_HEAD_SIZE:], "little") * BLOCK_SIZE
            if offset < self.size and _begins(window, at, self.bytes(index)[offset:][:_PLACE_SIZE]):
                yield index, offset
        if index >= 0 and self.size - last < _PLACE_SIZE:
            # The last block, too short to hold its own number.
            tail = self.bytes(index)[last:]
            if len(tail) >= _HEAD_SIZE and _begins(window, at, tail):
                yield index, last
        if self.size - last < _HEAD_SIZE and last > 0:
            # Too short even for the index: the block before it says which message.
            before = int.from_bytes(window[max(at - 11, 0) : max(at - 8, 0)], "little")
            if at >= BLOCK_SIZE and before < self.count:
                message = self.bytes(before)
                if _begins(window, at - BLOCK_SIZE, message[last - BLOCK_SIZE :]):
                    yield before, last


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"size: expected 1 to {MAX_SIZE}, found {size}")


def _begins(window: bytes | bytearray, at: int, what: bytes) -> bool:
    return window[at : at + len(what)] == what


def _extend(window: bytes | bytearray, at: int, message: bytes, index: int, offset: int) -> Run:
    # Both ways from `at`, which holds what `message` has at `offset`.
    after = _same_until(window[at : at + len(message) - offset], message[offset:])
    back = min(at, offset)
    before = _same_until(window[at - back : at][::-1], message[offset - back : offset][::-1])
    return Run(at - before, at + after, index, offset - before, exact=True)


def _same_until(left: bytes | bytearray, right: bytes) -> int:
    # The length of what both begin with: halving, each half compared at once.
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
