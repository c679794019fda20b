"""How a message arrives: interrupt, NAPI, driver, IP, lookup, socket, wake-up, copy, by records.

::

    __udp4_lib_lookup returned sk --.
    __udp_enqueue_schedule_skb: sk --+-- one sock? -- RAM: task, files, fd, file, socket, sock
    skb_consume_udp: sk -------------'
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab import record
from lab.errors import TraceCorrupt
from lab.ledger import Ledger, Message
from lab.record import Context, Record
from lab.report.blocks import plain, table
from lab.report.evidence import context
from lab.rundir import RunDir, to_json
from lab.symbols import Symbols

FILE = "arrival.json"
LOOKED = "lookup.json"  # of the guest: what lies behind the receiver's descriptor, read out of RAM
SCHEMA = 1
SHORT = {"interrupts off": "irqs off"}
SHOWN_MESSAGES = 10  # of many messages the first

INTERRUPT, SCHEDULE, POLL = "__handle_irq_event_percpu", "__napi_schedule", "__napi_poll"
DELIVER = "ip_local_deliver"
UDP, LOOKUP, ENQUEUE = "udp_rcv", "__udp4_lib_lookup", "__udp_enqueue_schedule_skb"
READABLE, WAKE, CONSUME = "sock_def_readable", "try_to_wake_up", "skb_consume_udp"
# What a record at a hook is, in the order in which a packet comes to it.
WHAT: Mapping[str, str] = {
    INTERRUPT: "interrupt",
    SCHEDULE: "NAPI scheduled",
    POLL: "NAPI poll",
    "virtio_net:receive_buf": "driver",
    "virtio_net:page_to_skb>memcpy": "driver copies",
    "virtio_net:page_to_skb": "driver's skb",
    "e1000e:e1000_clean_rx_irq>memcpy": "driver copies",
    "dma_unmap_page_attrs": "driver",
    "__netif_rx": "handed over",
    "napi_gro_receive": "GRO",
    "ip_rcv_core": "IP",
    "ip_rcv": "IP",
    DELIVER: "IP, for us",
    UDP: "UDP",
    LOOKUP: "UDP lookup",
    ENQUEUE: "socket's queue",
    READABLE: "readable",
    WAKE: "wake-up",
    "_copy_to_iter": "copy",
    "csum_and_copy_to_iter": "copy",
    CONSUME: "consumed",
}
NEEDED: Mapping[str, tuple[str, ...]] = {
    "loopback": (DELIVER, UDP, LOOKUP, ENQUEUE, READABLE, CONSUME),
    "link": (INTERRUPT, SCHEDULE, POLL, DELIVER, UDP, LOOKUP, ENQUEUE, READABLE, CONSUME),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One record on the way in; `since_ticks` counts from the first of its message."""

    what: str
    function: str
    context: str
    cpu: int
    says: str
    since_ticks: int
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """How one message arrived; `socks` are the sock by who names it, as hexadecimal text."""

    message: int
    steps: tuple[Step, ...]
    socks: Mapping[str, str]
    evidence: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """The first messages of a run, and what is wrong with them."""

    run: str
    kernel: str
    accelerator: str
    pid: int
    fd: int
    sock: str  # behind the descriptor, by RAM
    port: int  # the sock's own, by RAM
    messages: tuple[Arrival, ...]
    trouble: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the content of arrival.json."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """Return arrival.json."""
        return to_json(self.as_json())


def build(run: RunDir, ledger: Ledger) -> Arrivals:
    """Return how the messages of a run arrived, from its directory and its ledger."""
    manifest = run.manifest()
    guest = run.guest("receiver" if manifest.over == "link" else "sender")
    trace = record.read(guest.trace, guest=guest.name)
    records = sorted(trace.records, key=lambda one: (one.tsc, one.number))
    modules = {section.header.module_base: section.name for section in trace.sections}
    symbols = Symbols(guest.symbols, modules)
    path = guest.file(LOOKED)
    try:
        looked: Any = run.read_json(f"{guest.name}/{LOOKED}")
        pid, fd, chain = int(looked["pid"]), int(looked["fd"]), looked["chain"]
        sock, port = int(chain["sock"]), int(chain["skc_num"])
    except (KeyError, TypeError, ValueError) as error:
        raise TraceCorrupt(f"{path}: expected what lab.run arrival writes: {error!r}") from error
    of_id = {one.id: number for number, one in enumerate(records)}
    trouble: list[str] = []
    if not chain.get("f_op_is_socket"):
        trouble.append(f"fd {fd} of task {pid} is no socket")
    messages = []
    for message in ledger.messages[:SHOWN_MESSAGES]:
        way = _way(message, records, of_id, pid=pid)
        found = _arrival(message.id, way, symbols)
        messages.append(found)
        trouble += _trouble(found, way, sock, over=manifest.over)
    errors = {hook.name: hook.error for hook in trace.hooks if hook.error}
    lacking = [name for name in NEEDED[manifest.over] if errors.get(name)]
    trouble += [f"{name} is not attached (error {errors[name]})" for name in lacking]
    return Arrivals(
        run=run.name,
        kernel=manifest.kernel,
        accelerator=manifest.accelerator,
        pid=pid,
        fd=fd,
        sock=f"0x{sock:x}",
        port=port,
        messages=tuple(messages),
        trouble=tuple(trouble),
    )


def _way(
    message: Message, records: list[Record], of_id: Mapping[str, int], *, pid: int
) -> list[Record]:
    """Return the records a message left on its way in, in order."""
    ids = [one for movement in message.movements for one in movement.evidence]
    own = {of_id[one] for one in ids if one in of_id}
    own |= {of_id[seen.evidence] for seen in message.skb.receiver if seen.evidence in of_id}
    skbs = {seen.skb for seen in message.skb.receiver}
    own = {number for number in own if records[number].hook in WHAT}
    if not own:
        return []
    first, last = min(own), max(own)
    within = range(first, last + 1)
    chosen = set(own)
    chosen |= {n for n in within if records[n].skb in skbs and records[n].hook in WHAT}
    softirq = [n for n in chosen if records[n].hook == UDP]
    queued = [n for n in chosen if records[n].hook == ENQUEUE]
    if softirq and queued:
        looked = range(softirq[0], queued[0])
        chosen |= set(_each(records, looked, LOOKUP, cpu=records[softirq[0]].cpu)[-1:])
    if queued:
        sk, cpu = records[queued[0]].sk, records[queued[0]].cpu
        after = range(queued[0], last)
        readable = [n for n in _each(records, after, READABLE, cpu=cpu) if records[n].sk == sk][:1]
        chosen |= set(readable)
        # Behind it only what the same CPU does before it takes in the next packet.
        woken = range(readable[0], last) if readable else range(0)
        for number in _each(records, woken, WAKE, cpu=cpu):
            between = _each(records, range(readable[0], number), ENQUEUE, cpu=cpu)
            if not between and records[number].size == pid:
                chosen.add(number)
                break
    chosen |= set(_before(records, first))
    return [records[number] for number in sorted(chosen)]


def _before(records: list[Record], first: int) -> Iterator[int]:
    # What led to the driver: the poll, who asked for it, and the interrupt before that; all of
    # them on the driver's CPU, where another's interrupt or another device's poll may lie between.
    driver = records[first]
    back = [n for n in range(first - 1, -1, -1) if records[n].cpu == driver.cpu]
    poll = next(
        (n for n in back if records[n].hook == POLL and _same(records[n].dev, driver.dev)), None
    )
    if poll is None:
        return
    yield poll
    napi = records[poll].aux
    asked = [n for n in back if n < poll and (records[n].hook, records[n].aux) == (SCHEDULE, napi)]
    yield from asked[:1]
    # A poll that found no end asks for the next itself; the interrupt is that of the first.
    for number in asked:
        if Context.IRQ_OFF in records[number].context:
            yield number
            yield from _each(records, range(number - 1, -1, -1), INTERRUPT, cpu=driver.cpu)[:1]
            return


def _same(one: str, other: str) -> bool:
    return not one or not other or one == other


def _each(records: list[Record], numbers: range, hook: str, *, cpu: int) -> list[int]:
    return [n for n in numbers if records[n].hook == hook and records[n].cpu == cpu]


def _arrival(number: int, way: list[Record], symbols: Symbols) -> Arrival:
    named = {
        name: one
        for name, hook in (
            ("lookup", LOOKUP),
            ("queue", ENQUEUE),
            ("readable", READABLE),
            ("read", CONSUME),
        )
        for one in way
        if one.hook == hook
    }
    return Arrival(
        message=number,
        steps=tuple(_step(one, way[0].tsc, symbols) for one in way),
        socks={name: f"0x{one.sk:x}" for name, one in named.items()},
        evidence={name: one.id for name, one in named.items()},
    )


def _step(one: Record, start: int, symbols: Symbols) -> Step:
    return Step(
        what=WHAT[one.hook],
        function=one.function,
        context=context(one.context),
        cpu=one.cpu,
        says=_SAYS.get(one.hook, _of_packet)(one, symbols),
        since_ticks=one.tsc - start,
        evidence=one.id,
    )


def _of_packet(one: Record, _: Symbols) -> str:
    if not one.skb:
        return f"{one.size} bytes at 0x{one.src:x}"
    return f"skb 0x{one.skb:x} data 0x{one.data:x} len {one.skb_len}"


def _of_napi(one: Record, symbols: Symbols) -> str:
    poll = symbols.show(one.user).partition("+")[0]
    return f"napi 0x{one.aux:x} {poll} weight {one.size}"


def _of_lookup(one: Record, _: Symbols) -> str:
    args = one.args
    if args is None:
        return f"-> sock 0x{one.sk:x}"
    target = ipaddress.IPv4Address((args.arg[3] & 0xFFFFFFFF).to_bytes(4, "little"))
    return f"port {one.size} of {target} -> sock 0x{one.sk:x}"


def _of_copy(one: Record, _: Symbols) -> str:
    return f"{one.ret} bytes, 0x{one.src:x} to user 0x{one.user:x}"


_SAYS: Mapping[str, Callable[[Record, Symbols], str]] = {
    INTERRUPT: lambda one, _: f"irq {one.size} {one.dev}",
    SCHEDULE: _of_napi,
    POLL: _of_napi,
    LOOKUP: _of_lookup,
    ENQUEUE: lambda one, _: f"sock 0x{one.sk:x} skb 0x{one.skb:x} len {one.skb_len}",
    READABLE: lambda one, _: f"sock 0x{one.sk:x}",
    WAKE: lambda one, _: f"task {one.size} {one.dev}",
    CONSUME: lambda one, _: f"sock 0x{one.sk:x} skb 0x{one.skb:x} len {one.skb_len}",
    "_copy_to_iter": _of_copy,
    "csum_and_copy_to_iter": _of_copy,
}


def _trouble(found: Arrival, way: list[Record], sock: int, *, over: str) -> Iterator[str]:
    seen = {one.hook for one in way}
    of = f"message {found.message}: "
    for hook in NEEDED[over]:
        if hook not in seen:
            yield f"{of}no record of {hook} ({WHAT[hook]})"
    for name, one in found.socks.items():
        if int(one, 16) != sock:
            yield (
                f"{of}the {name}'s sock is {one} ({found.evidence[name]}), and behind the"
                f" receiver's descriptor lies 0x{sock:x}"
            )


def render(found: Arrivals) -> str:
    """Return what the terminal is shown: the first message, one record a line."""
    more = f" (the first {len(found.messages)} in {FILE})" if len(found.messages) > 1 else ""
    out = [f"Arrival of message 0{more}, Linux {found.kernel}, {found.accelerator}"]
    for one in found.messages[:1]:
        rows = [
            (
                step.what,
                step.function,
                SHORT.get(step.context, step.context.partition(",")[0]),
                step.says,
                step.evidence.rpartition("trace.bin")[2],
            )
            for step in one.steps
        ]
        out += plain([*table(("STEP", "FUNCTION", "IN", "VALUES", "RECORD"), rows)])
        if WAKE not in {step.function for step in one.steps}:
            out.append("No task was woken for it: the receiver was not waiting.")
    if found.trouble:
        out += [f"! {text}" for text in found.trouble]
    elif found.messages:
        names = ", ".join(found.messages[0].socks)
        out.append(
            f"One sock: {found.sock} (port {found.port}), by {names}; and by RAM behind fd"
            f" {found.fd} of task {found.pid}."
        )
    return "\n".join(out) + "\n"
