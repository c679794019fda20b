"""IPv6, connected sockets and bursts, as a user asks for them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tests.guest.conftest import Invoke
from tests.guest.test_runs import ledger

SIX = """\
playbook: six
question: Is every cell proven?
workload: {over: link, family: ipv6}
expect: {complete: yes}
sweep:
  over: [loopback, link]
  protocol: [udp, tcp]
  connect: [no, yes]
  size: [16, 1453]
"""
LOSSY = """\
playbook: lossy
question: Which datagrams of a burst are lost?
link: {loss: 10%}
workload: {over: link, size: 64, count: 150}
"""


def test_ipv6_and_connected_sockets_are_proven_on_both_paths(up: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "six.yaml"
    path.write_text(SIX)
    done = up("lab.sweep", str(path), "--json")
    assert 0 == done.code, done.out + done.err

    cells = {
        (one["link"], one["protocol"], one["connect"], one["size"]): one["facts"]
        for one in done.value["cells"]
    }
    assert 2 * 3 * 2 == len(cells)
    nic = "virtio-net-pci"
    for connected in (False, True):
        # Of IPv6 1452 bytes are one frame; the second fragment of 1453 has a header more.
        small, large = (cells[nic, "udp", connected, size] for size in (16, 1453))
        assert (3, 1, 78) == (small["copies"], small["frames"], small["frame"])
        assert 2 == large["frames"]
        assert 2 == cells["lo", "udp", connected, 16]["copies"]
    assert (4, 102) == (
        cells[nic, "tcp", False, 16]["copies"],
        cells[nic, "tcp", False, 16]["frame"],
    )


def test_many_messages_in_one_record_balance(up: Invoke) -> None:
    done = up("lab.run-nic", "--protocol", "tcp", "--count", "2000")
    assert 0 == done.code, done.out + done.err

    told = ledger(done)
    assert [2000, True] == [len(told["messages"]), told["complete"]]
    assert "more than it has room for" in told["witnesses"]["access-log"]
    carried: dict[str, set[int]] = defaultdict(set)
    for message in told["messages"]:
        copies = [one for one in message["movements"] if one["function"] == "_copy_to_iter"]
        assert 16 == sum(one["payload_size"] for one in copies)
        for movement in message["movements"]:
            if movement["kind"] == "dma-read":
                carried[movement["evidence"][0]].add(message["id"])
    assert max(map(len, carried.values())) > 10


def test_datagrams_that_a_lossy_link_drops_are_named(up: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "lossy.yaml"
    path.write_text(LOSSY)
    done = up("lab.run", str(path))
    assert 6 == done.code, done.out + done.err

    told = ledger(done)
    lost = set(told["messages_lost"])
    assert lost
    assert lost == {one["message"] for one in told["incomplete"]}
    assert [one["id"] not in lost for one in told["messages"]] == [
        one["complete"] for one in told["messages"]
    ]
    assert {0} == set(told["lost"].values())
    assert [] == told["disagreements"]
    assert "10%" == told["link"]["loss"]
    counted = (
        re.search(r"netem there dropped (\d+) frame", one["why"]) for one in told["incomplete"]
    )
    (dropped,) = {int(found[1]) for found in counted if found is not None}
    assert len(lost) <= dropped
