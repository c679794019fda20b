"""Blocks as plain text of a fixed width, or as rich's at a terminal's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lab.blocks import Block, Heading, Lines, Paragraph, Table, paragraph, table
from lab.report import tables

__all__ = [
    "Block",
    "Heading",
    "Lines",
    "Paragraph",
    "Table",
    "paragraph",
    "plain",
    "shown",
    "table",
]

GOOD, BAD = "bold green", "bold red"
COLOURS = {
    **dict.fromkeys(("COMPLETE", "PROVEN", "AGREED"), GOOD),
    **dict.fromkeys(("INCOMPLETE", "NOT PROVEN", "DISAGREEMENT"), BAD),
}
MARKS = {"- ": "red", "! ": "red", "? ": "red", "✗ ": BAD, "Note:": "dim"}
SIGNS = {"✓": "green", "✗": BAD}


def plain(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield lines of at most `tables.WIDTH` columns; those of `Lines` are as they are."""
    for block in blocks:
        match block:
            case Table():
                yield from tables.table(block.head, block.rows, right=block.right)
            case Paragraph():
                yield from tables.paragraph(block.text)
            case Heading():
                yield "   ".join(filter(None, (block.text, block.evidence)))
            case Lines():
                yield from block.lines
            case _:
                yield block


def shown(blocks: Iterable[Block]) -> Iterator[RichTable | Text]:
    """Yield what rich fits to the width a terminal has."""
    for block in blocks:
        match block:
            case Table():
                yield _rich(block)
            case Heading():
                yield Text(block.text, style="bold").append(f"   {block.evidence}", style="dim")
            case Lines():
                yield Text("\n".join(block.lines), no_wrap=True, overflow="ignore")
            case _:
                yield _text(block if isinstance(block, str) else block.text)


def _text(text: str) -> Text:
    word = text.partition(":")[0]
    style = COLOURS.get(word) or next(
        (style for mark, style in MARKS.items() if text.startswith(mark)), ""
    )
    return _signed(Text(text, style=style))


def _signed(text: Text) -> Text:
    for sign, style in SIGNS.items():
        text.highlight_words([sign], style)
    return text


def _rich(block: Table) -> RichTable:
    out = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        header_style="bold",
        show_header=bool(block.head),
        expand=any(block.shares),
    )
    width = len(block.head) or max((len(row) for row in block.rows), default=0)
    for number in range(width):
        name = block.head[number] if block.head else ""
        share = block.shares[number] if block.shares else 0
        out.add_column(
            Text(name),
            justify="right" if name in block.right.split() else "left",
            overflow="fold",
            ratio=share or None,
        )
    for number, row in enumerate(block.rows):
        style = block.styles[number] if block.styles else ""
        # What a guest said is never markup.
        out.add_row(*(_signed(Text(cell, style=style)) for cell in row))
    return out
