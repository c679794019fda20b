"""Watch one guest from outside while a module does its worst.

Four things are looked at, none of which the guest can fake by dying: what QEMU says of
it, its kernel's log in its RAM, its clock tick in its RAM against the CPU time its vCPU
gets, and whether its agent's heart beats.  What is seen is written down as it is; what it
means is decided from the run directory (`lab.postmortem`).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import kernel
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, GuestError, LabError
from lab.guest import Guest
from lab.memory import GuestMemory

TICK_S = 0.01
LAST_WORDS = ("GUEST_PANICKED", "SHUTDOWN", "RESET")
LAST_WORDS_S = 0.5
BEAT_MS = 100
# Something after which watching on is of no use; how bad it was is decided later, by the same
# words (lab/postmortem/log.py): what says them in passing ends nothing. No panic: QEMU tells of it.
FATAL = re.compile(
    r"^Oops: |^BUG: unable to handle|^BUG: kernel NULL pointer|^BUG: .* stack guard page was hit"
    r"|^(?:Oops: )?general protection fault|^kernel BUG at |^[a-z][\w -]+: [0-9a-f]{4} \[#\d+\]"
    r"|^(?:watchdog: )?Watchdog detected hard LOCKUP|^\S+ invoked oom-killer:"
)
COMPLAINT = re.compile(r"^(?:BUG|WARNING|INFO|UBSAN|\[ BUG)\b")
HUNG = "blocked for more than"
SOFT = "soft lockup"
# Bits of tainted_mask (include/linux/panic.h): B, a bad page; D, an oops; W, a warning; L.
DIED, LOCKED_UP = 1 << 7, 1 << 14
COMPLAINED = 1 << 5 | DIED | 1 << 9 | LOCKED_UP
LOCKUP = re.compile(
    r"^(?:watchdog: )?BUG: soft lockup|^INFO: task .* blocked for more than"
    r"|^rcu: INFO: .*(?:detected stalls|self-detected stall)"
)
QUIET_S = 0.12  # a log that says nothing for so long has said all, if the heart beats …
QUIET_DEAD_S = 0.5  # … and if it does not: so long, the vCPU's waiting for a CPU not counted
LINGER_S = 2.0  # at most so long is waited for late words, as they may be the panic
FROZEN_CPU_S = 1.0  # CPU time spent while jiffies stand still: 250 ticks missed
FROZEN_S = 4.0  # a halted guest whose heart does not beat: 40 beats missed
WINDOW_S = 4.0  # a lockup is weighed against the CPU time of so long
AWAKE = 0.5  # a guest that got less of the CPU it asked for than this was starved …
AWAKE_S = 1.0  # … unless it got so much all the same: 250 ticks
FLOOD_RECORDS = 20_000  # log records; a kernel boots with 400
FLOOD_BYTES = 8 << 20  # of console
NMI_S = 1.5


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds on the host's clock, of CPU time of the vCPU's thread, and of its waiting."""

    at: float
    ran: float
    waited: float


@dataclass(slots=True)
class Seen:
    """Everything that was seen of one attempt; `as_json` goes into the run directory."""

    started: float = field(default_factory=time.monotonic)
    phases: list[dict[str, Any]] = field(default_factory=list)
    end: str | None = None  # what QEMU says became of the guest
    events: list[dict[str, Any]] = field(default_factory=list)
    lines: list[kernel.Line] = field(default_factory=list)
    lost: int = 0
    records: int = 0  # log records since the module was loaded
    console_bytes: int = 0
    lockups: list[dict[str, Any]] = field(default_factory=list)
    frozen: dict[str, Any] | None = None
    flood: bool = False
    deadline: bool = False
    fatal: bool = False
    complained: bool = False
    held: dict[str, Any] | None = None  # of memory, after more and more loads
    starved_s: float = 0.0
    jiffies: int = 0
    beat_ago: float = 0.0
    log_trouble: str | None = None
    # Bits that the kernel marks itself with: at first, and now; None where they are not known.
    tainted_before: int | None = None
    tainted: int | None = None
    unread_lockup: dict[str, Any] | None = None  # marked, and no line of it was read

    def as_json(self) -> dict[str, Any]:
        return {
            "phases": self.phases,
            "end": self.end,
            "events": self.events,
            "log": {
                "first": self.lines[0].seq if self.lines else None,
                "records": self.records,
                "lost": self.lost,
                "trouble": self.log_trouble,
            },
            "tainted": {
                "before": self.tainted_before,
                "now": self.tainted,
                "soft_lockup": self.unread_lockup,
            },
            "console_bytes": self.console_bytes,
            "lockups": self.lockups,
            "frozen": self.frozen,
            "flood": self.flood,
            "deadline": self.deadline,
            "held": self.held,
            "starved_s": round(self.starved_s, 3),
            "jiffies": self.jiffies,
            "beat_ago_s": round(self.beat_ago, 3),
            "seconds": round(time.monotonic() - self.started, 3),
        }


class Watcher:
    """Watches one guest; `look` is called until it says that there is no more to see."""

    def __init__(
        self,
        guest: Guest,
        memory: GuestMemory,
        core: kernel.Kernel,
        *,
        jiffies: int,
        tainted: int | None = None,
    ) -> None:
        self.guest = guest
        self.memory = memory
        self.kernel = core
        self.seen = Seen()
        self._jiffies_at = core.physical(jiffies)
        self._tainted_at = None if tainted is None else core.physical(tainted)
        self.seen.tainted_before = self.seen.tainted = self._tainted()
        self._log = core.log()
        self._log.new(last=True)  # what was said before is not the module's
        self._first = self._log.seen
        self._last_line = 0.0
        self._starved_then = 0.0
        self._samples: deque[Sample] = deque(maxlen=1000)
        self._moved: Sample | None = None
        self._doubted: tuple[Sample, dict[str, Any]] | None = None
        self._console_before = _size(guest.folder.console)
        self._thread = _vcpu_thread(guest)

    # -- one look ------------------------------------------------------------------

    def look(self) -> None:
        """Take one look at everything."""
        now = time.monotonic()
        sample = self._sample(now)
        monitor = self.guest.require_monitor()
        self._read_log(now)
        self._look_at_marks()
        if monitor.fate is not None or not self.guest.alive:
            self.seen.end = self._end()
            self.seen.fatal = True
            return
        self._look_at_clock(sample)
        self._look_at_doubt(sample)
        self.seen.records = self._log.seen - self._first
        self.seen.console_bytes = _size(self.guest.folder.console) - self._console_before
        if self.seen.records > FLOOD_RECORDS or self.seen.console_bytes > FLOOD_BYTES:
            self.seen.flood = self.seen.fatal = True

    def _sample(self, now: float) -> Sample:
        ran, waited = _thread_time(self._thread)
        sample = Sample(now, ran, waited)
        if self._samples:
            before = self._samples[-1]
            self.seen.starved_s += max(0.0, sample.waited - before.waited)
        self._samples.append(sample)
        return sample

    def got(self, seconds: float) -> tuple[float, float]:
        """Return CPU seconds the guest had in the last `seconds`, and their share of its wish."""
        last = self._samples[-1]
        first = next((one for one in self._samples if one.at >= last.at - seconds), last)
        ran, waited = last.ran - first.ran, last.waited - first.waited
        return ran, 1.0 if ran + waited <= 0 else ran / (ran + waited)

    def _read_log(self, now: float) -> None:
        try:
            new = self._log.new()
        except (ValueError, LabError) as error:  # the module wrote over the log itself
            self.seen.log_trouble = str(error)
            return
        self.seen.log_trouble = None
        for line in new:
            self.seen.lines.append(line)
            self._last_line, self._starved_then = now, self.seen.starved_s
            self.seen.complained |= COMPLAINT.match(line.text) is not None
            if LOCKUP.search(line.text):
                self._believe(line)
            elif FATAL.search(line.text):
                self.seen.fatal = True
        self.seen.lost = self._log.lost
        if len(self.seen.lines) > 2 * FLOOD_RECORDS:
            del self.seen.lines[FLOOD_RECORDS:-1000]

    def _tainted(self) -> int | None:
        if self._tainted_at is None:
            return None
        return int.from_bytes(self.memory.read(self._tainted_at, 8), "little")

    def _look_at_marks(self) -> None:
        """Notice what the kernel marks itself with, whether or not its report can be read."""
        self.seen.tainted = now = self._tainted()
        before = self.seen.tainted_before
        if now is None or before is None or now == before:
            return
        new = now & ~before
        self.seen.complained |= bool(new & COMPLAINED)
        self.seen.fatal |= bool(new & DIED)
        if new & LOCKED_UP and self.seen.unread_lockup is None:
            # Its line was read before, if it could be; else the mark is weighed as that would be.
            ran, share = self.got(WINDOW_S)
            believed = weigh(ran, share)
            self.seen.unread_lockup = {
                "ran_s": round(ran, 3),
                "share": round(share, 3),
                "believed": believed,
            }
            if not any(SOFT in one["text"] for one in self.seen.lockups):
                self.seen.fatal |= believed

    def _believe(self, line: kernel.Line) -> None:
        """Believe a lockup unless the guest was starved: lockups count wall time."""
        ran, share = self.got(WINDOW_S)
        believed = weigh(ran, share)
        self.seen.lockups.append(
            {
                "seq": line.seq,
                "text": line.text,
                "ran_s": round(ran, 3),
                "share": round(share, 3),
                "believed": believed,
            }
        )
        entry = self.seen.lockups[-1]
        # A starved guest may well be locked up: what it says twice, or what lasts while it
        # gets CPU time and stays silent, is believed after all.
        again = sum(HUNG in one["text"] for one in self.seen.lockups) > 1
        if again and HUNG in line.text:
            entry["believed"] = True
        elif not believed and HUNG not in line.text and self._doubted is None:
            self._doubted = self._samples[-1], entry
        self.seen.fatal |= bool(entry["believed"])

    def _look_at_doubt(self, sample: Sample) -> None:
        if self._doubted is None:
            return
        since, entry = self._doubted
        agent = self.guest.agent
        if agent is not None and agent.beat_at > since.at:
            self._doubted = None  # it went on: the report was the host's fault
        elif sample.ran - since.ran >= AWAKE_S:
            entry["believed"] = self.seen.fatal = True

    def _look_at_clock(self, sample: Sample) -> None:
        """Notice a tick that stands still while the vCPU runs: interrupts are off for good."""
        if self.seen.frozen is not None:
            return
        jiffies = int.from_bytes(self.memory.read(self._jiffies_at, 8), "little")
        if jiffies != self.seen.jiffies or self._moved is None:
            self.seen.jiffies = jiffies
            self._moved = sample
            return
        agent = self.guest.agent
        beat = agent.beat_at if agent is not None else 0.0
        self.seen.beat_ago = sample.at - beat if beat else 0.0
        ran = sample.ran - self._moved.ran
        still = sample.at - max(self._moved.at, beat)
        waited = sample.waited - self._moved.waited
        halted = still - waited > FROZEN_S and self.seen.beat_ago > FROZEN_S
        if ran >= FROZEN_CPU_S or halted:
            self.seen.frozen = {
                "jiffies": jiffies,
                "cpu_s": round(ran, 3),
                "waited_s": round(waited, 3),
                "seconds": round(sample.at - self._moved.at, 3),
                "how": "burns CPU" if ran >= FROZEN_CPU_S else "halted",
            }
            self.seen.fatal = True

    def _end(self) -> str:
        """Return what QEMU said became of the guest: its own reason where it gave one."""
        monitor = self.guest.require_monitor()
        with contextlib.suppress(DeadlineExceeded):
            # The process may be gone a moment before its last event was read.
            wait_until(
                lambda: any(event.get("event") in LAST_WORDS for event in monitor.events),
                what="QEMU's last words",
                deadline=Deadline(LAST_WORDS_S),
                interval_s=TICK_S,
            )
        for event in monitor.events:
            if event.get("event") == "GUEST_PANICKED":
                return "panicked"
        for event in monitor.events:
            if event.get("event") in ("SHUTDOWN", "RESET"):
                return str(event.get("data", {}).get("reason", event["event"]))
        return "lost"

    def phase(self, name: str) -> dict[str, Any]:
        """Begin a phase of the attempt: what runs in it is written into the answer."""
        new: dict[str, Any] = {"name": name, "exit": None, "said": "", "where": "", "seconds": 0.0}
        self.seen.phases.append(new)
        return new

    # -- until something ----------------------------------------------------------

    def until(self, done: Any, *, deadline: Deadline, what: str) -> bool:
        """Look until `done()` or something fatal; return whether `done()` came first."""

        def condition() -> bool | None:
            self.look()
            return True if self.seen.fatal or done() else None

        try:
            wait_until(condition, what=what, deadline=deadline, interval_s=TICK_S)
        except DeadlineExceeded:
            self.seen.deadline = True
            return False
        return not self.seen.fatal

    def linger(self) -> None:
        """Wait for late words: the panic that follows an oops, the rest of a report."""
        if self.seen.frozen is not None:
            self._confirm()
        if self.seen.flood:
            return
        limit = Deadline(LINGER_S)

        def quiet() -> bool | None:
            if self.seen.end is None:
                self.look()
            else:
                self._read_log(time.monotonic())
            if self.seen.end is not None:
                return True
            silent = time.monotonic() - self._last_line
            agent = self.guest.agent
            if agent is not None and agent.beat_at > self._last_line:
                return True if silent >= QUIET_S else None
            starved = self.seen.starved_s - self._starved_then
            return True if silent - starved >= QUIET_DEAD_S else None

        with contextlib.suppress(DeadlineExceeded):
            wait_until(quiet, what="the last words", deadline=limit, interval_s=TICK_S)

    def _confirm(self) -> None:
        """Send an NMI, which interrupts nothing else can: the kernel itself says where it is."""
        frozen = self.seen.frozen
        assert frozen is not None
        monitor = self.guest.require_monitor()
        try:
            monitor.execute("inject-nmi", deadline=Deadline(NMI_S))
            wait_until(
                lambda: monitor.fate, what="the NMI", deadline=Deadline(NMI_S), interval_s=TICK_S
            )
            frozen["nmi"] = "panicked" if self._end() == "panicked" else self._end()
        except (GuestError, DeadlineExceeded):
            frozen["nmi"] = "no answer"

    def finish(self) -> Seen:
        """Read the rest of the log, unfinished records included, and what QEMU said."""
        self.seen.tainted = self._tainted()
        try:
            self.seen.lines += self._log.new(last=True)
            self.seen.lines += self._log.new(last=True)  # raises where the first could not go on
            self.seen.log_trouble = None
        except (ValueError, LabError) as error:
            self.seen.log_trouble = str(error)
        self.seen.records = self._log.seen - self._first
        self.seen.lost = self._log.lost
        self.seen.events = [dict(event) for event in self.guest.require_monitor().events]
        if self.seen.end is None and self.guest.require_monitor().fate is not None:
            self.seen.end = self._end()
        return self.seen


def weigh(ran: float, share: float) -> bool:
    """Say whether a guest that had so much of a CPU may be believed to be locked up."""
    return share >= AWAKE or ran >= AWAKE_S


def _vcpu_thread(guest: Guest) -> int:
    """Return the host's id of the thread that runs the guest's one CPU."""
    answer = guest.require_monitor().execute("query-cpus-fast", deadline=Deadline(5.0))
    return int(answer[0]["thread-id"])


def _thread_time(thread: int) -> tuple[float, float]:
    """Return seconds a thread ran and seconds it waited for a CPU; zeros when it is gone."""
    try:
        words = Path(f"/proc/{thread}/schedstat").read_text(encoding="ascii").split()
        return int(words[0]) / 1e9, int(words[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
