"""One guest under watch: modules pushed and loaded, programs run, all that was seen kept.

`lab.crash.attempt` does one module's phases in it; a test (`lab.testing`) does as it likes.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lab import kernel, process, record, snapshot
from lab.crash import compare, held
from lab.crash.module import Module
from lab.crash.watch import BEAT_MS, Seen, Watcher
from lab.deadline import Deadline
from lab.errors import DeadlineExceeded, GuestError, LabError
from lab.guest import Guest
from lab.image import Image
from lab.memory import GuestMemory
from lab.rundir import GuestDir

REMOTE = "/run"
LOAD, RUN, UNLOAD = "load", "run", "unload"  # what is done with a module, once or again
# What the agent takes in one line: 65,536 bytes, two hexadecimal digits for each.
BY_AGENT = 30_000
PUSH_S = 20.0
QUICK_S = 5.0
CUT_S = 2.0  # a trigger ends by itself at its deadline, a little later at most

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
    "/proc/sys/vm/drop_caches": "4",  # what is written there later leaves no line in the log
}
KFENCE = "/sys/module/kfence/parameters/sample_interval"
SYMBOLS = ("jiffies", "tainted_mask", "_stext", "_etext", *held.SYMBOLS)


Trigger = Callable[[Deadline], None]


class Session:
    """What is done in one guest between two restores; made by `watched`."""

    def __init__(
        self, guest: Guest, memory: GuestMemory, *, stored: snapshot.Snapshot, image: Image
    ) -> None:
        self.guest = guest
        self.memory = memory
        self.stored = stored
        self.image = image
        self._known = _known(guest, stored)
        self._core = kernel.find(memory, near=self._known.at)
        self._watcher: Watcher | None = None

    @property
    def watcher(self) -> Watcher:
        assert self._watcher is not None, "armed first"
        return self._watcher

    @property
    def seen(self) -> Seen:
        return self.watcher.seen

    def push(self, module: Module) -> str:
        """Copy a module into the guest and return its path there."""
        remote = f"{REMOTE}/{module.name}.ko"
        deadline = Deadline(PUSH_S)
        data = module.ko.read_bytes()
        if len(data) <= BY_AGENT:
            self.guest.require_agent().put(remote, data, mode=0o600, deadline=deadline)
        else:
            self.guest.require_shell().put(module.ko, remote, deadline=deadline)
        return remote

    def arm(self, *, kfence: bool = False, knobs: Mapping[str, str] | None = None) -> None:
        """Set thresholds and switches, and watch from now on.

        A usual one that this kernel has not got is left alone; one of `knobs` is an error.
        """
        agent = self.guest.require_agent()
        for path, value in {**KNOBS, **({KFENCE: "1"} if kfence else {})}.items():
            with contextlib.suppress(GuestError):
                agent.put(path, value.encode(), mode=0, deadline=Deadline(QUICK_S))
        for path, value in (knobs or {}).items():
            agent.put(path, value.encode(), mode=0, deadline=Deadline(QUICK_S))
        # A guest that resets or turns off is kept for a look instead of QEMU's end.
        self.guest.require_monitor().execute("set-action", {"shutdown": "pause"})
        agent.ask(f"beat {BEAT_MS}", expect="ok beat", deadline=Deadline(QUICK_S))
        self.watch_anew()

    def watch_anew(self) -> None:
        """Forget what was seen: what comes is held against what is the case now."""
        symbols = self._known.symbols
        self._watcher = Watcher(
            self.guest,
            self.memory,
            self._core,
            jiffies=symbols["jiffies"],
            tainted=symbols.get("tainted_mask"),
        )

    def run(
        self, name: str, *argv: str, seconds: float, phase: dict[str, Any] | None = None
    ) -> bool:
        """Run one program in the guest as phase `name`; return whether to go on.

        With `phase`, one that was begun, it is a part of that.  False after something fatal, at the
        deadline, and where a module did not load or unload.
        """
        watcher = self.watcher
        agent = self.guest.require_agent()
        deadline = Deadline(seconds)
        phase = watcher.phase(name) if phase is None else phase
        with contextlib.suppress(GuestError):  # it is dead, and the watcher sees how
            agent.begin(name, *argv)
        came = watcher.until(
            lambda: agent.ended(name) is not None, deadline=deadline, what=f"'{name}' to end"
        )
        if came:
            watcher.look()  # what it did last was said before it ended
        phase |= {
            "seconds": round(phase["seconds"] + deadline.elapsed, 3),
            "exit": agent.ended(name),
            "said": agent.said(name)[-4000:],
        }
        if watcher.seen.deadline:
            phase["where"] = self._where(name)
        # A trigger may fail as it likes; a module that did not load has nothing to be tried.
        failed = name in (LOAD, UNLOAD) and phase["exit"] != 0
        return came and not watcher.seen.fatal and not failed

    def use(self, trigger: Trigger, *, seconds: float, phase: dict[str, Any] | None = None) -> bool:
        """Let `trigger` do what it does as phase `run`; return whether to go on.

        It is cut short when something fatal comes; it may fail as it likes.
        """
        watcher, deadline = self.watcher, Deadline(seconds)
        phase = watcher.phase(RUN) if phase is None else phase
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(trigger, deadline)
            try:
                came = watcher.until(done.done, deadline=Deadline(seconds + CUT_S), what="trigger")
            finally:
                deadline.cut()
        failed = done.exception()
        if failed is not None and not isinstance(failed, LabError):
            raise failed
        watcher.seen.deadline |= isinstance(failed, DeadlineExceeded) and not watcher.seen.fatal
        phase |= {
            "seconds": round(phase["seconds"] + deadline.elapsed, 3),
            "exit": 0 if failed is None else 1,
            "said": "" if failed is None else str(failed),
        }
        return came and not watcher.seen.fatal and not watcher.seen.deadline

    def _where(self, name: str) -> str:
        """Return the kernel stack of a program that does not end, as the guest tells it."""
        agent = self.guest.require_agent()
        with contextlib.suppress(LabError):
            if (pid := agent.pid(name)) is not None:
                text = agent.get(f"/proc/{pid}/stack", deadline=Deadline(1.0))
                return text.decode("utf-8", "replace")
        return ""

    def soak(self, name: str, seconds: float) -> bool:
        """Watch on for some seconds; return whether nothing fatal came."""
        over = Deadline(seconds)
        watcher = self.watcher
        watcher.until(lambda: over.expired, deadline=Deadline(seconds + 30.0), what=name)
        watcher.phase(name)["seconds"] = round(over.elapsed, 3)
        return not watcher.seen.fatal

    def layout(self) -> held.Layout:
        """Return where this kernel's allocator keeps its counts; the kernel says it itself."""
        return held.layout(self._core.types(self._known.symbols))

    def held(self, layout: held.Layout) -> held.Held:
        """Count what the kernel holds of its memory, while the guest stands still."""
        monitor = self.guest.require_monitor()
        monitor.execute("stop", deadline=Deadline(QUICK_S))
        try:
            return held.count(self._core, self._known.symbols, layout)
        finally:
            with contextlib.suppress(GuestError):
                monitor.execute("cont", deadline=Deadline(QUICK_S))

    def stop_watching(self) -> Seen:
        """Wait for late words and return all that was seen."""
        self.watcher.linger()
        return self.watcher.finish()

    def changed(self) -> dict[str, Any]:
        """Compare what should never change; a snapshot may be evicted under us."""
        try:
            return {
                "text": compare.text(self._core, self.stored, self.guest.name, self._known.symbols),
                "files": compare.files(self._core.memory, self.stored, self.guest.name, self.image),
            }
        except OSError as error:
            return {"absent": f"the snapshot is gone: {error.strerror}"}

    def collect(self, folder: GuestDir) -> None:
        """Write the evidence into `folder`; the watching has been stopped."""
        guest, seen = self.guest, self.seen
        folder.write_json("observations.json", {**seen.as_json(), "changed": self.changed()})
        folder.file("kernel.log").write_text(kernel.render(seen.lines), encoding="utf-8")
        folder.file("registers.txt").write_text(_registers(guest), encoding="utf-8")
        self._keep_trace(folder)
        for source, name in ((guest.folder.console, "console.log"), (guest.folder.log, "qemu.log")):
            with contextlib.suppress(OSError):
                folder.file(name).write_bytes(process.read_given(source))
        folder.file("argv").write_text("\n".join(guest.argv) + "\n", encoding="utf-8")

    def _keep_trace(self, folder: GuestDir) -> None:
        """Save the ring of a probe that was watching, if there is one in RAM."""
        memory = self.memory
        sections = []
        for at in memory.find(struct.pack("<Q", record.MAGIC)):
            if at % 4096 == 0:
                with contextlib.suppress(LabError, ValueError):
                    raw = memory.read(at, record.HEADER_SIZE)
                    sections.append(record.dump(raw, memory.read))
        if sections:
            folder.trace.write_bytes(b"".join(sections))


@contextlib.contextmanager
def watched(guest: Guest, *, stored: snapshot.Snapshot, image: Image) -> Iterator[Session]:
    """Yield a session in `guest`, which must be clean; the caller restores it afterwards."""
    with guest.memory() as memory:
        yield Session(guest, memory, stored=stored, image=image)


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
        facts = {}
    if facts.get("asked") != list(SYMBOLS):
        with guest.memory() as memory:
            facts = {"asked": SYMBOLS, **kernel.facts(kernel.find(memory), SYMBOLS)}
        compare.keep(path, facts)
    return _Known(at=int(facts["vmcoreinfo"]), symbols=kernel.symbols_of(facts))


def _registers(guest: Guest) -> str:
    with contextlib.suppress(LabError, DeadlineExceeded):
        return guest.require_monitor().human("info registers", deadline=Deadline(2.0))
    return ""
