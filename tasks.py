"""skblab's tasks: parse, call, print. The work is in lab/commands/."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.main import program
from invoke.tasks import Task, task

from lab import compiled
from lab.commands import KERNEL as KERNEL_OPTIONS
from lab.commands import told
from lab.errors import PlaybookError

if TYPE_CHECKING:
    from invoke.context import Context

compiled.use_late()  # before a task imports what was compiled

LAB = "which lab (default: LAB_NAME or 'default')"
JSON = "print JSON for a program"
VERBOSE = "show every step"
GUEST = "sender or receiver"
RUN = "a run directory, its name, or 'last'"
SOURCE = {
    "locked": "refuse packages that are not the pinned ones",
    "offline": "use only what is in the cache",
}
KERNEL = {**KERNEL_OPTIONS, **SOURCE}
MEASURE = {
    "playbook": "a name in playbooks/ or a file",
    "over": "loopback or link",
    "lab": LAB,
    "json": JSON,
    "verbose": VERBOSE,
    "size": "bytes per message",
    "count": "messages",
    "family": "ipv4 or ipv6",
    "protocol": "udp or tcp",
    "connect": "the sender connects its UDP socket first",
    "payload": "a text of your own instead of one derived from the run's seed",
    "without": "leave out these hooks (comma-separated)",
    "comm": "record only what this program causes",
    "probes": "kmod, bpf, both or none",
    "reset": "start from the snapshot (--no-reset: the lab as it stands)",
    **KERNEL,
}


@task(help={"lab": LAB, "json": JSON, "verbose": VERBOSE, "fresh": "boot anew", **KERNEL})
def up(
    _: Context,
    lab: str = "",
    kernel: str = "6.12",
    modules: str = "",
    headers: str = "",
    fresh: bool = False,
    locked: bool = False,
    offline: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Bring the pair of guests up: from its snapshot, booted the first time."""
    from lab.commands import kernel_of, life, told

    with told(json=json, verbose=verbose) as console:
        life.up(
            console,
            lab,
            kernel=kernel_of(kernel, modules, headers),
            fresh=fresh,
            locked=locked,
            offline=offline,
        )


@task(help={"lab": LAB, "verbose": VERBOSE})
def down(_: Context, lab: str = "", verbose: bool = False) -> None:
    """Take the pair down; leaves no process, socket or RAM file."""
    from lab.commands import life, told

    with told(verbose=verbose) as console:
        life.down(console, lab)


@task(help={"lab": LAB, "json": JSON})
def status(_: Context, lab: str = "", json: bool = False) -> None:
    """Say what the lab is, whether its guests live and how to reach them."""
    from lab.commands import life, told

    with told(json=json) as console:
        life.status(console, lab)


@task(help={"lab": LAB, "json": JSON, "verbose": VERBOSE})
def reset(_: Context, lab: str = "", json: bool = False, verbose: bool = False) -> None:
    """Put both guests back to the snapshot."""
    from lab.commands import life, told

    with told(json=json, verbose=verbose) as console:
        life.reset(console, lab)


@task(help={"json": JSON})
def ps(_: Context, json: bool = False) -> None:
    """List the labs of this user on this host."""
    from lab.commands import life, told

    with told(json=json) as console:
        life.ps(console)


@task(help={"json": JSON})
def gc(_: Context, json: bool = False) -> None:
    """Remove what killed owners left: guests, RAM files, half snapshots."""
    from lab.commands import life, told

    with told(json=json) as console:
        life.gc(console)


@task(positional=["guest"], help={"guest": GUEST, "lab": LAB})
def ssh(_: Context, guest: str, lab: str = "") -> None:
    """Open a shell in a guest."""
    from lab.commands import inside, told

    with told() as console:
        inside.ssh(console, lab, guest)


@task(
    name="exec",
    positional=["guest", "command"],
    help={
        "guest": GUEST,
        "command": "for the guest's shell",
        "lab": LAB,
        "deadline": "seconds",
        "json": JSON,
    },
)
def execute(
    _: Context,
    guest: str,
    command: str,
    lab: str = "",
    deadline: float = 30.0,
    json: bool = False,
) -> None:
    """Run a command in a guest and print what it prints."""
    from lab.commands import inside, told

    with told(json=json) as console:
        inside.execute(console, lab, guest, command, seconds=deadline)


@task(positional=["guest", "local", "remote"], help={"guest": GUEST, "lab": LAB})
def put(_: Context, guest: str, local: str, remote: str, lab: str = "") -> None:
    """Copy a file into a guest."""
    from lab.commands import inside, told

    with told() as console:
        inside.put(console, lab, guest, local, remote)


@task(positional=["guest", "remote", "local"], help={"guest": GUEST, "lab": LAB})
def get(_: Context, guest: str, remote: str, local: str, lab: str = "") -> None:
    """Copy a file out of a guest."""
    from lab.commands import inside, told

    with told() as console:
        inside.get(console, lab, guest, remote, local)


@task(positional=["guest"], help={"guest": GUEST, "lab": LAB, "lines": "how many of the last"})
def console(_: Context, guest: str, lab: str = "", lines: int = 40) -> None:
    """Print the last lines of a guest's console."""
    from lab.commands import inside, told

    with told() as out:
        inside.show_console(out, lab, guest, lines=lines)


@task(positional=["guest"], help={"guest": GUEST, "lab": LAB})
def gdb(_: Context, guest: str, lab: str = "") -> None:
    """Open QEMU's debugger port of a guest and say how to connect gdb."""
    from lab.commands import inside, told

    with told() as out:
        inside.gdb(out, lab, guest)


@task(help={"json": JSON, "verbose": VERBOSE, **KERNEL})
def doctor(
    _: Context,
    kernel: str = "6.12",
    modules: str = "",
    headers: str = "",
    locked: bool = False,
    offline: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Prove what this host can do, and say how to mend what it cannot."""
    from lab.commands import host, kernel_of, told

    with told(json=json, verbose=verbose) as out:
        host.doctor(out, kernel=kernel_of(kernel, modules, headers), locked=locked, offline=offline)


@task(help={"verify": "hash the cached image again", "lock": "pin anew", "json": JSON, **KERNEL})
def image(
    _: Context,
    kernel: str = "6.12",
    modules: str = "",
    headers: str = "",
    lock: bool = False,
    verify: bool = False,
    locked: bool = False,
    offline: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Build the guest image; with --lock pin its packages to what the mirror serves now."""
    from lab.commands import host, kernel_of, told

    with told(json=json, verbose=verbose) as out:
        host.image(
            out,
            kernel=kernel_of(kernel, modules, headers),
            lock=lock,
            verify=verify,
            locked=locked,
            offline=offline,
        )


@task(help={"json": JSON, "verbose": VERBOSE, **KERNEL})
def build(
    _: Context,
    kernel: str = "6.12",
    modules: str = "",
    headers: str = "",
    locked: bool = False,
    offline: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Build image and probe modules, and print where they are."""
    from lab.commands import host, kernel_of, told

    with told(json=json, verbose=verbose) as out:
        host.build(out, kernel=kernel_of(kernel, modules, headers), locked=locked, offline=offline)


@task(name="compile", help={"json": JSON, "verbose": VERBOSE})
def compile_(_: Context, json: bool = False, verbose: bool = False) -> None:
    """Compile the walk over records: reports of large runs take half as long then."""
    from lab.commands import host, told

    with told(json=json, verbose=verbose) as out:
        host.compile_walk(out)


@task(
    iterable=["playbook"],
    help={"playbook": "a file or name, also without --playbook (default: all)", "json": JSON},
)
def check(_: Context, playbook: list[str], json: bool = False) -> None:
    """Validate playbooks without running them."""
    from lab.commands import host, told

    with told(json=json) as out:
        host.check(out, playbook)


OF_A_MESSAGE = ("size", "count", "family", "protocol", "connect", "payload", "comm")


def _measuring(
    name: str, doc: str, *, of: str = "", link: str = "", lacks: tuple[str, ...] = ()
) -> Task[Callable[..., None]]:
    """Make a task that runs the playbook called `of`, or the one named on the command line.

    With `link` it has an option --over, and runs that playbook for --over=link; `lacks` are
    options that its kind of experiment has no use for.
    """

    def run(
        _: Context,
        playbook: str = of,
        over: str = "loopback",
        lab: str = "",
        size: str = "",
        count: str = "",
        family: str = "",
        protocol: str = "",
        connect: bool = False,
        payload: str = "",
        without: str = "",
        comm: str = "",
        probes: str = "",
        kernel: str = "",
        modules: str = "",
        headers: str = "",
        reset: bool = True,
        locked: bool = False,
        offline: bool = False,
        json: bool = False,
        verbose: bool = False,
    ) -> None:
        from lab.commands import measure, told

        asked = measure.Options(
            size=size,
            count=count,
            family=family,
            protocol=protocol,
            connect=connect,
            payload=payload,
            without=without,
            comm=comm,
            probes=probes,
            kernel=kernel,
            modules=modules,
            headers=headers,
            reset=reset,
            locked=locked,
            offline=offline,
            task=f"lab.{name}",
        )
        with told(json=json, verbose=verbose) as out:
            measure.run(out, lab, measure.one_of(over, playbook, link), asked)

    signature = inspect.signature(run)
    parameters = dict(signature.parameters)
    for option in (*lacks, *(() if link else ("over",))):
        del parameters[option]
    if of:
        del parameters["playbook"]
    else:
        parameters["playbook"] = parameters["playbook"].replace(default=inspect.Parameter.empty)
    run.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
    run.__doc__ = doc
    known = {key: text for key, text in MEASURE.items() if key in parameters}
    return Task(run, name=name, help=known)


run = _measuring("run", "Run a playbook: measure, and print the ledger.")
run_nic = _measuring(
    "run-nic",
    "Send a message over the link between two kernels and account for every copy.",
    of="nic",
)
run_trap = _measuring(
    "run-trap",
    "Arm probes, and read from guest RAM what they put into kernel text and onto a stack.",
    of="trap",
)
run_loopback = _measuring(
    "run-loopback",
    "Send a message over loopback inside one kernel and account for every copy.",
    of="loopback",
)
run_socket = _measuring(
    "run-socket",
    "Follow one socket(2) through the kernel; then fail, leak and interrupt it.",
    of="socket",
    lacks=OF_A_MESSAGE,
)

run_steps = _measuring(
    "run-steps",
    "Send a message and follow every function call on its way, with its values.",
    of="steps-loopback",
    link="steps-link",
)

run_chain = _measuring(
    "run-chain",
    "Follow fd 3 to the address of its peer, from inside and from outside.",
    of="chain",
)


@task(
    positional=["playbook"],
    help={"playbook": MEASURE["playbook"], "lab": LAB, "json": JSON, "verbose": VERBOSE,
          "locked": SOURCE["locked"], "offline": SOURCE["offline"]},
)  # fmt: skip
def sweep(
    _: Context,
    playbook: str,
    lab: str = "",
    locked: bool = False,
    offline: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Measure every cell of a playbook's sweep and print one table."""
    from lab.commands import measure, told

    asked = measure.Options(locked=locked, offline=offline, task="lab.sweep")
    with told(json=json, verbose=verbose) as out:
        measure.sweep(out, lab, playbook, asked)


@task(positional=["run"], help={"run": RUN, "json": JSON})
def report(_: Context, run: str, json: bool = False) -> None:
    """Recompute ledger and report of a run from its directory alone."""
    from lab.commands import measure, told

    with told(json=json) as out:
        measure.recompute(out, run)


@task(
    positional=["run"],
    help={
        "run": RUN,
        "depth": "how many calls deep at most (default: all)",
        "all": "calls the message has no part in as well",
        "debuginfo": "a vmlinux with debug information: file and line",
        "json": JSON,
    },
)
def steps(
    _: Context,
    run: str,
    depth: str = "",
    all: bool = False,  # noqa: A002 - the option's name
    debuginfo: str = "",
    json: bool = False,
) -> None:
    """Print the numbered table of calls, values, reads and writes on a message's way."""
    from lab.commands import steps as shown
    from lab.commands import told

    with told(json=json) as out:
        shown.show(out, run, depth=depth, everything=all, debuginfo=debuginfo)


@task(
    positional=["run"],
    help={
        "run": RUN,
        "blank": "a sheet to fill in",
        "check": "a sheet that was filled in: mark E01 to E07",
        "json": JSON,
    },
)
def worksheet(
    _: Context, run: str, blank: bool = False, check: str = "", json: bool = False
) -> None:
    """Answer the worksheet's exercises E01 to E08 from what a run recorded."""
    from lab.commands import steps as shown
    from lab.commands import told

    with told(json=json) as out:
        shown.worksheet(out, run, empty=blank, check=check)


@task(help={"json": JSON, "prune": "remove all but this many of the newest"})
def runs(_: Context, prune: str = "", json: bool = False) -> None:
    """List the runs there are, oldest first, and what each came to; or remove old ones."""
    from lab.commands import read, told

    with told(json=json) as out:
        if prune:
            read.prune(out, prune)
        else:
            read.runs(out)


@task(positional=["first", "second"], help={"first": RUN, "second": RUN, "json": JSON})
def compare(_: Context, first: str, second: str, json: bool = False) -> None:
    """Print what differs between two runs, and draw both on one page."""
    from lab.commands import read, told

    with told(json=json) as out:
        read.compare(out, first, second)


@task(
    positional=["run"],
    help={
        "run": RUN,
        "grep": "only lines with this text",
        "everything": "every record, also those of other packets and programs",
        "json": JSON,
    },
)
def lines(
    _: Context, run: str, grep: str = "", everything: bool = False, json: bool = False
) -> None:
    """Print the worksheet's log lines of a run's messages, from their records."""
    from lab.commands import read, told

    with told(json=json) as out:
        read.lines(out, run, grep, everything=everything)


def _trying(name: str, doc: str, act: str) -> Task[Callable[..., None]]:
    """Make lab.try or lab.watch: the options are the fields of TryOptions."""
    from lab.commands.crash import TryOptions

    def attempt(
        _: Context,
        path: str,
        lab: str = "",
        json: bool = False,
        verbose: bool = False,
        **given: Any,
    ) -> None:
        from lab.commands import crash, told

        with told(json=json, verbose=verbose) as out:
            getattr(crash, act)(out, lab, path, TryOptions(**given))

    options = dataclasses.fields(TryOptions)
    signature = inspect.signature(attempt)
    *own, _rest = signature.parameters.values()
    more = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default)
        for one in options
    ]
    attempt.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
    attempt.__doc__ = doc
    helps = {one.name.replace("_", "-"): one.metadata["help"] for one in options}
    module = "a .c file, a folder with a Makefile, or a .ko"
    return Task(
        attempt,
        name=name,
        positional=["path"],
        auto_shortflags=False,  # there are more options than letters
        help={**helps, "path": module, "lab": LAB, "json": JSON, "verbose": VERBOSE},
    )


try_ = _trying("try", "Load a module into a clean guest, watch it crash, say how.", "try_module")
watch = _trying("watch", "Build and try a module anew every time it is saved.", "watch_module")


@task(help={"json": JSON})
def crashes(_: Context, json: bool = False) -> None:
    """List the crashes of all runs, equal ones together, with counts."""
    from lab.commands import crash, told

    with told(json=json) as out:
        crash.crashes(out)


@task(positional=["run"], help={"run": RUN, "json": JSON})
def vmcore(_: Context, run: str, json: bool = False) -> None:
    """Make a core that drgn opens from the RAM of a run tried with --keep-ram."""
    from lab.commands import crash, told

    with told(json=json) as out:
        crash.vmcore(out, run)


@task(
    positional=["run"],
    help={
        "run": RUN,
        "all": "every descriptor, not only those that something happened to",
        "json": JSON,
    },
)
def rings(
    _: Context,
    run: str,
    all: bool = False,  # noqa: A002 - the option's name
    json: bool = False,
) -> None:
    """Print the rings of a run's devices: what was given, used, and for which movement."""
    from lab.commands import read, told

    with told(json=json) as out:
        read.rings(out, run, whole=all)


@task(
    positional=["run"],
    help={
        "run": RUN,
        "place": "such as receiver/rx-buffer (default: list them)",
        "all": "of the whole buffer, not only the message's bytes",
        "json": JSON,
    },
)
def accesses(
    _: Context,
    run: str,
    place: str = "",
    all: bool = False,  # noqa: A002 - the option's name
    json: bool = False,
) -> None:
    """Print who loaded and stored a place's bytes, as the emulator saw it."""
    from lab.commands import read, told

    with told(json=json) as out:
        read.accesses(out, run, place, whole=all)


@task(
    iterable=["file"],
    help={
        "file": "a claims file, or a name in claims/, also without --file (default: all of these)",
        "on": "judge by the runs of an earlier lab.claims: its folder",
        "only": "tell of these claims only (comma-separated)",
        "markdown": "also write the whole table as Markdown to this file",
        "lab": LAB,
        "json": JSON,
        "verbose": VERBOSE,
        "locked": SOURCE["locked"],
        "offline": SOURCE["offline"],
    },
)
def claims(
    _: Context,
    file: list[str],
    on: str = "",
    only: str = "",
    markdown: str = "",
    lab: str = "",
    locked: bool = False,
    offline: bool = False,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Hold every claim of the two texts against measurements: a verdict and its records."""
    from lab.commands import claims as settling
    from lab.commands import told

    asked = settling.Options(
        texts=tuple(file),
        on=on,
        only=only,
        markdown=markdown,
        locked=locked,
        offline=offline,
    )
    with told(json=json, verbose=verbose) as out:
        settling.claims(out, lab, asked)


@task(help={"json": JSON, "rounds": "how many of each", "verbose": VERBOSE})
def bench(_: Context, rounds: int = 5, json: bool = False, verbose: bool = False) -> None:
    """Measure boot, restore and the whole commands, with the machine's description."""
    from lab.commands import host, told

    with told(json=json, verbose=verbose) as out:
        host.bench(out, rounds=rounds)


@task(
    help={"json": JSON, "rounds": "bursts of each kind of probe", "count": "messages of a burst",
          "bpftrace": "push bpftrace as well (52 MB of packages), to measure it beside them",
          **KERNEL_OPTIONS, "verbose": VERBOSE},
)  # fmt: skip
def bench_trace(
    _: Context,
    rounds: int = 3,
    count: int = 10_000,
    kernel: str = "6.12",
    modules: str = "",
    headers: str = "",
    bpftrace: bool = True,
    json: bool = False,
    verbose: bool = False,
) -> None:
    """Measure what tracing costs: modules, BPF programs, bpftrace; how fast runs are reported."""
    from lab.commands import host, kernel_of, told

    with told(json=json, verbose=verbose) as out:
        host.bench_trace(
            out,
            rounds=rounds,
            count=count,
            kernel=kernel_of(kernel, modules, headers),
            bpftrace=bpftrace,
        )


@task(
    help={
        "long": "the long forms too",
        "quick": "only what needs no guest",
        "select": "pytest -k",
    }
)
def test(_: Context, long: bool = False, quick: bool = False, select: str = "") -> None:
    """Run everything that proves skblab: style, types, C, unit and guest tests."""
    from lab.commands import suite, told

    with told() as out:
        suite.test(out, long=long, quick=quick, select=select)


LAB_TASKS = (
    bench_trace,
    up, down, status, reset, ps, gc, ssh, execute, put, get, console, gdb,
    doctor, image, build, compile_, check,
    run, run_nic, run_loopback, run_steps, run_chain, run_socket,
    run_trap, sweep,
    report, runs, compare, lines, steps, worksheet, rings, accesses, claims, bench,
    try_, watch, crashes, vmcore,
)  # fmt: skip
for one in (test, *LAB_TASKS):
    # Invoke would give each task letters of its own: -s is --size here and --send there.
    one.auto_shortflags = False
ns = Collection(test, Collection("lab", *LAB_TASKS))

# Of these tasks a word on its own is the value of an option.  As a positional argument Invoke
# would want it given, and they mean all of them where none is.
ON_ITS_OWN = {"lab.check": "--playbook", "lab.claims": "--file"}


def spelled_out(words: Iterable[str]) -> list[str]:
    """Return a command with its option in front of each word on its own."""
    names = ns.task_names
    takes: set[str] = set()  # options that have a value behind them
    option = None
    out: list[str] = []
    for word in words:
        if out and out[-1] in takes:
            pass
        elif word in names:
            # Not asked of get_arguments(), which gives the help away to who asks first.
            known = inspect.signature(ns[word].body).parameters.values()
            valued = [one.name for one in known if not isinstance(one.default, bool)]
            takes = {f"--{name.replace('_', '-')}" for name in valued}
            option = ON_ITS_OWN.get(word)
        elif option is not None and not word.startswith("-"):
            out.append(option)
        out.append(word)
    return out


NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}


def refuse_no_numbers(words: Iterable[str]) -> None:
    """Raise where an option's number is none: Invoke itself would end in a traceback."""
    task, option = "", ""
    kinds: dict[str, type] = {}  # options that are numbers
    for word in words:
        value = word
        if not option and word in ns.task_names:
            task, known = word, inspect.signature(ns[word].body).parameters.values()
            kinds = {
                f"--{one.name.replace('_', '-')}": type(one.default)
                for one in known
                if type(one.default) in NUMBERS
            }
            continue
        if not option:
            option, equals, value = word.partition("=")
            if option not in kinds:
                option = ""
            if not (option and equals):
                continue
        try:
            if not math.isfinite(kinds[option](value)):
                raise ValueError  # noqa: TRY301 - as for what is no number at all
        except (ValueError, OverflowError) as error:
            raise PlaybookError(
                f"{option}: expected {NUMBERS[kinds[option]]}; found {value!r}",
                hint=f"invoke --help {task}",
            ) from error
        option = ""


if hasattr(program, "core"):  # this is `invoke`, which reads these words next
    program.core.unparsed[:] = spelled_out(program.core.unparsed)
    try:
        refuse_no_numbers(program.core.unparsed)
    except PlaybookError:
        with told(json="--json" in program.core.unparsed):
            raise
