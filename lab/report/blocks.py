"""Paragraphs and tables: plain text of a fixed width, or rich's at a terminal's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lab.report import tables

COLOURS = {"COMPLETE": "bold green", "INCOMPLETE": "bold red", "DISAGREEMENT": "bold red"}
MARKS = {"- ": "red", "! ": "red", "? ": "red", "Note:": "dim"}


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text that is wrapped, lines after the first indented."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells by row; the columns named in `right` are set to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: str = "LEN"


Block: TypeAlias = str | Paragraph | Table


def paragraph(text: str) -> list[Block]:
    """Return a text as blocks."""
    return [Paragraph(text)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Block]:
    """Return a table as blocks."""
    return [Table(tuple(head), tuple(tuple(row) for row in rows))]


def plain(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield lines of at most `tables.WIDTH` columns."""
    for block in blocks:
        if isinstance(block, Table):
            yield from tables.table(block.head, block.rows, right=block.right)
        elif isinstance(block, Paragraph):
            yield from tables.paragraph(block.text)
        else:
            yield block


def shown(blocks: Iterable[Block]) -> Iterator[RichTable | Text]:
    """Yield what rich fits to the width a terminal has."""
    for block in blocks:
        if isinstance(block, Table):
            yield _rich(block)
        else:
            text = block if isinstance(block, str) else block.text
            word = text.partition(":")[0]
            style = COLOURS.get(word) or next(
                (style for mark, style in MARKS.items() if text.startswith(mark)), ""
            )
            yield Text(text, style=style)


def _rich(block: Table) -> RichTable:
    out = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in block.head:
        justify = "right" if name in block.right.split() else "left"
        out.add_column(Text(name), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in block.rows:
        out.add_row(*(Text(cell) for cell in row))  # what a guest said is never markup
    return out
