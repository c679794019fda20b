"""What the manifest states, held against what the run's records show of the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from lab.correlate import Inputs
from lab.correlate.inputs import SENDER, GuestInputs
from lab.ledger.link import CONDITIONS, link_stated

RELEASE = re.compile(r"^kernel: ([\w.+~-]{1,64})$", re.MULTILINE)
PROTOCOLS = {6: "tcp", 17: "udp"}
PLAYBOOK = "playbook.yaml"
NONE = "none"
FAMILIES = {4: "ipv4", 6: "ipv6"}


def manifest_faults(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Yield (guest, what is wrong): the manifest says other than what a guest or the wire did."""
    for guest in inputs.guests:
        for name, said, found, where in (
            *_programs(inputs, guest),
            *_kernel(inputs, guest),
            *link_stated(inputs, guest),
            *_hooks(inputs, guest),
        ):
            if said != found:
                yield guest.name, f"the manifest says {name} {said}, {where} {found}"
    yield from _frames(inputs)
    yield from _probes(inputs)
    yield from _playbook(inputs)


def _programs(inputs: Inputs, guest: GuestInputs) -> Iterator[tuple[str, object, object, str]]:
    stated = inputs.manifest
    for work in guest.workloads:
        where = f"the {work.role} ({guest.name}/workload.json)"
        if work.ready.protocol:
            yield "protocol", stated.protocol, work.ready.protocol, where
        yield "size", stated.size, work.ready.size, where
        yield "count", stated.count, work.ready.count, where
        if work.role != SENDER or not work.ready.peer:
            continue
        peer = work.ready.peer.rpartition(":")[0]
        if stated.family:
            yield "family", stated.family, "ipv6" if peer.startswith("[") else "ipv4", where
        over = "loopback" if peer == "[::1]" or peer.startswith("127.") else "link"
        yield "over", stated.over, over, where
        if stated.protocol == "udp" and work.ready.local:
            # A socket that is not connected has no port before it sends.
            yield "connect", stated.connected, _port(work.ready.local) != 0, where


def _probes(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Expect no records of probes that there were none of; those that lack are told elsewhere."""
    kind = inputs.manifest.probe_kind
    for guest in inputs.guests:
        modules = guest.trace is not None and guest.trace is not guest.bpf
        for name, there, file in (
            ("kmod", modules, "trace.bin"),
            ("bpf", guest.bpf is not None, "bpf.bin"),
        ):
            if there and kind not in (name, "both"):
                why = f"the manifest says probes {kind}, {guest.name}/{file} has records of {name}"
                yield guest.name, why


def _playbook(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Expect the playbook in the run directory to be the one that was run."""
    digests = inputs.manifest.values.get("digests")
    wanted = digests.get("playbook") if isinstance(digests, dict) else None
    if not inputs.guests or not isinstance(wanted, str):
        return
    path = inputs.guests[0].folder.path.parent / PLAYBOOK
    if not path.is_file():
        yield "host", f"{PLAYBOOK} is gone since the run"
    elif hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        yield "host", f"{PLAYBOOK} was changed since the run, or its digest in the manifest was"


def _hooks(inputs: Inputs, guest: GuestInputs) -> Iterator[tuple[str, object, object, str]]:
    """Yield the hooks of each module whose table differs from what was said when it was loaded."""
    probes = inputs.manifest.values.get("probes")
    listed = probes.get("hooks") if isinstance(probes, dict) else None
    said = listed.get(guest.name) if isinstance(listed, dict) else None
    traces = [guest.trace, None if guest.bpf is guest.trace else guest.bpf]
    for section in (one for trace in traces if trace is not None for one in trace.sections):
        stated = said.get(section.name) if isinstance(said, dict) else None
        if not isinstance(stated, dict):
            continue
        found = {hook.name: hook.error for hook in section.header.hooks}
        for name in sorted({*stated, *found}):
            where = f"its trace (section {section.name} of {guest.name})"
            said_of, error = stated.get(name, NONE), found.get(name, NONE)
            if isinstance(said_of, str) and said_of != NONE and error == 0:
                continue  # of BPF the way a hook is attached, which is how it is there
            yield f"hook {name}", said_of, error, where


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
