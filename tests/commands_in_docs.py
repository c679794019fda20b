"""What the documents tell people to type: blocks to run, files to write, and all mentions.

A block that is run::

    ```console
    $ invoke lab.run-nic
    COMPLETE: …
    ```

Words behind `console`: `exit=6` (the status of its last command), `not-in-ci: why` (it is
counted and left out).  A block ```` ```c file=mine/first.c ```` is written before the next
command.  Lines that do not begin with `$` are what it prints, and are not compared.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Up to the end of what is typed: in a table of commands, two spaces end it.
MENTION = re.compile(r"\binvoke ((?:--\w+ )?[a-z]+(?:\.[a-z-]+)?(?:(?!  )[^\n`|#&;…)])*)")


@dataclass(frozen=True)
class Block:
    """A block of a document: commands to run, or a file to write."""

    where: str  # README.md:12
    commands: tuple[str, ...] = ()
    status: int = 0
    not_in_ci: str = ""
    file: str = ""
    text: str = ""


def documents() -> list[Path]:
    return [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


def blocks(text: str, name: str) -> Iterator[Block]:
    """Yield the blocks of a document that are run or written, in their order."""
    for found in FENCE.finditer(text):
        language, words, body = found.groups()
        where = f"{name}:{text.count(chr(10), 0, found.start()) + 1}"
        if written := re.search(r"file=(\S+)", words):
            yield Block(where=where, file=written[1], text=body)
        elif language == "console":
            yield _console(where, words.strip(), body)


def _console(where: str, words: str, body: str) -> Block:
    commands = tuple(line[2:] for line in body.splitlines() if line.startswith("$ "))
    if not commands:
        raise ValueError(f"{where}: a console block without a command")
    left_out = words.startswith("not-in-ci:")
    why = words.removeprefix("not-in-ci:").strip() if left_out else ""
    if left_out and not why:
        raise ValueError(f"{where}: a block that CI does not run says why")
    status = re.fullmatch(r"exit=(\d+)", words)
    if words and not left_out and status is None:
        raise ValueError(f"{where}: console blocks take exit=N or not-in-ci: why; found {words!r}")
    return Block(
        where=where, commands=commands, status=int(status[1]) if status else 0, not_in_ci=why
    )


def mentions(text: str) -> Iterator[list[str]]:
    """Yield the words behind each `invoke` of a document, wherever it stands."""
    for found in MENTION.finditer(text):
        try:
            words = shlex.split(found[1])
        except ValueError:
            words = found[1].split()
        if words:
            yield words
