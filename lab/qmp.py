"""Speak QMP to one QEMU, and know at once when it is gone.

`qemu.qmp` is asynchronous; one thread of ours runs its loop, callers stay synchronous.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from lab.deadline import Deadline, now, wait_until
from lab.errors import GuestError, GuestLost

T = TypeVar("T")
LAST_WORDS_S = 0.1
ENDED = {
    "guest-panicked": "panicked",
    "shutdown": "shut down",
    "internal-error": "stopped: QEMU has an internal error",
}
FATAL = {"GUEST_PANICKED": "panicked", "SHUTDOWN": "shut down", "RESET": "was reset"}


class Monitor:
    """QEMU's monitor on a UNIX socket.

    `fate` is None while the guest runs, else what ended it: "panicked", "shut down",
    "was reset", "lost" (QEMU hung up).  `events` holds what QEMU said, oldest first.
    """

    def __init__(self, guest: str, path: Path) -> None:
        self.guest = guest
        self.path = path
        self.fate: str | None = None
        self.events: list[dict[str, Any]] = []
        self._leaving = False
        self._tasks: list[Future[None]] = []
        self._client = QMPClient(guest)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def connect(self, *, deadline: Deadline, alive: Callable[[], bool]) -> None:
        """Connect as soon as QEMU listens; `GuestLost` when `alive` says it will not."""
        # The library logs a refused connection as an error; here it is just "not yet".
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        wait_until(
            lambda: self.path.exists() or not alive() or None,
            what=f"QMP socket of {self.guest}",
            deadline=deadline,
            interval_s=0.003,
        )

        def attempt() -> bool | None:
            if not alive():
                raise GuestLost(self.guest, "QEMU ended before its monitor answered")
            try:
                self._wait(self._client.connect(str(self.path)), deadline)
            except QMPError:
                # A client that failed to connect cannot be used again.
                self._client = QMPClient(self.guest)
                return None
            return True

        wait_until(attempt, what=f"QMP of {self.guest}", deadline=deadline, interval_s=0.005)
        # What happened before we came is told by no event.
        status = self._wait(self._client.execute("query-status"), deadline)
        self.fate = ENDED.get(str(status["status"]))  # type: ignore[index]
        self._tasks = [
            asyncio.run_coroutine_threadsafe(work, self._loop)
            for work in (self._listen(), self._watch())
        ]

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Any:
        """Run a QMP command and return its answer; a refusal is a `GuestError`."""
        limit = deadline or Deadline(10.0)
        try:
            return self._wait(
                self._client.execute(command, dict(arguments) if arguments else None), limit
            )
        except ExecuteError as error:
            raise GuestError(self.guest, f"QMP {command}: {error}") from error
        except QMPError as error:
            self.fate = self.fate or "lost"
            raise GuestLost(self.guest, f"QMP {command}: the monitor hung up") from error
        except EOFError as error:
            self.fate = self.fate or "lost"
            raise GuestLost(self.guest, f"QMP {command}: the monitor hung up") from error

    def give_fd(self, name: str, fd: int, *, deadline: Deadline | None = None) -> None:
        """Hand an open file to QEMU under `name`, so that it needs no right to its path."""

        async def send() -> None:
            self._client.send_fd_scm(fd)
            await self._client.execute("getfd", {"fdname": name})

        self._wait(send(), deadline or Deadline(10.0))

    def human(self, line: str, *, deadline: Deadline | None = None) -> str:
        """Run a human monitor command, for the few things QMP lacks."""
        answer = self.execute("human-monitor-command", {"command-line": line}, deadline=deadline)
        return str(answer)

    def close(self) -> None:
        """Hang up; QEMU and the guest go on."""
        self._leaving = True
        with contextlib.suppress(QMPError, FutureTimeout, TimeoutError, EOFError, OSError):
            self._wait(self._leave(), Deadline(2.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():
            self._loop.close()

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._client.disconnect()
        await asyncio.sleep(0)  # let the cancelled ones end before the loop does

    async def _listen(self) -> None:
        async for event in self._client.events:
            entry = dict(event)
            self.events.append(entry)
            if (fate := FATAL.get(str(entry.get("event")))) is not None:
                self.fate = self.fate or fate

    async def _watch(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        # QEMU's last words may still be on their way to `_listen`: they say more than "lost".
        await asyncio.sleep(LAST_WORDS_S)
        if not self._leaving:
            self.fate = self.fate or "lost"

    def _wait(self, coroutine: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        start = now()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout=max(deadline.remaining, 0.001))
        except FutureTimeout as error:
            future.cancel()
            raise deadline.exceeded(f"{self.guest}'s monitor to answer", since=start) from error
