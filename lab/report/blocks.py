"""Blocks as plain text of a fixed width, or as rich's at a terminal's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from lab.blocks import Block, Heading, Lines, Paragraph, Table, paragraph, table
from lab.report import columns, tables

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


def shown(blocks: Iterable[Block], *, width: int = 80) -> Iterator[RichTable | Text]:
    """Yield what rich fits to the width a terminal has."""
    for block in blocks:
        match block:
            case Table():
                widths = columns.widths(block, width)
                yield _rich(block, widths) if widths else _stacked(block, width)
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


def _rich(block: Table, widths: Sequence[int]) -> RichTable:
    out = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        show_header=bool(block.head),
    )
    for number, width in enumerate(widths):
        name = block.head[number] if block.head else ""
        justify: JustifyMethod = "right" if name in block.right.split() else "left"
        out.add_column(Text(name), justify=justify, overflow="fold", width=width)
    for number, row in enumerate(block.rows):
        style = block.styles[number] if block.styles else ""
        # What a guest said is never markup.
        out.add_row(*(_signed(Text(cell, style=style)) for cell in row))
    return out


def _stacked(block: Table, width: int) -> Text:
    """Return a table as what it says of each row: its cells, with the names of their columns."""
    out = Text()
    for number, row in enumerate(block.rows):
        style = block.styles[number] if block.styles else ""
        for line in columns.packed(block.head, row, width):
            for name, words in line:
                out.append(name, style="dim").append(words, style=style)
            out.append("\n")
    out.right_crop(1)
    return _signed(out)
