"""Try modules that may crash."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.exceptions import Exit

from lab import paths
from lab.commands import Console, lab_name
from lab.errors import (
    PlaybookError,
)

if TYPE_CHECKING:
    from lab import attempt, crash


@dataclass(frozen=True, kw_only=True, slots=True)
class TryOptions:
    """How `lab.try` and `lab.watch` treat a module; "" is what is usual."""

    run: str = ""
    send: bool = False
    soak: float = 1.0
    deadline: float = 20.0
    expect: str = ""
    at: str = ""
    params: str = ""
    module: str = ""
    kernel: str = "6.12"
    kfence: bool = False
    slub_debug: str = ""
    unload: bool = True
    keep_ram: bool = False
    locked: bool = False
    offline: bool = False


def try_module(console: Console, lab: str, path: str, options: TryOptions) -> None:
    from lab import attempt

    with _trying(console, lab, path, options) as (bench, source, trial):
        result = attempt.run(
            bench,
            source,
            trial,
            journal=console.journal,
            command=" ".join(sys.argv[1:]),
            module=options.module or None,
        )
    _tell_attempt(console, result)
    failed = attempt.failure(result.found, options.expect or None, options.at or None)
    if failed is not None:
        raise Exit("\n".join(failed.lines()), code=failed.exit_code)


def watch_module(console: Console, lab: str, path: str, options: TryOptions) -> None:
    from lab import attempt

    with _trying(console, lab, path, options) as (bench, source, trial):
        for result in attempt.watch(
            bench,
            source,
            trial,
            journal=console.journal,
            command=" ".join(sys.argv[1:]),
            module=options.module or None,
        ):
            _tell_attempt(console, result)
            print(f"{result.seconds:.1f} s; waiting for {source} to change", file=sys.stderr)


@contextlib.contextmanager
def _trying(
    console: Console, lab: str, path: str, options: TryOptions
) -> Iterator[tuple[attempt.Bench, Path, crash.Trial]]:
    from lab import attempt, crash, postmortem

    if options.expect and options.expect not in postmortem.VERDICTS:
        raise PlaybookError(
            f"'{options.expect}' is no verdict", hint=", ".join(postmortem.VERDICTS)
        )
    trial = crash.Trial(
        parameters=tuple(options.params.split()),
        command=options.run or (crash.SEND if options.send else None),
        soak_s=options.soak,
        deadline_s=options.deadline,
        unload=options.unload,
        kfence=options.kfence,
        keep_ram=options.keep_ram,
    )
    with attempt.bench(
        lab_name(lab),
        series=options.kernel,
        journal=console.journal,
        extra=f"slub_debug={options.slub_debug}" if options.slub_debug else "",
        locked=options.locked,
        offline=options.offline,
    ) as bench:
        yield bench, Path(path), trial


def _tell_attempt(console: Console, result: attempt.Result) -> None:
    if console.json:
        console.result("", result.found.as_json())
        return
    print((result.run.path / "postmortem.txt").read_text(encoding="utf-8").rstrip())
    print(result.run.path, flush=True)


def crashes(console: Console) -> None:
    from lab import postmortem

    found = postmortem.group(paths.runs())
    rows = [
        f"{one.count:>5}  {one.verdict:<13} {one.fingerprint}  {one.module:<24} {one.at}"
        for one in found
    ]
    console.result(
        "\n".join(rows) or "no crash was seen", [dataclasses.asdict(one) for one in found]
    )


def vmcore(console: Console, run: str) -> None:
    from lab import attempt, rundir

    path, size, package = attempt.vmcore(rundir.resolve(run))
    console.journal.say("a vmcore holds all the guest's memory, keys and data: mind who gets it")
    console.result(
        f"{path}\n{size >> 20} MiB on disk; drgn -c {path}; types and crash need {package}",
        {"vmcore": str(path), "bytes": size, "debug_package": package},
    )
