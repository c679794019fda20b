"""trace.perfetto.json: a run as Perfetto and chrome://tracing load it, on the host's clock.

A process is a machine; its threads are its CPUs, its tasks and its device.  A record is a
slice without a length, for that is all it tells: a moment.  A movement is a slice on its CPU or
device, and those of one message are one flow, from the sender's copy to the receiver's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from lab.ledger import Ledger, Message, Movement
from lab.record import Record
from lab.report.evidence import Archive, context
from lab.report.words import KINDS, function_name
from lab.rundir import RunDir

Event: TypeAlias = dict[str, Any]

SHOWN_MESSAGES = 500
CPU, DEVICE, TASK = 1, 1000, 2000  # thread ids: 1 + CPU, the device, 2000 + pid


def trace(ledger: Ledger, run: RunDir, archive: Archive | None = None) -> str:
    """Return the trace of a run; times are microseconds of the host's monotonic clock."""
    manifest = run.manifest()
    archive = archive or Archive(run)
    pids = {guest: number for number, guest in enumerate(manifest.guests, 1)}
    events: list[Event] = []
    bounds: dict[str, float] = {}
    for message in ledger.messages[:SHOWN_MESSAGES]:
        for event in _events(message, archive, pids):
            events.append(event)
            guest = manifest.guests[event["pid"] - 1]
            bounds[guest] = max(bounds.get(guest, 0), event["args"]["bound_us"])
    events.sort(key=lambda event: (event["ts"], event["pid"], event["tid"]))
    value = {
        "traceEvents": [*_names(events, pids, manifest.device), *events],
        "displayTimeUnit": "ns",
        "metadata": {
            "run": run.name,
            "complete": ledger.complete,
            "clock": "the host's CLOCK_MONOTONIC; records are moments and have no length",
            "clock_bound_us": bounds,
            "messages_left_out": max(0, len(ledger.messages) - SHOWN_MESSAGES),
        },
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


class _Moment(NamedTuple):
    """When, on the host's clock, a record was taken, and what each of its slices has."""

    record: Record
    pid: int
    us: float
    told: Event


def _moment(archive: Archive, pids: dict[str, int], evidence: str) -> _Moment | None:
    """Return when a record was taken; None for one that has no time on the host's clock."""
    record = archive.record(evidence)
    if record is None or record.guest not in pids:
        return None
    line = archive.shelf(record.guest).clock
    if line is None:
        return None
    at = line.host(record.tsc)
    told = {
        "evidence": record.id,
        "comm": record.comm,
        "context": context(record.context),
        "bound_us": at.bound_ns / 1000,
    }
    return _Moment(record, pids[record.guest], at.ns / 1000, told)


def _events(message: Message, archive: Archive, pids: dict[str, int]) -> Iterator[Event]:
    told: set[str] = set()
    placed = [(m, _moment(archive, pids, m.evidence[0])) for m in message.movements]
    movements = [(movement, at) for movement, at in placed if at is not None]
    for number, (movement, at) in enumerate(movements):
        record = at.record
        told.add(record.id)
        device = movement.kind.startswith("dma")
        tid = DEVICE if device else CPU + record.cpu
        name = f"{KINDS[movement.kind]}: {function_name(movement)}"
        event = _slice(at, name, tid, _moved(message, movement))
        if len(movements) > 1:
            event["bind_id"] = f"0x{message.id + 1:x}"
            if number < len(movements) - 1:
                event["flow_out"] = True
            if number:
                event["flow_in"] = True
        yield event
        if not device:  # the task in whose time a device was seen to be done moved nothing
            yield _slice(at, name, TASK + record.pid, {})
    for seen in (*message.skb.sender, *message.skb.receiver):
        seen_at = None if seen.evidence in told else _moment(archive, pids, seen.evidence)
        if seen_at is None:
            continue
        record = seen_at.record
        told.add(record.id)
        args = {"message": message.id, "skb": f"0x{seen.skb:x}", "head": f"0x{seen.head:x}"}
        for tid in (CPU + record.cpu, TASK + record.pid):
            yield _slice(seen_at, f"skb at {record.function}", tid, args)


def _slice(at: _Moment, name: str, tid: int, more: Event) -> Event:
    return {
        "name": name,
        "cat": "lab",
        "ph": "X",
        "ts": at.us,
        "dur": 0,
        "pid": at.pid,
        "tid": tid,
        "args": {**at.told, **more},
    }


def _moved(message: Message, movement: Movement) -> Event:
    source, target = message.places[movement.source], message.places[movement.target]
    return {
        "message": message.id,
        "kind": movement.kind,
        "bytes": movement.payload_size,
        "from": f"{source.place} 0x{source.at(movement.offset):x}",
        "to": f"{target.place} 0x{target.at(movement.offset):x}",
        "certainty": movement.certainty,
        "confirmed_by": list(movement.confirmed_by),
    }


def _names(events: list[Event], pids: dict[str, int], device: str) -> Iterator[Event]:
    """Yield the names of the tracks that are used."""
    for guest, pid in pids.items():
        yield _name("process_name", pid, 0, guest)
    comms: dict[tuple[int, int], str] = {}
    for event in events:
        comms.setdefault((event["pid"], event["tid"]), event["args"]["comm"])
    for (pid, tid), comm in sorted(comms.items()):
        name = f"CPU {tid - CPU}" if tid < DEVICE else device
        if tid >= TASK:
            name = f"{comm} ({tid - TASK})"
        yield _name("thread_name", pid, tid, name)
        yield {
            "name": "thread_sort_index", "ph": "M", "pid": pid, "tid": tid,
            "args": {"sort_index": tid},
        }  # fmt: skip


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
