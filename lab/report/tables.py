"""Plain text that fits: tables and paragraphs of at most 110 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 110


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "LEN") -> list[str]:
    """Return the lines of a table; the columns named in `right` are set to the right.

    Without a head the rows are set in by two, and no line is drawn.
    """
    lines = [*([list(head)] if head else []), *(list(row) for row in rows)]
    if not lines:
        return []
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    # Two spaces between columns where they fit, else one.
    gap = "  " if sum(widths) + 2 * (len(head) - 1) <= WIDTH else " "
    out = []
    for line in lines:
        cells = [
            cell.rjust(width) if head and head[n] in right.split() else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append(gap.join(cells).rstrip())
    if not head:
        return [f"  {line}" for line in out]
    out.insert(1, "─" * min(WIDTH, max(len(line) for line in out)))
    return out


def paragraph(text: str, *, indent: str = "  ", width: int | None = None) -> list[str]:
    """Return a text's lines, those after the first indented."""
    return textwrap.wrap(
        text,
        width or WIDTH,
        subsequent_indent=indent,
        break_long_words=True,
        break_on_hyphens=False,
    )


def times(count: int) -> str:
    """Return how often, in words where there is one."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def often(least: int, most: int) -> str:
    """Return how often, where not all of them as often: the least and the most."""
    if least == most:
        return times(most)
    word = "or" if most == least + 1 else "to"
    return f"{least} {word} {most} times" if most > 2 else f"{times(least)} {word} {times(most)}"


def some(count: int, one: str, more: str | None = None) -> str:
    """Return a count with its noun."""
    return f"{count} {one if count == 1 else more or one + 's'}"


def span(least: int, most: int) -> str:
    """Return a count, or the least and the most of several: "2-3"."""
    return str(most) if least == most else f"{least}-{most}"


def spread(counts: tuple[int, int], one: str, more: str | None = None) -> str:
    """Return the least and the most of several counts with their noun: "2-3 copies"."""
    least, most = counts
    return some(most, one, more) if least == most else f"{span(least, most)} {more or one + 's'}"


def content(data: bytes) -> str:
    """Return the first 16 bytes as text where they are one, else in hexadecimal."""
    first = data[:16]
    if first and all(32 <= byte < 127 for byte in first):
        return f'"{first.decode("ascii")}"'
    return first.hex()
