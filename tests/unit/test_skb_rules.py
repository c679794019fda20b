"""Every rule of an skb has a trace that breaks it, and none that is as kernels have them does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import ledger
from lab.correlate import follow
from lab.correlate.hooks import OUTBUF
from tests.unit import cooked
from tests.unit.cooked import DIRECT_MAP, Cook, Event

QUEUE, XMIT = "__dev_queue_xmit", "virtio_net:start_xmit"
ENQUEUE, CONSUME = "__udp_enqueue_schedule_skb", "skb_consume_udp"
MADE = "virtio_net:page_to_skb"
ELSEWHERE = DIRECT_MAP + 0x0777_0000

Lie = Callable[[Event], dict[str, Any]]


def broken(cook: Cook, hook: str, lie: Lie) -> list[str]:
    """Return what is wrong with the skbs when the records of one hook lie."""
    found = 0
    for guest in cook.guests.values():
        for event in guest.events:
            if event["hook"] == hook:
                event.update(lie(event))
                found += 1
    assert found
    return [one.text for one in follow(cook.serve()).disagreements if one.what == "skb"]


@pytest.mark.parametrize(
    ("make", "hook", "lie", "says"),
    [
        # One record.
        (cooked.nic, QUEUE, lambda e: {"skb_data_len": e["skb_len"] + 1}, "data_len 59 is more"),
        (cooked.nic, QUEUE, lambda e: {"head": e["data"] + 8}, "lies before head"),
        (cooked.nic, QUEUE, lambda e: {"shinfo": e["data"] + 57}, "past its end"),
        (cooked.nic, ENQUEUE, lambda e: {"data": e["data"] - 64}, "is not what lies at physical"),
        (cooked.nic, XMIT, lambda e: {"skb_len": e["skb_len"] + 4}, "its IP header makes it 58"),
        (cooked.tcp, QUEUE, lambda e: {"skb_len": e["skb_len"] - 1}, "its IP header makes it 82"),
        (cooked.nic, ENQUEUE, lambda e: {"skb_len": 17}, "17, of a datagram of 16 bytes"),
        (cooked.nic, CONSUME, lambda e: {"skb_len": 15}, "15, of a datagram of 16 bytes"),
        (cooked.nic, ENQUEUE, lambda e: {"skb_data_len": 2}, "16 bytes are shown of a linear"),
        (cooked.nic, MADE, lambda e: {"skb_len": 57}, "57, of 70 bytes in the buffer"),
        # From one hook to the next.
        (cooked.nic, OUTBUF, lambda e: {"skb_len": 57}, "len of skb"),
        (cooked.nic, XMIT, lambda e: {"head": e["head"] - 64}, "head of skb"),
        (cooked.nic, OUTBUF, lambda e: {"data": e["data"] - 2}, "data of skb"),
        (cooked.nic, OUTBUF, lambda e: {"shinfo": e["shinfo"] + 64}, "end of skb"),
        (cooked.nic, CONSUME, lambda e: {"skb_data_len": 3}, "data_len of skb"),
        (cooked.loopback, "__netif_rx", lambda e: {"data": e["data"] + 1}, "data of skb"),
        # One object.
        (cooked.nic, MADE, lambda e: {"skb": ELSEWHERE}, "made skb"),
        (cooked.nic, OUTBUF, lambda e: {"skb": ELSEWHERE}, "which was given skb"),
        (cooked.nic, XMIT, lambda e: {"skb": ELSEWHERE}, "which was not queued"),
        (cooked.loopback, "__netif_rx", lambda e: {"skb": ELSEWHERE}, "which was given skb"),
        (cooked.loopback, "loopback_xmit", lambda e: {"skb": ELSEWHERE}, "which was not queued"),
        (cooked.nic, CONSUME, lambda e: {"skb": ELSEWHERE}, "in no queue of its socket"),
        (cooked.nic, CONSUME, lambda e: {"sk": ELSEWHERE}, "in no queue of its socket"),
    ],
)  # fmt: skip
def test_a_probe_that_lies_of_an_skb_is_named(
    tmp_path: Path, make: Callable[[Path], Cook], hook: str, lie: Lie, says: str
) -> None:
    assert any(says in text for text in broken(make(tmp_path), hook, lie))


@pytest.mark.parametrize("device", ["virtio-net-pci", "e1000e"])
def test_an_skb_is_as_long_as_its_frame(tmp_path: Path, device: str) -> None:
    """Where the lie is told at every hook, and to the IP header, the wire says otherwise."""
    cook = cooked.nic(tmp_path, device=device)
    for event in cook.sender.events:
        if "skb_len" in event:
            event["skb_len"] += 4
        if event["hook"] in (QUEUE, XMIT, "e1000e:e1000_xmit_frame"):
            shown = bytearray(event["bytes"] + bytes(4))
            shown[17] += 4
            event["bytes"] = bytes(shown)

    texts = [one.text for one in follow(cook.serve()).disagreements]

    assert any("len 62, and the frame it became has 58 bytes" in text for text in texts)


def test_a_rule_of_two_records_says_nothing_where_some_were_lost(tmp_path: Path) -> None:
    """The skb may have been another's meanwhile."""
    cook = cooked.nic(tmp_path)
    cook.header["dropped"] = 1

    assert not broken(cook, OUTBUF, lambda e: {"skb": ELSEWHERE})


@pytest.mark.parametrize("gone", ["skb_copy_bits", "pskb_expand_head"])
def test_an_skb_may_have_been_made_linear_by_a_hook_that_is_left_out(
    tmp_path: Path, gone: str
) -> None:
    cook = cooked.nic(tmp_path, without=[gone])

    assert not broken(cook, OUTBUF, lambda e: {"shinfo": e["shinfo"] + 64})


def test_a_broken_rule_keeps_the_run_from_being_proven(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cooked.change(cook.sender, XMIT, skb=ELSEWHERE)

    found = ledger.build(cook.serve())

    assert not found.proven
    assert {"skb"} == {one.what for one in found.disagreements}
