"""report.html of a run of socket(2): the book's report with this run's values, and its proofs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lab.blocks import Block, Heading
from lab.record import Record
from lab.report import objects, spans
from lab.report.evidence import NOTHING, Archive, Card
from lab.report.objects import Member, Thing
from lab.report.page import environment
from lab.report.spans import Span
from lab.socket import notes, render, status
from lab.socket.calls import ENTRY, RETURN, SYSCALLS, Call, argument, rax
from lab.socket.findings import Findings
from lab.socket.proofs import PLAIN, SIGNAL, Proof

SHOWN_CARDS = 6  # of one proof
STATES = ("SS_FREE", "SS_UNCONNECTED", "SS_CONNECTING", "SS_CONNECTED", "SS_DISCONNECTING")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One of the ten steps, and when its record was made."""

    step: render.TenStep
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Where the pointer passed, or the signal."""

    what: str
    evidence: str
    pointer: int = 0
    same: bool = True
    after: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One system call at the barrier."""

    number: int
    function: str
    code: str
    at: str
    di: str
    si: str
    dx: str
    before: int
    after: int
    entry: str
    lstar: str
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Proven:
    """One proof with what it rests on."""

    name: str
    holds: bool
    says: str
    cards: tuple[Card, ...]
    left_out: int


def page(found: Findings) -> str:
    """Return report.html."""
    inputs, archive = found.inputs, Archive(found.inputs.run)
    manifest, call = inputs.manifest, found.case(PLAIN)
    sentence = render.verdict(found)
    things, map_evidence = _things(found)
    ran = [] if call is None else list(_spans(found, call))
    unit = render.unit(found)
    short = "ns, emulated" if inputs.emulated else "ns"
    return environment().get_template("socket.html.j2").render(
        run=inputs.run.name,
        playbook=manifest.playbook,
        kernel=manifest.kernel,
        word=sentence.partition(":")[0],
        sentence=sentence,
        good=found.complete,
        conditions_told=render.conditions(found),
        broken=[one for one in found.proofs if not one.holds],
        call="" if call is None else call.text,
        pid=inputs.pid,
        unit=unit,
        steps=[_timed(found, one) for one in render.ten_steps(found)],
        map_wide=objects.draw(things, wide=True) if things else None,
        map_narrow=objects.draw(things, wide=False) if things else None,
        map_evidence=map_evidence,
        thread=[] if call is None else list(_thread(call)),
        spans_wide=spans.draw(ran, unit=short, wide=True) if ran else None,
        spans_narrow=spans.draw(ran, unit=short, wide=False) if ran else None,
        nested=_body(render.nested(found)),
        gates=[] if call is None else list(_gates(found, call)),
        barrier=_body(render.barrier(found)),
        proofs=[_proven(archive, found, one) for one in found.proofs],
        failures=_body(render.failures(found)),
        repeats=_body(render.repeats(found)),
        signal=list(_signal(found)),
        functions=_body(render.functions(found)),
        book=_body(render.book(found)),
        conditions=list(_conditions(found)),
        notes=list(notes.notes(found)),
    )  # fmt: skip


def _body(blocks: list[Block]) -> list[Block]:
    """Return blocks without their heading: the page has its own."""
    return [block for block in blocks if not isinstance(block, Heading) and block != ""]


# --- One call ---------------------------------------------------------------------------------


def _timed(found: Findings, step: render.TenStep) -> Timed:
    call = found.case(PLAIN)
    start = None if call is None else call.barrier or call.find("__sys_socket", ENTRY)
    return Timed(step=step, after=_after(found, start, step.record))


def _after(found: Findings, start: Record | None, record: Record | None) -> str:
    if start is None or record is None:
        return "–"
    ns = found.inputs.ns(start.tsc, record.tsc)
    return "not known" if ns is None else str(ns)


def _things(found: Findings) -> tuple[list[Thing], str]:
    """Return the objects behind the descriptor, and the record that has them."""
    call = found.case(PLAIN)
    installed = None if call is None else call.find("fd_install", ENTRY)
    seen = None if installed is None else installed.socket
    if installed is None or seen is None:
        return [], ""
    ops = found.inputs.symbols.at(seen.ops)
    state = STATES[seen.state] if seen.state < len(STATES) else ""
    # What the arguments say an object is, held against what the pointers to it hold.
    return [
        Thing(
            name=f"descriptors of pid {found.inputs.pid}",
            address=0,
            made="put there by fd_install",
            members=(
                Member(name=f"[{argument(installed, 0)}]", value=argument(installed, 1), to=1),
                None,
            ),
        ),
        Thing(
            name="struct file",
            address=seen.file,
            made="",
            members=(Member(name="private_data", value=seen.private_data, to=2), None),
        ),
        Thing(
            name="struct socket",
            address=seen.socket,
            made="",
            members=(
                Member(name="sk", value=seen.sk, to=3),
                Member(name="file", value=seen.socket_file, to=1),
                Member(name="ops", value=seen.ops),
                *((Member(name="", value=0, text=ops),) if ops else ()),
                Member(name="state", value=seen.state, text=f"{seen.state} {state}".strip()),
                Member(name="type", value=seen.type, text=str(seen.type)),
            ),
        ),
        Thing(
            name="struct sock",
            address=seen.sk,
            made="",
            members=(None, Member(name="sk_socket", value=seen.sk_socket, to=2)),
        ),
    ], installed.id


def _thread(call: Call) -> Iterator[Stop]:
    """Yield every function that got or gave the socket, as it was seen there."""
    made = call.find("sock_alloc", RETURN)
    first = 0 if made is None else rax(made)
    for function, kind, what in (
        ("sock_alloc", RETURN, "sock_alloc() returned it"),
        ("inet_create", ENTRY, "inet_create() received it, its second argument"),
        ("inet_create", RETURN, "sk->sk_socket holds it when inet_create() returns"),
        ("__sock_create", RETURN, "__sock_create() left it in *res"),
        ("sock_alloc_file", ENTRY, "sock_alloc_file() received it, its first argument"),
        ("fd_install", ENTRY, "file->private_data holds it when fd_install() is entered"),
    ):
        one = call.find(function, kind)
        if one is None:
            continue
        seen = one.socket
        pointer = {
            ("sock_alloc", RETURN): rax(one),
            ("inet_create", ENTRY): argument(one, 1),
            ("inet_create", RETURN): 0 if seen is None else seen.sk_socket,
            ("__sock_create", RETURN): 0 if seen is None else seen.socket,
            ("sock_alloc_file", ENTRY): argument(one, 0),
            ("fd_install", ENTRY): 0 if seen is None else seen.private_data,
        }[function, kind]
        yield Stop(what=what, evidence=one.id, pointer=pointer, same=pointer == first != 0)


def _spans(found: Findings, call: Call) -> Iterator[Span]:
    steps = list(call.steps())
    for number, step in enumerate(steps):
        one = step.record
        end = next(
            (
                later.record
                for later in steps[number:]
                if (later.record.hook, later.record.kind) == (one.hook, RETURN)
            ),
            None,
        )
        if one.kind != ENTRY or end is None:
            continue
        begin = found.inputs.ns(steps[0].record.tsc, one.tsc)
        ended = found.inputs.ns(steps[0].record.tsc, end.tsc)
        if begin is not None and ended is not None:
            yield Span(name=one.hook, depth=step.depth, start=begin, end=ended)


def _gates(found: Findings, call: Call) -> Iterator[Gate]:
    record = call.barrier
    seen = None if record is None else record.barrier
    if record is None or seen is None:
        return
    yield Gate(
        number=seen.number,
        function=SYSCALLS.get(seen.number, "an unknown system call"),
        code=record.aux.to_bytes(8, "little")[:2].hex(" ").upper(),
        at=f"{record.user:x}",
        di=f"{seen.di:x}",
        si=f"{seen.si:x}",
        dx=f"{seen.dx:x}",
        before=seen.cs_before & 3,
        after=seen.cs_after & 3,
        entry=found.inputs.symbols.show(seen.lstar).removesuffix("+0x0"),
        lstar=f"{seen.lstar:x}",
        evidence=record.id,
    )


def _signal(found: Findings) -> Iterator[Stop]:
    call = found.case(SIGNAL)
    sent = None if call is None else next((one for one in call.faults if one.size), None)
    if call is None or sent is None:
        return
    start = call.find("__sys_socket", ENTRY)

    def stop(what: str, one: Record) -> Stop:
        return Stop(what=what, evidence=one.id, after=_after(found, start, one))

    yield stop(f"signal {sent.size} is sent to the caller, inside {sent.hook}()", sent)
    for function, kind, where in (
        ("fd_install", ENTRY, "when fd_install() is entered"),
        ("__sys_socket", RETURN, "when __sys_socket() returns"),
    ):
        one = call.find(function, kind)
        if one is not None and one.args is not None:
            state = "is pending" if one.args.signal_pending else "is NOT pending"
            yield stop(f"it {state} {where}", one)
    got = call.find("get_signal", RETURN)
    if got is not None:
        yield stop(f"get_signal() takes {got.size} out, on the way back to the program", got)
    handler = call.asked.signal
    if handler is not None:
        ns = None if start is None else found.inputs.ns(start.tsc, handler.tsc)
        yield Stop(
            what=f"the program's handler runs: interrupted at {handler.ip:#x}, behind the "
            f"instruction, with rax = {handler.ax} ({status.status(handler.ax)})",
            evidence=f"{found.inputs.guest.name}/calls.json#{SIGNAL}",
            after="" if ns is None else str(ns),
        )


# --- Proofs -----------------------------------------------------------------------------------


def _proven(archive: Archive, found: Findings, proof: Proof) -> Proven:
    ids = list(dict.fromkeys(proof.evidence))
    return Proven(
        name=proof.name,
        holds=proof.holds,
        says=proof.says,
        cards=tuple(_card(archive, found, one) for one in ids[:SHOWN_CARDS]),
        left_out=max(0, len(ids) - SHOWN_CARDS),
    )


def _card(archive: Archive, found: Findings, evidence: str) -> Card:
    file, _, name = evidence.partition("#")
    if file == "kernels.json":
        return Card(
            id=evidence,
            title="where each guest's kernel begins, after each restore",
            fields=tuple(
                (guest, ", ".join(f"{at:#x}" for at in places))
                for guest, places in found.inputs.kernels.items()
            ),
        )
    repeat = found.inputs.repeat(name.removeprefix("repeats/"))
    if repeat is not None and file.endswith("/calls.json"):
        return Card(
            id=evidence,
            title="what the program counted, and the kernel's own figures around it",
            fields=(
                ("calls", str(repeat.count)),
                ("opened", str(repeat.opened)),
                ("failed", f"{repeat.failed} {status.name(repeat.error)}".strip()),
                ("other results", str(repeat.other)),
                ("sockstat before", _counts(repeat.before.sockstat)),
                ("sockstat after", _counts(repeat.after.sockstat)),
                ("objects more", _counts(repeat.grown)),
            ),
        )
    return archive.card(evidence, NOTHING)


def _counts(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _conditions(found: Findings) -> Iterator[tuple[str, str]]:
    manifest, (missed, dropped, torn) = found.inputs.manifest, found.inputs.lost
    yield "kernel", manifest.kernel
    yield "accelerator", f"{manifest.accelerator}: {manifest.accelerator_why}"
    yield "durations", render.unit(found)
    yield "probes", ", ".join(dict.fromkeys(one.name for one in found.inputs.sections))
    yield "records lost", f"{missed} missed, {dropped} dropped, {torn} torn"
    yield "calls of other programs", f"{found.inputs.trace.skipped} skipped"
    for one in manifest.drifted:
        yield "drifted", one
    yield "command", str(manifest.values.get("command") or "not known")
