"""Push, load, read out and unload the kernel modules that watch."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from lab import drivers, record, spec
from lab.deadline import Deadline
from lab.errors import CommandFailed, GuestError, ProbeRejected
from lab.guest import Guest

REMOTE = "/run"
FUNCTIONS = sorted({hook.partition(">")[0] for hook in spec.HOOKS if ":" in hook})
# What a ring can hold (kmod/lab_event.h: 128 chunks of 1024), what one frame causes in the
# busier guest (12 were seen on loopback), and room for loading and the guest's own life.
RECORDS_PER_FRAME = 12
FRAME_PAYLOAD = 1400  # bytes of a message in a frame of MTU 1500, at least
RECORDS_BESIDE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Modules that are loaded in one guest and ready; `rings` are header addresses."""

    guest: Guest
    nonce: bytes
    rings: dict[str, int]  # module name -> physical address of the ring's header


def records_for(count: int, size: int) -> int:
    """Return the ring capacity for `count` messages of `size` bytes."""
    frames = -(-size // FRAME_PAYLOAD)
    return min(spec.RECORDS_AT_MOST, RECORDS_PER_FRAME * frames * count + RECORDS_BESIDE)


def load(
    guest: Guest,
    modules: dict[str, Path],
    asked: spec.Probes,
    *,
    nonce: bytes,
    records: int,
    pushed: set[str],
    deadline: Deadline,
    symbols: Path | None = None,
) -> Probe:
    """Load `modules` and return when each has said where its ring is.

    Those the guest does not have yet are pushed first, and are in `pushed` afterwards.
    `symbols` is the guest's /proc/kallsyms: where a driver is built in, its functions are found
    in it.
    """
    shell = guest.require_shell()
    parameters = f"nonce={nonce.hex()} records={records}"
    if asked.without:
        parameters += f" without={shlex.quote(','.join(asked.without))}"
    if asked.comm is not None:
        parameters += f" comm={shlex.quote(asked.comm)}"
    places = {} if symbols is None else drivers.built_in(symbols.read_bytes(), FUNCTIONS)
    if places:
        listed = ",".join(f"{name}={place.address:x}" for name, place in places.items())
        parameters += f" places={shlex.quote(listed)}"
    commands = []
    for number, (name, path) in enumerate(modules.items()):
        if name not in pushed:
            shell.put(path, f"{REMOTE}/{name}.ko", deadline=deadline)
            pushed.add(name)
        # Hooks that both modules have are the first one's, so that no call is seen twice.
        beside = " beside=1" if number else ""
        commands += [
            f"insmod {REMOTE}/{name}.ko {parameters}{beside}",
            f"cat /sys/module/{name}/parameters/ring",
        ]
    try:
        done = shell.run(" && ".join(commands), deadline=deadline)
    except CommandFailed as error:
        log = shell.run("dmesg | tail -n 5", deadline=deadline, ok=False).stdout.strip()
        raise ProbeRejected(
            f"{guest.name}: the kernel refused a module: {error.output.strip()} {log}",
            log=guest.folder.console,
            hint="invoke lab.build, then invoke lab.reset",
        ) from error
    addresses = re.findall(r"^(?:0x)?[0-9a-f]{1,16}$", done.stdout, re.MULTILINE)
    if len(addresses) != len(modules):
        said = done.stdout[:200]
        raise ProbeRejected(f"{guest.name}: expected {len(modules)} rings, found {said!r}")
    rings = {name: int(at, 16) for name, at in zip(modules, addresses, strict=True)}
    probe = Probe(guest=guest, nonce=nonce, rings=rings)
    for name in rings:
        _header(probe, name)
    return probe


def _header(probe: Probe, name: str) -> tuple[record.Header, bytes]:
    """Read a ring's header from guest RAM and check that it is this run's."""
    with probe.guest.memory() as memory:
        raw = memory.read(probe.rings[name], record.HEADER_SIZE)
    header = record.parse_header(raw)
    if header.nonce != probe.nonce:
        raise ProbeRejected(f"{probe.guest.name}: the ring of {name} is not this run's")
    return header, raw


def hooks(probe: Probe) -> dict[str, dict[str, int]]:
    """Return, per module, each hook and the error of its registration (0: attached)."""
    return {
        name: {hook.name: hook.error for hook in _header(probe, name)[0].hooks}
        for name in probe.rings
    }


def finish(probe: Probe, *, deadline: Deadline) -> None:
    """Turn the hooks off and make every counter final."""
    command = " && ".join(f"cat /sys/module/{name}/parameters/finish" for name in probe.rings)
    probe.guest.require_shell().run(command, deadline=deadline)
    for name in probe.rings:
        if not _header(probe, name)[0].finished:
            raise GuestError(probe.guest.name, f"{name} did not finish its trace")


def drain(probe: Probe) -> bytes:
    """Return the trace as the host finds it in guest RAM: one section per module."""
    sections = []
    with probe.guest.memory() as memory:
        for at in probe.rings.values():
            raw = memory.read(at, record.HEADER_SIZE)
            sections.append(record.dump(raw, memory.read))
    return b"".join(sections)


def unload(probe: Probe, *, deadline: Deadline) -> None:
    """Unload the modules, last loaded first."""
    names = " ".join(reversed(list(probe.rings)))
    probe.guest.require_shell().run(f"rmmod {names}", deadline=deadline)


def gone(probe: Probe) -> dict[str, bool]:
    """Say of each module that was unloaded whether it took its ring away, as rmmod makes it."""
    with probe.guest.memory() as memory:
        return {
            name: not any(memory.read(at, record.HEADER_SIZE)) for name, at in probe.rings.items()
        }
