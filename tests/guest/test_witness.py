"""The witness outside: it agrees with the probes, stands alone, and catches what they miss."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from lab import accelerator, image, kernel, pages, topology
from lab.journal import Journal
from tests.guest.conftest import LAB, Done, Invoke, Once, bring_up


@pytest.fixture(scope="module", autouse=True)
def _can_see() -> None:
    speed = accelerator.choose(image.ensure("6.12", journal=Journal()), journal=Journal())
    if absent := topology.access_log_absent(speed):
        pytest.skip(f"needs an access log: {absent}")


def ledger(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.run / "ledger.json").read_text())
    return found


@pytest.mark.parametrize("task", ["lab.run-nic", "lab.run-loopback"])
@pytest.mark.parametrize("words", [(), ("--protocol", "tcp")], ids=["udp", "tcp"])
def test_probes_and_witness_agree_on_every_copy(
    once: Once, task: str, words: tuple[str, ...]
) -> None:
    done = once(task, *words)
    assert 0 == done.code, done.out + done.err
    found = ledger(done)
    assert "present" == found["witnesses"]["access-log"]
    assert [True, [], []] == [found[key] for key in ("complete", "unexplained", "disagreements")]
    (message,) = found["messages"]
    for movement in message["movements"]:
        if movement["kind"] in ("copy", "dma-write"):
            assert "access-log" in movement["confirmed_by"], movement
    sizes = [path.stat().st_size for path in done.run.glob("*/access.bin")]
    assert sizes
    assert max(sizes) < 1 << 20


def test_the_witness_alone_finds_three_copies_and_names_page_to_skb(once: Once) -> None:
    done = once("lab.run-nic", "--probes", "none")
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


def test_a_copy_whose_hook_was_left_out_is_named_by_the_witness(once: Once) -> None:
    done = once("lab.run-nic", "--without", "virtio_net:page_to_skb>memcpy")
    assert 6 == done.code
    found = ledger(done)
    assert not found["complete"]
    texts = [one["text"] for one in found["disagreements"]]
    assert any("no probe reported" in text and "memcpy" in text for text in texts), texts


def test_a_place_says_who_touched_it(once: Once, invoke: Invoke) -> None:
    done = once("lab.run-nic", "--probes", "none")
    places = invoke("lab.accesses", str(done.run)).out.split()
    assert "receiver/rx-buffer" in places
    said = invoke("lab.accesses", str(done.run), "--place", "receiver/rx-buffer").out
    assert "memcpy" in said
    assert "page_to_skb" in said
    assert "store" not in said
    whole = invoke("lab.accesses", str(done.run), "--place", "receiver/rx-buffer", "--all").out
    assert len(whole.splitlines()) > len(said.splitlines())
    assert "size 1536" in whole  # the buffer the device was given, its header and all
    only = invoke("lab.accesses", str(done.run), "--place", "receiver/kernel", "--all")
    assert 6 == only.code
    wrong = invoke("lab.accesses", str(done.run), "--place", "receiver/nowhere")
    assert 2 == wrong.code
    assert "receiver/rx-buffer" in wrong.err


@pytest.fixture(scope="module")
def restored(invoke: Invoke, usual: topology.Setup) -> Done:
    """Take a run on a pair just restored, and leave it as that run did."""
    bring_up(invoke, usual)
    assert 0 == invoke("lab.reset").code
    return invoke("lab.run-loopback", "--no-reset")


def test_the_plugin_is_no_part_of_a_snapshot(restored: Done) -> None:
    """A pair restored with the plugin came from a snapshot saved with it; both see."""
    assert 0 == restored.code, restored.err
    assert "present" == ledger(restored)["witnesses"]["access-log"]
    assert (restored.run / "sender" / "access.bin").stat().st_size > 4096


def test_searching_ram_and_naming_its_pages_does_not_make_it_grow(restored: Done) -> None:
    """A hole of a tmpfs file that is read through a mapping would be filled."""
    guest = topology.Lab(LAB).guests["sender"]
    symbols = restored.run / "sender" / "symbols"
    before = guest.folder.ram.stat().st_blocks
    with guest.memory() as memory:
        named = pages.Pages(
            kernel.find(memory), kernel.addresses(symbols.read_bytes(), pages.NEEDED)
        )
        assert not list(memory.find(b"no such bytes in any guest's RAM" * 2))
        names = {named.name(at) for at in range(0, memory.size, 997 * 4096)}
    grown = (guest.folder.ram.stat().st_blocks - before) * 512
    assert grown < 4 << 20  # an idle guest writes a little; all holes would be 300 MiB
    assert "free" in names
    assert "kernel image" in names
    assert any(name.startswith("slab ") for name in names)


def test_without_the_plugin_the_log_is_absent_and_the_rest_works(invoke: Invoke) -> None:
    """As under KVM: census, wire, rings and traces need no emulator."""
    done = invoke("lab.run-nic", lab=f"{LAB}-blind", LAB_ACCESS_LOG="off")
    assert 0 == done.code, done.out + done.err
    found = ledger(done)
    assert "absent: LAB_ACCESS_LOG=off" == found["witnesses"]["access-log"]
    assert not list(done.run.glob("*/access.bin"))
    (message,) = found["messages"]
    assert 3 == message["totals"]["guest_cpu_copies"]
    confirmed = {who for move in message["movements"] for who in move["confirmed_by"]}
    assert {"census", "rings", "wire", "probe:kmod"} <= confirmed


def test_the_wire_of_both_ends_opens_in_tshark(once: Once) -> None:
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("needs tshark (apt-get install tshark)")
    run = once("lab.run-nic").run
    for guest in ("sender", "receiver"):
        words = [tshark, "-r", str(run / guest / "wire.pcap"), "-Y", "udp.port == 9999"]
        said = subprocess.run(
            [*words, "-T", "fields", "-e", "ip.dst", "-e", "udp.length", "-e", "_ws.malformed"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert ["192.168.29.158", "24"] == said.stdout.split()
