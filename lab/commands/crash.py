"""Try modules that may crash."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit

from lab import paths
from lab.commands import KERNEL, Console, kernel_of, lab_name
from lab.errors import (
    PlaybookError,
)

if TYPE_CHECKING:
    from lab import attempt, crash, rundir, spec


SOURCE = {
    "locked": "refuse packages that are not the pinned ones",
    "offline": "use only what is in the cache",
}


def _asked(what: str, *, default: Any) -> Any:
    """Make a field that is an option of the tasks; `what` is its help."""
    return dataclasses.field(default=default, metadata={"help": what})


@dataclass(frozen=True, kw_only=True, slots=True)
class TryOptions:
    """How `lab.try` and `lab.watch` treat a module; "" is what is usual."""

    run: str = _asked("a command for the guest's shell once the module is loaded", default="")
    send: bool = _asked(
        "send and receive one message in the guest once it is loaded", default=False
    )
    playbook: str = _asked("send what this playbook sends once it is loaded", default="")
    soak: float = _asked("seconds to watch on after that", default=1.0)
    deadline: float = _asked("seconds for loading, and for the command", default=20.0)
    expect: str = _asked("the verdict it should get: then that is success", default="")
    at: str = _asked("where, such as null_write.c:20", default="")
    params: str = _asked("module parameters", default="")
    module: str = _asked("which one, where the folder makes several", default="")
    kernel: str = _asked(KERNEL["kernel"], default="6.12")
    modules: str = _asked(KERNEL["modules"], default="")
    headers: str = _asked(KERNEL["headers"], default="")
    kfence: bool = _asked(
        "sample allocations: finds some uses after free, out of bounds", default=False
    )
    slub_debug: str = _asked(
        "boot with slub_debug=WORD (FZPU): finds writes out of bounds", default=""
    )
    unload: bool = _asked("unload it at the end (--no-unload)", default=True)
    leaks: bool = _asked("load it 6 more times and count what stays (--no-leaks)", default=True)
    keep_ram: bool = _asked(
        "keep the guest's RAM with the run, for lab.vmcore: it has keys", default=False
    )
    locked: bool = _asked(SOURCE["locked"], default=False)
    offline: bool = _asked(SOURCE["offline"], default=False)


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
    _tell_attempt(console, result, options.expect or None, options.at or None)


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
            with contextlib.suppress(Exit):  # as expected or not: the next save is waited for
                _tell_attempt(console, result, options.expect or None, options.at or None)
            print(f"{result.seconds:.1f} s; waiting for {source} to change", file=sys.stderr)


def play(console: Console, lab: str, asked: spec.Playbook, *, locked: bool, offline: bool) -> None:
    """Try the module of a playbook, and succeed if and only if it ends as that expects."""
    from lab import attempt

    module = asked.module
    assert module is not None, "the reader of playbooks sees to it"
    with attempt.bench(
        lab_name(lab),
        kernel=asked.kernel,
        journal=console.journal,
        extra=f"slub_debug={module.slub_debug}" if module.slub_debug else "",
        locked=locked,
        offline=offline,
    ) as bench:
        result = attempt.run(
            bench,
            Path(module.path),
            attempt.trial_of(asked),
            journal=console.journal,
            command=" ".join(sys.argv[1:]),
            module=module.target,
            playbook=asked,
        )
    _tell_attempt(console, result, asked.expect.verdict, asked.expect.at)


def recompute(console: Console, run: rundir.RunDir) -> None:
    """Make the post-mortem of an attempt again, from its run directory alone."""
    from lab import attempt

    told = run.manifest_json().get("expect")
    expect = (
        {key: str(text) for key, text in told.items() if text} if isinstance(told, dict) else {}
    )
    _tell_attempt(console, attempt.judge(run), expect.get("verdict"), expect.get("at"), again=True)


@contextlib.contextmanager
def _trying(
    console: Console, lab: str, path: str, options: TryOptions
) -> Iterator[tuple[attempt.Bench, Path, crash.Trial]]:
    from lab import attempt, crash, postmortem

    if options.at and not options.expect:
        raise PlaybookError("--at says where a verdict is expected", hint="--expect VERDICT too")
    if options.expect and options.expect not in postmortem.VERDICTS:
        raise PlaybookError(
            f"'{options.expect}' is no verdict", hint=", ".join(postmortem.VERDICTS)
        )
    crash.require(Path(path))
    trial = crash.Trial(
        parameters=tuple(options.params.split()),
        command=options.run or None,
        workload=_workload(options),
        soak_s=options.soak,
        deadline_s=options.deadline,
        unload=options.unload,
        again=crash.AGAIN if options.leaks else 0,
        kfence=options.kfence,
        keep_ram=options.keep_ram,
    )
    with attempt.bench(
        lab_name(lab),
        kernel=kernel_of(options.kernel, options.modules, options.headers),
        journal=console.journal,
        extra=f"slub_debug={options.slub_debug}" if options.slub_debug else "",
        locked=options.locked,
        offline=options.offline,
    ) as bench:
        yield bench, Path(path), trial


def _workload(options: TryOptions) -> spec.Workload | None:
    """Return what is sent while the module is loaded; None for nothing."""
    from lab import crash, playbook

    if not options.playbook:
        return crash.SEND if options.send else None
    if options.send:
        raise PlaybookError("--send and --playbook both say what is sent", hint="one of them")
    asked = playbook.load(options.playbook)
    return asked.trigger if asked.experiment == "crash" else asked.workload


def _tell_attempt(
    console: Console,
    result: attempt.Result,
    verdict: str | None,
    at: str | None,
    *,
    again: bool = False,
) -> None:
    """Print the post-mortem; end with the exit code of a verdict that is not the right one.

    `again`: it is only read again, by a task that takes no expectation.
    """
    from lab import attempt

    if not console.json:
        console.told((result.run.path / "postmortem.txt").read_text(encoding="utf-8"), ())
    console.result(str(result.run.path), result.found.as_json())
    failed = attempt.failure(result.found, verdict, at)
    if failed is not None:
        if again:
            failed.hint = None
        raise Exit("\n".join(failed.lines()), code=failed.exit_code)


def crashes(console: Console) -> None:
    from lab import postmortem

    found, left_out = postmortem.group(paths.runs())
    for run, why in left_out:
        console.journal.say(f"left out, {run}: {why}")
    rows = [
        f"{one.count:>5}  {one.verdict:<13} {one.fingerprint}  {one.module:<24} {one.at}"
        for one in found
    ]
    console.result(
        "\n".join(rows) or "no crash was seen", [dataclasses.asdict(one) for one in found]
    )


def vmcore(console: Console, run: str) -> None:
    from lab import attempt, rundir

    tried = rundir.resolve(run)
    for change in tried.attempt_changes():
        console.journal.say(f"{tried.name}: {change}")
    path, size, package = attempt.vmcore(tried)
    console.journal.say("a vmcore holds all the guest's memory, keys and data: mind who gets it")
    console.result(
        f"{path}\n{size >> 20} MiB on disk; drgn -c {path}; types and crash need {package}",
        {"vmcore": str(path), "bytes": size, "debug_package": package},
    )
