"""Read what runs left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lab import paths
from lab.commands import Console
from lab.errors import PlaybookError


def runs(console: Console) -> None:
    from lab.report import listing, plain
    from lab.rundir.prune import runs as known

    rows = [row for path in known(paths.runs()) if (row := listing.row(path)) is not None]
    told = listing.told(rows) if rows else [f"no run in {paths.runs()}"]
    console.result("\n".join(plain(told)), [row.as_json() for row in rows], told)


def compare(console: Console, first: str, second: str) -> None:
    from lab import ledger, rundir
    from lab.report import Lines, plain
    from lab.report import compare as comparing

    sides = [rundir.resolve(name) for name in (first, second)]
    attempts = [run for run in sides if run.is_attempt()]
    for run in attempts:
        for change in run.attempt_changes():
            console.journal.say(f"{run.name}: {change}")
    if attempts:
        raise PlaybookError(f"{attempts[0].name} tried a module: there is no ledger to compare")
    for run in sides:
        if run.manifest().experiment != "message":
            raise PlaybookError(f"{run.name} sent no messages: there is no ledger to compare")
    one, two = ((ledger.build(run), run) for run in sides)
    found = comparing.compare(one, two)
    page = two[1].write_text("compare.html", comparing.page(found, one, two))
    told = [*comparing.told(found), Lines((str(page),))]
    console.result("\n".join(plain(told)), {**found.as_json(), "page": str(page)}, told)


def prune(console: Console, keep: str) -> None:
    from lab.rundir import prune as pruning

    if not (keep.isascii() and keep.isdigit()):
        raise PlaybookError(
            f"--prune={keep}: expected how many of the newest runs to keep, 0 or more",
            hint="invoke lab.runs --prune=20",
        )
    removed = pruning.prune(paths.runs(), keep=int(keep))
    console.result(
        f"{len(removed.paths)} runs removed, {removed.bytes >> 20} MiB freed",
        {"removed": list(removed.paths), "bytes": removed.bytes},
    )


def lines(console: Console, run: str, grep: str, *, everything: bool) -> None:
    from lab import report, rundir, socket

    found = rundir.resolve(run)
    if found.manifest().experiment == "socket":
        _lines(console, socket.lines(found, grep=grep or None))
        return
    cited = None if everything else report.cited(found)
    left_out = 0

    def chosen() -> Iterator[str]:
        nonlocal left_out
        for evidence, line in report.lines(found, grep=grep or None):
            if cited is None or evidence in cited:
                yield line
            else:
                left_out += 1

    _lines(console, chosen())
    if left_out:
        console.journal.say(
            f"{left_out} records that no message's ledger cites are left out; --everything"
        )


def _lines(console: Console, found: Iterable[str]) -> None:
    if console.json:
        console.result("", list(found))
        return
    for line in found:
        console.line(line)


def rings(console: Console, run: str, *, whole: bool = False) -> None:
    from lab import ledger, rundir
    from lab.report import plain, ring_table

    found = rundir.resolve(run)
    with console.journal.step("ledger"):
        built = ledger.build(found)
    with console.journal.step("rings"):
        tables = ring_table.tables(found, built.messages)
    told = ring_table.told(tables, whole=whole) or ["no message went over a device"]
    console.result("\n".join(plain(told)), [one.as_json() for one in tables], told)


def accesses(console: Console, run: str, place: str, *, whole: bool = False) -> None:
    from lab import places, rundir
    from lab.report import plain

    found = rundir.resolve(run)
    if not place:
        names = places.names(found)
        console.result("\n".join(names), names)
        if names and not console.json:
            console.journal.say(f"who touched one: --place {names[-1]}")
        return
    blocks = list(places.told(found, place, whole=whole))
    console.result("\n".join(plain(blocks)), places.lines(blocks), blocks)
