"""What the tasks do, and how it is told to people and to programs."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json as jsonlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit

from lab import paths
from lab.deadline import Deadline
from lab.errors import (
    BUG,
    INTERRUPTED,
    CommandFailed,
    GuestError,
    GuestLost,
    HostError,
    Interrupted,
    LabError,
    LedgerIncomplete,
    PlaybookError,
    hinted,
)
from lab.journal import Journal

if TYPE_CHECKING:
    from lab import attempt, crash, experiment, spec, topology
    from lab.guest import Guest

REACH_S = 10.0
MOST_TOLD = 5
BUG_TEXT = "this is a bug of skblab; please report it with the lines above"
HOST_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.EIO),
}
PIPE_CLOSED = 141  # what a shell gives for SIGPIPE


@dataclass(slots=True)
class Console:
    """Where results go (stdout) and where people are told things (stderr)."""

    json: bool
    journal: Journal
    printed: bool = False

    def result(self, text: str, value: object) -> None:
        """Print the result: `text` for people, `value` as JSON for programs."""
        self.printed = True
        print(jsonlib.dumps(value, indent=1, sort_keys=True) if self.json else text, flush=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line changes in a playbook; "" leaves it as it is."""

    size: str = ""
    count: str = ""
    protocol: str = ""
    payload: str = ""
    without: str = ""
    comm: str = ""
    probes: str = ""
    kernel: str = ""
    reset: bool = True
    locked: bool = False
    offline: bool = False


@contextlib.contextmanager
def told(*, json: bool = False, verbose: bool = False) -> Iterator[Console]:
    """Turn errors into three lines and an exit code; the only place that does."""
    # A cancelled CI job is a Ctrl-C: it cleans up too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it says is in our errors
    console = Console(json=json, journal=Journal(verbose=verbose))
    try:
        yield console
    except LabError as error:
        raise _told(error, console) from error
    except (Interrupted, KeyboardInterrupt) as error:
        raise Exit("interrupted", code=INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader of our stdout had enough (`| head`): not worth a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=PIPE_CLOSED) from error
    except Exit:
        raise
    except OSError as error:
        if error.errno not in HOST_FAULTS:
            traceback.print_exc()
            raise Exit(BUG_TEXT, code=BUG) from error
        raise _told(_of_host(error), console) from error
    except Exception as error:
        traceback.print_exc()
        raise Exit(BUG_TEXT, code=BUG) from error


def _told(error: LabError, console: Console) -> Exit:
    """Return how the process ends: for people three lines, for programs one JSON document."""
    lines = [*error.lines(), *(f"  {note}" for note in getattr(error, "__notes__", []))]
    if console.json and not console.printed:
        console.result("", _as_json(error))
    return Exit("\n".join(lines), code=error.exit_code)


def _interrupted(*_: object) -> None:
    """Raise `Interrupted` once; a second Ctrl-C must not cut the cleanup short.

    Everything in the cleanup has a deadline, so that it ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted


def _of_host(error: OSError) -> HostError:
    where = f" ({error.filename})" if error.filename else ""
    return HostError(
        f"{error.strerror or error}{where}",
        log=error.filename,
        hint="free space, or LAB_RUNS, LAB_CACHE, LAB_RUNTIME or LAB_RAM=/another/folder",
    )


def _as_json(error: LabError) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "message": str(error),
        "log": None if error.log is None else str(error.log),
        "try": error.hint,
        "exit_code": error.exit_code,
    }


def lab_name(given: str) -> str:
    """Return which lab is meant; names end up in socket paths, so they are short."""
    name = given or os.environ.get("LAB_NAME") or "default"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", name):
        raise PlaybookError(f"'{name}' is no name for a lab", hint="1 to 24 of a-z, 0-9 and '-'")
    return name


# -- lab life --------------------------------------------------------------------------


def up(
    console: Console, lab: str, *, kernel: str, fresh: bool, locked: bool, offline: bool
) -> None:
    from lab import accelerator, image, topology

    name = lab_name(lab)
    start = time.monotonic()
    built = image.ensure(kernel, journal=console.journal, locked=locked, offline=offline)
    speed = accelerator.choose(built, journal=console.journal)
    with topology.opened(name, create=True) as pair:
        setup = topology.standard(built, speed, journal=console.journal)
        why = _not_as_asked(pair, setup, fresh=fresh)
        if why is None:
            state, how = pair.require_state(), "was already up"
        else:
            if pair.state is not None or any(guest.alive for guest in pair.guests.values()):
                console.journal.say(f"lab '{name}' is brought up anew: {why}")
                pair.bring_down()
            state = pair.bring_up(setup, journal=console.journal, fresh=fresh)
            how = f"{state.how} in {time.monotonic() - start:.1f} s"
        told_drift(console, built.drifted)
        text = f"lab '{name}' {how}: {built.release}, {accelerator.describe(speed)}"
        console.result(text, {"lab": name, "how": how, **_state_json(pair, state)})


def _not_as_asked(pair: topology.Lab, setup: topology.Setup, *, fresh: bool) -> str | None:
    """Say why a lab cannot stay as it is; None where it can."""
    from lab import experiment

    if fresh:
        return "--fresh"
    return experiment.unlike(pair, setup) or pair.ails(deadline=Deadline(REACH_S))


def told_drift(console: Console, drifted: Sequence[str]) -> None:
    """Say which packages are not the pinned ones."""
    if drifted:
        console.journal.say(f"drifted: {'; '.join(drifted)}")


def down(console: Console, lab: str) -> None:
    from lab import topology

    name = lab_name(lab)
    if name not in topology.names():
        console.result(f"lab '{name}' is not up", {"lab": name, "up": False})
        return
    with topology.opened(name) as pair:
        pair.bring_down()
    console.result(f"lab '{name}' is down", {"lab": name, "up": False})


def status(console: Console, lab: str) -> None:
    from lab import topology

    name = lab_name(lab)
    with topology.opened(name) as pair:
        state = pair.require_state()
        ails = pair.ails(deadline=Deadline(REACH_S))
        value = {"lab": name, "up": ails is None, "ails": ails, **_state_json(pair, state)}
    since = time.time() - state.since
    used = "untouched" if state.pristine else "used"
    head = f"lab '{name}' is up: kernel {state.kernel}, {state.device}, {state.how}"
    rows = [
        f"{head} {since:.0f} s ago, {used}",
        f"accelerator: {state.accelerator} ({state.accelerator_why})",
        *(_guest_line(pair.guests[guest], facts) for guest, facts in state.guests.items()),
    ]
    if ails is not None:
        rows[0] = f"lab '{name}' is broken: {ails}"
    console.result("\n".join(rows), value)
    if ails is not None:
        raise Exit(f"  try: invoke lab.reset --lab {name}", code=GuestError.exit_code)


def _guest_line(guest: Guest, facts: topology.GuestState) -> str:
    return (
        f"{guest.name}: {guest.me.address}, {facts.release},"
        f" ssh 127.0.0.1:{facts.port}, {_held_mib(guest)} MiB held"
    )


def _held_mib(guest: Guest) -> int:
    return (guest.folder.ram.stat().st_blocks * 512) >> 20


def _state_json(pair: topology.Lab, state: topology.LabState) -> dict[str, Any]:
    facts = dataclasses.asdict(state)
    facts["guests"] = {
        name: {
            "address": pair.guests[name].me.address,
            "alive": pair.guests[name].alive,
            "ssh_port": held["port"],
            "release": held["release"],
            "ram_held_mib": _held_mib(pair.guests[name]),
            "console": str(pair.guests[name].folder.console),
        }
        for name, held in facts["guests"].items()
    }
    return facts


def reset(console: Console, lab: str) -> None:
    from lab import accelerator, image, topology

    name = lab_name(lab)
    start = time.monotonic()
    with topology.opened(name) as pair:
        state = pair.state
        series = state.kernel if state is not None else "6.12"
        device = state.device if state is not None else "virtio-net-pci"
        built = image.ensure(series, journal=console.journal, locked=False, offline=False)
        speed = accelerator.choose(built, journal=console.journal)
        pair.bring_down()
        setup = topology.standard(built, speed, journal=console.journal, device=device)
        state = pair.bring_up(setup, journal=console.journal)
        seconds = time.monotonic() - start
        console.result(
            f"lab '{name}' {state.how} in {seconds:.1f} s",
            {"lab": name, "seconds": round(seconds, 3), **_state_json(pair, state)},
        )


def ps(console: Console) -> None:
    from lab import process, topology

    rows: list[dict[str, Any]] = []
    for name in topology.names():
        busy = process.is_locked(paths.runtime() / name / "lab.lock")
        pair = topology.Lab(name)
        rows.append(
            {
                "lab": name,
                "up": pair.up,
                "busy": busy,
                "kernel": pair.state.kernel if pair.state else None,
                "accelerator": pair.state.accelerator if pair.state else None,
                "owner": pair.state.owner if pair.state else None,
            }
        )
    text = "\n".join(
        f"{row['lab']:<24} {'up' if row['up'] else 'broken':<7}"
        f" {row['kernel'] or '-':<6} {row['accelerator'] or '-':<4}"
        f"{' busy' if row['busy'] else ''}"
        for row in rows
    )
    console.result(text or "no lab is up", rows)


def gc(console: Console) -> None:
    from lab import topology

    removed = topology.collect_garbage()
    console.result("\n".join(removed) or "nothing to remove", {"removed": removed})


# -- into a guest ------------------------------------------------------------------------


@contextlib.contextmanager
def _in_guest(lab: str, guest: str) -> Iterator[Guest]:
    from lab import topology

    name = lab_name(lab)
    with topology.opened(name) as pair:
        pair.require_up()
        machine = _known(pair, guest)
        pair.touch()
        with hinted(log=machine.folder.console, hint=f"invoke lab.console {guest}"):
            pair.attach(guest, deadline=Deadline(REACH_S))
            yield machine


def ssh(console: Console, lab: str, guest: str) -> None:
    from lab import process, topology
    from lab.ssh import Shell

    if not sys.stdin.isatty():
        raise PlaybookError(
            "lab.ssh is for a terminal, and stdin is none", hint=f"invoke lab.exec {guest} COMMAND"
        )
    name = lab_name(lab)
    with topology.opened(name) as pair:
        state = pair.require_up()
        facts = state.guests[_known(pair, guest).name]
        pair.touch()
        lock = pair.guests[guest].folder.lock

    def check() -> None:
        if not process.is_locked(lock):
            raise GuestLost(guest, "QEMU ended", hint="invoke lab.up")

    # Without holding the lab: a shell may stay open for hours beside other commands.
    shell = Shell(guest, port=facts.port, hostkey=facts.hostkey, check=check)
    try:
        code = shell.interact()
    finally:
        shell.close()
    del console
    if code:
        raise Exit(code=code)


def _known(pair: topology.Lab, guest: str) -> Guest:
    if guest not in pair.guests:
        raise PlaybookError(f"there is no guest '{guest}'", hint=" or ".join(pair.guests))
    return pair.guests[guest]


def execute(console: Console, lab: str, guest: str, command: str, *, seconds: float) -> None:
    with _in_guest(lab, guest) as machine:
        done = machine.require_shell().run(
            command, deadline=Deadline(seconds), ok=False, show=not console.json
        )
    if console.json:
        value = {"stdout": done.stdout, "stderr": done.stderr, "exit_code": done.exit_code}
        console.result("", value)
    if done.exit_code:
        raise CommandFailed(guest, command, done.exit_code, "see above")


def put(console: Console, lab: str, guest: str, local: str, remote: str) -> None:
    source = Path(local)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise PlaybookError(f"{source} {what}", hint="lab.put takes one file")
    with _in_guest(lab, guest) as machine:
        machine.require_shell().put(source, remote, deadline=Deadline(120))
    console.result(f"{guest}:{remote}", {"guest": guest, "remote": remote})


def get(console: Console, lab: str, guest: str, remote: str, local: str) -> None:
    target = Path(local)
    if target.is_dir() or not target.parent.is_dir():
        raise PlaybookError(f"{target} is no name for a file here", hint="name a file")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with _in_guest(lab, guest) as machine:
            machine.require_shell().get(remote, part, deadline=Deadline(120))
        part.replace(target)  # what was there stays until all of the new one is
    finally:
        part.unlink(missing_ok=True)
    console.result(local, {"guest": guest, "local": local})


def show_console(console: Console, lab: str, guest: str, *, lines: int) -> None:
    from lab import process, topology

    pair = topology.Lab(lab_name(lab))
    if guest not in pair.guests:
        raise PlaybookError(f"there is no guest '{guest}'", hint=" or ".join(pair.guests))
    log = pair.guests[guest].folder.console
    if not log.exists():
        pair.require_up()
    said = process.read_given(log, most=1 << 20).decode("utf-8", "replace")
    # Firmware clears the screen and turns off wrapping: of use to nobody's terminal here.
    text = re.sub(r"\x1b(\[[0-9;?=]*[A-Za-z]|[^\[])", "", said).splitlines()[-lines:]
    shown = "\n".join(text).strip()
    console.result(shown or "nothing was said since the restore", text)


def gdb(console: Console, lab: str, guest: str) -> None:
    with _in_guest(lab, guest) as machine:
        socket = machine.folder.own / "gdb"
        socket.unlink(missing_ok=True)
        answer = machine.require_monitor().human(f"gdbserver unix:path={socket},server=on,wait=off")
    console.result(
        f"{answer.strip()}\ngdb -ex 'target remote {socket}'",
        {"guest": guest, "socket": str(socket)},
    )


# -- host, image, probes ---------------------------------------------------------------------


def doctor(console: Console, *, kernel: str, locked: bool, offline: bool) -> None:
    from lab import doctor as diagnosis

    found = diagnosis.examine(kernel, journal=console.journal, locked=locked, offline=offline)
    console.result(diagnosis.render(found), [dataclasses.asdict(one) for one in found])
    diagnosis.require_fit(found)


def image(
    console: Console, *, kernel: str, lock: bool, verify: bool, locked: bool, offline: bool
) -> None:
    from lab import image as images

    if lock:
        path = images.relock(kernel, journal=console.journal)
        console.journal.say(f"pinned: {path}")
    built = images.ensure(kernel, journal=console.journal, locked=locked, offline=offline)
    if verify:
        images.verify(built)
    told_drift(console, built.drifted)
    console.result(
        f"{built.release} {built.digest[:16]}\n{built.kernel}\n{built.initramfs}",
        {
            "release": built.release,
            "digest": built.digest,
            "kernel": str(built.kernel),
            "initramfs": str(built.initramfs),
            "drifted": list(built.drifted),
        },
    )


def build(console: Console, *, kernel: str, locked: bool, offline: bool) -> None:
    from lab import build as builds
    from lab import image as images

    built = images.ensure(kernel, journal=console.journal, locked=locked, offline=offline)
    modules = builds.build_modules(built, journal=console.journal)
    console.result(
        "\n".join(str(path) for path in modules.values()),
        {name: str(path) for name, path in modules.items()},
    )


def check(console: Console, wanted: Sequence[str]) -> None:
    from lab import playbook

    chosen = list(wanted) or playbook.names()
    for one in chosen:
        playbook.load(one)
    console.result("\n".join(f"{one}: ok" for one in chosen), dict.fromkeys(chosen, "ok"))


# -- measuring and reading what was measured ---------------------------------------------------


def asked_for(name: str, options: Options) -> spec.Playbook:
    """Return playbook `name` as the command line changes it."""
    from lab import playbook

    return playbook.override(
        playbook.load(name),
        size=options.size or None,
        count=options.count or None,
        protocol=options.protocol or None,
        payload=options.payload or None,
        without=options.without or None,
        comm=options.comm or None,
        probes=options.probes or None,
        kernel=options.kernel or None,
    )


def run(console: Console, lab: str, name: str, options: Options) -> None:
    from lab import experiment

    asked = asked_for(name, options)
    if asked.sweep != type(asked.sweep)():
        raise PlaybookError(
            f"playbook '{asked.name}' asks for many runs", hint=f"invoke lab.sweep {name}"
        )
    outcome = experiment.run(
        asked,
        lab_name=lab_name(lab),
        journal=console.journal,
        command=experiment.describe_command(),
        reset=options.reset,
        locked=options.locked,
        offline=options.offline,
    )
    _tell_outcome(console, outcome)


def sweep(console: Console, lab: str, name: str, options: Options) -> None:
    from lab import experiment
    from lab import sweep as sweeps

    asked = asked_for(name, options)
    found = sweeps.run(
        asked,
        lab_name=lab_name(lab),
        journal=console.journal,
        command=experiment.describe_command(),
        locked=options.locked,
        offline=options.offline,
    )
    value = sweeps.to_json(asked, found) | {"sweep": str(found.folder)}
    console.result(f"{sweeps.render(found)}{found.folder}", value)
    if not found.proven:
        bad = sum(one.state in (sweeps.UNPROVEN, sweeps.FAILED) for one in found.results)
        raise LedgerIncomplete(
            f"{bad} of {len(found.results)} cells are not proven",
            log=found.folder / "index.json",
            hint=f"invoke lab.report {found.folder}/RUN",
        )


def recompute(console: Console, run: str) -> None:
    from lab import experiment, rundir, spec

    found = rundir.resolve(run)
    told = found.manifest().values.get("expect")
    asked: dict[str, Any] = dict(told) if isinstance(told, dict) else {}
    known = {one.name for one in dataclasses.fields(spec.Expect)}
    expect = spec.Expect(**{key: value for key, value in asked.items() if key in known})
    _tell_outcome(console, experiment.analyse(found, expect, journal=console.journal))


def _tell_outcome(console: Console, outcome: experiment.Outcome) -> None:
    path = outcome.run.path
    if console.json:
        value = {**jsonlib.loads(outcome.ledger.to_json()), "run": str(path)}
        value["failed_expectations"] = list(outcome.failures)
        console.result("", value)
    else:
        print(_coloured((path / "report.txt").read_text(encoding="utf-8")).rstrip())
        print(path, flush=True)
    trouble = [] if outcome.ledger.complete else ["the ledger is incomplete"]
    trouble += [f"expected {failure}" for failure in outcome.failures[:MOST_TOLD]]
    if len(outcome.failures) > MOST_TOLD:
        trouble.append(f"and {len(outcome.failures) - MOST_TOLD} more expectations failed")
    if outcome.ledger.disagreements:
        trouble.append("witnesses disagree")
    if trouble:
        raise LedgerIncomplete(
            "; ".join(trouble), log=path / "ledger.json", hint=f"invoke lab.lines {path.name}"
        )


def _coloured(text: str) -> str:
    """Set off the verdict at a terminal; plain when piped or with NO_COLOR."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    first, _, rest = text.partition("\n")
    colour = "32" if first.startswith("COMPLETE") else "31"
    return f"\x1b[1;{colour}m{first}\x1b[0m\n{rest}"


def runs(console: Console) -> None:
    rows: list[dict[str, Any]] = []
    for path in sorted(paths.runs().glob("*")):
        if path.is_symlink() or not (path / "manifest.json").is_file():
            continue
        complete = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            complete = jsonlib.loads((path / "ledger.json").read_text()).get("complete")
        rows.append({"run": str(path), "complete": complete})
    words = {True: "COMPLETE", False: "INCOMPLETE", None: "no ledger"}
    text = "\n".join(f"{words[row['complete']]:<11} {row['run']}" for row in rows)
    console.result(text or f"no run in {paths.runs()}", rows)


def lines(console: Console, run: str, grep: str) -> None:
    from lab import report, rundir

    for line in report.lines(rundir.resolve(run), grep=grep or None):
        print(line)
    del console


def accesses(console: Console, run: str, place: str) -> None:
    from lab import places, rundir

    found = rundir.resolve(run)
    if not place:
        console.result("\n".join(places.names(found)), places.names(found))
        return
    rows = list(places.lines(found, place))
    console.result("\n".join(rows), rows)


def bench(console: Console, *, rounds: int) -> None:
    from lab import bench as benchmark

    found = benchmark.measure(rounds=rounds, journal=console.journal)
    console.result(benchmark.render(found), found)


# -- modules that may crash ---------------------------------------------------------------


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


# -- tests -----------------------------------------------------------------------------------------


def test(console: Console, *, long: bool, quick: bool, select: str) -> None:
    """Run style, types, C and the rings of tests; every part runs, the first failure counts."""
    python = sys.executable
    pytest = [python, "-m", "pytest", *(["-k", select] if select else [])]
    parts: list[tuple[str, list[str]]] = [
        ("style", [python, "-m", "ruff", "check", "lab", "tests", "tasks.py"]),
        ("types", [python, "-m", "mypy", "--strict", "lab", "tests", "tasks.py"]),
        ("tests", [*pytest, *([] if quick else ["--guests"]), *(["--long"] if long else [])]),
    ]
    failed: list[str] = []
    for name, argv in parts:
        start = time.monotonic()
        done = subprocess.run(argv, cwd=paths.data(), check=False)
        outcome = "ok" if done.returncode == 0 else f"failed ({done.returncode})"
        console.journal.say(f"{name:<8} {outcome:<12} {time.monotonic() - start:6.1f} s")
        if done.returncode != 0:
            failed.append(name)
    if failed:
        raise Exit(f"failed: {', '.join(failed)}", code=1)
