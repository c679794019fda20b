"""What the lab needs of a kernel, part by part, by the names of its configuration options."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal, get_args

Config = Mapping[str, str]  # option without CONFIG_ -> y, m, or its value
Part = Literal[
    "a guest", "probes", "BPF probes", "guest RAM", "types", "lab.try", "e1000e", "netem",
    "iommu", "swiotlb", "kfence", "slub_debug",
]  # fmt: skip
PARTS: tuple[Part, ...] = get_args(Part)

# Of alternatives, `A|B`, one will do: an option was renamed, or one of several brings it.
NEEDS: dict[Part, tuple[str, ...]] = {
    "a guest": (
        *("64BIT", "PCI", "ACPI", "PRINTK", "TTY", "SERIAL_8250_CONSOLE", "BLK_DEV_INITRD"),
        *("BINFMT_ELF", "FUTEX", "EPOLL", "SIGNALFD", "POSIX_TIMERS", "MULTIUSER", "SHMEM"),
        *("PROC_FS", "PROC_SYSCTL", "SYSFS", "DEVTMPFS", "TMPFS", "UNIX98_PTYS"),
        *("NET", "UNIX", "INET", "IPV6"),
        *("VIRTIO_PCI", "VIRTIO_CONSOLE", "VIRTIO_NET", "HW_RANDOM_VIRTIO", "PVPANIC_PCI"),
    ),
    "probes": ("MODULES", "MODULE_UNLOAD", "KPROBES", "KRETPROBES", "KALLSYMS", "KALLSYMS_ALL"),
    "BPF probes": (
        *("BPF_SYSCALL", "BPF_JIT", "BPF_EVENTS", "DEBUG_INFO_BTF", "KALLSYMS", "KALLSYMS_ALL"),
    ),
    # VMCOREINFO: the text for crash dumps that says where a kernel's things lie.
    "guest RAM": ("VMCORE_INFO|CRASH_CORE", "KALLSYMS", "KALLSYMS_ALL"),
    "types": ("VMCORE_INFO|CRASH_CORE", "KALLSYMS", "KALLSYMS_ALL", "DEBUG_INFO_BTF"),
    "lab.try": ("VMCORE_INFO|CRASH_CORE", "KALLSYMS", "KALLSYMS_ALL", "MODULES", "MODULE_UNLOAD"),
    "e1000e": ("E1000E",),
    "netem": ("NET_SCH_NETEM",),
    "iommu": ("INTEL_IOMMU",),
    "swiotlb": ("SWIOTLB",),
    "kfence": ("KFENCE",),
    "slub_debug": ("SLUB_DEBUG",),
}  # fmt: skip
# Where a driver may be a module, which: one that is neither built in nor there is missing too.
MODULES = {
    "VIRTIO_PCI": "virtio_pci",
    "VIRTIO_CONSOLE": "virtio_console",
    "VIRTIO_NET": "virtio_net",
    "HW_RANDOM_VIRTIO": "virtio_rng",
    "PVPANIC_PCI": "pvpanic_pci",
    "E1000E": "e1000e",
    "NET_SCH_NETEM": "sch_netem",
}


def read(text: str) -> Config:
    """Return the options of a .config; what is not set is left out."""
    return dict(re.findall(r"^CONFIG_(\w+)=(.+)$", text, re.MULTILINE))


def lacks(
    config: Config | None, *, modules: Collection[str], built_in: Collection[str]
) -> set[str]:
    """Return which of the needs a kernel does not meet, each as it stands in the table.

    Without its configuration only drivers are looked for, among its modules and what it says is
    built in.
    """
    return {
        need
        for part in PARTS
        for need in NEEDS[part]
        if not any(_has(option, config, modules, built_in) for option in need.split("|"))
    }


def _has(
    option: str, config: Config | None, modules: Collection[str], built_in: Collection[str]
) -> bool:
    name = MODULES.get(option)
    if name is not None:
        return name in modules or name in built_in
    return config is None or config.get(option) in ("y", "m")


def missing(part: Part, lacking: Collection[str]) -> list[str]:
    """Return what a part misses, as people look for it in a configuration."""
    return [
        " or ".join(f"CONFIG_{option}" for option in need.split("|"))
        for need in NEEDS[part]
        if need in lacking
    ]
