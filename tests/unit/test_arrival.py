"""How a message arrives: every record in its order, and the sock the same by all who name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import arrival, ledger, record
from lab.arrival import Arrivals
from lab.errors import TraceCorrupt
from lab.record import Context, Kind
from lab.rundir import RunDir
from tests.unit import cooked
from tests.unit.cooked import Cook

SOCK = cooked.DIRECT_MAP + 0x600_0000
NAPI = cooked.DIRECT_MAP + 0x700_0000
CHAIN = {"sock": SOCK, "skc_num": 9999, "f_op_is_socket": True}
# Before what recv_trace records, and between its records: hook -> the one it comes before.
BEFORE = {
    "__handle_irq_event_percpu": "virtio_net:receive_buf",
    "__napi_schedule": "virtio_net:receive_buf",
    "__napi_poll": "virtio_net:receive_buf",
    "ip_local_deliver": "__udp_enqueue_schedule_skb",
    "udp_rcv": "__udp_enqueue_schedule_skb",
    "__udp4_lib_lookup": "__udp_enqueue_schedule_skb",
    "try_to_wake_up": "_copy_to_iter",
}


def serve(
    path: Path,
    *,
    without: str = "",
    found: int = SOCK,
    beside: tuple[dict[str, object], ...] = (),
    **looked: object,
) -> RunDir:
    """Cook a run over the link, with the hooks of an arrival beside those of recv_trace.

    `beside` are more events; the `tsc` of each counts from the hook that it names as `at`.
    """
    cook: Cook = cooked.nic(path)
    run = cook.serve()
    guest = run.guest("receiver")
    trace = record.read(guest.trace, guest="receiver")
    own = {one.hook: one for one in trace.records}
    enqueued = own["__udp_enqueue_schedule_skb"]
    events = []
    for number, (hook, later) in enumerate(BEFORE.items()):
        event: dict[str, object] = {"hook": hook, "tsc": own[later].tsc - 20 + number, "cpu": 0}
        if hook in ("__handle_irq_event_percpu", "__napi_schedule"):
            event |= {"context": Context.IRQ_OFF}
        if hook == "__handle_irq_event_percpu":
            event |= {"size": 26, "dev": "virtio0-input.0"}
        elif hook.startswith("__napi"):
            event |= {"aux": NAPI, "size": 64, "dev": "lab0"}
        elif hook in ("ip_local_deliver", "udp_rcv"):
            event |= {"skb": enqueued.skb, "head": enqueued.head, "data": enqueued.data}
        elif hook == "__udp4_lib_lookup":
            event |= {"sk": found, "size": 9999, "kind": Kind.RETURN}
        elif hook == "try_to_wake_up":
            event |= {"size": own["_copy_to_iter"].tgid, "dev": "receiver"}
        if hook != without:
            events.append(event)
    times = {str(event["hook"]): int(str(event["tsc"])) for event in events}
    for one in beside:
        event = {
            "cpu": 0,
            "size": own["_copy_to_iter"].tgid,
            **one,
            "tsc": times[str(one["at"])] + int(str(one["tsc"])),
        }
        del event["at"]
        events.append(event)
    more = record.encode_section(events, name="arrival_trace", hooks=list(BEFORE))
    guest.trace.write_bytes(guest.trace.read_bytes() + more)
    pid = own["_copy_to_iter"].tgid
    guest.write_json(arrival.LOOKED, {"pid": pid, "fd": 3, "chain": {**CHAIN, **looked}})
    return run


def build(run: RunDir) -> Arrivals:
    return arrival.build(run, ledger.build(run))


def test_every_record_is_one_line_in_its_order(tmp_path: Path) -> None:
    found = build(serve(tmp_path))
    steps = [step.function for step in found.messages[0].steps]

    assert () == found.trouble
    assert [
        "__handle_irq_event_percpu", "__napi_schedule", "__napi_poll", "receive_buf",
        "page_to_skb>memcpy", "page_to_skb", "ip_local_deliver", "udp_rcv", "__udp4_lib_lookup",
        "__udp_enqueue_schedule_skb", "sock_def_readable", "try_to_wake_up", "_copy_to_iter",
        "skb_consume_udp",
    ] == steps  # fmt: skip
    ticks = [step.since_ticks for step in found.messages[0].steps]
    assert ticks == sorted(ticks)


def test_the_sock_is_one_by_all_who_name_it(tmp_path: Path) -> None:
    found = build(serve(tmp_path))
    text = arrival.render(found)

    assert {"lookup", "queue", "readable", "read"} == set(found.messages[0].socks)
    assert {f"0x{SOCK:x}"} == set(found.messages[0].socks.values()) == {found.sock}
    assert f"One sock: 0x{SOCK:x} (port 9999), by lookup, queue, readable, read" in text


@pytest.mark.parametrize("how", ["lookup", "descriptor"])
def test_another_sock_is_said(tmp_path: Path, how: str) -> None:
    other = SOCK + 0x480
    run = serve(tmp_path, found=other) if how == "lookup" else serve(tmp_path, sock=other)
    found = build(run)

    assert found.trouble
    assert f"0x{other:x}" in found.trouble[0]
    assert "behind the receiver's descriptor" in found.trouble[0]
    assert "One sock" not in arrival.render(found)


@pytest.mark.parametrize("hook", sorted(set(BEFORE) - {"try_to_wake_up"}))
def test_a_step_without_a_record_is_said(tmp_path: Path, hook: str) -> None:
    found = build(serve(tmp_path, without=hook))

    assert any(f"no record of {hook}" in text for text in found.trouble)


def test_a_receiver_that_was_not_waiting_was_not_woken(tmp_path: Path) -> None:
    found = build(serve(tmp_path, without="try_to_wake_up"))

    assert () == found.trouble
    assert "No task was woken" in arrival.render(found)


def test_what_is_no_socket_is_said(tmp_path: Path) -> None:
    found = build(serve(tmp_path, f_op_is_socket=False))

    assert any("is no socket" in text for text in found.trouble)


def test_without_the_look_behind_the_descriptor_it_is_no_such_run(tmp_path: Path) -> None:
    run = serve(tmp_path)
    run.guest("receiver").file(arrival.LOOKED).write_text('{"pid": 3}')

    with pytest.raises(TraceCorrupt, match=r"lookup\.json"):
        build(run)


IRQ: dict[str, object] = {"hook": "__handle_irq_event_percpu", "context": Context.IRQ_OFF}
OTHER = NAPI + 0x4000
# What another CPU, or another device on the same one, did meanwhile.
MEANWHILE: dict[str, tuple[dict[str, object], ...]] = {
    "another CPU's interrupt": (
        {**IRQ, "at": "__napi_schedule", "tsc": -1, "cpu": 1, "size": 99, "dev": "virtio9-input.0"},
    ),
    "another CPU's poll": (
        {"hook": "__napi_poll", "at": "__napi_poll", "tsc": 1, "cpu": 1, "aux": OTHER,
         "dev": "eth9", "size": 64},
    ),
    "the same NAPI, scheduled on another CPU": (
        {"hook": "__napi_schedule", "at": "__napi_poll", "tsc": -1, "cpu": 1, "aux": NAPI,
         "dev": "lab0", "size": 64, "context": Context.IRQ_OFF},
    ),
    "another device's poll": (
        {"hook": "__napi_poll", "at": "__napi_poll", "tsc": 1, "aux": OTHER, "dev": "eth9",
         "size": 64},
    ),
    "another CPU's lookup": (
        {"hook": "__udp4_lib_lookup", "at": "__udp4_lib_lookup", "tsc": 0, "cpu": 1,
         "sk": SOCK + 0x480, "size": 53, "kind": Kind.RETURN},
    ),
    "another CPU's wake-up": (
        {"hook": "try_to_wake_up", "at": "try_to_wake_up", "tsc": -1, "cpu": 1, "dev": "other"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_others_did_meanwhile_is_no_step(tmp_path: Path, what: str) -> None:
    alone = build(serve(tmp_path / "alone"))
    found = build(serve(tmp_path / "busy", beside=MEANWHILE[what]))

    def told(found: Arrivals) -> list[tuple[str, str, int]]:
        return [(one.function, one.says, one.cpu) for one in found.messages[0].steps]

    assert () == found.trouble
    assert told(alone) == told(found)


def test_a_poll_that_asked_for_the_next_is_led_back_to_the_interrupt(tmp_path: Path) -> None:
    # virtqueue_napi_complete(): more arrived while the queue was polled; no interrupt asked.
    again: tuple[dict[str, object], ...] = (
        {**IRQ, "at": "__napi_poll", "tsc": -1, "size": 28, "dev": "virtio1-input.0"},
        {"hook": "__napi_schedule", "at": "__napi_poll", "tsc": -1, "aux": NAPI, "dev": "lab0",
         "size": 64, "context": Context.SOFTIRQ},
    )  # fmt: skip
    found = build(serve(tmp_path, beside=again))
    steps = found.messages[0].steps

    assert () == found.trouble
    assert ["__handle_irq_event_percpu", "__napi_schedule", "__napi_schedule", "__napi_poll"] == [
        one.function for one in steps[:4]
    ]
    assert "irq 26 virtio0-input.0" == steps[0].says
