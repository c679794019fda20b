"""Talk to the agent in a guest over its virtio-serial port.

The quick and quiet channel: no SSH, no network under test.  The protocol is in
docs/internals.md.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab.deadline import Deadline, now
from lab.errors import DeadlineExceeded, GuestError, GuestLost

T = TypeVar("T")
MOST_LINE = 1 << 20  # bytes; the protocol's lines end at 65,536
MOST_SAID = 16 << 20  # characters kept of what one program says
MOST_TOLD = 600  # characters of that in an error
MOST_ANSWERS = 10_000  # lines that nobody asked for yet


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockSample:
    """One ping: host CLOCK_MONOTONIC (ns) before and after, guest TSC in between."""

    before_ns: int
    tsc: int
    after_ns: int


class Agent:
    """One guest's agent; `check` raises when the guest is dead and is asked while waiting."""

    def __init__(self, guest: str, path: Path, *, check: Callable[[], None]) -> None:
        self.guest = guest
        self.path = path
        self.check = check
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ready = threading.Condition()
        self._answers: list[str] = []
        self._said: dict[str, list[str]] = {}
        self._room: dict[str, int] = {}  # characters that a program may still say
        self._exits: dict[str, int] = {}
        self._parts: dict[tuple[str, str], list[str]] = {}  # of a line that is not whole yet
        self._unended: set[tuple[str, str]] = set()  # programs and streams: no newline at the end
        self._open = False
        self._pings = 0
        self._pids: dict[str, int] = {}
        self.beats = 0  # heartbeats heard, and when the last one was (CLOCK_MONOTONIC, seconds)
        self.beat_at = 0.0

    def connect(self, *, deadline: Deadline) -> str:
        """Connect, wait for the agent and return the guest's kernel release."""
        self._socket.settimeout(5.0)
        self._socket.connect(str(self.path))
        self._socket.settimeout(None)
        self._open = True
        threading.Thread(target=self._read, daemon=True).start()
        start = now()
        # It may have said hello before we were there, so it is asked until it answers.
        while True:
            self._send("hello")
            with contextlib.suppress(DeadlineExceeded):
                words = self._answer("hello", deadline.within(1.0))
                return words[2] if len(words) > 2 else ""
            deadline.check(f"the agent of {self.guest}", since=start)

    def close(self) -> None:
        """Hang up; the agent goes on."""
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def ask(self, line: str, *, expect: str, deadline: Deadline) -> list[str]:
        """Send `line`; return the words of the answer that starts with `expect`."""
        self._send(line)
        return self._answer(expect, deadline)

    def ping(self, *, deadline: Deadline) -> ClockSample:
        """Ask for the guest's TSC between two readings of the host's clock."""
        self._pings += 1
        before = time.monotonic_ns()
        words = self.ask(f"ping {self._pings}", expect=f"pong {self._pings}", deadline=deadline)
        after = time.monotonic_ns()
        return ClockSample(before_ns=before, tsc=self._number(words, 2), after_ns=after)

    def put(self, path: str, content: bytes, *, mode: int, deadline: Deadline) -> None:
        """Write a small file in the guest."""
        self.ask(f"put {mode:o} {quote(path)} {content.hex()}", expect="ok put", deadline=deadline)

    def get(self, path: str, *, deadline: Deadline) -> bytes:
        """Return the first 24 KiB of a file in the guest."""
        words = self.ask(f"get {quote(path)}", expect="file", deadline=deadline)
        try:
            return bytes.fromhex(words[2]) if len(words) > 2 else b""
        except ValueError as error:
            raise GuestError(self.guest, f"the agent's {path} is no hexadecimal") from error

    def start(self, name: str, *argv: str, deadline: Deadline) -> int:
        """Start a program under `name` and return its pid in the guest."""
        self._forget(name)
        line = " ".join(["start", name, *(quote(word) for word in argv)])
        return self._number(self.ask(line, expect=f"ok start {name}", deadline=deadline), 3)

    def _number(self, words: list[str], at: int) -> int:
        try:
            return int(words[at])
        except (ValueError, IndexError) as error:
            raise GuestError(self.guest, f"the agent said '{' '.join(words)[:80]}'") from error

    def begin(self, name: str, *argv: str) -> None:
        """Send `start` and wait for nothing: the guest may be dead before it can answer."""
        self._forget(name)
        self._send(" ".join(["start", name, *(quote(word) for word in argv)]))

    def _forget(self, name: str) -> None:
        """Forget what the program before of this name said and did."""
        with self._ready:
            for held in (self._said, self._exits, self._pids, self._room):
                held.pop(name, None)
            for stream in ("out", "err"):
                self._parts.pop((name, stream), None)
                self._unended.discard((name, stream))

    def pid(self, name: str) -> int | None:
        """Return the pid of program `name` in the guest, None when the agent never said."""
        with self._ready:
            return self._pids.get(name)

    def ended(self, name: str) -> int | None:
        """Return the exit status of program `name`, None while it runs."""
        with self._ready:
            return self._exits.get(name)

    def said(self, name: str, stream: str = "") -> str:
        """Return all that program `name` has said so far; `stream` is "out" or "err" of it."""
        with self._ready:
            lines = self._said.get(name, [])
            return "\n".join(line[4:] for line in lines if line.startswith(stream))

    def printed(self, name: str, stream: str) -> str:
        """Return what program `name`, which has ended, wrote to "out" or "err", to the byte.

        Bytes that are not UTF-8 are U+FFFD.
        """
        with self._ready:
            lines = [line[4:] for line in self._said.get(name, []) if line.startswith(stream)]
            ended = bool(lines) and (name, stream) not in self._unended
            return "\n".join(lines) + "\n" * ended

    def tell(self, name: str, text: str, *, deadline: Deadline) -> None:
        """Write a line to the stdin of program `name`."""
        self.ask(f"tell {name} {quote(text)}", expect=f"ok tell {name}", deadline=deadline)

    def wait_said(self, name: str, word: str, *, deadline: Deadline) -> str:
        """Return what program `name` says after `word`; its end before that is an error."""

        def look() -> str | None:
            lines = self._said.get(name, [])
            for at, line in enumerate(lines):
                if line.startswith(f"out {word} "):
                    del lines[: at + 1]
                    return line[len(f"out {word} ") :]
            if name in self._exits:
                said = " | ".join(line[4:] for line in lines)[-MOST_TOLD:] or "nothing"
                said = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said)
                raise GuestError(
                    self.guest,
                    f"{name} ended with {self._exits[name]} before '{word}'; it said: {said}",
                )
            return None

        return self._wait(look, what=f"{name} to say '{word}'", deadline=deadline)

    def wait_exit(self, name: str, *, deadline: Deadline) -> int:
        """Return the exit status of program `name` (negative: a signal)."""
        return (
            self._wait(
                lambda: self._exits[name] + 1024 if name in self._exits else None,
                what=f"{name} to end",
                deadline=deadline,
            )
            - 1024
        )

    def _answer(self, expect: str, deadline: Deadline) -> list[str]:
        command = expect.removeprefix("ok ").split(" ")[0]
        faults = ("error", {"pong": "ping", "file": "get"}.get(command, command))

        def look() -> str | None:
            for at, line in enumerate(self._answers):
                if f"{line} ".startswith(f"{expect} ") or f"{line} ".startswith(
                    f"{faults[0]} {faults[1]} "
                ):
                    del self._answers[: at + 1]
                    return line
            return None

        line = self._wait(look, what=f"the agent's '{expect}'", deadline=deadline)
        if line.startswith("error "):
            raise GuestError(self.guest, f"agent: {urllib.parse.unquote(line[6:])}")
        return line.split(" ")

    def _wait(self, look: Callable[[], T | None], *, what: str, deadline: Deadline) -> T:
        """Return the first value of `look`, woken by every line and checking for death."""
        start = now()
        with self._ready:
            while True:
                if (value := look()) is not None:
                    return value
                if not self._open:
                    self.check()
                    raise GuestLost(self.guest, f"the agent hung up; waited for {what}")
                deadline.check(f"{what} in {self.guest}", since=start)
                self._ready.wait(min(0.05, max(deadline.remaining, 0.001)))
                self.check()

    def _send(self, line: str) -> None:
        try:
            self._socket.sendall(line.encode() + b"\n")
        except OSError as error:
            self.check()
            raise GuestLost(self.guest, "the agent's line is dead") from error

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                piece = self._socket.recv(1 << 16)
            except OSError:
                piece = b""
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-MOST_LINE:]
            with self._ready:
                for line in lines:
                    # A line that a dying guest garbled says nothing; the next one may.
                    with contextlib.suppress(ValueError):
                        self._take(line.decode("utf-8", "replace"))
                del self._answers[:-MOST_ANSWERS]
                self._ready.notify_all()
        with self._ready:
            self._open = False
            self._ready.notify_all()

    def _hear(self, name: str, stream: str, text: str, *, whole: bool) -> None:
        """Keep a line of a program's, or a part, up to a limit that a flood of them would reach."""
        room = self._room.get(name, MOST_SAID)
        self._room[name] = room - len(text) - 4
        parts = self._parts.setdefault((name, stream), [])
        if room > 0:
            parts.append(text)
        if whole:
            self._end_line(name, stream)
        if 0 < room <= len(text) + 4:
            said = self._said.setdefault(name, [])
            said.append(f"err [what {name} said beyond {MOST_SAID} characters was not kept]")

    def _end_line(self, name: str, stream: str) -> None:
        """Put the parts of a line together: a character may begin in one and end in the next."""
        if parts := self._parts.pop((name, stream), []):
            text = urllib.parse.unquote("".join(parts))
            self._said.setdefault(name, []).append(f"{stream} {text}")

    def _take(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        name, _, text = rest.partition(" ")
        if kind in ("out", "err", "out+", "err+"):
            self._hear(name, kind[:3], text, whole=len(kind) == 3)
        elif kind == "exit":
            code = int(text)
            for stream in ("out", "err"):
                if (name, stream) in self._parts:
                    self._unended.add((name, stream))
                    self._end_line(name, stream)
            self._exits[name] = code
        elif kind == "heartbeat":
            self.beats += 1
            self.beat_at = time.monotonic()
        else:
            if kind == "ok" and name == "start":
                started, _, pid = text.partition(" ")
                self._pids[started] = int(pid)
            self._answers.append(line)


def quote(text: str) -> str:
    """Percent-encode an argument that may hold spaces or newlines."""
    return urllib.parse.quote(text, safe="/:=,.-_+@")
