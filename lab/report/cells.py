"""How cells and headings that were made for a terminal look on a page."""

from __future__ import annotations

import re

from markupsafe import Markup

from lab.blocks import Table

# What is set as code: addresses, records, names that only programs have, bytes.
CODE = re.compile(
    r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|#\d+|\w_\w|->|\(\)|^[0-9a-f]{2}( [0-9a-f]{2})+$|^\[|\+0x"
)
PROSE = re.compile(r"(?<![^ ])[a-z']{2,}(?=[ ,.;:]|$)")
NAMES = frozenset({"RAX", "RDI", "RSI", "RDX", "NS", "TCP", "UDP", "PID", "TSC"})
LOUD = re.compile(r"[A-Z/][A-Z/:_'>-]*,?")  # a word of a heading that is set in capitals
TONES = {"green": "good", "red": "touched", "dim": "soft"}  # last word of a row's style


def sentence(text: str) -> str:
    """Return a heading as a page has it: no words in capitals but names."""
    words = text.split(" ")
    loud = next((n for n, word in enumerate(words) if not LOUD.fullmatch(word)), len(words))
    quiet = [word if word in NAMES else word.lower() for word in words[:loud]]
    if quiet and quiet[0] not in NAMES:
        quiet[0] = quiet[0].capitalize()
    return " ".join([*quiet, *words[loud:]])


def breaks(text: str) -> Markup:
    """Return a text, escaped, that a narrow page breaks before a value and not within."""
    return Markup("<wbr>").join(re.split(r"(?<=[(=])(?=\w)", text))


def is_code(cell: str) -> bool:
    """Tell whether a cell is code: it has some in it, and is no sentence."""
    return CODE.search(cell) is not None and len(PROSE.findall(cell)) < 3


def codes(table: Table) -> list[bool]:
    """Return which columns are set as code: those in which most cells are."""
    columns = [[cell for cell in column if cell] for column in zip(*table.rows, strict=True)]
    return [2 * sum(map(is_code, cells)) >= max(1, len(cells)) for cells in columns]


def tone(style: str) -> str:
    """Return the class of a row that has a style at a terminal."""
    return TONES.get(style.rpartition(" ")[2], "")
