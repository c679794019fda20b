"""Follow every call that a window of kernel code makes, with QEMU's debugger port.

::

    trigger hit -- read its code --> breakpoints at all it can call --> one is hit: an entry
                                     and at indirect calls          --> register: one more
    entry ------ read its code -->   …, and at its return address   --> hit: a return

Nothing is loaded into the guest and no list says which functions will run: what a function
can call is read from its instructions as they lie in RAM when it is entered.  Kernels built
with retpolines make indirect calls through a register only, so the target is known when the
instruction is reached.  While the guest is held its clocks stand.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lab.btf import Btf
from lab.calls import Call, Calls, How
from lab.deadline import Deadline
from lab.debugger import Debugger, Registers
from lab.errors import DeadlineExceeded, EvidenceError
from lab.follow.code import Symbol, Text
from lab.follow.points import Points
from lab.follow.reading import KERNEL, Reader
from lab.kernel import Kernel, stack_size

__all__ = ["Follower", "Text", "Trigger"]

MOST_CALLS = 8000
TICK_S = 0.2
# Work of others that a window may be held up by: entered, and not followed further.
ASIDE = re.compile(
    r"__schedule|try_to_wake_up|_printk|run_timer_softirq|hrtimer_run_softirq|rcu_core(_si)?"
    r"|tasklet_(hi_)?action|run_rebalance_domains|sched_balance_softirq"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """A function that opens a window when a program called `comm` enters it; "": any.

    A window that gets into one of the modules `elsewhere` is about something else: it is
    closed and its calls are dropped.
    """

    symbol: str
    comm: str = ""
    elsewhere: tuple[str, ...] = ()


@dataclass(slots=True)
class _Frame:
    call: int
    slot: int  # where its return address lies; for an interrupt: the interrupted stack pointer
    back: int  # the return address
    interrupt: bool = False
    aside: bool = False

    @property
    def after(self) -> int:
        """The stack pointer once it has returned."""
        return self.slot if self.interrupt else self.slot + 8


@dataclass(slots=True)
class _Window:
    """A trigger that was hit and has not returned."""

    task: int  # address of current
    trigger: Trigger
    first: int  # number of its first call
    frames: list[_Frame] = field(default_factory=list)


class Follower:
    """Follows calls in one guest, in a thread of its own, between `start` and `finish`."""

    def __init__(
        self,
        debugger: Debugger,
        kernel: Kernel,
        text: Text,
        types: Btf,
        triggers: Sequence[Trigger],
        *,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `opened` is called whenever a window opens, in the thread that follows."""
        self._debugger = debugger
        self._kernel = kernel.release
        self._text = text
        self._stack = stack_size(text.values)
        self._triggers: dict[int, Trigger] = {}
        for trigger in triggers:
            if trigger.symbol not in text.values:
                raise EvidenceError(f"{debugger.guest.name}: no function {trigger.symbol}")
            self._triggers[text.values[trigger.symbol]] = trigger
        self._tell_opened = opened
        self._read = Reader(debugger, text, types)
        self._points = Points(debugger, kernel, text, self._triggers)
        self._window: _Window | None = None
        self._calls: list[Call] = []
        self._order = self._foreign = self._dropped = 0
        self._done = threading.Event()
        self._wanted = threading.Event()  # set: the triggers are to be set
        self._watched = False
        self._running = threading.Event()  # not set: the guest is to be held
        self._running.set()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def start(self, *, watch: bool = True) -> None:
        """Let the guest go on, with the triggers set; without `watch` they are set by `go_on`."""
        self._began = time.monotonic()
        if watch:
            self.go_on()
            self._watch()
        self._debugger.resume()
        self._thread = threading.Thread(target=self._guarded, name="follow", daemon=True)
        self._thread.start()

    def finish(self, *, deadline: Deadline) -> Calls:
        """Stop following and return what was seen; the guest goes on by itself."""
        self._done.set()
        self._running.set()
        if self._thread is not None:
            self._thread.join(deadline.remaining)
            if self._thread.is_alive():
                raise DeadlineExceeded(f"{self._debugger.guest.name} is still being followed")
        if self._error is not None:
            raise self._error
        return Calls(
            guest=self._debugger.guest.name,
            kernel=self._kernel,
            seconds=round(time.monotonic() - self._began, 3),
            breakpoints=self._points.most,
            foreign=self._foreign,
            dropped=self._dropped,
            calls=tuple(self._calls),
        )

    def hold(self) -> None:
        """Keep the guest held, from the next moment on in which it is not being followed."""
        self._running.clear()

    def go_on(self) -> None:
        """Let a guest that was held go on, with the triggers set."""
        self._wanted.set()
        self._running.set()

    def _watch(self) -> None:
        self._watched = True
        for address in self._triggers:
            self._debugger.set(address)

    def abandon(self) -> None:
        """Stop following, whatever was seen."""
        self._done.set()
        self._running.set()
        if self._thread is not None:
            self._thread.join(TICK_S * 50)

    # -- the loop ----------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 - raised again by finish()
            self._error = error
        finally:
            self._debugger.close()

    def _loop(self) -> None:
        while self._wait_stopped():
            at = self._debugger.registers()
            while self._debugger.is_set(at.rip):
                self._stopped_at(at)
                self._debugger.step()
                at = self._debugger.registers()
            self._debugger.resume()

    def _wait_stopped(self) -> bool:
        """Wait for a stop; False when following is over, the guest being held then too."""
        while True:
            try:
                self._debugger.stopped(Deadline(TICK_S))
            except DeadlineExceeded:
                watched = self._watched or not self._wanted.is_set()
                if watched and self._running.is_set() and not self._done.is_set():
                    continue
                self._debugger.interrupt()
                self._debugger.stopped(Deadline(5.0))
                self._running.wait()
                if self._done.is_set():
                    return False
                if self._wanted.is_set():
                    self._watch()
                self._debugger.resume()
                continue
            return True

    def _stopped_at(self, at: Registers) -> None:
        window = self._window or self._opened(at)
        if window is None:
            return
        if self._read.current(at) != window.task:
            # Another task's turn: until it is ours again only our returns are waited for.
            self._foreign += 1
            if self._points.armed:
                self._points.disarm(but=[frame.back for frame in window.frames])
            return
        if not self._points.armed:
            self._points.arm()
        if at.rip in self._points.returns:
            self._return(window, at)
            if not window.frames:
                self._close()
                return
        self._reached(window, at)

    def _close(self) -> None:
        self._points.disarm()
        self._window = None

    def _opened(self, at: Registers) -> _Window | None:
        """Open a window if the guest stopped at a trigger of the right program."""
        trigger, task = self._triggers.get(at.rip), self._read.current(at)
        if trigger is None or task is None:
            return None
        if trigger.comm and self._read.task(task)[1] != trigger.comm:
            return None
        self._window = _Window(task, trigger, len(self._calls))
        self._tell_opened()
        return self._window

    def _reached(self, window: _Window, at: Registers) -> None:
        points = self._points
        register = points.sites.get(at.rip)
        if register is not None:
            points.reach(at[register])
        if at.rip in points.interrupts:
            self._interrupted(window, at)
        elif at.rip in points.entries or at.rip in self._triggers:
            self._enter(window, at)

    # -- calls -------------------------------------------------------------------------

    def _quiet(self, window: _Window) -> bool:
        """Tell whether something else is being served that no window is about."""
        for frame in reversed(window.frames):
            if frame.interrupt or frame.aside:
                return True
            if self._calls[frame.call].address in self._triggers:
                return False
        return False

    def _enter(self, window: _Window, at: Registers) -> None:
        if self._quiet(window) and at.rip not in self._triggers:
            return
        found, back = self._text.starting(at.rip), self._read.word(at.rsp)
        if found is None or back is None:
            return
        if found.module in window.trigger.elsewhere:
            del self._calls[window.first :]
            self._close()
            return
        aside = ASIDE.fullmatch(found.name) is not None
        if not aside:
            self._points.scan(found)
        self._cut(window, at.rsp)
        top = window.frames[-1] if window.frames else None
        jumped = top is not None and not top.interrupt and top.slot == at.rsp
        call = self._call(window, found, at, How.JUMP if jumped else How.CALL, back)
        if call is not None:
            window.frames.append(_Frame(call.number, at.rsp, back, aside=aside))
            self._points.expect(back)

    def _interrupted(self, window: _Window, at: Registers) -> None:
        words = [self._read.word(at.rsp + 8 * place) or 0 for place in range(5)]
        if not window.frames:
            return
        # Some exceptions push an error code first: then rip is one further on (SDM 3A, 6.14).
        rip, rsp = (words[0], words[3]) if words[0] >> 47 == KERNEL else (words[1], words[4])
        call = self._call(window, self._points.interrupts[at.rip], at, How.INTERRUPT, rip)
        if call is not None:
            window.frames.append(_Frame(call.number, rsp, rip, interrupt=True))
            self._points.expect(rip)

    def _call(
        self, window: _Window, found: Symbol, at: Registers, how: How, back: int
    ) -> Call | None:
        if len(self._calls) >= MOST_CALLS:
            self._dropped += 1
            return None
        task, comm = self._read.task(window.task)
        typed, arguments = (
            (True, ()) if how is How.INTERRUPT else self._read.arguments(found.name, at)
        )
        call = Call(
            number=len(self._calls),
            parent=window.frames[-1].call if window.frames else -1,
            how=how,
            function=found.name,
            module=found.module,
            address=found.address,
            site=back,
            task=task,
            comm=comm,
            entered=self._next(),
            entered_ns=time.monotonic_ns(),
            typed=typed,
            arguments=arguments,
            before=self._read.structs(arguments),
        )
        self._calls.append(call)
        return call

    def _return(self, window: _Window, at: Registers) -> None:
        """Take away the calls that end here; what lies above them has left unseen."""
        for place in range(len(window.frames) - 1, -1, -1):
            if (window.frames[place].back, window.frames[place].after) == (at.rip, at.rsp):
                del window.frames[place + 1 :]
                break
        else:
            return
        # A call and the calls it ended in by a jump return at once.
        while window.frames:
            frame = window.frames[-1]
            if (frame.back, frame.after) != (at.rip, at.rsp):
                return
            window.frames.pop()
            self._leave(frame, at)

    def _leave(self, frame: _Frame, at: Registers) -> None:
        call = self._calls[frame.call]
        returned = None if frame.interrupt else self._read.returned(call.function, at.rax)
        given = call.arguments if returned is None else (*call.arguments, returned)
        self._calls[frame.call] = replace(
            call,
            left=self._next(),
            left_ns=time.monotonic_ns(),
            returned=returned,
            after=self._read.structs(given),
        )

    def _cut(self, window: _Window, slot: int) -> None:
        """Forget calls whose part of the stack is gone: they left without returning."""
        while window.frames:
            frame = window.frames[-1]
            elsewhere = frame.slot // self._stack != slot // self._stack
            if elsewhere or frame.slot >= slot or frame.interrupt:
                return
            window.frames.pop()

    def _next(self) -> int:
        self._order += 1
        return self._order - 1
