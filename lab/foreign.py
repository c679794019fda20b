"""A user's own probes in a guest, loaded beside the lab's; what they say is kept with the run.

By the file's name: a kernel module (.ko, or built of a .c before it comes here) says what the
kernel logs while it is loaded, a BPF object (.bpf.o) what bpf_printk() wrote and what is in its
maps, a bpftrace script (.bt) what it prints.  None of it enters the ledger.  What the kernel logs
is found by a line of ours in its log: lines may be counted there only as long as the log has not
come round.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import bpf, rundir
from lab.deadline import Deadline
from lab.errors import GuestError, ImageError, ProbeRejected
from lab.guest import Guest
from lab.image import elf
from lab.journal import Journal

REMOTE = "/run/foreign"
TRACE = "/sys/kernel/tracing/trace"
PINNED = "/sys/fs/bpf"
DEVKMSG = "/proc/sys/kernel/printk_devkmsg"
LOST = "lost: the kernel's log came round, and what the module said first is no more in it"
NO_BPFTRACE = "absent: there is no bpftrace in the guest image (with its libraries it takes 207 MB)"


@dataclass(frozen=True, slots=True)
class Foreign:
    """One file that is loaded in a guest, or `absent` and why; the rest are shell commands."""

    name: str  # as the playbook has it
    program: str  # of the agent, where one holds it
    file: str = ""  # in the guest
    load: str = ""
    tell: str = ""
    unload: str = ""
    absent: str = ""
    pins: str = ""  # of a BPF object: the folder of its maps
    mark: str = ""  # of a module: the line in the kernel's log behind which it begins

    @property
    def output(self) -> str:
        """Name of the file in the guest's folder of the run."""
        return rundir.foreign_file(self.name)

    def said(self, text: str) -> str:
        """Return of what `tell` printed the part that is the probe's."""
        if not self.mark:
            return text
        before, mark, after = text.partition(self.mark)
        if not mark:
            return f"{LOST}\n{before}"
        return after.partition("\n")[2]


def _foreign(name: str, path: Path, number: int) -> Foreign:
    # A folder for each: two files may have one name, or one name and two endings.
    folder = f"{REMOTE}/{number}"
    stem = path.name.partition(".")[0]
    program = f"foreign-{number}-{stem}"[:31]  # as long as the agent takes
    file, output = f"{folder}/{path.name}", f"{folder}/output"
    if path.suffix == ".ko":
        mark = f"lab: {secrets.token_hex(8)}: {path.name}"
        return Foreign(
            name,
            program,
            file,
            # Else the kernel leaves out what is more than ten lines in five seconds.
            load=f"echo on > {DEVKMSG}; echo '<6>{mark}' > /dev/kmsg"
            f" && dmesg | grep -qF '{mark}' && insmod {file}",
            tell="dmesg",
            unload=f"rmmod {shlex.quote(_module_name(path))}",
            mark=mark,
        )
    if path.suffix == ".o":
        pins = f"{PINNED}/foreign-{number}"
        return Foreign(
            name,
            program,
            file,
            load=f"echo > {TRACE}; mkdir {pins}",
            tell=f"grep -v '^#' {TRACE}; for map in {pins}/*; do "
            f'echo "# ${{map##*/}}"; bpftool map dump pinned "$map"; done',
            unload=f"rm -r {pins}",
            pins=pins,
        )
    return Foreign(
        name,
        program,
        file,
        load=f"{{ bpftrace {file} > {output} 2>&1 & echo $! > {output}.pid; }}",
        tell=f"kill -INT $(cat {output}.pid); cat {output}",
    )


def _module_name(path: Path) -> str:
    """Return what the kernel calls the module in a file, which may have another name."""
    name = dict(elf.modinfo(path.read_bytes())).get("name", "")
    return name or path.name.partition(".")[0].replace("-", "_")


def load(
    guest: Guest, files: Mapping[str, Path], *, journal: Journal, deadline: Deadline
) -> list[Foreign]:
    """Load files into a guest, in order, by the names the playbook has of them.

    `ProbeRejected` says which the kernel refused.
    """
    shell = guest.require_shell()
    loaded = []
    for number, (name, path) in enumerate(files.items(), 1):
        try:
            foreign = _foreign(name, path, number)
        except ImageError as error:
            raise ProbeRejected(f"{name} could not be loaded: {error}") from error
        if path.suffix == ".bt" and not _has(guest, "bpftrace", deadline):
            loaded.append(replace(foreign, absent=NO_BPFTRACE))
            continue
        shell.run(f"mkdir -p {REMOTE}/{number}", deadline=deadline)
        shell.put(path, foreign.file, deadline=deadline)
        try:
            shell.run(foreign.load, deadline=deadline)
            if foreign.pins:
                _hold(guest, foreign, journal=journal, deadline=deadline)
        except GuestError as error:
            raise ProbeRejected(
                f"{name} could not be loaded: {error}", log=guest.folder.console
            ) from error
        loaded.append(foreign)
    return loaded


def _hold(guest: Guest, foreign: Foreign, *, journal: Journal, deadline: Deadline) -> None:
    # Its programs are attached as long as the loader runs.
    loader = f"{REMOTE}/lab_bpf"
    guest.require_shell().put(bpf.build_loader(journal=journal), loader, deadline=deadline)
    guest.require_shell().run(f"chmod 755 {loader}", deadline=deadline)
    agent, argv = guest.require_agent(), ("--foreign", foreign.file)
    agent.start(foreign.program, loader, *argv, foreign.pins, deadline=deadline)
    agent.wait_said(foreign.program, "attached", deadline=deadline)


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
        told = shell.run(foreign.tell, deadline=deadline, ok=False).stdout
        said[foreign.output] = foreign.said(told)
        if foreign.pins:
            agent.tell(foreign.program, "end", deadline=deadline)
            agent.wait_exit(foreign.program, deadline=deadline)
        if foreign.unload:
            shell.run(foreign.unload, deadline=deadline)
    return said
