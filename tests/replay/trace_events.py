"""What a trace must be to load in Perfetto with its tracks and flows: checked structurally."""

from __future__ import annotations

from typing import Any


def faults(value: Any) -> list[str]:
    """Return what is wrong with a Chrome JSON trace; empty for a sound one."""
    if not isinstance(value, dict) or not isinstance(value.get("traceEvents"), list):
        return ["no list of traceEvents"]
    events = value["traceEvents"]
    out = [fault for event in events for fault in _event(event)]
    if out:
        return out
    named = {(e["name"], e["pid"], e["tid"]) for e in events if e["ph"] == "M"}
    slices = [event for event in events if event["ph"] == "X"]
    for event in slices:
        if ("process_name", event["pid"], 0) not in named:
            out.append(f"process {event['pid']} has no name")
        if ("thread_name", event["pid"], event["tid"]) not in named:
            out.append(f"thread {event['pid']}/{event['tid']} has no name")
    if [event["ts"] for event in slices] != sorted(event["ts"] for event in slices):
        out.append("slices are not in the order of time")
    return [*dict.fromkeys(out), *_flows(slices), *_strays(slices)]


def _strays(slices: list[dict[str, Any]]) -> list[str]:
    """Expect on a device's track what the device did, and that on no other."""
    track: dict[int, int] = {}  # machine -> its device
    accesses: dict[tuple[int, str], int] = {}  # machine and record -> track
    for event in slices:
        if str(event["args"].get("kind")).startswith("dma"):
            track.setdefault(event["pid"], event["tid"])
            accesses[event["pid"], event["args"]["evidence"]] = event["tid"]
    out = []
    for event in slices:
        of_device = (event["pid"], event["args"]["evidence"]) in accesses
        if of_device != (event["tid"] == track.get(event["pid"])):
            out.append(f"{event['name']} is on track {event['pid']}/{event['tid']}")
    return out


def _event(event: Any) -> list[str]:
    if not isinstance(event, dict) or event.get("ph") not in ("X", "M"):
        return [f"neither slice nor name: {str(event)[:60]}"]
    wanted: dict[str, type | tuple[type, ...]] = {"name": str, "pid": int, "tid": int}
    if event["ph"] == "X":
        wanted |= {"ts": (int, float), "dur": (int, float), "args": dict}
    elif not isinstance(event.get("args"), dict):
        return [f"{event.get('name')} without args"]
    lacking = [key for key, kind in wanted.items() if not isinstance(event.get(key), kind)]
    out = [f"{event.get('name')}: no {key}" for key in lacking]
    if not out and event["ph"] == "X" and (event["ts"] < 0 or event["dur"] < 0):
        out.append(f"{event['name']}: time runs backwards")
    return out


def _flows(slices: list[dict[str, Any]]) -> list[str]:
    """Expect a flow to go out of its first slice, through others, into its last."""
    flows: dict[str, list[dict[str, Any]]] = {}
    for event in slices:
        if event.get("flow_in") or event.get("flow_out"):
            flows.setdefault(str(event.get("bind_id")), []).append(event)
    out = []
    for name, mine in flows.items():
        ends = [(bool(e.get("flow_in")), bool(e.get("flow_out"))) for e in mine]
        if name == "None":
            out.append("a flow without bind_id")
        elif ends.count((False, True)) != 1 or ends.count((True, False)) != 1:
            out.append(f"flow {name} does not begin and end once")
    return out
