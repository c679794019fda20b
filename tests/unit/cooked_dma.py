"""Cooked links whose device does not get the addresses of the driver's memory.

What `cooked.nic` made is served as it would be behind an IOMMU, or with bounce buffers.
"""

from __future__ import annotations

from typing import Any

from lab.record import Kind
from tests.unit import cooked
from tests.unit.cooked import DIRECT_MAP, Cook, Event, Kitchen

MAP = "dma_map_page_attrs"
UNMAP = "dma_unmap_page_attrs"
BOUNCE = "swiotlb_bounce>memcpy"
SHIFT = 0xE000_0000  # from a physical address to the device's
SLOTS = 0x1800_0000  # bounce buffers
LIKE = ("src", "src_phys", "size", "comm", "pid", "tgid", "context")


def with_options(cook: Cook, **options: str) -> None:
    """Say in the manifest what was asked of the link's device."""
    link = {"device": cook.device, "backend": "dgram", "offloads": {}, "options": options}
    cook.manifest["link"] = link


def behind_iommu(cook: Cook) -> Cook:
    """Give the device addresses of its own, as records, rings and tables show them."""
    with_options(cook, iommu="on")
    _map(cook)
    for guest in cook.guests.values():
        for event in guest.events:
            if event["hook"] in (MAP, UNMAP):
                event["aux"] = event["src_phys"] + SHIFT
        for kind, queue in guest.queues.items():
            queue["device"] = {"desc": f"{0x1000 + SHIFT:#x}"}
            for gate in queue["gates"].values():
                gate["descriptors"] = [
                    [n, f"{int(at, 16) + SHIFT:#x}" if size else at, size, flags, following]
                    for n, at, size, flags, following in gate["descriptors"]
                ]
                # What is sent is mapped no longer when the rings are read.
                gate["behind"] = [] if kind == "tx" else tables(gate)
    return cook


def tables(gate: dict[str, Any]) -> list[list[Any]]:
    """Return what the IOMMU's tables map of a gate's buffers."""
    pages = {
        (int(at, 16) + step) // 4096 * 4096
        for _, at, size, *_ in gate["descriptors"]
        for step in (0, size - 1)
        if size
    }
    return [[f"{page:#x}", f"{page - SHIFT:#x}", 4096] for page in sorted(pages)]


def bounced(cook: Cook) -> Cook:
    """Let the device read and write bounce buffers alone."""
    with_options(cook, swiotlb="force")
    _map(cook)
    moved: dict[tuple[str, int], int] = {}
    for guest in cook.guests.values():
        events: list[Event] = []
        for event in guest.events:
            if event["hook"] not in (MAP, UNMAP):
                events.append(event)
                continue
            slot = SLOTS + 4096 * len(moved) + event["src_phys"] % 2048
            own = event["src_phys"]
            moved[guest.name, own] = slot
            there = {"src": DIRECT_MAP + slot, "src_phys": slot}
            here = {"dst": DIRECT_MAP + own, "dst_phys": own}
            copy = event | {"hook": BOUNCE, "kind": Kind.CALLSITE, "aux": 0xFFFF_FFFF_8110_0010}
            _store_alike(guest, own, slot, event["size"])
            if event["hook"] == MAP:
                out = {"dst": there["src"], "dst_phys": slot}
                events += [copy | out, event | there | {"aux": slot, "tsc": event["tsc"] + 1}]
            else:
                back = copy | there | here | {"tsc": event["tsc"] + 1}
                events += [event | there | {"aux": slot}, back]
        guest.events[:] = events
        guest.gates.clear()
        for gate in ("sent", "received"):
            guest.gate(gate)
        for queue in guest.queues.values():
            for gate_ in queue["gates"].values():
                for row in gate_["descriptors"]:
                    known = moved.get((guest.name, int(row[1], 16)))
                    row[1] = row[1] if known is None else f"{known:#x}"
    return cook


def _map(cook: Cook) -> None:
    # e1000e's cook has the DMA API's records; a virtqueue that uses it makes the same ones.
    if not cook.vnet:
        return
    for guest, hook, new, kind in (
        (cook.sender, "virtqueue_add_outbuf", MAP, Kind.RETURN),
        (cook.receiver, "virtio_net:receive_buf", UNMAP, Kind.ENTRY),
    ):
        events: list[Event] = []
        for event in guest.events:
            if event["hook"] != hook:
                events.append(event)
                continue
            made = {name: event[name] for name in LIKE if name in event}
            made |= {"hook": new, "kind": kind, "aux": event["src_phys"]}
            if new == MAP:
                frame = cook.sender.frames[1 + sum(e["hook"] == MAP for e in events)]
                shown = (bytes(cooked.VNET) + frame)[:64]
                events += [event, made | {"tsc": event["tsc"] + 1, "bytes": shown}]
            else:
                made |= {"tsc": event["tsc"] - 1, "size": 1536, "bytes": event["bytes"]}
                events += [made, event]
        guest.events[:] = events


def _store_alike(guest: Kitchen, there: int, here: int, size: int) -> None:
    for at, (message, offset, length) in list(guest.memory.items()):
        if there <= at < there + size:
            guest.store(at - there + here, message, offset, length)
