"""Load one module into one guest, let it do its worst, write down all there is to see.

The verdict is not decided here: `lab.postmortem` reads it from the run directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab import snapshot, spec
from lab.crash import leak
from lab.crash.core import write_core
from lab.crash.module import Module, module_name, prepare, prepare_all, require
from lab.crash.session import LOAD, RUN, UNLOAD, Session, Trigger, watched
from lab.guest import Guest
from lab.image import Image
from lab.journal import Journal
from lab.memory import extents
from lab.rundir import GuestDir

__all__ = [
    "Module",
    "Session",
    "Trial",
    "attempt",
    "module_name",
    "prepare",
    "prepare_all",
    "require",
    "watched",
    "write_core",
]

AGAIN = leak.LOADS
UNLOAD_S = 5.0
SETTLE_S = 0.3  # after unloading: what a module left behind is run over by then
# The default exchange: one message by UDP over loopback, in the guest itself.
SEND = spec.Workload(over="loopback")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What is done with the module once it is loaded."""

    parameters: tuple[str, ...] = ()
    command: str | None = None  # run in the guest when the module is loaded
    workload: spec.Workload | None = None  # sent then; over the link it is the patient's peer's
    soak_s: float = 1.0  # watched on afterwards
    deadline_s: float = 20.0  # for loading and the command, each
    unload: bool = True
    again: int = AGAIN  # loads between two counts of what the kernel holds; 0: no counts
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
    trigger: Trigger | None = None,
) -> None:
    """Try `module` in `guest`, which must be clean, and write what was seen into `folder`.

    `trigger` is called when it is loaded, after the trial's own command.  The guest is left as
    the module left it: the caller restores it.
    """
    with watched(guest, stored=stored, image=image) as session:
        with journal.step("push the module", guest=guest.name):
            remote = session.push(module)
            session.arm(kfence=trial.kfence, knobs=trial.knobs)
        with journal.step("load, run, watch", guest=guest.name):
            try:
                _phases(session, module, trial, remote, trigger)
            finally:
                session.stop_watching()
        with journal.step("collect", guest=guest.name):
            session.collect(folder)
        if trial.keep_ram:
            with journal.step("keep RAM", guest=guest.name):
                _keep(guest.folder.ram, folder.file("ram"))


def _phases(
    session: Session, module: Module, trial: Trial, remote: str, trigger: Trigger | None
) -> None:
    seconds = trial.deadline_s
    load = partial(session.run, LOAD, "insmod", remote, *trial.parameters, seconds=seconds)
    unload = partial(session.run, UNLOAD, "rmmod", module.name, seconds=UNLOAD_S)
    steps: list[leak.Step] = [load]
    if trial.command is not None:
        steps.append(partial(session.run, RUN, "sh", "-c", trial.command, seconds=seconds))
    if trigger is not None:
        steps.append(partial(session.use, trigger, seconds=seconds))
    if not all(step() for step in steps):
        return
    if not session.soak("soak", trial.soak_s) or not trial.unload:
        return
    gone = unload()
    if session.seen.fatal or not session.soak("after", SETTLE_S):
        return
    if not gone:
        session.seen.held = {"absent": "it could not be unloaded"}
    elif trial.again:
        leak.look(session, [*steps, unload], trial.again)


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
