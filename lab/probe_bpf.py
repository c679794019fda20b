"""Start, attach, read out and end the BPF programs that watch in a guest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import bpf, kernel, record, spec
from lab.deadline import Deadline
from lab.errors import GuestError, ProbeRejected
from lab.guest import Guest
from lab.journal import Journal
from lab.kernel import BTF

NAME = "lab_bpf"  # of the program in the guest, as its agent knows it
REMOTE = "/run"
RING = "bpf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bpf:
    """Programs that are in one guest's kernel; their ring's header lies at `ring`."""

    guest: Guest
    nonce: bytes
    ring: int
    programs: bpf.Programs


def start(
    guest: Guest,
    asked: spec.Probes,
    *,
    symbols: Path,
    sides: int,
    nonce: bytes,
    records: int,
    pushed: set[str],
    journal: Journal,
    deadline: Deadline,
    ways: Iterable[str] | None = None,
) -> Bpf:
    """Load the programs and their ring; nothing is attached yet.

    Before any module is: call sites are looked up in the guest's text, and who attaches a
    kprobe changes it.  `symbols` is the guest's /proc/kallsyms.
    """
    kallsyms = symbols.read_bytes()
    with guest.memory() as memory:
        running = kernel.find(memory)
        first, last = (kernel.addresses(kallsyms, BTF)[name] for name in BTF)
        programs = bpf.build(running.read(first, last - first), journal=journal)
        plan = bpf.make(kallsyms, running.read, sides=sides, without=asked.without, ways=ways)
    shell, agent = guest.require_shell(), guest.require_agent()
    for path in (programs.loader, programs.object):
        if path.name not in pushed:
            shell.put(path, f"{REMOTE}/{path.name}", deadline=deadline)
            pushed.add(path.name)
    shell.run(f"chmod 755 {REMOTE}/{programs.loader.name}", deadline=deadline)
    agent.put(f"{REMOTE}/{NAME}.plan", plan.text.encode(), mode=0o600, deadline=deadline)
    argv = [f"{REMOTE}/{programs.loader.name}", f"{REMOTE}/{programs.object.name}"]
    argv += [f"{REMOTE}/{NAME}.plan", nonce.hex(), str(records)]
    agent.start(NAME, *argv, *([asked.comm] if asked.comm else []), deadline=deadline)
    try:
        ring = int(agent.wait_said(NAME, "loaded", deadline=deadline), 16)
    except GuestError as error:
        raise ProbeRejected(
            f"{guest.name}: the kernel refused the BPF programs: {error}",
            log=guest.folder.console,
            hint="--probes kmod needs none",
        ) from error
    loaded = Bpf(guest=guest, nonce=nonce, ring=ring, programs=programs)
    _header(loaded)
    return loaded


def attach(loaded: Bpf, *, deadline: Deadline) -> None:
    """Attach all hooks; they record when this returns."""
    agent = loaded.guest.require_agent()
    agent.tell(NAME, "attach", deadline=deadline)
    agent.wait_said(NAME, "attached", deadline=deadline)


def _header(loaded: Bpf) -> tuple[record.Header, bytes]:
    with loaded.guest.memory() as memory:
        raw = memory.read(loaded.ring, record.HEADER_SIZE)
    header = record.parse_header(raw)
    if header.nonce != loaded.nonce:
        raise ProbeRejected(f"{loaded.guest.name}: the ring of {RING} is not this run's")
    return header, raw


def hooks(loaded: Bpf) -> dict[str, dict[str, int | str]]:
    """Return each hook with the way it is attached, or the error that says why it is not."""
    return {RING: {hook.name: hook.error or hook.way for hook in _header(loaded)[0].hooks}}


def notes(loaded: Bpf) -> str:
    """Return the physical ranges of the ring, "0x1000-0x3000 …": what is there is the trace's."""
    header, _ = _header(loaded)
    ranges: list[tuple[int, int]] = []
    with loaded.guest.memory() as memory:
        for address, size in sorted(record.places(header, memory.read)):
            if ranges and ranges[-1][1] == address:
                ranges[-1] = (ranges[-1][0], address + size)
            else:
                ranges.append((address, address + size))
    return " ".join(f"{start:#x}-{end:#x}" for start, end in ranges)


def finish(loaded: Bpf, *, deadline: Deadline) -> None:
    """Turn the hooks off and make every counter final."""
    agent = loaded.guest.require_agent()
    agent.tell(NAME, "finish", deadline=deadline)
    agent.wait_said(NAME, "finished", deadline=deadline)
    if not _header(loaded)[0].finished:
        raise GuestError(loaded.guest.name, "the BPF programs did not finish their trace")


def drain(loaded: Bpf) -> bytes:
    """Return the trace as the host finds it in guest RAM."""
    with loaded.guest.memory() as memory:
        return record.dump(memory.read(loaded.ring, record.HEADER_SIZE), memory.read)


def gone(loaded: Bpf) -> dict[str, bool]:
    """Say whether the loader took its ring away, as it does when it ends."""
    with loaded.guest.memory() as memory:
        return {RING: not any(memory.read(loaded.ring, record.HEADER_SIZE))}


def stop(loaded: Bpf, *, deadline: Deadline) -> None:
    """End the loader, and with it all programs."""
    agent = loaded.guest.require_agent()
    agent.tell(NAME, "end", deadline=deadline)
    agent.wait_exit(NAME, deadline=deadline)
