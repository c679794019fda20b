"""A link whose device is behind an IOMMU, or bounces: addresses by evidence, copies counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import ANY

import pytest

from lab import correlate, ledger, report, topology
from lab.accelerator import Accelerator
from lab.correlate import Flow, Kind, PlaceKind
from lab.experiment import of_link, unlike
from lab.image import Image
from lab.spec import Link
from tests.unit import cooked
from tests.unit.cooked_dma import BOUNCE, MAP, SHIFT, UNMAP, behind_iommu, bounced, tables

DEVICES = ("virtio-net-pci", "e1000e")
IN_THE_DRIVER = {
    "virtio-net-pci": "virtio_net:page_to_skb>memcpy",
    "e1000e": "e1000e:e1000_clean_rx_irq>memcpy",
}


def kinds(flow: Flow) -> list[Kind]:
    return [movement.kind for movement in flow.movements]


# --- Behind an IOMMU --------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "count"), [(16, 1), (16, 5), (1400, 1), (4000, 2)])
def test_an_iommu_changes_addresses_and_no_copy(
    tmp_path: Path, device: str, size: int, count: int
) -> None:
    plain = cooked.nic(tmp_path / "plain", device=device, size=size, count=count)
    cook = behind_iommu(cooked.nic(tmp_path / "x", device=device, size=size, count=count))
    flow = correlate.follow(cook.serve())
    assert not flow.gaps
    assert not flow.disagreements
    assert kinds(correlate.follow(plain.serve())) == kinds(flow)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_s_accesses_are_proven_by_the_rings_too(tmp_path: Path, device: str) -> None:
    flow = correlate.follow(behind_iommu(cooked.nic(tmp_path, device=device)).serve())
    for kind in (Kind.DMA_READ, Kind.DMA_WRITE):
        (one,) = [movement for movement in flow.movements if movement.kind is kind]
        assert "rings" in one.confirmed_by
        assert any("rings.json" in evidence for evidence in one.evidence)


@pytest.mark.parametrize("device", DEVICES)
def test_an_address_that_is_in_no_descriptor_is_told_with_both_its_names(
    tmp_path: Path, device: str
) -> None:
    cook = behind_iommu(cooked.nic(tmp_path, device=device))
    for guest, hook in ((cook.sender, MAP), (cook.receiver, UNMAP)):
        event = next(event for event in guest.events if event["hook"] == hook)
        cooked.change(guest, hook, aux=event["aux"] + 0x0100_0000)
    told = [one.text for one in correlate.follow(cook.serve()).disagreements]
    assert 2 == len(told)
    assert all("(device address 0x" in text and "no descriptor" in text for text in told)


def test_a_table_that_says_other_memory_than_the_driver_is_a_disagreement(tmp_path: Path) -> None:
    cook = behind_iommu(cooked.nic(tmp_path))
    for gate in cook.receiver.queues["rx"]["gates"].values():
        for row in gate["behind"]:
            row[1] = f"{int(row[1], 16) + 0x0100_0000:#x}"
    (one,) = correlate.follow(cook.serve()).disagreements
    assert "no descriptor of the ring covers it" in one.text


@pytest.mark.parametrize("device", DEVICES)
def test_an_address_that_nothing_maps_is_said_and_not_guessed(tmp_path: Path, device: str) -> None:
    cook = behind_iommu(cooked.nic(tmp_path, device=device, without=[MAP]))
    flow = correlate.follow(cook.serve())
    (gap,) = flow.gaps
    at = next(row[1] for row in cook.sender.queues["tx"]["gates"]["sent"]["descriptors"])
    assert f"of {at}, the device's address in sender/rings.json#sent/tx/0" in gap.why
    assert "no record and no table of the IOMMU says what memory it is" in gap.why
    assert Kind.DMA_READ not in kinds(flow)
    assert not ledger.build(cook.serve()).complete


@pytest.mark.parametrize("device", DEVICES)
def test_without_a_record_the_iommu_s_tables_say_what_was_filled(
    tmp_path: Path, device: str
) -> None:
    flow = correlate.follow(
        behind_iommu(cooked.nic(tmp_path, device=device, without=[UNMAP])).serve()
    )
    assert not flow.gaps
    (write,) = [movement for movement in flow.movements if movement.kind is Kind.DMA_WRITE]
    assert write.target.physical < SHIFT


def test_where_no_buffer_s_address_is_recorded_the_tables_say_it_too(tmp_path: Path) -> None:
    """A BPF program cannot ask what an address stands for, and then leaves no record."""
    cook = behind_iommu(cooked.nic(tmp_path))
    events = cook.receiver.events
    events[:] = [event for event in events if event["hook"] != UNMAP]
    flow = correlate.follow(cook.serve())
    assert not flow.gaps
    assert not flow.disagreements


def test_without_record_and_table_what_was_filled_is_not_known(tmp_path: Path) -> None:
    cook = behind_iommu(cooked.nic(tmp_path, without=[UNMAP]))
    for gate in cook.receiver.queues["rx"]["gates"].values():
        gate["behind"] = []
    flow = correlate.follow(cook.serve())
    assert Kind.DMA_WRITE not in kinds(flow)
    assert any("no record and no table of the IOMMU" in gap.why for gap in flow.gaps)


def test_an_address_given_to_other_memory_since_is_not_taken_for_the_first(tmp_path: Path) -> None:
    """The IOMMU's tables at a later gate are of a later buffer with the same address."""
    cook = behind_iommu(cooked.nic(tmp_path))
    queue = cook.receiver.queues["rx"]["gates"]
    armed = queue["armed"]
    queue["received"]["descriptors"][0] = armed["descriptors"][0]
    queue["received"]["behind"] = [
        [page, f"{int(at, 16) + 0x0200_0000:#x}", size] for page, at, size in tables(armed)
    ]
    flow = correlate.follow(cook.serve())
    assert not flow.disagreements
    (write,) = [movement for movement in flow.movements if movement.kind is Kind.DMA_WRITE]
    assert "receiver/rings.json#armed/rx/0" in write.evidence


# --- Bounce buffers ---------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("size", "count"), [(16, 1), (1000, 1), (16, 5)])
def test_a_bounce_is_a_copy_by_a_cpu_each_way(
    tmp_path: Path, device: str, size: int, count: int
) -> None:
    cook = bounced(cooked.nic(tmp_path, device=device, size=size, count=count))
    flow = correlate.follow(cook.serve())
    assert not flow.gaps
    assert not flow.disagreements
    mine = [one for one in flow.movements if one.message == 0]
    copies = [one.function for one in mine if one.kind is Kind.COPY]
    expected = ["csum_and_copy_from_iter_full", BOUNCE, BOUNCE, "_copy_to_iter"]
    expected[3:3] = [IN_THE_DRIVER[device]] if size == 16 else []
    assert expected == copies
    places = [
        (one.source.kind, one.target.kind)
        for one in mine
        if one.kind in (Kind.DMA_READ, Kind.DMA_WRITE)
    ]
    assert [(PlaceKind.BOUNCE, PlaceKind.WIRE), (PlaceKind.WIRE, PlaceKind.BOUNCE)] == places
    assert {4 + (size == 16)} == {one.copies for one in flow.delivered}
    assert ledger.build(cook.serve()).complete


@pytest.mark.parametrize("device", DEVICES)
def test_with_the_bounce_s_hook_left_out_the_ledger_is_incomplete(
    tmp_path: Path, device: str
) -> None:
    cook = bounced(cooked.nic(tmp_path, device=device, without=[BOUNCE]))
    found = ledger.build(cook.serve())
    assert not found.complete
    assert any(f"{BOUNCE} was left out" in fault.why for fault in found.incomplete)


def test_with_the_dma_api_s_hook_left_out_a_skb_is_not_taken_for_what_was_read(
    tmp_path: Path,
) -> None:
    """The virtqueue was handed the driver's memory; the device read another."""
    flow = correlate.follow(bounced(cooked.nic(tmp_path, without=[MAP])).serve())
    (read,) = [movement for movement in flow.movements if movement.kind is Kind.DMA_READ]
    assert PlaceKind.BOUNCE is read.source.kind
    assert "sender/rings.json#sent/tx/0" in read.evidence


# --- What is told -----------------------------------------------------------------------------


def test_both_addresses_of_a_descriptor_are_shown(tmp_path: Path) -> None:
    run = behind_iommu(cooked.nic(tmp_path)).serve()
    text = report.page(ledger.build(run), run)
    posted = 0x0C00_0000
    assert f"device address 0x{posted + SHIFT:x} for physical 0x{posted:x}, 1536 bytes" in text
    assert "for nothing any more, 70 bytes" in text  # sent, and no longer mapped
    assert "virtio-net-pci with iommu on over dgram" in text


def test_what_was_asked_of_the_device_stands_in_the_ledger(tmp_path: Path) -> None:
    found = ledger.build(bounced(cooked.nic(tmp_path)).serve())
    assert {"swiotlb": "force"} == found.link["options"]
    plain = ledger.build(cooked.nic(tmp_path / "plain").serve())
    assert "options" not in plain.link


# --- What a pair is made of -------------------------------------------------------------------

PLATFORM = ",iommu_platform=on,disable-legacy=on"


@pytest.mark.parametrize(
    ("link", "words", "options", "iommus"),
    [
        (Link(), "", "", 0),
        (Link(iommu=True), "intel_iommu=on", PLATFORM, 1),
        (Link(iommu=True, device="e1000e"), "intel_iommu=on", "", 1),
        (Link(swiotlb="force"), "swiotlb=force", PLATFORM, 0),
        (Link(swiotlb="force", device="e1000e"), "swiotlb=force", "", 0),
        (Link(mrg_rxbuf=False), "", ",mrg_rxbuf=off", 0),
        (Link(iommu=True, mrg_rxbuf=False), "intel_iommu=on", f"{PLATFORM},mrg_rxbuf=off", 1),
    ],
)
def test_each_option_is_the_guest_s_and_the_device_s(
    link: Link, words: str, options: str, iommus: int
) -> None:
    setup = of_link(topology.Setup(image=ANY, accelerator=ANY), link)
    assert (words, options, iommus) == (setup.extra, setup.link_options, len(setup.devices))


def test_a_lab_that_will_not_do_is_told_with_what_would() -> None:
    image = cast("Image", SimpleNamespace(digest="d", asked="6.12"))
    speed = cast("Accelerator", SimpleNamespace(name="tcg"))
    setup = topology.Setup(image=image, accelerator=speed, device="e1000e")
    state = SimpleNamespace(
        image="d", kernel="6.12", device="virtio-net-pci", backend="dgram", accelerator="tcg"
    )
    pair = cast("topology.Lab", SimpleNamespace(state=state))

    assert unlike(pair, setup) == (
        "has virtio-net-pci over dgram under tcg, and this run needs e1000e over dgram under tcg"
    )
    state.device = "e1000e"
    assert unlike(pair, setup) is None
