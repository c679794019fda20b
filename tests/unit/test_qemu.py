"""QEMU's command line: pure, and equal to the golden files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from lab import qemu

GOLDEN = Path(__file__).parent / "golden"
BASE = qemu.GuestConfig(
    lab="default",
    name="sender",
    accelerator="tcg",
    machine="pc-q35-7.2",
    memory_mib=512,
    ram="/ram/default/sender.ram",
    kernel="/dev/fd/5",
    initramfs="/dev/fd/6",
    cmdline="console=ttyS0 lab.name=sender",
    folder="/run/lab/default/sender",
    link_device="virtio-net-pci",
    link_mac="52:54:00:29:00:64",
    link_local="/run/lab/default/link/sender",
    link_remote="/run/lab/default/link/receiver",
    ssh_mac="52:54:00:29:01:64",
)
CASES = {
    "boot-tcg": BASE,
    "restore-tcg": dataclasses.replace(BASE, initramfs=None, incoming=True),
    "boot-kvm": dataclasses.replace(BASE, accelerator="kvm"),
    "witnessed": dataclasses.replace(BASE, plugin="/cache/witness.so"),
    "tap": dataclasses.replace(BASE, link_tap=7),
    "iommu": dataclasses.replace(
        BASE,
        devices=("intel-iommu,id=iommu0,intremap=off",),
        link_options=",iommu_platform=on,disable-legacy=on",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_command_line_equals_golden(name: str) -> None:
    """The golden file says what a person reviewed; LAB_GOLDEN=write writes it anew."""
    path = GOLDEN / f"{name}.argv"
    text = "\n".join(qemu.command_line(CASES[name])) + "\n"
    if os.environ.get("LAB_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_it_is_confined() -> None:
    argv = qemu.command_line(BASE)
    sandbox = argv[argv.index("-sandbox") + 1]
    for part in ("on", "obsolete=deny", "elevateprivileges=deny", "spawn=deny"):
        assert part in sandbox.split(",")
    user = next(word for word in argv if word.startswith("user,"))
    assert "restrict=on" in user
    assert "127.0.0.1:0-:22" in user


def test_ram_is_the_first_object() -> None:
    """QEMU 7.2's plugins see offsets into the first RAM block as physical addresses."""
    argv = qemu.command_line(BASE)
    objects = [argv[at + 1] for at, word in enumerate(argv) if word == "-object"]
    assert objects[0].startswith("memory-backend-file,id=ram")


def test_no_fixed_port_and_no_shared_name() -> None:
    other = dataclasses.replace(
        BASE, lab="other", folder="/run/lab/other/sender", ram="/ram/other/sender.ram",
        link_local="/run/lab/other/link/sender", link_remote="/run/lab/other/link/receiver",
    )  # fmt: skip
    assert any("/default/" in word for word in qemu.command_line(BASE))
    words = [word for word in qemu.command_line(other) if word != "-nodefaults"]
    assert not [word for word in words if "default" in word]
