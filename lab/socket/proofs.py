"""What must hold of socket(2), each from records; where one is not there, it does not hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lab.record import Kind, Record, Socket
from lab.socket import status
from lab.socket.both import Agreement
from lab.socket.calls import ENTRY, RETURN, Call, NotSeenError, argument, rax
from lab.socket.inputs import BPF, CALLER, FAULT, LATENCY, Inputs, Repeat

# The book's order; between two of these others may run.
ORDER = ("__sys_socket", "__sock_create", "sock_alloc", "inet_create", "sock_alloc_file",
         "fd_install")  # fmt: skip
UNCONNECTED = 1  # SS_UNCONNECTED of enum socket_state
LINKED_AT = 0xFFFF_FFFF_8100_0000  # where a kernel without KASLR has its text
# An inode is freed a grace period after its socket: not every call's at once, and a tenth is few.
BOUND = 10
PLAIN, TIMED, MESSAGE, SIGNAL = "plain", "timed", "message", "signal"
WRONG = ("bad family", "bad type", "bad protocol")
BETWEEN = ("no descriptor", "injected")  # after sock_alloc, before fd_install
CONTROL = "control"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """One statement, whether it holds, in live values, and the records it rests on."""

    name: str
    holds: bool
    says: str
    evidence: tuple[str, ...] = ()


Judged = tuple[bool, str, Sequence[Record]]


def prove(
    inputs: Inputs, calls: Sequence[Call], agreement: Agreement | None = None
) -> tuple[Proof, ...]:
    """Judge everything that must hold of a run."""
    out = list(_of_calls(calls))
    out.append(_proof("skipped programs are counted", lambda: _skipped(inputs)))
    if inputs.watchers[0] != BPF:  # no program can read MSR_LSTAR; the notes say so
        out.append(_proof("entry point", lambda: _entry_point(inputs, calls)))
    out.append(_kaslr(inputs))
    out.append(_proof("fd_install cannot fail", lambda: _cannot_fail(inputs, calls)))
    out += _of_repeats(inputs)
    if agreement is not None:
        out.append(_same(agreement))
    out.append(_nothing_lost(inputs))
    return tuple(out)


def _proof(name: str, judge: Callable[[], Judged]) -> Proof:
    try:
        holds, says, records = judge()
    except NotSeenError as error:
        return Proof(name=name, holds=False, says=str(error))
    return Proof(name=name, holds=holds, says=says, evidence=tuple(one.id for one in records))


def _of_calls(calls: Sequence[Call]) -> Iterator[Proof]:
    def case(name: str) -> Call:
        found = next((one for one in calls if one.case == name), None)
        if found is None:
            raise NotSeenError(f"the program was never told to do '{name}'")
        return found

    def judged(name: str, of: str, judge: Callable[[Call], Judged]) -> Proof:
        return _proof(name, lambda: judge(case(of)))

    yield judged("start and end", TIMED, _start_and_end)
    for name, judge in (
        ("arguments", _arguments),
        ("order", _order),
        ("sock_alloc leaves sk and ops empty, state 1", _empty),
        ("inet_create sets sk and ops", _linked),
        ("one pointer through the whole chain", _one_pointer),
        ("private_data == socket", _private_data),
        ("sk->sk_socket == socket", _back_link),
        ("one file", _one_file),
        ("one descriptor", _one_descriptor),
    ):
        yield judged(name, PLAIN, judge)
    for number in (41, 44, 45):
        yield _proof(f"barrier: RAX = {number}", _barrier(calls, number))
    for name in WRONG:
        yield judged(f"{name} fails", name, _fails)
    for name in BETWEEN:
        yield judged(f"{name}: released, not installed", name, _released)
    yield judged("signal on the way back", SIGNAL, _signal)


# --- One call --------------------------------------------------------------------------------


def _start_and_end(call: Call) -> Judged:
    if call.timed is None:
        raise NotSeenError(f"{call.case}: no START and END of the latency probe")
    start, end = call.timed
    asked = call.asked
    ordered = asked.before <= start.tsc < end.tsc <= asked.after
    value = status.as_int(rax(end))
    says = f"START, then END with {value}, both while the program waited for {asked.returned}"
    return ordered and value == asked.returned, says, (start, end)


def _arguments(call: Call) -> Judged:
    entry = call.need("__sys_socket")
    seen = tuple(argument(entry, number) for number in range(3))
    says = f"the program loaded {_list(call.asked.args)}, __sys_socket received {_list(seen)}"
    return seen == call.asked.args, says, (entry,)


def _order(call: Call) -> Judged:
    entries = [call.need(function) for function in ORDER]
    ordered = all(a.tsc < b.tsc for a, b in itertools.pairwise(entries))
    outer = call.need("__sys_socket", RETURN).tsc
    within = all(entry.tsc < outer for entry in entries)
    names = " > ".join(one.hook for one in sorted(entries, key=lambda one: one.tsc))
    return ordered and within, names, entries


def _empty(call: Call) -> Judged:
    record = call.need("sock_alloc", RETURN)
    seen = _socket(record)
    says = f"socket {seen.socket:#x}: sk={seen.sk:#x} ops={seen.ops:#x} state={seen.state}"
    empty = (seen.sk, seen.ops, seen.state) == (0, 0, UNCONNECTED)
    return bool(seen.socket) and empty, says, (record,)


def _linked(call: Call) -> Judged:
    before, after = call.need("inet_create"), call.need("inet_create", RETURN)
    was, now = _socket(before), _socket(after)
    says = f"sk {was.sk:#x} -> {now.sk:#x}, ops {was.ops:#x} -> {now.ops:#x}"
    empty, full = (was.sk, was.ops) == (0, 0), bool(now.sk) and bool(now.ops)
    return empty and full and was.socket == now.socket, says, (before, after)


def _one_pointer(call: Call) -> Judged:
    steps = [
        call.need("sock_alloc", RETURN),
        call.need("inet_create"),
        call.need("__sock_create", RETURN),
        call.need("sock_alloc_file"),
        call.need("fd_install"),
    ]
    pointers = [rax(steps[0]), argument(steps[1], 1), _socket(steps[2]).socket,
                argument(steps[3], 0), _socket(steps[4]).private_data]  # fmt: skip
    says = " == ".join(f"{pointer:x}" for pointer in dict.fromkeys(pointers))
    same = len(set(pointers)) == 1 and pointers[0] != 0
    return same, f"{says} in {len(steps)} places" if same else says, steps


def _private_data(call: Call) -> Judged:
    made, created = call.need("fd_install"), call.need("sock_alloc", RETURN)
    data = _socket(made).private_data
    says = f"file {_socket(made).file:#x}: private_data {data:#x}, socket {rax(created):#x}"
    return data == rax(created) != 0, says, (created, made)


def _back_link(call: Call) -> Judged:
    record, created = call.need("inet_create", RETURN), call.need("sock_alloc", RETURN)
    seen = _socket(record)
    says = f"sk {seen.sk:#x}: sk_socket {seen.sk_socket:#x}, socket {rax(created):#x}"
    return seen.sk_socket == rax(created) != 0, says, (created, record)


def _one_file(call: Call) -> Judged:
    made, installed = call.need("sock_alloc_file", RETURN), call.need("fd_install")
    seen = _socket(installed)
    says = (
        f"sock_alloc_file returned {rax(made):#x}, fd_install got {argument(installed, 1):#x}, "
        f"socket->file is {seen.socket_file:#x}"
    )
    return rax(made) == argument(installed, 1) == seen.socket_file != 0, says, (made, installed)


def _one_descriptor(call: Call) -> Judged:
    given = call.need("get_unused_fd_flags", RETURN)
    installed, ended = call.need("fd_install"), call.need("__sys_socket", RETURN)
    numbers = (status.as_int(rax(given)), argument(installed, 0), call.result, call.asked.returned)
    says = "given {}, installed {}, returned {}, in the program {}".format(*numbers)
    return len(set(numbers)) == 1 and numbers[0] >= 0, says, (given, installed, ended)


def _barrier(calls: Sequence[Call], number: int) -> Callable[[], Judged]:
    def judge() -> Judged:
        followed = (one for one in calls if one.case in (PLAIN, MESSAGE))
        call = next((one for one in followed if one.asked.number == number), None)
        record = call.barrier if call is not None else None
        seen = record.barrier if record is not None else None
        if call is None or record is None or seen is None:
            raise NotSeenError(f"no record of system call {number}'s entry")
        asked = call.asked
        code = record.aux.to_bytes(8, "little")[:2].hex()
        says = (
            f"{code[:2]} {code[2:]} at {record.user:#x}, RAX={seen.number} RDI={seen.di:#x} "
            f"RSI={seen.si:#x} RDX={seen.dx:#x}, privilege {seen.cs_before & 3} -> "
            f"{seen.cs_after & 3 if seen.cs_after else 'not seen'}"
        )
        holds = (
            (seen.number, seen.di, seen.si, seen.dx) == (number, *asked.args)
            and record.user == asked.instruction
            and code == asked.bytes == "0f05"
            and seen.cs_before & 3 == 3
            # A BPF program cannot read the code segment it runs in.
            and ((seen.cs_after == 0) if record.module == BPF else (seen.cs_after & 3 == 0))
        )
        return holds, says, (record,)

    return judge


def _fails(call: Call) -> Judged:
    ended = call.need("__sys_socket", RETURN)
    value = call.result
    says = f"{value} {status.name(value)}: {status.words(value)}"
    holds = status.is_error(value) and value == call.asked.returned
    if call.reached("sock_alloc"):
        released, more, records = _released(call)
        return holds and released, f"{says}; {more}", records
    installed = call.reached("fd_install")
    return holds and not installed, f"{says}; no socket was made", (ended,)


def _released(call: Call) -> Judged:
    made = call.need("sock_alloc", RETURN)
    released = call.need("__sock_release")
    put, ended = call.need("iput"), call.need("__sys_socket", RETURN)
    socket, value = rax(made), call.result
    holds = (
        status.is_error(value)
        and value == call.asked.returned
        and argument(released, 0) == socket != 0
        and argument(put, 0) == _socket(made).inode
        and made.tsc < released.tsc < put.tsc < ended.tsc
        and not call.reached("fd_install")
    )
    installed = "called" if call.reached("fd_install") else "not reached"
    says = (
        f"{value} {status.name(value)}; socket {socket:#x} made, "
        f"__sock_release({argument(released, 0):#x}), iput({argument(put, 0):#x}), "
        f"fd_install {installed}"
    )
    return holds, says, (made, released, put, ended)


def _signal(call: Call) -> Judged:
    sent = next((one for one in call.faults if one.size), None)
    if sent is None or call.asked.signal is None:
        raise NotSeenError("signal: no record that one was sent, or the handler never ran")
    made, installed = call.need("sock_alloc", RETURN), call.need("fd_install")
    ended, got = call.need("__sys_socket", RETURN), call.need("get_signal", RETURN)
    handler = call.asked.signal
    pending = [one.args is not None and one.args.signal_pending for one in (installed, ended)]
    after = call.asked.instruction + len(bytes.fromhex(call.asked.bytes))
    holds = (
        made.tsc < sent.tsc < installed.tsc < ended.tsc < got.tsc < handler.tsc
        and all(pending)
        and got.size == sent.size
        and handler.ip == after
        and handler.ax == call.result == call.asked.returned >= 0
    )
    says = (
        f"signal {sent.size} sent after sock_alloc, pending at fd_install and at the return; "
        f"handled at {handler.ip:#x}, behind the instruction, with rax = {handler.ax}"
    )
    return holds, says, (sent, installed, ended, got)


def _socket(record: Record) -> Socket:
    if record.socket is None:
        raise NotSeenError(f"{record.hook}: no socket in record {record.id}")
    return record.socket


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


# --- All of them -----------------------------------------------------------------------------


def _skipped(inputs: Inputs) -> Judged:
    """Every call of another program was told to be skipped, and none of ours was."""
    section = next((one for one in inputs.trace.sections if one.name == LATENCY), None)
    hook = None if section is None else next(iter(section.header.hooks), None)
    if hook is None:
        raise NotSeenError("no latency probe was there to skip anything")
    of = [one for one in inputs.records if one.module == LATENCY]
    skipped = [one for one in of if one.kind == Kind.SKIPPED]
    taken = [one for one in of if one.kind == ENTRY]
    others = {other.name: other for other in inputs.others}
    matched = [one for one in skipped if (o := others.get(one.comm)) and one.pid == o.pid]
    names = ", ".join(sorted({one.comm for one in skipped})) or "nobody"
    says = f"{hook.hits} calls, {len(taken)} taken, {len(skipped)} skipped: {names}"
    holds = (
        hook.hits == len(taken) + len(skipped)
        and all(one.comm == CALLER for one in taken)
        and not any(one.comm == CALLER for one in skipped)
        and {one.comm for one in matched} == set(others)
        and bool(others)
    )
    return holds, says, matched


def _entry_point(inputs: Inputs, calls: Sequence[Call]) -> Judged:
    seen = [one.barrier for one in calls if one.barrier is not None]
    values = {one.barrier.lstar for one in seen if one.barrier is not None}
    if not values:
        raise NotSeenError("no record has MSR_LSTAR")
    shown = [inputs.symbols.show(value) for value in sorted(values)]
    says = f"MSR_LSTAR = {', '.join(hex(value) for value in sorted(values))}: {', '.join(shown)}"
    return shown == ["entry_SYSCALL_64+0x0"], says, seen[:1]


def _cannot_fail(inputs: Inputs, calls: Sequence[Call]) -> Judged:
    """Hold what the kernel says of its type against every call that came that far."""
    returns = inputs.returns.get("fd_install")
    if returns is None:
        raise NotSeenError("the kernel did not say what fd_install returns")
    reached = [call for call in calls if call.reached("fd_install") and call.asked.number == 41]
    records = [call.need("fd_install") for call in reached]
    kept = [
        call.asked.returned == argument(one, 0) for call, one in zip(reached, records, strict=True)
    ]
    says = (
        f"it returns {returns} (BTF); {sum(kept)} of {len(kept)} calls that reached it returned "
        "the descriptor it was given"
    )
    return returns == "void" and bool(kept) and all(kept), says, records


def _kaslr(inputs: Inputs) -> Proof:
    # Two of 500 places can be the same by chance; three, with where it was linked, hardly.
    boots = {name: places[0] for name, places in inputs.kernels.items() if places}
    moved = len({*boots.values(), LINKED_AT}) > 1 and len(boots) > 1
    still = all(len(set(places)) == 1 for places in inputs.kernels.values())
    again = sum(len(places) > 1 for places in inputs.kernels.values())
    where = ", ".join(f"{name} {at:#x}" for name, at in sorted(boots.items()))
    says = f"two boots: {where}; {'the same after another restore' if again else 'not restored'}"
    evidence = ("kernels.json#text",)
    return Proof(name="kernel text: boots differ, restores do not", holds=moved and still,
                 says=says, evidence=evidence)  # fmt: skip


def _of_repeats(inputs: Inputs) -> Iterator[Proof]:
    for one in inputs.repeats:
        if one.name == CONTROL:
            yield _caught(inputs, one)
            continue
        full = one.opened + one.failed == one.count and one.other == 0
        grown = max(one.grown.values(), default=one.count)
        back = bool(one.before.sockstat) and not one.moved
        says = (
            f"{one.count} times {status.name(one.error) or 'opened and closed'}: sockstat "
            f"{'exactly back' if back else _moved(one)}, slabs grew by at most {grown} objects"
        )
        injected = len(_injected(inputs, one)) if one.name == "injected" else one.count
        if injected != one.count:
            says += f"; {injected} failures were recorded"
        yield Proof(
            name=f"{one.name} repeated: nothing is left",
            holds=full and back and grown * BOUND < one.count and injected == one.count,
            says=says,
            evidence=(f"{inputs.guest.name}/calls.json#repeats/{one.name}",),
        )
    if inputs.repeat(CONTROL) is None:
        yield Proof(name="a leak is caught", holds=False, says="none was made on purpose")


def _caught(inputs: Inputs, one: Repeat) -> Proof:
    """Judge the check itself: of a leak made on purpose it must see every socket."""
    names = ("sockets used", "TCP alloc")
    found = {name: one.moved.get(name, 0) for name in names}
    says = f"{one.count} sockets lost on purpose: {_moved(one)}"
    return Proof(name="a leak is caught", holds=set(found.values()) == {one.count}, says=says,
                 evidence=(f"{inputs.guest.name}/calls.json#repeats/{one.name}",))  # fmt: skip


def _moved(one: Repeat) -> str:
    return ", ".join(f"{name} {change:+d}" for name, change in one.moved.items()) or "no change"


def _injected(inputs: Inputs, one: Repeat) -> list[Record]:
    """Return the failures that the fault module recorded in the ring it had for this."""
    sections = [section for section in inputs.trace.sections if section.name == FAULT]
    for section in sections:
        numbers = range(section.first, section.first + section.header.stored)
        mine = [r for r in inputs.records if r.module == FAULT and r.number in numbers and r.ret]
        if len(mine) == one.count:
            return mine
    return []


def _same(agreement: Agreement) -> Proof:
    """Hold two accounts of the chain against each other: a difference is a disagreement."""
    says = f"{len(agreement.pairs)} records by both, in registers, pointers and results the same"
    evidence = tuple(item for pair in list(agreement.pairs.items())[:1] for item in pair)
    if agreement.differences:
        first = agreement.differences[0]
        says = f"{len(agreement.differences)} differences: {first.says}"
        evidence = tuple(one for d in agreement.differences[:3] for one in d.evidence)
    if agreement.alone:
        says += f"; seen by one alone: {', '.join(agreement.alone)}"
    holds = bool(agreement.pairs) and not agreement.differences
    return Proof(name="module and BPF say the same", holds=holds, says=says, evidence=evidence)


def _nothing_lost(inputs: Inputs) -> Proof:
    missed, dropped, torn = inputs.lost
    says = f"missed {missed}, dropped {dropped}, torn {torn}"
    sections = len(inputs.sections)
    traces = [inputs.trace, *([inputs.programs] if inputs.programs else [])]
    return Proof(
        name="no record is lost",
        holds=all(one.complete for one in traces) and sections > 0,
        says=f"{says} in {sections} traces",
        evidence=(f"{inputs.guest.name}/trace.bin#0",),
    )
