"""The steps as the worksheet's table: plain text that a pipe may read, or colours at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lab.rundir import transport
from lab.steps.build import Steps, seen_at
from lab.steps.compare import Fate
from lab.steps.rows import Step, Type

HEAD = ("STEP", "TYPE", "FILE:LINE", "CALLER", "VALUES", "WORK")
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


def rich_table(found: Steps, *, depth: int | None = None, everything: bool = False) -> Table:
    """Return the table for a terminal."""
    table = Table(title=_headline(found), expand=True, pad_edge=False)
    for name, ratio in zip(HEAD, (None, None, 3, 2, 7, 4), strict=True):
        table.add_column(name, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    for step in chosen(found, depth=depth, everything=everything):
        style = COLOURS.get(step.type, "")
        table.add_row(*(Text(cell, style=style) for cell in cells(step)))
    return table


def notes(found: Steps) -> str:
    """Return what is said besides the table."""
    return "\n".join([*_followed(found), "", *_comparison(found)]) + "\n"


def _headline(found: Steps) -> str:
    way = transport(found.protocol, family=found.family, connected=False)
    sent = f"{found.size} bytes over {found.over}, {way}"
    verdict = "COMPLETE" if not found.trouble else "INCOMPLETE"
    return f"{verdict}  {len(found.steps)} steps of one message: {sent}, Linux {found.kernel}"


def _followed(found: Steps) -> list[str]:
    lines = [
        f"{guest}: {one['calls']:.0f} calls followed in {one['seconds']:.1f} s,"
        f" {one['breakpoints']:.0f} breakpoints, nothing loaded into the guest"
        for guest, one in found.followed.items()
    ]
    return lines + [f"trouble: {one}" for one in found.trouble]


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
    lines = ["The worksheet's functions in this kernel:"]
    for one in found.compared:
        place = seen_at(one, found.steps)
        fate = f"step #{place:02}" if one.fate is Fate.SEEN and place else str(one.fate)
        lines.append(
            f"  {one.claimed.step:<9}{one.claimed.function:<24}{fate:<16}{one.reason}".rstrip()
        )
    return lines
