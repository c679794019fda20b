"""The run as a person reads it: the book's steps, maps and lines, with live values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.blocks import Block, Heading, Lines, paragraph, table
from lab.record import Kind, Record
from lab.report.blocks import plain
from lab.report.tables import some
from lab.socket import hooked, log, notes, status
from lab.socket.both import POINTERS, VOID
from lab.socket.calls import ENTRY, RETURN, Call, argument, rax
from lab.socket.findings import Findings
from lab.socket.inputs import LATENCY
from lab.socket.proofs import BOUND, PLAIN, TIMED, Proof

HELD, BROKEN = "✓", "✗"
NOT_SEEN = "not seen"
SHOWN_ARGS = {
    "__sys_socket": ("family", "type", "protocol"),
    "__sock_create": ("net", "family", "type", "protocol"),
    "inet_create": ("net", "socket", "protocol"),
    "get_unused_fd_flags": ("flags",),
    "sock_alloc_file": ("socket", "flags"),
    "alloc_file_pseudo": ("inode",),
    "fd_install": ("fd", "file"),
    "sock_release": ("socket",),
    "__sock_release": ("socket", "inode"),
    "inet_release": ("socket",),
    "iput": ("inode",),
    "put_unused_fd": ("fd",),
    "sock_create": ("family", "type", "protocol"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TenStep:
    """One of the book's ten steps, in live values."""

    number: int
    step: str
    what: str
    values: str
    holds: bool
    record: Record | None  # None: no one record shows it

    @property
    def mark(self) -> str:
        return HELD if self.holds else BROKEN


def render(found: Findings) -> str:
    """Return report.txt: plain, the same for the same run, at most 110 columns wide."""
    return "\n".join(plain(told(found))) + "\n"


def told(found: Findings) -> list[Block]:
    """Return what report.txt says, to be shown at any width."""
    parts = [
        [*paragraph(verdict(found)), *paragraph(conditions(found)), *_trouble(found)],
        _ten_steps(found),
        nested(found),
        _maps(found),
        barrier(found),
        failures(found),
        repeats(found),
        functions(found),
        book(found),
        [block for text in notes.notes(found) for block in paragraph(f"Note: {text}")],
    ]
    out: list[Block] = []
    for part in filter(None, parts):
        out += ["", *part] if out else part
    return out


# --- The verdict ------------------------------------------------------------------------------


def verdict(found: Findings) -> str:
    """Return one sentence that begins with its word."""
    broken = [one for one in found.proofs if not one.holds]
    if broken:
        first = broken[0]
        return (
            f"NOT PROVEN: {len(broken)} of {len(found.proofs)} proofs fail: "
            f"{first.name}: {first.says}"
        )
    plainly = found.case(PLAIN)
    what = "" if plainly is None else f"{plainly.text} = {plainly.asked.returned}: "
    pointer = _holding(found, "one pointer through the whole chain")
    return (
        f"PROVEN: {what}all {len(found.proofs)} proofs hold; "
        f"{'' if pointer is None else f'struct socket {pointer.says}; '}"
        f"whatever fails leaves nothing behind."
    )


def _holding(found: Findings, name: str) -> Proof | None:
    return next((one for one in found.proofs if one.name == name and one.holds), None)


def conditions(found: Findings) -> str:
    """Say under which conditions it ran, and what was lost."""
    inputs = found.inputs
    manifest = inputs.manifest
    missed, dropped, torn = inputs.lost
    active = sorted({one.maxactive for one in found.functions if one.maxactive})
    return (
        f"Kernel {manifest.kernel}, {manifest.accelerator} ({manifest.accelerator_why}). "
        f"{some(len(inputs.records), 'record')}; {missed} missed (nmissed; maxactive "
        f"{', '.join(str(one) for one in active) or 'unknown'}), {dropped} dropped, "
        f"{torn} torn."
    )


def _trouble(found: Findings) -> list[Block]:
    return [
        block
        for one in found.proofs
        if not one.holds
        for block in paragraph(f"{BROKEN} {one.name}: {one.says} {_ids(one.evidence)}".rstrip())
    ]


def _ids(evidence: Sequence[str]) -> str:
    return f"({', '.join(evidence)})" if evidence else ""


# --- Phase 1: the book's ten steps ---------------------------------------------------------------


def ten_steps(found: Findings) -> list[TenStep]:
    """Return the book's ten steps of the call that was followed; [] where none was."""
    holds = {one.name: one for one in found.proofs}
    call = found.case(PLAIN)
    if call is None:
        return []
    loaded = {section.name for section in found.inputs.sections}

    made, linked = call.find("sock_alloc", RETURN), call.find("inet_create", RETURN)
    wrapped, installed = call.find("sock_alloc_file", RETURN), call.find("fd_install", ENTRY)
    ended = call.find("__sys_socket", RETURN)
    steps: list[tuple[str, str, Record | None, str, tuple[str, ...]]] = [
        ("USER_EXEC", "system call 41", call.barrier, _says(holds, "barrier: RAX = 41"),
         ("barrier: RAX = 41", "arguments")),
        ("CHASSIS_CREATED", "sock_alloc()", made, _value(made, "socket"), ("order",)),
        ("PRE_LINK_CHECK", "sk == NULL", made, _value(made, "sk", "ops", "state"),
         ("sock_alloc leaves sk and ops empty, state 1",)),
        ("LINK_ESTABLISHED", "inet_create()", linked, _value(linked, "sk", "ops"),
         ("inet_create sets sk and ops",)),
        ("VFS_WRAP", "sock_alloc_file()", wrapped, _value(wrapped, "file"), ("one file",)),
        ("PRIVATE_DATA", "file->private_data == socket", installed,
         _value(installed, "private_data"), ("private_data == socket",)),
        ("SYMMETRY", "sk->sk_socket == socket", linked, _value(linked, "sk_socket"),
         ("sk->sk_socket == socket",)),
        ("INDEX_VERIFIED", "fd_install(fd, file)", installed,
         NOT_SEEN if installed is None else f"fd={argument(installed, 0)}", ("one descriptor",)),
        ("SYSCALL_RETURN", "__sys_socket()", ended,
         NOT_SEEN if ended is None else f"result={status.as_int(rax(ended))}",
         ("one descriptor", "one pointer through the whole chain")),
    ]  # fmt: skip
    first = TenStep(
        number=1,
        step="PROBE_INIT",
        what="modules loaded",
        values=", ".join(sorted(loaded & {*log.NAMES})),
        holds=loaded >= {LATENCY, *found.inputs.watchers},
        record=None,
    )
    return [
        first,
        *(
            TenStep(
                number=number,
                step=step,
                what=what,
                values=values,
                holds=all(name in holds and holds[name].holds for name in names),
                record=record,
            )
            for number, (step, what, record, values, names) in enumerate(steps, 2)
        ),
    ]


def _ten_steps(found: Findings) -> list[Block]:
    call, steps = found.case(PLAIN), ten_steps(found)
    if call is None:
        return []
    rows = [
        (
            f"{one.number:02}",
            one.step,
            one.what,
            one.values,
            one.mark,
            "-" if one.record is None else f"#{one.record.number}",
        )
        for one in steps
    ]
    head = ("#", "STEP", "WHAT", "LIVE VALUES", "", "RECORD")
    return [Heading(f"THE TEN STEPS of {call.text}, PID {found.inputs.pid}"), *table(head, rows)]


def _says(holds: dict[str, Proof], name: str) -> str:
    return holds[name].says.partition(" RDI")[0] if name in holds else NOT_SEEN


def _value(record: Record | None, *names: str) -> str:
    if record is None or record.socket is None:
        return NOT_SEEN
    return " ".join(
        f"{name}={getattr(record.socket, name)}"
        if name == "state"
        else f"{name}={getattr(record.socket, name):x}"
        for name in names
    )


def _short(evidence: str) -> str:
    return "#" + evidence.partition("#")[2] if "trace.bin" in evidence else evidence


# --- The trace --------------------------------------------------------------------------------


def nested(found: Findings) -> list[Block]:
    """Return every record of the call that was followed, as deep as it ran."""
    call = found.case(PLAIN)
    steps = [] if call is None else list(call.steps())
    if not steps:
        return []
    inputs = found.inputs
    rows = []
    for step in steps:
        one = step.record
        since = inputs.ns(steps[0].record.tsc, one.tsc)
        rows.append(
            (
                "not known" if since is None else str(since),
                "  " * step.depth + _what(one),
                inputs.symbols.show(one.caller) if one.kind == ENTRY else "",
                _record(found, one),
            )
        )
    head = ("NS", "WHAT RAN", "CALLED FROM", "RECORD")
    title = f"THE CALL as it ran, in {unit(found)}, the handlers' own among them"
    return [Heading(title), *table(head, rows, right="NS")]


def _record(found: Findings, one: Record) -> str:
    """Return a record's number, and that of the other account where there are two."""
    beside = found.pairs.get(one.id)
    return f"#{one.number}" + (f" bpf#{beside.partition('#')[2]}" if beside else "")


def unit(found: Findings) -> str:
    """Say of what kind the run's durations are."""
    return "emulated nanoseconds" if found.inputs.emulated else "nanoseconds"


def _what(one: Record) -> str:
    if one.kind == ENTRY:
        return f"{one.hook}({_args(one)})"
    return f"= {_result(one)}   {one.hook}"


def _args(one: Record) -> str:
    names = SHOWN_ARGS.get(one.hook, ())
    return ", ".join(f"{name}={_shown(argument(one, n))}" for n, name in enumerate(names))


def _shown(value: int) -> str:
    return f"{value:x}" if value >> 32 else str(value)


def _result(one: Record) -> str:
    if one.hook in VOID:
        return "(void)"
    value = status.as_long(rax(one)) if one.hook in POINTERS else status.as_int(rax(one))
    if status.is_error(value):
        return f"{value} {status.name(value)}"
    return f"{rax(one):x}" if one.hook in POINTERS else str(value)


# --- Phase 2: the maps --------------------------------------------------------------------------


def _maps(found: Findings) -> list[Block]:
    call = found.case(PLAIN)
    installed = None if call is None else call.find("fd_install", ENTRY)
    made = None if call is None else call.find("sock_alloc", RETURN)
    linked = None if call is None else call.find("inet_create", ENTRY)
    if call is None or installed is None or made is None or linked is None:
        return []
    seen = installed.socket
    if seen is None:
        return []
    back = "==" if seen.private_data == seen.socket else "!="
    symmetric = "==" if seen.sk_socket == seen.socket else "!="
    back_link = f"{seen.sk_socket:016x}  {symmetric} socket"
    socket, passed = rax(made), argument(linked, 1)
    same = "TRUE" if socket == passed else "FALSE"
    memory = (
        f"  [descriptor {argument(installed, 0)}]",
        "        |",
        f"  [VFS    struct file]   @ {seen.file:016x}",
        "        |",
        f"        +--> private_data --+   {seen.private_data:016x}  {back} socket",
        "                            |",
        f"  [Socket struct socket] <--+ @ {seen.socket:016x} <--+",
        "        |                                           |",
        f"        +--> sk ------------+   {seen.sk:016x}    |",
        "                            |                       |",
        f"  [Stack  struct sock]   <--+ @ {seen.sk:016x}    |",
        "        |                                           |",
        f"        +--> sk_socket -----------------------------+   {back_link}",
    )
    thread = (
        "  [__sys_socket]",
        "        |",
        "        +--> [sock_alloc]",
        "                 |",
        f"                 *---({socket:016x})---> returned  {_short(made.id)}",
        "                                               |",
        "  [inet_create]                                |",
        "        |                                      |",
        f"        *<---({passed:016x})----------------*  received  {_short(linked.id)}",
        f"  {socket:016x} == {passed:016x}: {same}",
    )
    return [
        Heading("THE MEMORY MAP, as fd_install found it", installed.id),
        Lines(memory),
        "",
        Heading("THE COMMON THREAD"),
        Lines(thread),
    ]


# --- Chapters 1 and 2: the barrier ---------------------------------------------------------------


def barrier(found: Findings) -> list[Block]:
    """Return what the three system calls found at the barrier."""
    rows = []
    for number in (41, 44, 45):
        call = next(
            (one for one in found.calls if one.asked.number == number and one.barrier), None
        )
        seen = None if call is None or call.barrier is None else call.barrier.barrier
        if call is None or call.barrier is None or seen is None:
            continue
        code = call.barrier.aux.to_bytes(8, "little")[:2].hex(" ").upper()
        rows.append(
            (
                str(seen.number),
                f"{seen.di:x}",
                f"{seen.si:x}",
                f"{seen.dx:x}",
                f"{code} at {call.barrier.user:x}",
                f"{seen.cs_before & 3} (cs {seen.cs_before:x})",
                f"{seen.cs_after & 3} (cs {seen.cs_after:x})",
                f"#{call.barrier.number}",
            )
        )
    head = ("RAX", "RDI", "RSI", "RDX", "INSTRUCTION", "RING BEFORE", "AFTER", "RECORD")
    return [
        Heading("THE BARRIER, from the program's registers as the kernel saved them"),
        *table(head, rows),
        *_said(found, "entry point", "kernel text: boots differ, restores do not"),
    ]


def _said(found: Findings, *names: str) -> list[Block]:
    return [
        block
        for one in found.proofs
        if one.name in names
        for block in paragraph(f"{mark(one)} {one.name}: {one.says}")
    ]


def mark(proof: Proof) -> str:
    """Return the sign for whether a proof holds."""
    return HELD if proof.holds else BROKEN


# --- Failures and the puzzle ----------------------------------------------------------------


def failures(found: Findings) -> list[Block]:
    """Return every way of calling, and how far it went."""
    rows = []
    for call in found.calls:
        ended = call.find("__sys_socket", RETURN)
        if call.case == TIMED or call.asked.number != 41 or ended is None:
            continue
        value = status.as_int(rax(ended))
        rows.append(
            (
                call.case,
                call.text,
                f"{rax(ended):#x}",
                str(value),
                status.name(value) or "-",
                status.status(value),
                _reached(call),
                f"#{ended.number}",
            )
        )
    head = ("CASE", "CALL", "RAX", "AS INT", "ERROR", "STATUS", "WENT AS FAR AS", "RECORD")
    return [
        Heading("WHAT CAN GO WRONG (an error iff -4095 <= int <= -1)"),
        *table(head, rows, right="RAX"),
        *_said(found, "signal on the way back", "fd_install cannot fail"),
    ]


def _reached(call: Call) -> str:
    ways = ("sock_alloc", "inet_create", "sock_alloc_file", "fd_install")
    seen = [function for function in ways if call.reached(function)]
    if not seen:
        return "refused at once"
    return f"{seen[-1]}, released" if call.reached("__sock_release") else seen[-1]


def repeats(found: Findings) -> list[Block]:
    """Return what thousands of calls left behind."""
    rows = []
    for one in found.inputs.repeats:
        moved = ", ".join(f"{name} {change:+d}" for name, change in one.moved.items())
        caches = ("sock_inode_cache", "TCP", "filp")
        rows.append(
            (
                one.name,
                str(one.count),
                status.name(one.error) or "opened, closed",
                moved or "exactly back",
                *(f"{one.grown.get(cache, 0):+d}" for cache in caches),
            )
        )
    if not rows:
        return []
    head = ("BETWEEN SOCK_ALLOC AND FD_INSTALL", "TIMES", "EACH", "/PROC/NET/SOCKSTAT",
            "INODES", "TCP", "FILES")  # fmt: skip
    return [
        Heading("THE PUZZLE: what is left, in sockets and in objects of slab caches"),
        *table(head, rows, right="TIMES INODES TCP FILES"),
        *paragraph(
            "Exact is /proc/net/sockstat: sockets and TCP's objects in use. Objects of slab caches "
            "are bounded: an inode is freed a grace period after its socket, so some are still "
            "there and some of calls before went meanwhile. A cache that grew by less than one in "
            f"{BOUND} of the calls holds no leak of one each; the control's is seen in sockstat."
        ),
        *_said(found, "a leak is caught"),
    ]


# --- Functions and lines --------------------------------------------------------------------


def functions(found: Findings) -> list[Block]:
    """Return the functions with a hook: which ran, which are not there to be hooked."""
    rows = [
        (
            one.name,
            one.state,
            str(one.calls),
            "-" if one.symbol is None else f"{one.symbol:x}",
            status.name(one.error) or "attached",
            str(one.missed),
            str(one.maxactive) if one.maxactive else "-",
        )
        for one in found.functions
        if one.state != hooked.CALLED or one.maxactive
    ]
    head = ("FUNCTION", "STATE", "CALLS", "KALLSYMS", "HOOK", "NMISSED", "MAXACTIVE")
    if not rows:
        return []
    return [Heading("THE FUNCTIONS"), *table(head, rows, right="CALLS NMISSED MAXACTIVE")]


def book(found: Findings) -> list[Block]:
    """Return the book's own lines of the call that was timed."""
    latency = _latency_ids(found)
    shown = tuple(
        line
        for line in log.of(found.inputs)
        if line.startswith("[PROBE]") or line.rpartition("  ")[2] in latency
    )
    return [Heading("THE BOOK'S LINES (lab.lines has all of them)"), Lines(shown)]


def _latency_ids(found: Findings) -> frozenset[str]:
    kinds = (Kind.ENTRY, Kind.RETURN)
    timed = found.case(TIMED)
    own: Iterator[Record] = iter(() if timed is None else timed.latency)
    ids = {one.id for one in own if one.kind in kinds}
    skipped = [
        one for one in found.inputs.records if one.module == LATENCY and one.kind == Kind.SKIPPED
    ]
    names = {other.name for other in found.inputs.others}
    return frozenset(ids | {one.id for one in skipped if one.comm in names})
