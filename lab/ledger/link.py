"""The link and the emulator that a manifest states, held against what the run recorded of both.

`ethtool.txt` is what a guest said of its end of the link, `argv` QEMU's command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lab.correlate import Inputs
from lab.correlate.inputs import RECEIVER, SENDER, GuestInputs
from lab.rundir import conditions

CONDITIONS, ARGV = "ethtool.txt", "argv"
DRIVERS = {"virtio-net-pci": "virtio_net", "e1000e": "e1000e"}
Stated = tuple[str, object, object, str]  # name, as stated, as found, where
NOT = "not at all"


def link_stated(inputs: Inputs, guest: GuestInputs) -> Iterator[Stated]:
    """Yield each condition that a guest's files tell of, as stated and as found."""
    if guest.folder.has(CONDITIONS):
        yield from _of_guest(inputs, guest)
    if guest.folder.has(ARGV):
        yield from _of_emulator(inputs, guest)


def _text(guest: GuestInputs, name: str) -> str:
    return guest.folder.file(name).read_text(encoding="utf-8", errors="replace")


def _of_guest(inputs: Inputs, guest: GuestInputs) -> Iterator[Stated]:
    stated, text = inputs.manifest, _text(guest, CONDITIONS)
    where = f"the guest ({guest.name}/{CONDITIONS})"
    driver = conditions.driver(text)
    if not driver:  # it was not asked of its link
        return
    if stated.device in DRIVERS:
        yield f"device {stated.device}, of driver", DRIVERS[stated.device], driver, where
    found = conditions.as_found(text)
    if guest is inputs.with_role(SENDER):  # the manifest has what the sender said
        link = stated.values.get("link")
        said = link if isinstance(link, dict) else {}
        for name in ("mtu", "copybreak", "qdisc"):
            if name in said or name in found:
                yield name, said.get(name, NOT), found.get(name, NOT), where
        offloads = conditions.offloads(text)
        for name in sorted({*offloads, *dict(stated.offloads)}):
            told = dict(stated.offloads).get(name, NOT)
            yield f"offload {name}", told, offloads.get(name, NOT), where
    if guest is inputs.with_role(RECEIVER):
        yield "xdp", dict(stated.options).get("xdp", NOT), found.get("xdp", NOT), where


def _of_emulator(inputs: Inputs, guest: GuestInputs) -> Iterator[Stated]:
    stated, argv = inputs.manifest, _text(guest, ARGV).splitlines()
    if len(argv) < 2:  # QEMU had ended before it was asked
        return
    where = f"QEMU ({guest.name}/{ARGV})"
    devices = _after(argv, "-device")
    link = next((one.split(",") for one in devices if "id=lab0" in one.split(",")), [NOT])
    ends = (one.split(",") for one in _after(argv, "-netdev"))
    backend = next((one[0] for one in ends if "id=link" in one), NOT)
    speed = next((one.split(",")[0] for one in _after(argv, "-accel")), NOT)
    yield "device", stated.device, link[0], where
    yield "backend", stated.backend, backend, where
    yield "accelerator", stated.accelerator, speed, where
    words = [word for text in _after(argv, "-append") for word in text.split()]
    buffers = next((one for one in link if one.startswith("mrg_rxbuf=")), "")
    behind = any(one.startswith("intel-iommu") for one in devices)
    bounced = next((one for one in words if one.startswith("swiotlb=")), "")
    for name, found in (
        ("mrg_rxbuf", buffers.partition("=")[2]),
        ("iommu", "on" if behind else ""),
        ("swiotlb", bounced.partition("=")[2]),
    ):
        yield name, dict(stated.options).get(name, NOT), found or NOT, where


def _after(argv: Sequence[str], option: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == option]
