"""The book's log lines, each made from a record."""

from __future__ import annotations

from collections.abc import Iterator

from lab.record import Kind, Record, Section
from lab.rundir import RunDir
from lab.socket import status
from lab.socket.calls import argument, rax
from lab.socket.inputs import BPF, CHAIN, LATENCY, Inputs, read

NAMES = {LATENCY: "Latency Probe", CHAIN: "Chain Probe", BPF: "Chain Probe (BPF)"}


def lines(run: RunDir, grep: str | None = None) -> Iterator[str]:
    """Yield the book's lines of a run; `grep` keeps those that contain a text.

    TS is the host's monotonic clock in nanoseconds, computed from the raw TSC.
    """
    inputs = read(run)
    for text in of(inputs):
        if grep is None or grep in text:
            yield text


def of(inputs: Inputs) -> Iterator[str]:
    """Yield the lines of a run that was read, each with the id of its record."""
    for section in inputs.sections:
        yield from _loaded(section)
    started: dict[int, Record] = {}
    for one in inputs.records:
        if one.module == LATENCY:
            text = _latency(inputs, one, started)
        elif one.module == inputs.watchers[0] and one.pid == inputs.pid:
            text = _chain(one)
        else:
            continue
        if text:
            yield f"{_stamp(inputs, one)} [PROBE] {text}  {one.id}"
    for module, name in NAMES.items():
        if inputs.unloaded.get(module):
            yield f"[PROBE] {name} Unloaded."


def _loaded(section: Section) -> Iterator[str]:
    for hook in section.header.hooks:
        if hook.error and not hook.left_out:
            yield f"[PROBE] registration failed: {hook.name}: {status.name(hook.error)}"
    if section.name in NAMES:
        yield f"[PROBE] {NAMES[section.name]} Loaded."


def _latency(inputs: Inputs, one: Record, started: dict[int, Record]) -> str:
    if one.kind == Kind.SKIPPED:
        return f"SKIPPING {one.comm.upper()} | PID: {one.pid} | Returning 1 (No Kretprobe)"
    if one.kind == Kind.ENTRY:
        started[one.pid] = one
        args = ", ".join(str(argument(one, number)) for number in range(3))
        return f"{one.hook} START | PID: {one.pid} | Args: {args} | TS: {_ns(inputs, one)}"
    start = started.pop(one.pid, None)
    value = status.as_int(rax(one))
    time = None if start is None else inputs.ns(start.tsc, one.tsc)
    took = "not known" if time is None else f"{time} ns{' (emulated)' if inputs.emulated else ''}"
    return (
        f"{one.hook} END   | PID: {one.pid} | FD: {value} | "
        f"Status: {status.status(value)} | Time: {took}"
    )


def _chain(one: Record) -> str:
    seen = one.socket
    if seen is None or not (seen.socket or one.hook == "sock_alloc"):
        return ""
    told = {
        ("sock_alloc", Kind.RETURN): f"sock_alloc Exit: socket={seen.socket:x} "
        f"Chassis Init: sk={seen.sk:x}, ops={seen.ops:x}, state={seen.state}",
        ("inet_create", Kind.ENTRY): f"inet_create Entry: socket={seen.socket:x}",
        ("inet_create", Kind.RETURN): f"inet_create Exit: sk={seen.sk:x}, "
        f"sk->sk_socket={seen.sk_socket:x}",
        ("fd_install", Kind.ENTRY): f"fd_install Entry: fd={argument(one, 0)} "
        f"file={seen.file:x} private_data={seen.private_data:x}",
        ("__sock_release", Kind.ENTRY): f"__sock_release Entry: socket={seen.socket:x}",
    }
    return told.get((one.hook, one.kind), "")


def _ns(inputs: Inputs, one: Record) -> int:
    return one.tsc if inputs.clock is None else inputs.clock.host(one.tsc).ns


def _stamp(inputs: Inputs, one: Record) -> str:
    ns = _ns(inputs, one)
    return f"[{ns // 10**9:5d}.{ns % 10**9 // 1000:06d}]"
