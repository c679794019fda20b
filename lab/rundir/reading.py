"""JSON of a run directory to values, every field checked."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lab.errors import TraceCorrupt
from lab.rundir.artefacts import (
    Census,
    CensusGate,
    Descriptor,
    Exchanged,
    Held,
    HeldAt,
    Hit,
    Manifest,
    Queue,
    Ready,
    RingGate,
    Rings,
    TscSample,
    UserBuffer,
    Workload,
)
from lab.rundir.fields import MAX_U64, Fields, Json

# A user's payload never stands in clear where a census would find it (docs/internals.md).
PAYLOAD_MASK = 0x5A
_tuple = tuple.__new__  # a third of what calling a named tuple takes
MESSAGE = "message"  # the experiment of a manifest that names none


def read_manifest(value: Json, path: Path) -> Manifest:
    """Read manifest.json."""
    top = Fields(value, path)
    link = top.inner("link")
    accelerator = top.inner("accelerator")
    probes = top.inner("probes") if top.has("probes") else Fields({}, path, "probes")
    experiment = top.text("experiment", MESSAGE)
    no_text, no_size = (None, None) if experiment == MESSAGE else ("", 0)
    return Manifest(
        experiment=experiment,
        playbook=top.word("playbook"),
        over=top.word("over", ("link", "loopback"), default=no_text),
        family=top.word("family", ("ipv4", "ipv6"), default="ipv4"),
        protocol=top.word("protocol", ("udp", "tcp"), default=no_text),
        connected=top.flag("connect", default=False),
        size=top.size("size", no_size),
        count=top.size("count", no_size),
        seed=_seed(top),
        payload=_payload(top),
        accelerator=accelerator.text("name"),
        accelerator_why=accelerator.text("why", ""),
        device=link.word("device"),
        backend=link.text("backend"),
        offloads=_pairs(link, "offloads"),
        options=_pairs(link, "options"),
        kernel=top.text("kernel", ""),
        probe_kind=probes.text("kind", "none"),
        without=probes.texts("without"),
        notes=_pairs(probes, "notes"),
        witnesses=_pairs(top, "witnesses"),
        guests=_names(top),
        drifted=tuple(str(entry) for entry in top.rows("drifted")),
        values=top.values,
    )


def _names(top: Fields) -> tuple[str, ...]:
    names = top.texts("guests")
    for name in names:
        if not name.replace("-", "").isalnum():
            raise top.fault("names of guests", name, "guests")
    return names


def _seed(top: Fields) -> int | None:
    if not top.has("seed"):
        return None
    text = top.text("seed")
    try:
        seed = int(text, 16)
    except ValueError:
        seed = -1
    if not 0 <= seed < 1 << 64:
        raise top.fault("a seed of 64 bits in hexadecimal", text, "seed")
    return seed


def _payload(top: Fields) -> bytes | None:
    if not top.has("payload_masked"):
        return None
    text = top.text("payload_masked")
    try:
        return bytes(byte ^ PAYLOAD_MASK for byte in bytes.fromhex(text))
    except ValueError:
        raise top.fault("hexadecimal digits", text, "payload_masked") from None


def _pairs(fields: Fields, name: str) -> tuple[tuple[str, str], ...]:
    if not fields.has(name):
        return ()
    inner = fields.inner(name)
    return tuple((key, inner.shown(key)) for key in sorted(inner.values))


def read_workloads(value: Json, path: Path) -> tuple[Workload, ...]:
    """Read workload.json: a list, one entry per role that ran in the guest."""
    return tuple(_workload(entry) for entry in Fields({"": value}, path).each(""))


def _workload(top: Fields) -> Workload:
    role = top.text("role")
    said = "sent" if role == "sender" else "received"
    report = top.inner(said) if top.has(said) else None
    done = top.inner("done") if top.has("done") else None
    return Workload(
        role=role,
        ready=_ready(top.inner("ready"), role),
        messages=() if report is None else tuple(_exchanged(m) for m in report.each("messages")),
        total=None if report is None else report.size(said),
        bytes=0 if report is None else report.size("bytes", 0),
        failed=0 if report is None else report.size("failed", 0),
        timed_out=False if report is None else report.flag("timed_out", default=False),
        held=() if done is None else tuple(_held(entry) for entry in done.each("messages")),
        held_first=0 if done is None else done.size("first", 0),
        held_total=0 if done is None else done.size("held", len(done.rows("messages"))),
        held_digest="" if done is None else done.text("all", ""),
        done=done is not None,
    )


def _ready(fields: Fields, role: str) -> Ready:
    buffer = fields.inner("buffer")
    pages = tuple(
        (page.address("virtual"), page.address("physical")) for page in buffer.each("pages")
    )
    return Ready(
        role=role,
        pid=fields.integer("pid"),
        fd=fields.integer("fd", -1),
        protocol=fields.text("protocol", ""),
        local=fields.shown("local"),
        peer=fields.shown("peer"),
        size=fields.size("size"),
        count=fields.size("count"),
        slots=fields.size("slots"),
        slot_size=fields.size("slot_size"),
        buffer=UserBuffer(
            virtual=buffer.address("virtual"),
            size=buffer.size("size"),
            region=buffer.text("region", ""),
            mapping=buffer.text("mapping", ""),
            pages=pages,
        ),
    )


def _exchanged(fields: Fields) -> Exchanged:
    return Exchanged(
        index=fields.size("index"),
        slot=fields.size("slot"),
        size=fields.size("size", 0),
        returned=fields.integer("returned"),
        errno=fields.integer("errno", 0),
        peer=fields.shown("peer"),
    )


def _held(fields: Fields) -> Held:
    return Held(
        index=fields.size("index"),
        slot=fields.size("slot"),
        digest=fields.text("digest"),
        hex=fields.text("hex", ""),
    )


def read_census(value: Json, path: Path) -> Census:
    """Read census.json."""
    top = Fields(value, path)
    gates = tuple(
        CensusGate(
            name=gate.text("gate"),
            hits=_hits(gate),
            not_listed=gate.size("hits_not_listed", 0),
            scanned_bytes=gate.size("scanned_bytes", 0),
            seconds=gate.number("seconds", 0.0),
        )
        for gate in top.each("gates")
    )
    return Census(needles=top.text("needles"), gates=gates)


def _hits(gate: Fields) -> tuple[Hit, ...]:
    """Read the hits of a gate: ten thousand messages leave fifty thousand.

    All at once where they are as a census writes them; else field by field, which says what
    is wrong with which.
    """
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        return tuple([_hit(row) for row in gate.rows("hits")])
    return tuple(
        Hit(
            physical=hit.address("physical"),
            message=hit.size("message"),
            offset=hit.size("offset"),
            size=hit.size("size"),
            page=hit.text("page", ""),
        )
        for hit in gate.each("hits")
    )


def _hit(row: Any) -> Hit:
    """Return what a census wrote; raise one of several errors for anything else."""
    text, message, offset, size, page = (
        row["physical"], row["message"], row["offset"], row["size"], row.get("page", ""),
    )  # fmt: skip
    physical = int(text, 16)
    numbers = type(message) is type(offset) is type(size) is int
    if not numbers or type(page) is not str or not text.startswith("0x"):
        raise TypeError
    if not (0 <= physical <= MAX_U64 and 0 <= message <= MAX_U64):
        raise ValueError
    if not (0 <= offset <= MAX_U64 and 0 <= size <= MAX_U64):
        raise ValueError
    return _tuple(Hit, (physical, message, offset, size, page))


def read_rings(value: Json, path: Path) -> Rings:
    """Read rings.json."""
    top = Fields(value, path)
    return Rings(
        device=top.text("device", ""),
        queues=tuple(_queue(queue) for queue in top.each("queues")),
    )


def _queue(fields: Fields) -> Queue:
    kind = fields.text("queue")
    if kind not in ("rx", "tx"):
        raise fields.fault("rx or tx", kind, "queue")
    gates = fields.inner("gates")
    return Queue(
        kind=kind,
        index=fields.size("index", 0),
        size=fields.size("size", 0),
        gates=tuple(_ring_gate(gates.inner(name), name) for name in gates.values),
        translated=fields.has("device"),
        at=fields.address("desc") if fields.has("desc") else 0,
        offered=fields.address("avail") if fields.has("avail") else 0,
    )


def _ring_gate(fields: Fields, name: str) -> RingGate:
    descriptors = tuple(
        Descriptor(id=row[0], address=row[1], length=row[2], flags=row[3], next=row[4])
        for row in fields.integers("descriptors", 5)
    )
    return RingGate(
        name=name,
        avail_idx=fields.size("avail_idx", 0),
        used_idx=fields.size("used_idx", 0),
        descriptors=descriptors,
        used=tuple((row[0], row[1]) for row in fields.integers("used", 2)),
        entries=tuple((row[0], row[1]) for row in fields.integers("entries", 2)),
        behind=tuple(sorted((row[0], row[1], row[2]) for row in fields.integers("behind", 3))),
        status=tuple((row[0], row[1]) for row in fields.integers("status", 2))
        if fields.has("status")
        else (),
        has_status=fields.has("status"),
        given=fields.sizes("given") if fields.has("given") else None,
        at_least=fields.has("at_least"),
        counted=fields.sizes("frames") if fields.has("frames") else (),
    )


def read_held_at(value: Json, path: Path) -> tuple[HeldAt, ...]:
    """Read the gates of tsc.json."""
    top = Fields(value, path)
    if not top.has("gates"):
        return ()
    return tuple(
        HeldAt(
            gate=gate.text("gate"),
            before_ns=gate.size("before_ns"),
            after_ns=gate.size("after_ns"),
        )
        for gate in top.each("gates")
    )


def read_tsc(value: Json, path: Path) -> tuple[TscSample, ...]:
    """Read tsc.json."""
    samples = tuple(
        TscSample(
            before_ns=sample.size("before_ns"),
            tsc=sample.size("tsc"),
            after_ns=sample.size("after_ns"),
        )
        for sample in Fields(value, path).each("samples")
    )
    for sample in samples:
        if sample.after_ns < sample.before_ns:
            raise TraceCorrupt(
                f"{path}: expected after_ns at or past {sample.before_ns}, found {sample.after_ns}",
                log=path,
            )
    return samples
