"""What the manifest states, held against what the run's records show of the same."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lab.correlate import Inputs
from lab.correlate.inputs import GuestInputs

CONDITIONS = "ethtool.txt"
RELEASE = re.compile(r"^kernel: ([\w.+~-]{1,64})$", re.MULTILINE)
PROTOCOLS = {6: "tcp", 17: "udp"}
FAMILIES = {4: "ipv4", 6: "ipv6"}


def manifest_faults(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Yield (guest, what is wrong): the manifest says other than what a guest or the wire did."""
    for guest in inputs.guests:
        for name, said, found, where in (*_programs(inputs, guest), *_kernel(inputs, guest)):
            if said != found:
                yield guest.name, f"the manifest says {name} {said}, {where} {found}"
    yield from _frames(inputs)


def _programs(inputs: Inputs, guest: GuestInputs) -> Iterator[tuple[str, object, object, str]]:
    stated = inputs.manifest
    for work in guest.workloads:
        where = f"the {work.role} ({guest.name}/workload.json)"
        if work.ready.protocol:
            yield "protocol", stated.protocol, work.ready.protocol, where
        yield "size", stated.size, work.ready.size, where
        yield "count", stated.count, work.ready.count, where


def _kernel(inputs: Inputs, guest: GuestInputs) -> Iterator[tuple[str, object, object, str]]:
    if not guest.folder.has(CONDITIONS):
        return
    text = guest.folder.file(CONDITIONS).read_text(encoding="utf-8", errors="replace")
    found = RELEASE.search(text)  # runs of before it was asked have no such line
    if found is not None:
        where = f"the guest ({guest.name}/{CONDITIONS})"
        yield "kernel", inputs.manifest.kernel, found[1], where


def _frames(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Look at the first frame to the workload's port that is of another protocol or family."""
    stated = inputs.manifest
    ready = [work.ready for guest in inputs.guests for work in guest.workloads]
    ports = {_port(end) for one in ready for end in (one.local, one.peer)} - {0}
    for guest in inputs.guests:
        for frame in guest.frames or ():
            told = frame.headers
            if (
                told is None
                or not frame.payload
                or not {told.source_port, told.target_port} & ports
            ):
                continue
            protocol = PROTOCOLS.get(told.protocol, str(told.protocol))
            family = FAMILIES.get(told.version, str(told.version))
            for name, said, found in (
                ("protocol", stated.protocol, protocol),
                ("family", stated.family, family),
            ):
                if said and said != found:
                    where = f"{guest.name}/wire.pcap#{frame.index}"
                    yield guest.name, f"the manifest says {name} {said}, {where} {found}"
                    return


def _port(address: str) -> int:
    """Return the port of an address as a program says it, 0 where it says none."""
    digits = address.rpartition(":")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else 0
