"""The steps experiment: a message, and every function call that moves it, with its values."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence

from lab import calls, debugger, follow, kernel, process, report, rundir, spec, steps, workload
from lab.deadline import Deadline
from lab.errors import HostError
from lab.experiment import message
from lab.experiment.outcome import Outcome
from lab.experiment.stand import Stand
from lab.guest import Guest
from lab.journal import Journal
from lab.memory import GuestMemory

FINISH_S = 30.0
FRAME = 1400  # bytes of a message that surely fit one
SEND = follow.Trigger(symbol="__x64_sys_sendto", comm="sender")
RECEIVE = follow.Trigger(symbol="__x64_sys_recvfrom", comm="receiver")
# What a frame that arrives runs in: the device's interrupt, and the softirq it asks for.  The
# line to the agent interrupts as well.
ARRIVAL = (
    follow.Trigger(symbol="common_interrupt", elsewhere=("virtio_console",)),
    follow.Trigger(symbol="net_rx_action"),
)
WINDOWS: dict[str, dict[str, tuple[follow.Trigger, ...]]] = {
    "loopback": {"sender": (SEND, RECEIVE)},
    "link": {"sender": (SEND,), "receiver": (*ARRIVAL, RECEIVE)},
}
MODULES = ("virtio_net", "e1000e")  # whose types are looked up as well as the kernel's


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guests that take part: one on loopback, two on the link."""
    return message.guests(asked)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Send a message and follow every call it causes; `calls.json` of each guest."""
    speed = ready.setup.accelerator
    if speed.name != "tcg":
        raise HostError(
            f"steps are followed under TCG, and the accelerator is {speed.name}: there"
            " breakpoints would change the kernel's text",
            hint="LAB_ACCEL=tcg",
        )
    following = Following(asked, run_dir, journal=journal)
    message.take(ready, asked, run_dir, journal=journal, command=command, beside=following)


class Following:
    """Follows calls in each guest from "armed" to "received"."""

    stops = True

    def __init__(self, asked: spec.Playbook, run_dir: rundir.RunDir, *, journal: Journal) -> None:
        self._windows = WINDOWS[asked.workload.over]
        work = asked.workload
        # One frame needs no answer: the receiver need not run before it is sent, nor the
        # sender after.
        one = work.protocol == "udp" and work.size <= FRAME and work.count == 1
        self._in_turn = one and len(self._windows) > 1
        self._was_sent = False
        self._run = run_dir
        self._journal = journal
        self._followers: dict[str, follow.Follower] = {}
        self._open = contextlib.ExitStack()

    def armed(self, guests: Sequence[Guest]) -> None:
        # From here on a guest runs only while it is needed: its ticks would fill its access log.
        # Its clock goes on from the moment it is let go, though its turn comes later on a busy
        # host: at each of a thousand stops that was a tick or two, four million accesses.
        running = [pid for g in guests for pid in process.holders(g.folder.lock)]
        self._open.enter_context(process.preferred(running))
        ports = {g.name: self._open.enter_context(debugger.Debugger(g)) for g in guests}
        with self._journal.step("read symbols, types and code"):
            for guest in guests:
                self._followers[guest.name] = self._prepare(guest, ports[guest.name])
        for name, follower in self._followers.items():
            # What the receiver does before anything is sent is not the message's.
            follower.start(watch=name == "sender" or not self._in_turn)

    def _prepare(self, guest: Guest, port: debugger.Debugger) -> follow.Follower:
        memory = self._open.enter_context(GuestMemory(guest.folder.ram))
        found = kernel.find(memory)
        text = follow.Text(self._run.guest(guest.name).symbols.read_bytes())
        types = found.types(text.values)
        for name in MODULES:
            if "btf_modules" in text.values:
                types = found.module_types(types, text.values["btf_modules"], name)
        windows = self._windows[guest.name]
        opened = functools.partial(self.opened, guest.name)
        return follow.Follower(port, found, text, types, windows, opened=opened)

    def opened(self, guest: str) -> None:
        """Hold the receiver once the sender sends; its own windows say nothing of that."""
        if self._in_turn and guest == "sender" and not self._was_sent:
            self._followers["receiver"].hold()

    def sent(self, receiver: workload.Side) -> None:
        del receiver
        self._was_sent = True
        if self._in_turn:
            self._followers["sender"].hold()
            self._followers["receiver"].go_on()

    def received(self) -> None:
        with self._journal.step("end following"):
            for name, follower in self._followers.items():
                followed = follower.finish(deadline=Deadline(FINISH_S))
                self._run.guest(name).write_json(calls.FILE, followed.to_json())

    def close(self) -> None:
        for follower in self._followers.values():
            follower.abandon()
        self._open.close()


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Make the numbered steps of a run, and hold them against its other witnesses."""
    proven = message.answer(run_dir, expect, journal=journal)
    with journal.step("steps"):
        found = steps.build(run_dir)
        run_dir.write_text(steps.FILE, found.to_json())
        run_dir.write_text("report.txt", steps.render(found))
        told = tuple(steps.told(found))
        # report.html is the message's own.
        run_dir.write_text("steps.html", report.sheet(run_dir, told, good=not found.trouble))
    return Outcome(
        run=run_dir,
        result=steps.FILE,
        value=json.loads(found.to_json()),
        trouble=(*found.trouble, *proven.trouble),
        hint=f"invoke lab.steps {rundir.called(run_dir)} --all",
        told=told,
        lost=proven.lost,
    )
