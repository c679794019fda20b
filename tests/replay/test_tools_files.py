"""Files for other tools: the trace for Perfetto, the capture for Wireshark, the schema."""

from __future__ import annotations

import copy
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dpkt
import pytest

from lab import ledger, report
from lab.ledger import Ledger
from tests import schema
from tests.replay import browser, trace_events
from tests.unit import cooked
from tests.unit.cooked import Cook

RUNS: dict[str, Callable[[Path], Cook]] = {
    "nic": cooked.nic,
    "loopback": cooked.loopback,
    "tcp": lambda path: cooked.tcp(path, size=5000),
    "pieces": lambda path: cooked.nic(path, size=9000, count=2),
}


def trace(built: Ledger, run: Any) -> Any:
    return json.loads(report.trace(built, run))


# --- Perfetto -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_the_trace_is_sound_and_has_every_movement(tmp_path: Path, name: str) -> None:
    run = RUNS[name](tmp_path).serve()
    built = ledger.build(run)
    found = trace(built, run)
    moved = [e for e in found["traceEvents"] if e["ph"] == "X" and "kind" in e["args"]]

    assert trace_events.faults(found) == []
    assert len(moved) == sum(len(message.movements) for message in built.messages)


def test_tracks_are_machines_cpus_tasks_and_devices(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    events = trace(ledger.build(run), run)["traceEvents"]
    named = [
        (e["pid"], e["args"]["name"])
        for e in events
        if e["name"] in ("process_name", "thread_name")
    ]
    flow = [e for e in events if "bind_id" in e]

    assert {(1, "sender"), (2, "receiver"), (1, "CPU 0"), (2, "CPU 0")} <= set(named)
    assert {(1, "virtio-net-pci"), (2, "virtio-net-pci"), (1, "sender (301)")} <= set(named)
    assert [e["args"]["kind"] for e in flow] == ["copy", "dma-read", "dma-write", "copy", "copy"]
    assert (flow[0]["pid"], flow[-1]["pid"]) == (1, 2)


def _no_name(found: Any) -> None:
    found["traceEvents"] = [e for e in found["traceEvents"] if e["name"] != "thread_name"]


def _no_end(found: Any) -> None:
    [e for e in found["traceEvents"] if e.get("flow_in")][-1].pop("flow_in")


def _no_time(found: Any) -> None:
    next(e for e in found["traceEvents"] if e["ph"] == "X").pop("ts")


def _backwards(found: Any) -> None:
    found["traceEvents"].reverse()


def _on_a_task(found: Any) -> None:
    events = found["traceEvents"]
    task = max(e["tid"] for e in events if e["ph"] == "X" and e["pid"] == 1)
    next(e for e in events if e.get("args", {}).get("kind") == "dma-read")["tid"] = task


def _no_events(found: Any) -> None:
    found["traceEvents"] = "none"


@pytest.mark.parametrize("harm", [_no_name, _no_end, _no_time, _backwards, _on_a_task, _no_events])
def test_a_broken_trace_is_told(tmp_path: Path, harm: Callable[[Any], None]) -> None:
    run = cooked.nic(tmp_path).serve()
    found = trace(ledger.build(run), run)
    harm(found)

    assert trace_events.faults(found)


def test_many_messages_are_left_out_and_counted(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, count=520).serve()

    assert trace(ledger.build(run), run)["metadata"]["messages_left_out"] == 20


# --- pcapng ---------------------------------------------------------------------------------


def comments(data: bytes) -> list[str]:
    """Return the comment of each frame, "" where it has none, as dpkt reads them."""
    reader = dpkt.pcapng.Reader(io.BytesIO(data))
    frames = len(list(reader))
    out = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if int.from_bytes(data[at : at + 4], "little") == dpkt.pcapng.PCAPNG_BT_EPB:
            block = dpkt.pcapng.EnhancedPacketBlockLE(data[at : at + size])
            out.append(next((o.text for o in block.opts if o.code == 1), ""))
        at += size
    assert len(out) == frames
    return out


def test_each_frame_of_a_message_says_so(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, count=2).serve()
    found = report.wire(ledger.build(run), run)

    assert found is not None
    arp, first, second = comments(found)
    assert arp == ""
    assert first.startswith("skblab: message 0, bytes 0 to 15 of 16. Read by virtio-net-pci from")
    assert second.startswith("skblab: message 1, bytes 0 to 15 of 16.")


def test_wireshark_reads_the_comments(tmp_path: Path) -> None:
    tshark = browser.find("tshark")
    run = cooked.nic(tmp_path).serve()
    path = tmp_path / "wire.pcapng"
    path.write_bytes(report.wire(ledger.build(run), run) or b"")
    argv = [tshark, "-r", str(path), "-T", "fields", "-e", "frame.len", "-e", "frame.comment"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)

    assert "58\tskblab: message 0, bytes 0 to 15 of 16." in done.stdout


def test_without_frames_there_is_no_capture(tmp_path: Path) -> None:
    run = cooked.loopback(tmp_path).serve()

    assert report.wire(ledger.build(run), run) is None


# --- The schema -----------------------------------------------------------------------------


def test_the_schema_is_the_ledgers() -> None:
    assert ledger.schema()["properties"]["schema"] == {"const": ledger.SCHEMA}


WRONG: dict[str, Callable[[Any], None]] = {
    "number for an address": lambda it: it["messages"][0]["places"][0].update(virtual=4096),
    "unknown kind": lambda it: it["messages"][0]["movements"][0].update(kind="teleport"),
    "no evidence": lambda it: it["messages"][0]["movements"][0].update(evidence=[]),
    "complete with a gap": lambda it: it.update(
        incomplete=[{"guest": "g", "message": None, "between": [], "bytes": 0, "why": "w"}]
    ),
    "incomplete without one": lambda it: it.update(complete=False),
    "a device that is a CPU": lambda it: it["messages"][0]["movements"][1].update(
        mover="guest-cpu"
    ),
    "an address on the wire": lambda it: it["messages"][0]["places"][2].update(physical="0x1000"),
    "one field more": lambda it: it["messages"][0]["totals"].update(dma=1),
    "one field less": lambda it: it["messages"][0].pop("skb"),
    "absent and no reason": lambda it: it["witnesses"].update(census="absent"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_ledger_that_is_wrong_breaks_the_schema(tmp_path: Path, name: str) -> None:
    sound = ledger.build(cooked.nic(tmp_path).serve()).as_json()
    wrong = copy.deepcopy(sound)
    WRONG[name](wrong)

    schema.check(sound)
    with pytest.raises(AssertionError):
        schema.check(wrong)
