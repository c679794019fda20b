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

GAP, LEAST = 2, 9  # columns between columns of a table, and what each of them surely gets
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
                yield _rich(block, width)
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


def _whole(block: Table, width: int) -> frozenset[int]:
    """Return the columns of single words, addresses and the like, that need not be broken."""
    lines = [row for row in (block.head, *block.rows) if row]
    columns = [[row[number] for row in lines] for number in range(len(lines[0]) if lines else 0)]
    words = {
        number: max(map(len, cells))
        for number, cells in enumerate(columns)
        if not any(" " in cell for cell in cells[bool(block.head) :])
    }
    whole: set[int] = set()
    longest = [
        max(len(word) for cell in cells for word in [*cell.split(), ""]) for cells in columns
    ]
    left = width - sum(GAP + min(LEAST, long) for long in longest)
    for number, long in sorted(words.items(), key=lambda word: word[1]):
        left -= max(0, long - LEAST)
        if left < 0:
            break
        whole.add(number)
    return frozenset(whole)


def _rich(block: Table, width: int) -> RichTable:
    out = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        show_header=bool(block.head),
        expand=any(block.shares),
    )
    whole = _whole(block, width)
    for number in range(len(block.head) or max((len(row) for row in block.rows), default=0)):
        name = block.head[number] if block.head else ""
        share = block.shares[number] if block.shares else 0
        out.add_column(
            Text(name),
            justify="right" if name in block.right.split() else "left",
            overflow="fold",
            no_wrap=number in whole,
            ratio=share or None,
        )
    for number, row in enumerate(block.rows):
        style = block.styles[number] if block.styles else ""
        # What a guest said is never markup.
        out.add_row(*(_signed(Text(cell, style=style)) for cell in row))
    return out
