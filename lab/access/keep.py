"""From the large log a plugin writes to the small one a run keeps: what concerns the messages."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Self

from lab.access.layout import (
    HEADER_SIZE,
    LEAST,
    PAGE,
    RECORD_FIELDS,
    RECORD_LAYOUT,
    WINDOWS,
    WITHOUT_BYTES,
    Data,
    Flag,
    Header,
    Ranges,
    Row,
    encode_header,
    fault_of,
    parse_header,
    sealed,
    sections,
)
from lab.access.tables import indirect
from lab.errors import TraceCorrupt

# Bytes of a filtered log, and LIMIT_PER_BYTE for each byte of messages.  Twenty-three messages of
# 1400 bytes with modules and BPF programs took up to 3.3 MB: pages a message lay in serve programs
# and stacks at other times.
LIMIT = 1 << 23
LIMIT_PER_BYTE = 16
MOST_FOLLOWED = 2000  # stores that carry on a piece of a few bytes; the last step may add more
FEW = 4  # bytes; who reads a message byte by byte makes sums of it, and no copy
STEPS = 8  # copies one after the other that a piece of a few bytes is followed through
_STORE = int(Flag.STORE)  # as a number: an enum's own & takes most of the time of a large log
# Of many records only these fields are looked at: unpacking the others takes most of the time.
_SCANNED = ("virt", "phys", "first", "content", "call", "size", "flags", "narrowest", "widest")
_VIRT, _PHYS, _FIRST, _CONTENT, _CALL, _SIZE, _FLAGS, _NARROWEST, _WIDEST = range(9)
_SCAN = struct.Struct(
    "<"
    + "".join(
        code if name in _SCANNED else f"{struct.calcsize('<' + code)}x"
        for name, code in RECORD_FIELDS
    )
)


def keep(
    raw: Data,
    texts: Sequence[bytes],
    *,
    needle: bytes | None = None,
    ranges: Ranges = (),
    sources: Ranges = (),
    tables: Ranges = (),
    limit: int | None = None,
) -> bytes:
    """Return the log of a run directory: of `raw`, what concerns the messages `texts`.

    Kept are, as long as there is room, in this order: runs that hold at least eight bytes of
    a message in a row; all that touched `ranges`, or a table that a descriptor in `tables`,
    which are some of them, pointed at, or `sources`; what was carried on from those
    by address; all that touched, at any time, the memory where messages were seen, or that
    go on where such a run ended; what those who loaded from `sources` stored.  So for each
    place a message was loaded from, every store to that place is in the log.

    `needle` is what every message can be found by (`Messages.needle`).  `sources` are where
    messages may come from, user buffers and a device's: from there, less than eight bytes
    are followed by address, be they a whole message or the last of one.
    """
    header = parse_header(raw)
    table, view = sections(raw, header, where="access log")
    rows = list(_SCAN.iter_unpack(table))
    content = bytes(view)
    from_ = _Places(sources).touched_by(rows)
    listed = _Places(ranges).touched_by(rows)
    if apart := _indirect([rows[number] for number in listed], content, tables):
        listed = sorted({*listed, *_Places(apart).touched_by(rows)})
    found = [] if texts and len(texts[0]) < LEAST else _holding(rows, content, texts, needle)
    stores = _stores_by_call(rows)
    followed = _followed(rows, content, stores, {*from_, *found}, texts, places=found)
    around = _around(rows, sorted({*found, *followed}))
    calls = {rows[number][_CALL] for number in from_ if not rows[number][_FLAGS] & _STORE}
    stored = sorted(number for call in calls for number in stores.get(call, ()))
    if limit is None:
        limit = LIMIT + LIMIT_PER_BYTE * sum(map(len, texts))
    wanted = [found, listed, from_, followed, around, stored]
    return _packed(header, table, content, wanted, limit)


class _Places:
    """Physical ranges, and which records touch one."""

    def __init__(self, ranges: Ranges) -> None:
        # Ranges by page, joined where they meet: a page may be in a hundred thousand of them.
        self._pages: dict[int, tuple[list[int], list[int]]] = {}
        for start, end in sorted(set(ranges)):
            for page in range(start // PAGE, -(-end // PAGE)):
                starts, ends = self._pages.setdefault(page, ([], []))
                if ends and start <= ends[-1]:
                    ends[-1] = max(ends[-1], end)
                else:
                    starts.append(start)
                    ends.append(end)

    @classmethod
    def of(cls, rows: list[Row], numbers: Iterable[int]) -> Self:
        return cls((rows[n][_PHYS], rows[n][_PHYS] + rows[n][_SIZE]) for n in numbers)

    def touched_by(self, rows: list[Row]) -> list[int]:
        pages = self._pages
        if not pages:
            return []
        # Of the many, first the few in the right pages.
        near = [number for number, row in enumerate(rows) if row[_PHYS] >> 12 in pages]
        return [number for number in near if self._touched_by(rows[number])]

    def _touched_by(self, row: Row) -> bool:
        if row[_FLAGS] & WITHOUT_BYTES:
            return False
        start, end = row[_PHYS], row[_PHYS] + row[_SIZE]
        starts, ends = self._pages[start >> 12]
        before = bisect_left(starts, end) - 1  # the last that begins before this one's end
        return before >= 0 and start < ends[before]


def _indirect(rows: list[Row], content: bytes, tables: Ranges) -> set[tuple[int, int]]:
    """Return where the tables lay that descriptors in `tables` pointed at."""
    stores = [row for row in rows if row[_FLAGS] & _STORE] if tables else []
    stores.sort(key=lambda row: row[_FIRST])
    return indirect(
        ((row[_PHYS], content[row[_CONTENT] : row[_CONTENT] + row[_SIZE]]) for row in stores),
        tables,
    )


def _holding(
    rows: list[Row], content: bytes, texts: Sequence[bytes], needle: bytes | None
) -> list[int]:
    """Return the records that hold at least LEAST bytes of a message in a row."""
    found: set[int] = set()
    if needle:
        # Content of all records at once; a hit must lie within one of them.
        owners = sorted(
            (row[_CONTENT], number)
            for number, row in enumerate(rows)
            if not row[_FLAGS] & WITHOUT_BYTES
        )
        at = content.find(needle)
        while at >= 0:
            owner = bisect_right(owners, (at, len(rows))) - 1
            row = rows[owners[owner][1]]
            if at + max(len(needle), LEAST) <= row[_CONTENT] + row[_SIZE]:
                found.add(owners[owner][1])
            at = content.find(needle, at + 1)
    # What holds no needle holds the middle or the end of a message, so it begins with that,
    # or, when it grew downwards, ends with it.
    windows = _windows(texts)
    found.update(
        number
        for number, row in enumerate(rows)
        if (size := row[_SIZE]) >= LEAST
        and (
            content[(at := row[_CONTENT]) : at + LEAST] in windows
            or (size > LEAST and content[at + size - LEAST : at + size] in windows)
        )
        and not row[_FLAGS] & WITHOUT_BYTES
    )
    return sorted(found)


def _windows(texts: Sequence[bytes]) -> set[bytes]:
    """Return every LEAST bytes in a row of the messages, the first WINDOWS bytes of them."""
    windows: set[bytes] = set()
    left = WINDOWS
    for text in dict.fromkeys(texts):
        part = text[:left]
        windows.update(part[at : at + LEAST] for at in range(len(part) - LEAST + 1))
        left -= len(part)
        if left <= 0:
            break
    return windows


def _still(
    rows: list[Row],
    content: bytes,
    places: Iterable[int],
    touched: Iterable[int],
    windows: set[bytes] | None = None,
) -> list[int]:
    """Return those of `touched` that share bytes with one of `places`, and the same ones.

    What else lay there at another time, a counter say, is left out.  With `windows` the
    bytes must be within one of them: next to a message in registers others are pushed.
    """
    # By page, place and bytes: what is there may have been touched a hundred thousand times.
    asked: dict[int, dict[tuple[int, int], dict[bytes, list[int]]]] = defaultdict(dict)
    for number in touched:
        at, size, where = rows[number][_PHYS], rows[number][_SIZE], rows[number][_CONTENT]
        of_place = asked[at // PAGE].setdefault((at, at + size), defaultdict(list))
        of_place[content[where : where + size]].append(number)
    found: set[int] = set()
    seen: set[tuple[int, bytes]] = set()
    for place in places:
        at, size, where = rows[place][_PHYS], rows[place][_SIZE], rows[place][_CONTENT]
        data = content[where : where + size]
        if rows[place][_FLAGS] & WITHOUT_BYTES or (at, data) in seen:
            continue
        seen.add((at, data))
        for (start, end), of_place in asked.get(at // PAGE, {}).items():
            low, high = max(at, start), min(at + size, end)
            if low >= high or (windows and not _within(data, low - at, high - at, windows)):
                continue
            both = data[low - at : high - at]
            if high - low == end - start:
                found.update(of_place.get(both, ()))
                continue
            for held, numbers in of_place.items():
                if held[low - start : high - start] == both:
                    found.update(numbers)
    return sorted(found)


def _within(data: bytes, start: int, end: int, windows: set[bytes]) -> bool:
    """Tell whether `data[start:end]` lies within LEAST bytes in a row of a message."""
    first, last = max(0, end - LEAST), min(start, len(data) - LEAST)
    return any(data[at : at + LEAST] in windows for at in range(first, last + 1))


def _stores_by_call(rows: list[Row]) -> dict[int, list[int]]:
    stores: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row[_FLAGS] & _STORE and not row[_FLAGS] & WITHOUT_BYTES:
            stores[row[_CALL]].append(number)
    return stores


def _followed(
    rows: list[Row],
    content: bytes,
    stores: dict[int, list[int]],
    seeds: Iterable[int],
    texts: Sequence[bytes],
    *,
    places: Collection[int],
) -> list[int]:
    """Return the stores that carried on a few bytes of a message, or all of a short one.

    A call that loads them from where `seeds` were seen and stores the same elsewhere makes a
    new place, from which others load: step by step, as far as `STEPS`.  From `places`, where
    a message lies for certain, four to seven bytes are followed; from elsewhere its ends alone.
    """
    ends = _Ends(texts)

    def data(number: int) -> bytes:
        row = rows[number]
        return content[row[_CONTENT] : row[_CONTENT] + row[_SIZE]]

    def loads(numbers: Collection[int]) -> list[int]:
        touched = _Places.of(rows, numbers).touched_by(rows)
        return [number for number in touched if not rows[number][_FLAGS] & _STORE]

    def carries(store: int, load: int, *, whole: bool) -> bool:
        # Wider stores alone, as of a pointer or a sum, do not carry on what came byte by byte.
        if rows[store][_NARROWEST] > rows[load][_WIDEST]:
            return False
        stored, loaded = data(store), data(load)
        if whole:
            return stored == loaded
        if min(len(stored), len(loaded)) >= LEAST:
            return stored in loaded or loaded in stored
        # A copy stores its odd bytes one by one, in any order: the last run ends as the load does.
        return stored.endswith(loaded) or loaded.endswith(stored)

    known = {number for number in seeds if ends.in_frame(data(number))}
    # As __pskb_pull_tail() does: four bytes of a frag are copied behind the headers.
    few = [n for n in loads(places) if FEW <= rows[n][_SIZE] < LEAST and any(data(n))]
    few = _still(rows, content, places, few, _windows(texts)) if few else []
    pieces = {data(one) for one in few}
    out: set[int] = set()
    new = known
    for step in range(STEPS):
        here, few = [*_still(rows, content, new, loads(new)), *few], []
        new = set()
        is_end = ends.in_ if step else ends.in_frame
        for load in here:
            held = data(load)
            end = is_end(held)
            if end or held in pieces:
                # Of a piece in the middle only the whole tells it from a byte like its last.
                new.update(
                    store
                    for store in stores.get(rows[load][_CALL], ())
                    if store not in known and carries(store, load, whole=not end)
                )
        if not new or len(out) > MOST_FOLLOWED:
            break
        known |= new
        out |= new
    return sorted(out)


class _Ends:
    """The ends of messages that are too short to be told by content; of zeros none can be."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._small: set[bytes] = set()
        last: set[bytes] = set()
        padded: set[bytes] = set()
        for text in dict.fromkeys(texts):
            ends = [text] if len(text) < LEAST else [text[-size:] for size in range(1, LEAST)]
            told = [end for end in ends if any(end)]
            self._small.update(told)
            last.update(told[:1])
            whole = text.rstrip(b"\0")
            # One byte with zeros behind it is any small number.
            padded.update([whole[-2:] if len(text) >= LEAST else whole] if whole else [])
        self._last = tuple(last)
        self._padded = tuple(padded)

    def in_(self, data: bytes) -> bool:
        """Tell whether `data` may be, or end with, such an end, zeros behind it not counted.

        A device fills a short frame up with zeros, and drivers copy them along.
        """
        if len(data) < LEAST:
            return data in self._small
        return data.endswith(self._last) or data.rstrip(b"\0").endswith(self._padded)

    def in_frame(self, data: bytes) -> bool:
        """Tell the same of what lies in a device's buffer: there one byte may be all there is.

        The last fragment of a datagram may have one byte of it, filled up to 46 with zeros.
        """
        return self.in_(data) or (len(data) >= LEAST and data.rstrip(b"\0").endswith(self._last))


def _around(rows: list[Row], found: list[int]) -> list[int]:
    """Return the records that touch where `found` lie, or go on where they end."""
    touched = set(_Places.of(rows, found).touched_by(rows))
    calls = {rows[number][_CALL] for number in found}
    begins = {(rows[n][_CALL], rows[n][_FLAGS] & 1, rows[n][_VIRT]) for n in found}
    ends = {(rows[n][_CALL], rows[n][_FLAGS] & 1, rows[n][_VIRT] + rows[n][_SIZE]) for n in found}
    for number, row in enumerate(rows):
        if row[_CALL] in calls:
            call, store, virtual = row[_CALL], row[_FLAGS] & 1, row[_VIRT]
            if (call, store, virtual) in ends or (call, store, virtual + row[_SIZE]) in begins:
                touched.add(number)
    return sorted(touched)


def _packed(
    header: Header, table: memoryview, content: bytes, wanted: list[list[int]], limit: int
) -> bytes:
    """Return a log of the records `wanted`, those of the first list first to find room."""
    room = limit - HEADER_SIZE
    chosen: dict[int, tuple[Row, bytes]] = {}
    left_out: set[int] = set()
    for number in (number for numbers in wanted for number in numbers):
        if number in chosen or number in left_out:
            continue
        offset = number * RECORD_LAYOUT.size
        row: Row = RECORD_LAYOUT.unpack_from(table, offset)
        if (fault := fault_of(row, len(content))) is not None:
            raise TraceCorrupt(f"access log: offset {HEADER_SIZE + offset}: {fault}")
        short = _SCAN.unpack_from(table, offset)
        at = short[_CONTENT]
        data = b"" if short[_FLAGS] & WITHOUT_BYTES else content[at : at + short[_SIZE]]
        if RECORD_LAYOUT.size + len(data) > room:
            left_out.add(number)
            continue
        room -= RECORD_LAYOUT.size + len(data)
        chosen[number] = row, data
    records, pool = bytearray(), bytearray()
    first, where = 7, 9  # places of `first` and `content` in a row
    for number in sorted(chosen, key=lambda number: (chosen[number][0][first], number)):
        row, data = chosen[number]
        records += RECORD_LAYOUT.pack(*row[:where], len(pool), *row[where + 1 :])
        pool += data
    kept = encode_header(
        header,
        capacity=len(chosen),
        records=len(chosen),
        content_capacity=len(pool),
        content=len(pool),
        raw_records=max(1, header.records),
        left_out=len(left_out),
    )
    return sealed(kept + bytes(records) + bytes(pool))
