"""Movements to a balanced ledger: what a run proves, and what it does not."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lab import correlate
from lab.correlate import Flow, Inputs, accounts, outside
from lab.correlate import types as flow_types
from lab.correlate.identity import Identity
from lab.correlate.inputs import RECEIVER, SENDER, GuestInputs
from lab.correlate.types import Sighting
from lab.ledger.arrivals import ended_in, taken
from lab.ledger.entries import (
    INTERRUPTED,
    SCHEMA,
    Disagreement,
    Extent,
    Incomplete,
    Ledger,
    Message,
    Movement,
    Place,
    Skb,
    Totals,
    Touch,
    Unexplained,
)
from lab.ledger.expected import Expectation, asked, check, expectations
from lab.ledger.messages import of_flow
from lab.ledger.reasons import Reasons
from lab.ledger.stated import manifest_faults
from lab.record import Section
from lab.rundir import WORKLOAD, RunDir, Workload
from lab.rundir.faults import file_faults

__all__ = [
    "SCHEMA",
    "Disagreement",
    "Expectation",
    "Extent",
    "Incomplete",
    "Ledger",
    "Message",
    "Movement",
    "Place",
    "Sighting",
    "Skb",
    "Totals",
    "Touch",
    "Unexplained",
    "asked",
    "build",
    "check",
    "expectations",
    "schema",
    "without_collector",
]

MOST_NOTED = 4  # messages that notes name, and frames of each
LOG = "access-log"
WITNESSES = (LOG, "census", "probe:bpf", "probe:kmod", "rings", "wire")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of ledger.json."""
    text = Path(__file__).with_name("ledger.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Keep the cycle collector away from what lives to the end: a quarter of the time is its."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            # What was made meanwhile is taken for old: else all of it were looked through at once.
            gc.freeze()
            gc.unfreeze()
            gc.enable()


@without_collector()
def build(run: RunDir) -> Ledger:
    """Return the ledger of a run, from its directory alone.

    Raises `TraceCorrupt` for a file that cannot be read; everything else that is wrong
    with a run stands in the ledger.
    """
    inputs = correlate.load(run)
    log = outside.look(inputs)
    flow, against, notes = _flow(inputs, log)
    received = taken(inputs, flow)
    faults = (*_faults(inputs, flow, received), *_log_faults(inputs, log))
    if run.interrupted():
        faults = (_fault("host", INTERRUPTED), *faults)
    manifest = inputs.manifest
    messages = tuple(of_flow(inputs, flow, faults))
    return Ledger(
        schema=SCHEMA,
        playbook=manifest.playbook,
        complete=not faults,
        lost=_lost(inputs, log),
        messages_lost=tuple(sorted(set(range(inputs.identity.count)) - set(received))),
        accelerator={"name": manifest.accelerator, "why": manifest.accelerator_why},
        link={
            "device": manifest.device,
            "backend": manifest.backend,
            "offloads": dict(manifest.offloads),
            **({"options": dict(manifest.options)} if manifest.options else {}),
            **dict(manifest.settings),
        },
        witnesses=_witnesses(inputs, log),
        messages=messages,
        incomplete=faults,
        unexplained=tuple(_unexplained(outside.without_spills(flow, log))),
        touches=tuple(_touches(log)),
        disagreements=tuple(_disagreement(one) for one in (*flow.disagreements, *against)),
        notes=(
            *flow.notes,
            *_again_notes(messages),
            *notes,
            *_log_notes(inputs, log),
            *_own_notes(inputs),
        ),
    )


def _flow(
    inputs: Inputs, log: outside.Outside | None
) -> tuple[Flow, tuple[flow_types.Disagreement, ...], tuple[str, ...]]:
    """Walk by the probes' account, and hold it against all others there are; adds notes.

    Others are the access log's, and that of BPF programs beside modules.  Without probes
    the log's account is the only one.
    """
    if log is not None and inputs.manifest.probe_kind == "none":
        return correlate.follow(log.inputs), (), ()
    flow = correlate.follow(inputs)
    against: tuple[flow_types.Disagreement, ...] = ()
    notes: tuple[str, ...] = ()
    beside = accounts.second(inputs)
    if beside is not None and accounts.complete(inputs):
        against, notes = accounts.agree(inputs, flow, correlate.follow(beside))
    if log is not None and log.complete:
        by_guest = outside.named(inputs, log)
        lossy = [guest.name for guest in inputs.guests if any(n for _, n in accounts.lost(guest))]
        lonely, more = outside.agree(
            flow, correlate.follow(log.inputs), inputs.identity, by_guest, lossy=lossy
        )
        against, notes = against + lonely, notes + more
    return flow, against, notes


def _log_faults(inputs: Inputs, log: outside.Outside | None) -> Iterator[Incomplete]:
    """Yield the losses of logs that are the only account there is."""
    if log is None or inputs.manifest.probe_kind != "none":
        return
    for name, lost in log.lost.items():
        if lost:
            yield _fault(name.partition("/")[0], f"{name} lost {lost} accesses")


def _again_notes(messages: Sequence[Message]) -> Iterator[str]:
    """Say what was sent again, of which the counts say nothing."""
    found = [(one, again) for one in messages if (again := one.sent_again)]
    for message, again in found[:MOST_NOTED]:
        reads = [one for one in message.movements if one.kind == "dma-read"]
        twice = [one for one in reads if sum(map(partial(_overlap, one), reads)) > 1]
        frames = dict.fromkeys(it for one in twice for it in one.evidence if "/wire.pcap#" in it)
        more = " and more" if len(frames) > MOST_NOTED else ""
        yield (
            f"message {message.id}: {again} of its bytes were sent again (frames "
            f"{', '.join([*frames][:MOST_NOTED])}{more}); counts are of those that were received"
        )
    if len(found) > MOST_NOTED:
        yield f"of {len(found) - MOST_NOTED} more messages bytes were sent again"


def _overlap(left: Movement, right: Movement) -> bool:
    """Tell whether two movements are of the same bytes, or some of them are."""
    first, last = max(left.offset, right.offset), left.offset + left.payload_size
    return first < min(last, right.offset + right.payload_size)


def _own_notes(inputs: Inputs) -> Iterator[str]:
    """Say what was asked for less than all, and what cannot be checked."""
    left_out = {hook.name for guest in inputs.guests for hook in guest.hooks if hook.left_out}
    if left_out:
        yield f"left out as asked: {', '.join(sorted(left_out))}"
    if "files" not in inputs.manifest.values:
        yield "the manifest lists no files: whether they are as the run wrote them is not known"


def _log_notes(inputs: Inputs, log: outside.Outside | None) -> Iterator[str]:
    """Say where two accounts were not held against each other."""
    if log is not None and not log.complete and inputs.manifest.probe_kind != "none":
        lost = ", ".join(f"{name} {count}" for name, count in log.lost.items() if count)
        yield f"the access log lost accesses ({lost}): probes were not held against it"


# --- Witnesses and losses -------------------------------------------------------------------


def _lost(inputs: Inputs, log: outside.Outside | None) -> dict[str, int]:
    out: dict[str, int] = {}
    if log is not None:
        out |= log.lost
    for guest in inputs.guests:
        for section, lost in accounts.lost(guest):
            name = f"{guest.name}/{section}"
            out[name] = out.get(name, 0) + lost
    return dict(sorted(out.items()))


def _witnesses(inputs: Inputs, log: outside.Outside | None) -> dict[str, str]:
    told = dict(inputs.manifest.witnesses)
    beside = log is not None and inputs.manifest.probe_kind != "none"
    accesses = sum(log.lost.values()) if log is not None and beside else 0
    out: dict[str, str] = {}
    for name in WITNESSES:
        absent = _absent(inputs, name)
        if told.get(name, "").startswith("absent"):
            out[name] = told[name]
        elif name == LOG and accesses:
            # Of what it saw nothing is taken back, but it vouches for nothing either.
            lost = "1 access" if accesses == 1 else f"{accesses} accesses"
            out[name] = f"lost {lost}: not held against the probes"
        else:
            out[name] = f"absent: {absent}" if absent else "present"
    return out


def _absent(inputs: Inputs, witness: str) -> str | None:
    # Why a witness has nothing to say; None when it has.
    lacking = [guest.name for guest in inputs.guests if _silent(guest, witness)]
    if not lacking:
        return None
    if witness == LOG or not _asked(inputs, witness):
        return "this run has none"
    if witness in ("wire", "rings") and inputs.loopback:
        return "over loopback nothing reaches a device"
    reasons = [
        guest.census.absent
        for guest in inputs.guests
        if witness == "census" and guest.census is not None and guest.census.absent
    ]
    return reasons[0] if reasons else f"nothing from {', '.join(lacking)}"


def _silent(guest: GuestInputs, witness: str) -> bool:
    # A run of BPF programs alone has their account in the place of the modules'.
    silent = {
        "probe:kmod": guest.trace is None or guest.trace is guest.bpf,
        "probe:bpf": guest.bpf is None,
        "census": guest.census is None or guest.census.absent is not None,
        "wire": guest.frames is None,
        LOG: not guest.folder.has("access.bin"),
        "rings": guest.rings is None or not guest.rings.queues,
    }
    return silent.get(witness, True)


# --- What is not accounted for --------------------------------------------------------------


def _faults(inputs: Inputs, flow: Flow, received: Sequence[int]) -> Iterator[Incomplete]:
    # A message that got lost is a gap of its own, which says where it was last.
    blind = list(_blind(inputs))
    yield from blind
    for guest, why in manifest_faults(inputs):
        yield _fault(guest, why)
    yield from _file_faults(inputs)
    yield from _workload_faults(inputs, flow, received)
    yield from _trace_faults(inputs)
    reason = Reasons(inputs, flow.gaps).of
    for gap in flow.gaps:
        # What nobody could look for was not missed by a hook, or lost by the link.
        why = f"not to be told: {blind[0].why.partition(':')[0]}" if blind else reason(gap)
        yield Incomplete(
            guest=gap.guest, message=gap.message, between=gap.between, bytes=gap.bytes, why=why
        )


def _blind(inputs: Inputs) -> Iterator[Incomplete]:
    """Yield what says where a program's buffer is, and is not there: nothing else can be told."""
    if not inputs.guests:
        yield _fault("host", "manifest.json names no guest")
        return
    for role in (SENDER, RECEIVER):
        if inputs.with_role(role) is None:
            guest = next((one for one in inputs.guests if one.name == role), inputs.guests[0])
            lacks = f"has no {role}" if guest.folder.has(WORKLOAD) else "is missing"
            why = f"{guest.name}/{WORKLOAD} {lacks}: where the {role}'s buffer was is not known"
            yield _fault(guest.name, why)


def _file_faults(inputs: Inputs) -> Iterator[Incomplete]:
    """Expect every file to be there as the run wrote it, and every witness to have its own."""
    folders = {guest.name: guest.folder.path for guest in inputs.guests}
    for guest, why in file_faults(inputs.manifest.values, folders):
        if not why.startswith(f"{guest}/{WORKLOAD} is gone"):  # that is the first fault of all
            yield _fault(guest, why)
    for witness, told in inputs.manifest.witnesses:
        lacking = [guest.name for guest in inputs.guests if _silent(guest, witness)]
        if told == "present" and lacking:
            yield _fault(lacking[0], f"{witness} was a witness of the run and its file is gone")


def _fault(guest: str, why: str, *, message: int | None = None, size: int = 0) -> Incomplete:
    return Incomplete(guest=guest, message=message, between=(), bytes=size, why=why)


def _workload_faults(inputs: Inputs, flow: Flow, received: Sequence[int]) -> Iterator[Incomplete]:
    for role, verb in ((SENDER, "send"), (RECEIVER, "recv")):
        guest = inputs.with_role(role)
        work = None if guest is None else guest.role(role)
        if guest is None or work is None:
            continue
        order = received if role == RECEIVER else range(inputs.identity.count)
        expected = len(order)
        if work.total is None:
            yield _fault(guest.name, f"the {role} never reported what it {verb} returned")
            continue
        stream = inputs.manifest.protocol == "tcp" and role == RECEIVER
        if not stream and work.total != expected:
            yield _fault(guest.name, f"{verb} returned {work.total} messages of {expected}")
        for entry in work.messages:
            if not stream and entry.returned != inputs.identity.size:
                yield _fault(
                    guest.name,
                    f"{verb} returned {entry.returned} (errno {entry.errno}) for message "
                    f"{entry.index} of {inputs.identity.size} bytes",
                    message=order[entry.index] if entry.index < expected else None,
                )
        if work.bytes != expected * inputs.identity.size:
            last = ended_in(inputs, flow, work.bytes) if stream else None
            ended = "" if last is None else ": its stream ended before the end of this one"
            why = f"{verb} returned {work.bytes} bytes in all{ended}"
            yield _fault(guest.name, why, message=last)
        yield from _digest_faults(inputs, guest, role, order)


def _digest_faults(
    inputs: Inputs, guest: GuestInputs, role: str, order: Sequence[int]
) -> Iterator[Incomplete]:
    """Hold what a program has against the messages it was to have, in its own `order`."""
    work = guest.role(role)
    if work is None:
        return
    if not work.done:
        yield _fault(guest.name, f"the {role} never said what it holds")
        return
    identity = inputs.identity
    held = {entry.index: entry.digest for entry in work.held}
    # A slot is used again: only the last messages are still there at the end.
    first = max(0, len(order) - work.ready.slots)
    listed = min(len(order), first + len(work.held))
    if work.held_total > len(work.held):
        # More than fit in a line: the rest is vouched for by one digest of all.
        yield from _all_digest_faults(identity, guest, work, order[first:], first)
    else:
        listed = len(order)
    known: dict[str, str] = {}
    for index in range(first, listed):
        message = order[index]
        expected = known["alike"] if identity.alike and known else identity.digest(message)
        known.setdefault("alike", expected)
        if index not in held:
            yield _fault(guest.name, f"the {role} does not hold message {message}", message=message)
        elif held[index] != expected:
            yield _fault(
                guest.name,
                f"message {message} has digest {held[index]} at the {role}, expected {expected}",
                message=message,
            )


def _all_digest_faults(
    identity: Identity, guest: GuestInputs, work: Workload, order: Sequence[int], first: int
) -> Iterator[Incomplete]:
    """Hold the digest of all that a program has, from its `first` on, against these messages."""
    last = first + len(order) - 1
    if (work.held_first, work.held_total) != (first, len(order)):
        yield _fault(
            guest.name,
            f"the {work.role} holds messages {work.held_first} to"
            f" {work.held_first + work.held_total - 1}, expected {first} to {last}",
        )
        return
    value = identity.digest_of(order)
    if work.held_digest != f"{value:016x}":
        yield _fault(
            guest.name,
            f"the messages {first} to {last} have digest {work.held_digest}"
            f" at the {work.role}, expected {value:016x}",
        )


def _trace_faults(inputs: Inputs) -> Iterator[Incomplete]:
    if inputs.manifest.probe_kind == "none":
        return
    for guest in inputs.guests:
        for witness, file in (("probe:kmod", "trace.bin"), ("probe:bpf", "bpf.bin")):
            if guest.workloads and _asked(inputs, witness) and _silent(guest, witness):
                yield _fault(guest.name, f"{guest.name}/{file} is absent or empty")
        for section in _sections(guest):
            header = section.header
            lost = (
                ("missed", header.missed),
                ("dropped", header.dropped),
                ("torn", len(section.torn)),
            )
            words = [f"{count} {word}" for word, count in lost if count]
            if words:
                yield _fault(guest.name, f"{section.name} lost records: {', '.join(words)}")
            if not header.finished:
                yield _fault(guest.name, f"{section.name} was not finished: its losses are unknown")


def _asked(inputs: Inputs, witness: str) -> bool:
    """Tell whether a run was to have these probes; True for every other witness."""
    kinds = {"probe:kmod": ("kmod", "both"), "probe:bpf": ("bpf", "both")}
    return witness not in kinds or inputs.manifest.probe_kind in kinds[witness]


def _sections(guest: GuestInputs) -> Iterator[Section]:
    for trace in (guest.trace, None if guest.bpf is guest.trace else guest.bpf):
        yield from trace.sections if trace is not None else ()


# --- What the witnesses add -----------------------------------------------------------------


def _unexplained(
    hits: tuple[flow_types.Unexplained, ...],
) -> Iterator[Unexplained]:
    for hit in hits:
        yield Unexplained(
            guest=hit.guest,
            message=hit.message,
            physical=hit.physical,
            offset=hit.offset,
            size=hit.size,
            evidence=hit.evidence,
            page=hit.page,
        )


def _touches(log: outside.Outside | None) -> Iterator[Touch]:
    """Yield what CPUs did with message bytes besides copying them."""
    for guest in () if log is None else log.guests:
        for read in guest.seen.reads:
            yield Touch(
                kind="read",
                guest=guest.name,
                message=read.message,
                function=read.function,
                caller=read.callers[0] if read.callers else "",
                physical=read.physical[0][0],
                offset=read.offset,
                size=read.payload_size,
                times=read.times,
                evidence=read.evidence[: outside.MOST_EVIDENCE],
            )
        for spill in guest.seen.spills:
            yield Touch(
                kind="spill",
                guest=guest.name,
                message=spill.message,
                function=spill.function,
                caller=spill.callers[0] if spill.callers else "",
                physical=spill.target[0][0] + spill.payload_at,
                offset=spill.offset,
                size=spill.payload_size,
                times=1,
                evidence=spill.evidence[: outside.MOST_EVIDENCE],
            )


def _disagreement(entry: flow_types.Disagreement) -> Disagreement:
    return Disagreement(
        what=entry.what,
        guest=entry.guest,
        message=entry.message,
        text=entry.text,
        evidence=tuple(dict.fromkeys(entry.evidence)),
    )
