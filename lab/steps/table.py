"""The steps as the worksheet's table: plain text that a pipe may read, or colours at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lab.blocks import Block, Heading, Table, paragraph, table
from lab.rundir import transport
from lab.steps.build import Steps, seen_at
from lab.steps.compare import Fate
from lab.steps.rows import Step, Type

HEAD = ("STEP", "TYPE", "FILE:LINE", "CALLER", "VALUES", "WORK")
SHARES = (0, 0, 3, 2, 7, 4)
COLOURS = {
    Type.SYSCALL: "bold magenta",
    Type.CPU_READ: "bold green",
    Type.CPU_WRITE: "bold red",
    Type.DATA_STATE: "yellow",
    Type.VAR_SET: "cyan",
    Type.VAR_READ: "cyan",
    Type.CHECK: "blue",
    Type.RETURN: "dim",
    Type.CONTINUE: "dim",
}
INDENT = "· "
WIDEST = 100  # columns; a longer text moves what follows it


def chosen(found: Steps, *, depth: int | None = None, everything: bool = False) -> list[Step]:
    """Return the steps of the message's way, or all; at most `depth` calls deep."""
    return [
        step
        for step in found.steps
        if (everything or step.way) and (depth is None or step.depth <= depth)
    ]


def cells(step: Step) -> tuple[str, str, str, str, str, str]:
    """Return a row's texts."""
    name = f"{step.function}()" if step.type in (Type.CALL, Type.SYSCALL) else ""
    name = f"{step.function}()" if step.type is Type.CHECK else name
    name = f"{step.function}() returned" if step.type is Type.RETURN else name
    told = f"{name} {step.values}".strip()
    return (
        f"#{step.number:02}",
        step.type,
        step.where,
        step.caller,
        INDENT * step.depth + told,
        step.work,
    )


def render(
    found: Steps, *, depth: int | None = None, everything: bool = False, compare: bool = True
) -> str:
    """Return the table as text, the worksheet's functions below it."""
    steps = chosen(found, depth=depth, everything=everything)
    lines = [_headline(found), *_followed(found), ""]
    lines += _plain([HEAD, *(cells(step) for step in steps)])
    left = len(found.steps) - len(steps)
    if left:
        lines += [
            "",
            f"{left} of {len(found.steps)} steps are not shown: --all, or another --depth",
        ]
    if compare:
        lines += ["", *_comparison(found)]
    return "\n".join(lines) + "\n"


def told(found: Steps, *, depth: int | None = None, everything: bool = False) -> list[Block]:
    """Return the table and what is said besides it, for a terminal or a page."""
    steps = chosen(found, depth=depth, everything=everything)
    left = len(found.steps) - len(steps)
    rows = tuple(cells(step) for step in steps)
    styles = tuple(COLOURS.get(step.type, "") for step in steps)
    hint = f"{left} of {len(found.steps)} steps are not shown: lab.steps --all, or another --depth"
    return [
        *paragraph(_headline(found)),
        *(block for line in _followed(found) for block in paragraph(line)),
        "",
        Heading("THE STEPS, in the order of time"),
        Table(HEAD, rows, styles=styles, shares=SHARES),
        *(paragraph(hint) if left else ()),
        "",
        Heading("THE WORKSHEET'S FUNCTIONS in this kernel"),
        *table(("STEP", "FUNCTION", "SEEN", "HOW"), _compared(found)),
    ]


def _headline(found: Steps) -> str:
    way = transport(found.protocol, family=found.family, connected=False)
    sent = f"{found.size} bytes over {found.over}, {way}"
    verdict = "COMPLETE" if not found.trouble else "INCOMPLETE"
    return f"{verdict}: {len(found.steps)} steps of one message: {sent}, Linux {found.kernel}"


def _followed(found: Steps) -> list[str]:
    lines = [
        f"{guest}: {one['calls']:.0f} calls followed in {one['seconds']:.1f} s,"
        f" {one['breakpoints']:.0f} breakpoints, nothing loaded into the guest"
        for guest, one in found.followed.items()
    ]
    return lines + [f"! {one}" for one in found.trouble]


def _plain(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [min(WIDEST, max(len(row[n]) for row in table)) for n in range(len(HEAD) - 1)]
    out = [
        " | ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
        )
        for row in table
    ]
    out.insert(1, "─" * min(180, max(map(len, out))))
    return out


def _comparison(found: Steps) -> list[str]:
    return [
        "The worksheet's functions in this kernel:",
        *(
            f"  {step:<9}{function:<24}{fate:<16}{reason}".rstrip()
            for step, function, fate, reason in _compared(found)
        ),
    ]


def _compared(found: Steps) -> list[tuple[str, str, str, str]]:
    rows = []
    for one in found.compared:
        place = seen_at(one, found.steps)
        fate = f"step #{place:02}" if one.fate is Fate.SEEN and place else str(one.fate)
        rows.append((one.claimed.step, one.claimed.function, fate, one.reason))
    return rows
