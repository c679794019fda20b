"""How wide the columns of a table are at a terminal, and what becomes of it where they do not fit.

No word of a cell is broken: half an address is none.  Where columns as wide as their longest
words do not fit, a table of prose lets its names give way, and any other is set row by row.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from lab.blocks import Table

GAP = 2  # between columns, and before the first and behind the last
LEAST = 14  # of a column of prose, a name of which may be broken
INDENT = "  "
BETWEEN = "   "  # fields of a row that is set by itself
VALUE = re.compile(r"0x[0-9a-f]{5,}|(?<![0-9a-z])[0-9a-f]{8,}(?![0-9a-z])|#\d+")

Line = list[tuple[str, str]]  # name of a field, and what it holds


def widths(table: Table, width: int) -> list[int]:
    """Return how wide each column is; none where they do not fit."""
    lines = [row for row in (table.head, *table.rows) if row]
    if not lines:
        return [1]
    columns = [[row[number] for row in lines] for number in range(len(lines[0]))]
    full = [max(map(len, cells)) for cells in columns]
    words = [_longest(cells) for cells in columns]
    least = [words]
    if table.shares:  # of prose, whose longest words are names
        pairs = zip(columns, words, table.shares, strict=True)
        least += [[min(long, _prose(cells)) if share else long for cells, long, share in pairs]]
    room = width - GAP * len(columns)
    fitting = next((one for one in least if sum(one) <= room), [])
    return _filled(fitting, full, room, table.shares) if fitting else []


def _longest(cells: Iterable[str]) -> int:
    return max((len(word) for cell in cells for word in cell.split()), default=0) or 1


def _prose(cells: Iterable[str]) -> int:
    """Return what a column of prose cannot do without: its addresses and the like."""
    values = [word for cell in cells for word in cell.split() if VALUE.search(word)]
    return max(LEAST, _longest(values))


def _filled(
    least: Sequence[int], full: Sequence[int], room: int, shares: Sequence[int]
) -> list[int]:
    """Give what is left to the columns that want it: by their shares, else the narrowest first."""
    out = list(least)
    left = room - sum(out)
    wants = sorted(range(len(out)), key=lambda number: full[number])
    while left > 0 and any(out[number] < full[number] for number in wants):
        for number in wants:
            share = (shares[number] or 1) if shares else full[number]
            more = min(share, full[number] - out[number], left)
            out[number] += more
            left -= more
    return out


def packed(head: Sequence[str], row: Sequence[str], width: int) -> list[Line]:
    """Return one row as lines of fields, as many on each as fit."""
    names = [f"{name} " for name in head] or [""] * len(row)
    out: list[Line] = []
    used = width
    for name, cell in zip(names, row, strict=True):
        if not cell:
            continue
        size = len(name) + len(cell)
        if out and used + len(BETWEEN) + size <= width:
            out[-1].append((BETWEEN + name, cell))
            used += len(BETWEEN) + size
            continue
        start = INDENT if out else ""
        first, *more = textwrap.wrap(
            cell, width - len(INDENT), initial_indent=" " * len(start + name),
            break_on_hyphens=False,
        ) or [""]  # fmt: skip
        out.append([(start + name, first.strip())])
        out += [[(INDENT * 2, line)] for line in more]
        used = len(start) + size if not more else width
    return out
