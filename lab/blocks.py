"""What a report says, before it is known where: paragraphs, headings, tables, drawn lines.

`lab.report` makes plain text of them, tables for a terminal, or a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text that is wrapped, lines after the first indented."""

    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """What the blocks behind it are about, and the evidence for all of them."""

    text: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines that stay as they are: a drawing, or what somebody printed."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells by row; the columns named in `right` are set to the right.

    Without a head the rows are set in by two.  `styles` are rich's, one for each row, and
    `shares` say how columns share what width is left, 0: as wide as its cells.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: str = "LEN"
    styles: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()


Block: TypeAlias = str | Paragraph | Heading | Lines | Table  # a str is one line of its own


def paragraph(text: str) -> list[Block]:
    """Return a text as blocks."""
    return [Paragraph(text)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "LEN") -> list[Block]:
    """Return a table as blocks."""
    return [Table(tuple(head), tuple(tuple(row) for row in rows), right)]
