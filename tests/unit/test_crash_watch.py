"""The watcher against a guest that is a fake: every way to end, and what must not end it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import kernel
from lab.crash import watch
from lab.deadline import Deadline
from lab.memory import GuestMemory
from tests.unit.test_kernel import Ram, text_address

JIFFIES, TAINTED = 0x2F000, 0x2F100


@dataclass
class Monitor:
    """Answers what the watcher asks; an NMI makes it panic if it is told to."""

    fate: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    nmi: bool = True

    def execute(self, command: str, *_: object, deadline: Deadline | None = None) -> Any:
        if command == "query-cpus-fast":
            return [{"thread-id": 1}]
        if command == "inject-nmi" and self.nmi:
            self.say("GUEST_PANICKED", "panicked")
        return {}

    def say(self, event: str, fate: str, **data: object) -> None:
        self.events.append({"event": event, "data": data})
        self.fate = fate


@dataclass
class Agent:
    """Has a heart that beats when the test says so."""

    beat_at: float = 0.0


@dataclass
class Folder:
    """Where the console would be."""

    console: Path


class Guest:
    """A guest that is nothing but what the watcher looks at."""

    def __init__(self, folder: Path) -> None:
        self.monitor = Monitor()
        self.agent = Agent(beat_at=time.monotonic())
        self.folder = Folder(folder / "console.log")
        self.folder.console.write_text("")
        self.alive = True

    def require_monitor(self) -> Monitor:
        return self.monitor


class Scene:
    """A watcher, its guest, its RAM, and the CPU time the host gives the guest."""

    def __init__(self, ram: Ram, guest: Guest, watcher: watch.Watcher) -> None:
        self.ram, self.guest, self.watcher = ram, guest, watcher
        self.seen = watcher.seen
        self.time = [0.0, 0.0]
        self.ticks = 1000

    def tick(self) -> None:
        self.ticks += 1
        self.ram.word(JIFFIES, self.ticks)

    def fatal(self) -> bool:
        return self.seen.fatal

    def run(self, *, ran: float = 0.0, waited: float = 0.0) -> None:
        self.time[0] += ran
        self.time[1] += waited
        self.watcher.look()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    ram = Ram(tmp_path / "ram")
    ram.say(b"before")
    guest = Guest(tmp_path)
    with GuestMemory(ram.path) as memory:
        core = kernel.find(memory)
        fake: Any = guest
        watcher = watch.Watcher(
            fake, memory, core, jiffies=text_address(JIFFIES), tainted=text_address(TAINTED)
        )
        made = Scene(ram, guest, watcher)
        monkeypatch.setattr(watch, "_thread_time", lambda _: tuple(made.time))
        yield made


def test_a_healthy_guest_is_left_alone(scene: Scene) -> None:
    for _ in range(50):
        scene.tick()
        scene.run(ran=0.1)

    assert not scene.fatal()
    assert [] == scene.seen.lines, "what was said before is not the module's"


def test_a_tick_that_stands_still_while_the_cpu_burns(scene: Scene) -> None:
    scene.tick()
    scene.run()
    scene.run(ran=0.6)
    assert not scene.fatal()
    scene.run(ran=0.6)

    assert scene.seen.frozen is not None
    assert "burns CPU" == scene.seen.frozen["how"]
    scene.watcher.linger()
    assert "panicked" == scene.seen.frozen["nmi"]


def test_an_nmi_without_an_answer_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "NMI_S", 0.05)
    scene.guest.monitor.nmi = False
    scene.tick()
    scene.run()
    scene.run(ran=1.5)
    scene.watcher.linger()

    assert scene.seen.frozen is not None
    assert "no answer" == scene.seen.frozen["nmi"]


def test_a_starved_guest_is_not_frozen(scene: Scene) -> None:
    """It waits for a CPU and gets none: its tick stands still, and it did nothing wrong."""
    scene.tick()
    for _ in range(20):
        scene.run(ran=0.01, waited=1.0)

    assert not scene.fatal()


@pytest.mark.parametrize(
    ("event", "fate", "reason", "end"),
    [
        ("GUEST_PANICKED", "panicked", None, "panicked"),
        ("SHUTDOWN", "shut down", "guest-reset", "guest-reset"),
        ("SHUTDOWN", "shut down", "guest-shutdown", "guest-shutdown"),
    ],
)
def test_what_qemu_says_is_taken_as_it_says_it(
    scene: Scene, event: str, fate: str, reason: str | None, end: str
) -> None:
    scene.guest.monitor.say(event, fate, reason=reason)
    scene.run()

    assert (end, True) == (scene.seen.end, scene.fatal())


def test_a_qemu_that_is_gone_is_lost(scene: Scene) -> None:
    scene.guest.alive = False
    scene.run()

    assert "lost" == scene.seen.end


def test_an_oops_ends_the_watch_and_a_warning_does_not(scene: Scene) -> None:
    scene.tick()
    scene.ram.say(b"WARNING: CPU: 0 PID: 1 at a.c:1")
    scene.run()
    assert not scene.fatal()
    scene.ram.say(b"Oops: 0000 [#1] SMP")
    scene.run()

    assert scene.fatal()
    assert 2 == len(scene.seen.lines)


SOFT = b"watchdog: BUG: soft lockup - CPU#0 stuck for 2s! [x:1]"


def test_a_lockup_is_believed_of_a_guest_that_had_a_cpu(scene: Scene) -> None:
    for _ in range(10):
        scene.tick()
        scene.run(ran=0.2)
    scene.ram.say(SOFT)
    scene.tick()
    scene.run(ran=0.2)

    assert scene.fatal()


def test_a_lockup_of_a_starved_guest_is_doubted_until_it_lasts(scene: Scene) -> None:
    for _ in range(10):
        scene.tick()
        scene.run(ran=0.01, waited=0.2)
    scene.ram.say(SOFT)
    scene.tick()
    scene.run(ran=0.01, waited=0.2)
    assert not scene.fatal()
    for _ in range(12):  # no heart beats, and now it does get CPU time
        scene.tick()
        scene.run(ran=0.1)

    assert scene.fatal()
    assert scene.seen.lockups[0]["believed"]


def test_a_doubted_lockup_is_forgotten_when_the_heart_beats_again(scene: Scene) -> None:
    for _ in range(10):
        scene.tick()
        scene.run(ran=0.01, waited=0.2)
    scene.ram.say(SOFT)
    scene.tick()
    scene.run(ran=0.01, waited=0.2)
    scene.guest.agent.beat_at = time.monotonic()
    for _ in range(20):
        scene.tick()
        scene.run(ran=0.2)

    assert not scene.fatal()
    assert not scene.seen.lockups[0]["believed"]


WARN, DIE, LOCKUP = 1 << 9, 1 << 7, 1 << 14


@pytest.mark.parametrize("bit", [WARN, DIE, 1 << 12])
def test_a_kernel_that_marks_itself_is_believed_without_a_line(scene: Scene, bit: int) -> None:
    scene.ram.word(TAINTED, bit)
    for number in range(100):  # 16 records are held: most go unread
        scene.ram.say(b"%d" % number)
    scene.tick()
    scene.run()
    told = scene.seen.as_json()

    assert (bit == DIE) == scene.fatal()
    assert (bit in (WARN, DIE)) == scene.seen.complained
    assert {"before": 0, "now": bit, "soft_lockup": None} == told["tainted"]
    assert told["log"]["lost"] > 80


@pytest.mark.parametrize("ran", [0.2, 0.01])
def test_a_lockup_of_which_no_line_was_read_is_weighed(scene: Scene, ran: float) -> None:
    for _ in range(10):
        scene.tick()
        scene.run(ran=ran, waited=0.2 - ran)
    scene.ram.word(TAINTED, LOCKUP)
    scene.tick()
    scene.run(ran=ran, waited=0.2 - ran)

    assert (ran == 0.2) == scene.fatal()
    assert scene.seen.unread_lockup is not None
    assert (ran == 0.2) == scene.seen.unread_lockup["believed"]


def test_a_mark_of_the_last_moment_is_seen(scene: Scene) -> None:
    scene.ram.word(TAINTED, WARN)
    scene.tick()
    scene.watcher.finish()

    assert WARN == scene.seen.tainted


def test_a_kernel_that_does_not_say_what_it_is_tainted_by(scene: Scene) -> None:
    fake: Any = scene.guest
    watcher = watch.Watcher(
        fake, scene.watcher.memory, scene.watcher.kernel, jiffies=text_address(JIFFIES)
    )
    scene.tick()
    watcher.look()

    assert (None, None) == (watcher.seen.tainted_before, watcher.seen.tainted)


def test_a_flood_ends_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FLOOD_RECORDS", 20)
    for number in range(30):
        scene.ram.say(b"%d and no end to it" % number)
    scene.tick()
    scene.run()

    assert scene.seen.flood
    assert scene.seen.records > 20


def test_a_console_flood_ends_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FLOOD_BYTES", 100)
    scene.guest.folder.console.write_text("x" * 200)
    scene.run()

    assert scene.seen.flood


def test_a_log_that_was_written_over_is_noted_and_no_crash_of_ours(scene: Scene) -> None:
    from tests.unit.test_kernel import PUD

    scene.ram.word(PUD + 8 * (0xFFFF_8880_0000_0000 >> 30 & 511), 0)
    scene.ram.word(0x10000 + 8 * (0xFFFF_8880_0000_0000 >> 39 & 511), 0)
    scene.ram.say(b"nobody can read this")
    scene.watcher.kernel._pages.clear()
    scene.tick()
    scene.run()

    assert "not mapped" in (scene.seen.log_trouble or "")
    assert not scene.fatal()


def test_what_came_before_a_record_that_nobody_can_read_is_kept(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look meets both: the lines before it are not thrown away with it."""
    scene.ram.say(b"WARNING: CPU: 0 PID: 1 at a.c:1")
    bad = scene.ram.say(b"torn")
    log = scene.watcher._log
    read = log._record

    def torn(number: int) -> tuple[kernel.Line | None, bool]:
        if number == bad:
            raise ValueError("torn")
        return read(number)

    with monkeypatch.context() as patch:
        patch.setattr(log, "_record", torn)
        scene.tick()
        scene.run()
        scene.watcher.finish()
        told = scene.seen.as_json()["log"]["trouble"]
    scene.run()

    assert "torn" == told
    assert ["WARNING: CPU: 0 PID: 1 at a.c:1", "torn"] == [one.text for one in scene.seen.lines]
    assert scene.seen.as_json()["log"]["trouble"] is None, "it was only being written"
