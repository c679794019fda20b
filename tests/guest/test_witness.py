"""The witness outside: it agrees with the probes, stands alone, and catches what they miss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import accelerator, image, topology
from lab.journal import Journal
from tests.guest.conftest import Done, Invoke


@pytest.fixture(scope="module", autouse=True)
def _can_see() -> None:
    speed = accelerator.choose(image.ensure("6.12", journal=Journal()), journal=Journal())
    if absent := topology.access_log_absent(speed):
        pytest.skip(f"needs an access log: {absent}")


def ledger(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.run / "ledger.json").read_text())
    return found


@pytest.mark.parametrize("task", ["lab.run-nic", "lab.run-loopback"])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_probes_and_witness_agree_on_every_copy(up: Invoke, task: str, protocol: str) -> None:
    done = up(task, "--protocol", protocol)
    assert 0 == done.code, done.out + done.err
    found = ledger(done)
    assert "present" == found["witnesses"]["access-log"]
    assert not found["disagreements"]
    (message,) = found["messages"]
    for movement in message["movements"]:
        if movement["kind"] in ("copy", "dma-write"):
            assert "access-log" in movement["confirmed_by"], movement
    sizes = [path.stat().st_size for path in done.run.glob("*/access.bin")]
    assert sizes
    assert max(sizes) < 1 << 20


def test_the_witness_alone_finds_three_copies_and_names_page_to_skb(up: Invoke) -> None:
    done = up("lab.run-nic", "--probes", "none")
    assert 0 == done.code, done.out + done.err
    assert not list(done.run.glob("*/trace.bin"))
    (message,) = ledger(done)["messages"]
    totals = message["totals"]
    assert (3, 1, 1) == (
        totals["guest_cpu_copies"],
        totals["device_reads"],
        totals["device_writes"],
    )
    copies = [move for move in message["movements"] if move["kind"] == "copy"]
    assert "page_to_skb" in copies[1]["function"]


def test_a_copy_whose_hook_was_left_out_is_named_by_the_witness(up: Invoke) -> None:
    done = up("lab.run-nic", "--without", "virtio_net:page_to_skb>memcpy")
    assert 6 == done.code
    found = ledger(done)
    assert not found["complete"]
    texts = [one["text"] for one in found["disagreements"]]
    assert any("no probe reported" in text and "memcpy" in text for text in texts), texts


def test_a_place_says_who_touched_it(up: Invoke) -> None:
    done = up("lab.run-nic", "--probes", "none")
    places = up("lab.accesses", str(done.run)).out.split()
    assert "receiver/rx-buffer" in places
    said = up("lab.accesses", str(done.run), "--place", "receiver/rx-buffer").out
    assert "memcpy" in said
    assert "page_to_skb" in said
    assert "store" not in said
    wrong = up("lab.accesses", str(done.run), "--place", "receiver/nowhere")
    assert 6 == wrong.code
    assert "receiver/rx-buffer" in wrong.err


def test_the_plugin_is_no_part_of_a_snapshot(up: Invoke) -> None:
    """A pair restored with the plugin came from a snapshot saved with it; both see."""
    up("lab.reset")
    done = up("lab.run-loopback")
    assert "present" == ledger(done)["witnesses"]["access-log"]
    assert (Path(done.run) / "sender" / "access.bin").stat().st_size > 4096
