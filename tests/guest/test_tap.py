"""Links of taps and drivers with an XDP program: accounted for, and nothing of them left."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from lab import capture, tap
from lab.deadline import Deadline, wait_until
from tests import namespaces
from tests.guest.conftest import LAB, Invoke, abandoned, qemus, wait_gone
from tests.guest.test_runs import copies, ledger, start_run

needs_taps = pytest.mark.skipif(bool(tap.absent()), reason=tap.absent())
CELLS = """\
playbook: taps
question: Is every cell proven?
link: {backend: tap}
workload: {over: link}
expect: {complete: yes}
sweep:
  device: [virtio-net-pci, e1000e]
  protocol: [udp, tcp]
  size: [16, 65507]
"""


@needs_taps
def test_a_link_with_offloads_cuts_and_sums_in_the_device(up: Invoke) -> None:
    done = up("lab.run", "tap")
    assert 0 == done.code, done.out + done.err
    link = json.loads((done.run / "manifest.json").read_text())["link"]
    on = {name for name, value in link["offloads"].items() if value == "on"}
    assert {"tx-checksum", "rx-checksum", "scatter-gather", "tso", "gro"} == on
    (message,) = ledger(done)["messages"]
    assert {"_copy_from_iter", "_copy_to_iter"} == {move["function"] for move in copies(message)}
    sent = capture.read(done.run / "sender" / "wire.pcap")
    # No MTU of the lab's is as large: the device was given it to cut, and nobody had to.
    assert max(len(frame.data) for frame in sent) > 2000
    assert all(frame.headers is not None for frame in sent)
    # The sender's driver gives descriptor 0 again for one packet after the other.
    rings = up("lab.rings", str(done.run), "--json").value
    reads = [one for table in rings for one in table["matches"] if "dma-read" == one["kind"]]
    assert 1 < len(reads)
    assert [] == [one["why"] for one in reads if not one["uses"]]
    assert len(reads) == len({one["uses"][0]["number"] for one in reads})


@needs_taps
def test_every_size_over_taps_is_accounted_for(up: Invoke, tmp_path: Path) -> None:
    """E1000e's frames are finished on the way: cut, and their checksums filled in."""
    path = tmp_path / "taps.yaml"
    path.write_text(CELLS)
    done = up("lab.sweep", str(path), "--json")
    assert 0 == done.code, done.out + done.err
    cells = {(c["link"], c["protocol"], c["size"]): c["facts"] for c in done.value["cells"]}
    assert 8 == len(cells)
    assert {2} == {facts["least_copies"] for (_, _, size), facts in cells.items() if size > 16}
    assert {3} == {facts["copies"] for (_, _, size), facts in cells.items() if size == 16}


@needs_taps
def test_a_packet_of_several_descriptors_needs_no_probe(up: Invoke, tmp_path: Path) -> None:
    """TCP's payload lies in a page: one descriptor for the headers and one for that."""
    path = tmp_path / "frag.yaml"
    path.write_text(
        "playbook: frag\nquestion: Is it?\nlink: {device: e1000e, backend: tap}\n"
        "workload: {over: link, protocol: tcp, size: 1400}\n"
        "expect: {complete: yes, guest-cpu-copies: 2}\n"
    )
    done = up("lab.run", str(path), "--probes", "none")
    assert 0 == done.code, done.out + done.err


@needs_taps
def test_packets_that_the_device_cuts_and_fragments_need_no_probe(
    up: Invoke, tmp_path: Path
) -> None:
    """The ring shows the last of what was given; the log has the store of each descriptor."""
    path = tmp_path / "bare.yaml"
    path.write_text(
        "playbook: bare\nquestion: Is it?\nlink: {backend: tap}\nprobes: {kind: none}\n"
        "workload: {over: link}\nexpect: {complete: yes}\n"
        "sweep: {protocol: [udp, tcp], size: [9000]}\n"
    )
    done = up("lab.sweep", str(path), "--json")
    assert 0 == done.code, done.out + done.err
    facts = {cell["protocol"]: cell["facts"] for cell in done.value["cells"]}
    assert {(2, 1, 1)} == {
        (each["least_copies"], each["reads"], each["writes"]) for each in facts.values()
    }
    assert 7 == facts["udp"]["frames"]
    assert 7 > facts["tcp"]["frames"]


def test_a_driver_with_an_xdp_program_copies_into_pages_with_room(up: Invoke) -> None:
    done = up("lab.run", "xdp")
    assert 0 == done.code, done.out + done.err
    assert "xdp pass" in done.out
    (message,) = ledger(done)["messages"]
    functions = [move["function"] for move in copies(message)]
    assert "virtio_net:xdp_linearize_page>memcpy" in functions
    blind = up("lab.run", "xdp", "--without", "virtio_net:xdp_linearize_page>memcpy")
    assert 6 == blind.code
    assert blind.out.startswith("INCOMPLETE")


@needs_taps
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to look into another's namespace")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_a_link_is_left(invoke: Invoke, tmp_path: Path, end: signal.Signals) -> None:
    before = namespaces.links()
    process, _ = start_run(tmp_path, f"{LAB}-tap-{end}", "lab.run", "tap")
    pids = qemus(f"run-{process.pid}")
    found = [namespaces.tap_of(pid) for pid in pids]
    marks = {namespaces.number(fd) for fd, _ in found[:1]}
    for fd, _ in found:
        os.close(fd)
    assert ["sender", "receiver"] == [name for _, name in found]
    assert before == namespaces.links()
    assert all(namespaces.alive(mark) for mark in marks)

    process.send_signal(end)
    process.communicate(timeout=60)

    wait_gone(pids)
    wait_until(
        lambda: not any(namespaces.alive(mark) for mark in marks),
        what="the namespace to go",
        deadline=Deadline(10),
    )
    assert before == namespaces.links()
    if end == signal.SIGKILL:
        assert 0 == invoke("lab.gc").code
    assert not abandoned()
