"""Load one module into one guest, let it do its worst, write down all there is to see.

The verdict is not decided here: `lab.postmortem` reads it from the run directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import kernel, record, snapshot
from lab.crash import compare
from lab.crash.core import write_core
from lab.crash.module import Module, module_name, prepare, prepare_all
from lab.crash.watch import BEAT_MS, Seen, Watcher
from lab.deadline import Deadline
from lab.errors import DeadlineExceeded, GuestError, LabError
from lab.guest import Guest
from lab.image import Image
from lab.journal import Journal
from lab.memory import GuestMemory, extents
from lab.rundir import GuestDir

__all__ = ["Module", "Trial", "attempt", "module_name", "prepare", "prepare_all", "write_core"]

REMOTE = "/run"
# What the agent takes in one line: 65,536 bytes, two hexadecimal digits for each.
BY_AGENT = 30_000
PUSH_S = 20.0
QUICK_S = 5.0
UNLOAD_S = 5.0
SETTLE_S = 0.3  # after unloading: what a module left behind is run over by then
KEEP_RECORDS = 64

# Lowered for a module under trial and for nobody else.  Soft lockups are reported after
# twice `watchdog_thresh`.  An oops kills the task, so that its kernel can be looked at.
KNOBS = {
    "/proc/sys/kernel/watchdog_thresh": "1",
    "/proc/sys/kernel/hung_task_timeout_secs": "2",
    "/proc/sys/kernel/hung_task_check_interval_secs": "1",
    "/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout": "3",
    "/proc/sys/kernel/unknown_nmi_panic": "1",
    "/proc/sys/kernel/panic_on_oops": "0",
    "/proc/sys/kernel/printk": "7 4 1 7",
}
KFENCE = "/sys/module/kfence/parameters/sample_interval"
SYMBOLS = ("jiffies", "_stext", "_etext")
# The default exchange: one message by UDP over loopback, in the guest itself.
SEND = (
    "printf 'go\\ngo\\ngo\\n' | receiver --protocol udp --address 127.0.0.1 --port 9999"
    " --size 16 --count 1 --seed 1 & sleep 0.3;"
    " printf 'go\\ngo\\ngo\\n' | sender --protocol udp --address 127.0.0.1 --port 9999"
    " --size 16 --count 1 --seed 1; wait"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What is done with the module once it is loaded."""

    parameters: tuple[str, ...] = ()
    command: str | None = None  # run in the guest when the module is loaded
    soak_s: float = 1.0  # watched on afterwards
    deadline_s: float = 20.0  # for loading and the command, each
    unload: bool = True
    kfence: bool = False
    knobs: Mapping[str, str] = field(default_factory=dict)  # more files of /proc/sys and /sys
    keep_ram: bool = False


def attempt(
    guest: Guest,
    module: Module,
    trial: Trial,
    *,
    stored: snapshot.Snapshot,
    image: Image,
    folder: GuestDir,
    journal: Journal,
) -> None:
    """Try `module` in `guest`, which must be clean, and write what was seen into `folder`.

    The guest is left as the module left it: the caller restores it.
    """
    known = _known(guest, stored)
    with guest.memory() as memory:
        core = kernel.find(memory, near=known.at)
        with journal.step("push the module", guest=guest.name):
            remote = _push(guest, module)
            _turn(guest, trial)
        watcher = Watcher(guest, memory, core, jiffies=known.symbols["jiffies"])
        with journal.step("load, run, watch", guest=guest.name):
            try:
                _phases(watcher, module, trial, remote)
            finally:
                watcher.linger()
                seen = watcher.finish()
        with journal.step("collect", guest=guest.name):
            changed = _changed(core, stored, guest.name, known, image)
            _collect(guest, memory, {**seen.as_json(), "changed": changed}, seen, folder)
        if trial.keep_ram:
            with journal.step("keep RAM", guest=guest.name):
                _keep(guest.folder.ram, folder.file("ram"))


# -- before ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What is the same every time this snapshot is restored."""

    at: int
    symbols: dict[str, int]


def _known(guest: Guest, stored: snapshot.Snapshot) -> _Known:
    """Return where the kernel keeps its things, looked up once per snapshot."""
    path = stored.file(guest.name, "kernel.json")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        with guest.memory() as memory:
            facts = kernel.facts(kernel.find(memory), SYMBOLS)
        compare.keep(path, facts)
    return _Known(at=int(facts["vmcoreinfo"]), symbols=kernel.symbols_of(facts))


def _push(guest: Guest, module: Module) -> str:
    remote = f"{REMOTE}/{module.name}.ko"
    deadline = Deadline(PUSH_S)
    data = module.ko.read_bytes()
    if len(data) <= BY_AGENT:
        guest.require_agent().put(remote, data, mode=0o600, deadline=deadline)
    else:
        guest.require_shell().put(module.ko, remote, deadline=deadline)
    return remote


def _turn(guest: Guest, trial: Trial) -> None:
    """Set thresholds and switches; one that this kernel has not got is left alone."""
    agent = guest.require_agent()
    knobs = {**KNOBS, **({KFENCE: "1"} if trial.kfence else {})}
    for path, value in knobs.items():
        with contextlib.suppress(GuestError):
            agent.put(path, value.encode(), mode=0, deadline=Deadline(QUICK_S))
    for path, value in trial.knobs.items():
        agent.put(path, value.encode(), mode=0, deadline=Deadline(QUICK_S))
    # A guest that resets or turns off is kept for a look instead of QEMU's end.
    guest.require_monitor().execute("set-action", {"shutdown": "pause"})
    agent.ask(f"beat {BEAT_MS}", expect="ok beat", deadline=Deadline(QUICK_S))


# -- the phases ----------------------------------------------------------------------


def _phases(watcher: Watcher, module: Module, trial: Trial, remote: str) -> None:
    def run(name: str, *argv: str, seconds: float) -> bool:
        return _run(watcher, name, argv, seconds=seconds)

    if not run("load", "insmod", remote, *trial.parameters, seconds=trial.deadline_s):
        return
    if trial.command is not None and not run(
        "run", "sh", "-c", trial.command, seconds=trial.deadline_s
    ):
        return
    if not _soak(watcher, "soak", trial.soak_s):
        return
    if trial.unload:
        run("unload", "rmmod", module.name, seconds=UNLOAD_S)
        if not watcher.seen.fatal:
            _soak(watcher, "after", SETTLE_S)


def _run(watcher: Watcher, name: str, argv: tuple[str, ...], *, seconds: float) -> bool:
    """Run one program in the guest; return whether to go on."""
    agent = watcher.guest.require_agent()
    deadline = Deadline(seconds)
    phase: dict[str, Any] = {"name": name, "exit": None, "said": "", "where": ""}
    watcher.seen.phases.append(phase)
    with contextlib.suppress(GuestError):  # it is dead, and the watcher sees how
        agent.begin(name, *argv)
    came = watcher.until(
        lambda: agent.ended(name) is not None, deadline=deadline, what=f"'{name}' to end"
    )
    if came:
        watcher.look()  # what it did last was said before it ended
    phase |= {
        "seconds": round(deadline.elapsed, 3),
        "exit": agent.ended(name),
        "said": agent.said(name)[-4000:],
    }
    if watcher.seen.deadline:
        phase["where"] = _where(watcher.guest, name)
    # A trigger may fail as it likes; a module that did not load has nothing to be tried.
    return came and not watcher.seen.fatal and (name != "load" or phase["exit"] == 0)


def _where(guest: Guest, name: str) -> str:
    """Return the kernel stack of a program that does not end, as the guest tells it."""
    agent = guest.require_agent()
    with contextlib.suppress(LabError):
        if (pid := agent.pid(name)) is not None:
            text = agent.get(f"/proc/{pid}/stack", deadline=Deadline(1.0))
            return text.decode("utf-8", "replace")
    return ""


def _soak(watcher: Watcher, name: str, seconds: float) -> bool:
    over = Deadline(seconds)
    watcher.until(lambda: over.expired, deadline=Deadline(seconds + 30.0), what=name)
    watcher.seen.phases.append(
        {"name": name, "exit": None, "said": "", "where": "", "seconds": round(over.elapsed, 3)}
    )
    return not watcher.seen.fatal


# -- afterwards ------------------------------------------------------------------------


def _changed(
    core: kernel.Kernel, stored: snapshot.Snapshot, guest: str, known: _Known, image: Image
) -> dict[str, Any]:
    """Compare what should never change; a snapshot may be evicted under us."""
    try:
        return {
            "text": compare.text(core, stored, guest, known.symbols),
            "files": compare.files(core.memory, stored, guest, image),
        }
    except OSError as error:
        return {"absent": f"the snapshot is gone: {error.strerror}"}


def _collect(
    guest: Guest, memory: GuestMemory, observed: dict[str, Any], seen: Seen, folder: GuestDir
) -> None:
    """Write the evidence of one attempt."""
    folder.write_json("observations.json", observed)
    folder.file("kernel.log").write_text(kernel.render(seen.lines), encoding="utf-8")
    folder.file("registers.txt").write_text(_registers(guest), encoding="utf-8")
    _trace(memory, folder.trace)
    for source, name in ((guest.folder.console, "console.log"), (guest.folder.log, "qemu.log")):
        with contextlib.suppress(OSError):
            shutil.copyfile(source, folder.file(name))
    folder.file("argv").write_text("\n".join(guest.argv) + "\n", encoding="utf-8")


def _registers(guest: Guest) -> str:
    with contextlib.suppress(LabError, DeadlineExceeded):
        return guest.require_monitor().human("info registers", deadline=Deadline(2.0))
    return ""


def _trace(memory: GuestMemory, target: Path) -> None:
    """Save the ring of a probe that was watching, if there is one in RAM."""
    sections = []
    for at in memory.find(struct.pack("<Q", record.MAGIC)):
        if at % 4096 == 0:
            with contextlib.suppress(LabError, ValueError):
                raw = memory.read(at, record.HEADER_SIZE)
                sections.append(record.dump(raw, memory.read))
    if sections:
        target.write_bytes(b"".join(sections))


def _keep(ram: Path, target: Path) -> None:
    """Copy the RAM file without its holes and zero pages; it holds keys and data."""
    with ram.open("rb", buffering=0) as source:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as out:
            size = os.fstat(source.fileno()).st_size
            out.truncate(size)
            for at, piece in _pieces(source.fileno(), size):
                os.pwrite(out.fileno(), piece, at)


def _pieces(fd: int, size: int, *, step: int = 1 << 16) -> Iterator[tuple[int, bytes]]:
    zeros = bytes(step)
    for start, end in extents(fd, size):
        for at in range(start, end, step):
            piece = os.pread(fd, min(step, end - at), at)
            if piece != zeros[: len(piece)]:
                yield at, piece
