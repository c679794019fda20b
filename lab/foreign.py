"""A user's own probes in a guest, loaded beside the lab's; what they say is kept with the run.

By the file's name: a kernel module (.ko) says what the kernel logs while it is loaded, a BPF
object (.bpf.o) what bpf_printk() wrote and what is in its maps, a bpftrace script (.bt) what it
prints.  None of it enters the ledger.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import bpf
from lab.deadline import Deadline
from lab.errors import GuestError, ProbeRejected
from lab.guest import Guest
from lab.journal import Journal

REMOTE = "/run/foreign"
TRACE = "/sys/kernel/tracing/trace"
PINNED = "/sys/fs/bpf"
NO_BPFTRACE = "absent: there is no bpftrace in the guest image (with its libraries it takes 207 MB)"


@dataclass(frozen=True, slots=True)
class Foreign:
    """One file that is loaded in a guest, or `absent` and why; the rest are shell commands."""

    path: Path
    load: str = ""
    tell: str = ""
    unload: str = ""
    absent: str = ""
    pins: str = ""  # of a BPF object: the folder of its maps

    @property
    def name(self) -> str:
        return self.path.name.partition(".")[0]

    @property
    def output(self) -> str:
        """Name of the file in the guest's folder of the run."""
        return f"foreign-{self.path.name}.txt"


def _foreign(path: Path) -> Foreign:
    name = path.name.partition(".")[0]
    file, mark = shlex.quote(f"{REMOTE}/{path.name}"), shlex.quote(f"{REMOTE}/{name}.mark")
    if path.suffix == ".ko":
        return Foreign(
            path,
            load=f"dmesg | wc -l > {mark} && insmod {file}",
            tell=f"dmesg | tail -n +$(($(cat {mark}) + 1))",
            unload=f"rmmod {shlex.quote(name.replace('-', '_'))}",
        )
    if path.suffix == ".o":
        pins = f"{PINNED}/{name}"
        maps = shlex.quote(pins)
        return Foreign(
            path,
            load=f"echo > {TRACE}; mkdir {maps}",
            tell=f"grep -v '^#' {TRACE}; for map in {maps}/*; do "
            f'echo "# ${{map##*/}}"; bpftool map dump pinned "$map"; done',
            unload=f"rm -r {maps}",
            pins=pins,
        )
    return Foreign(
        path,
        load=f"{{ bpftrace {file} > {mark} 2>&1 & echo $! > {mark}.pid; }}",
        tell=f"kill -INT $(cat {mark}.pid); cat {mark}",
    )


def load(
    guest: Guest, paths: Sequence[Path], *, journal: Journal, deadline: Deadline
) -> list[Foreign]:
    """Load files into a guest, in order; `ProbeRejected` says which the kernel refused."""
    shell = guest.require_shell()
    shell.run(f"mkdir -p {REMOTE}", deadline=deadline)
    loaded = []
    for path in paths:
        foreign = _foreign(path)
        if path.suffix == ".bt" and not _has(guest, "bpftrace", deadline):
            loaded.append(Foreign(path, absent=NO_BPFTRACE))
            continue
        shell.put(path, f"{REMOTE}/{path.name}", deadline=deadline)
        try:
            shell.run(foreign.load, deadline=deadline)
            if foreign.pins:
                _hold(guest, foreign, journal=journal, deadline=deadline)
        except GuestError as error:
            raise ProbeRejected(
                f"{path.name} could not be loaded: {error}", log=guest.folder.console
            ) from error
        loaded.append(foreign)
    return loaded


def _hold(guest: Guest, foreign: Foreign, *, journal: Journal, deadline: Deadline) -> None:
    # Its programs are attached as long as the loader runs.
    loader = f"{REMOTE}/lab_bpf"
    guest.require_shell().put(bpf.build_loader(journal=journal), loader, deadline=deadline)
    guest.require_shell().run(f"chmod 755 {loader}", deadline=deadline)
    agent, argv = guest.require_agent(), ("--foreign", f"{REMOTE}/{foreign.path.name}")
    agent.start(_program(foreign), loader, *argv, foreign.pins, deadline=deadline)
    agent.wait_said(_program(foreign), "attached", deadline=deadline)


def _program(foreign: Foreign) -> str:
    return f"foreign-{foreign.name}"[:31]  # as long as the agent takes


def _has(guest: Guest, program: str, deadline: Deadline) -> bool:
    found = guest.require_shell().run(f"command -v {program}", deadline=deadline, ok=False)
    return found.exit_code == 0


def read_out(guest: Guest, loaded: Sequence[Foreign], *, deadline: Deadline) -> dict[str, str]:
    """Return what each has said, by the name of the file it belongs into; all are unloaded."""
    shell, agent = guest.require_shell(), guest.require_agent()
    said = {}
    for foreign in reversed(loaded):
        if foreign.absent:
            said[foreign.output] = foreign.absent + "\n"
            continue
        said[foreign.output] = shell.run(foreign.tell, deadline=deadline, ok=False).stdout
        if foreign.pins:
            agent.tell(_program(foreign), "end", deadline=deadline)
            agent.wait_exit(_program(foreign), deadline=deadline)
        if foreign.unload:
            shell.run(foreign.unload, deadline=deadline)
    return said
