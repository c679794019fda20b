"""TCP on both paths and many sizes, as a user sweeps them: every cell proven, by records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import LAB, Done, Invoke, Once
from tests.guest.test_runs import copies, ledger

CELLS = """\
playbook: cells
question: Is every cell proven?
kernel: "{kernel}"
workload: {{over: link}}
expect: {{complete: yes}}
sweep:
  over: [loopback, link]
  protocol: {protocols}
  size: {sizes}
"""


def swept(
    invoke: Invoke, tmp_path: Path, lab: str, *, kernel: str, protocols: str, sizes: str
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Sweep and return what index.json says of each cell."""
    path = tmp_path / "cells.yaml"
    path.write_text(CELLS.format(kernel=kernel, protocols=protocols, sizes=sizes))
    done = invoke("lab.sweep", str(path), "--json", lab=lab)
    assert 0 == done.code, done.out + done.err
    told = done.value
    assert told["proven"], told
    assert (Path(told["sweep"]) / "table.txt").is_file()
    return {(cell["link"], cell["protocol"], cell["size"]): cell for cell in told["cells"]}


def test_every_size_and_protocol_of_a_topology_in_one_bring_up(up: Invoke, tmp_path: Path) -> None:
    cells = swept(up, tmp_path, LAB, kernel="6.12", protocols="[udp, tcp]", sizes="[16, 4000]")

    assert 8 == len(cells)
    copied = {key: cell["facts"]["copies"] for key, cell in cells.items()}
    assert {2} == {count for (link, _, _), count in copied.items() if link == "lo"}
    nic = "virtio-net-pci"
    assert (4, 3) == (copied[nic, "tcp", 16], cells[nic, "tcp", 4000]["facts"]["least_copies"])
    assert (3, 2) == (copied[nic, "udp", 16], copied[nic, "udp", 4000])
    calls = cells[nic, "tcp", 4000]["facts"]["calls"]
    assert calls["skb_copy_and_csum_bits"] >= 2
    # Three segments; TCP may send one again on a host that is slow at that moment.
    assert cells[nic, "tcp", 4000]["facts"]["frames"] >= 3


def test_the_other_kernel_sweeps_too(invoke: Invoke, tmp_path: Path) -> None:
    cells = swept(
        invoke, tmp_path, f"{LAB}-61", kernel="6.1", protocols="[tcp]", sizes="[16, 4000]"
    )

    assert {2, 3, 4} == {cell["facts"]["copies"] for cell in cells.values()}


@pytest.fixture
def clone(once: Once) -> Done:
    return once("lab.run-loopback", "--protocol", "tcp")


def test_over_loopback_tcp_hands_over_a_clone_that_shares_the_head(clone: Done) -> None:
    assert 0 == clone.code, clone.out + clone.err
    (message,) = ledger(clone)["messages"]
    assert message["skb"]["same_object"] is False
    assert message["skb"]["same_head"] is True
    filled, sent = (
        next(row["skb"] for row in message["skb"]["sender"] if row["at"] == at)
        for at in ("__tcp_transmit_skb", "loopback_xmit")
    )
    assert filled != sent
    assert {sent} == {row["skb"] for row in message["skb"]["receiver"]}


def test_in_a_guest_with_both_modules_every_hook_is_attached_once(clone: Done) -> None:
    manifest = json.loads((clone.run / "manifest.json").read_text())
    tables = manifest["probes"]["hooks"]["sender"]
    names = [name for table in tables.values() for name in table]
    assert len(names) == len(set(names))
    assert "skb_copy_bits" in tables["send_trace"]
    absent = [name for name, state in tables["send_trace"].items() if state]
    assert all(name.startswith("e1000e:") for name in absent), absent  # no such driver here


def test_without_the_copy_that_makes_an_skb_linear_it_is_incomplete(up: Invoke) -> None:
    done = up("lab.run-nic", "--protocol", "tcp", "--without", "skb_copy_bits")
    assert 6 == done.code, done.out
    assert done.out.startswith("INCOMPLETE")
    assert "skb_copy_bits was left out" in " ".join(done.out.split())


def test_a_burst_loses_no_record(up: Invoke) -> None:
    done = up("lab.run-loopback", "--count", "300")
    assert 0 == done.code, done.out + done.err
    lost = {name: count for name, count in ledger(done)["lost"].items() if "_trace" in name}
    assert {0} == set(lost.values())
    assert {2} == {len(copies(message)) for message in ledger(done)["messages"]}
