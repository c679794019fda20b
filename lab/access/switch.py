"""The host's end of the log that a plugin writes: make it, arm it, read it raw."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

from lab.access.layout import (
    HEADER_SIZE,
    OFFSETS,
    RECORD_LAYOUT,
    Header,
    State,
    encode_header,
    parse_header,
)
from lab.deadline import Deadline, wait_until
from lab.errors import HostError, TraceCorrupt

# Room, allocated as it is used.  One small message takes 50,000 to 110,000 records of 88 bytes
# and 1.4 MB of content, 23 of 4,099 bytes over TCP about 280,000.
# A kernel with lockdep makes many more accesses: LAB_ACCESS_ROOM=8 is eight times the room.
MOST_ROOM = 16


def _room() -> int:
    asked = os.environ.get("LAB_ACCESS_ROOM", "1")
    if not re.fullmatch(r"[0-9]{1,2}", asked) or not 1 <= int(asked) <= MOST_ROOM:
        raise HostError(
            f"LAB_ACCESS_ROOM is '{asked[:40]}'", hint=f"LAB_ACCESS_ROOM=1 to {MOST_ROOM}"
        )
    return int(asked)


ROOM = _room()
RECORDS = ROOM << 20
CONTENT = ROOM << 25  # bytes
SIZE = HEADER_SIZE + RECORDS * RECORD_LAYOUT.size + CONTENT  # bytes that a log may come to take
POKE_S = 0.02


def plugin_api(version: str) -> int:
    """Return the plugin interface to build for; raise `HostError` where none was tried.

    `version` is what `qemu-system-x86_64 --version` says, "7.2.22 (Debian …)".
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise HostError(f"expected a QEMU version such as 7.2.22, found '{version}'")
    number = int(found[1]), int(found[2])
    if (7, 2) <= number < (9, 0):
        return 1
    if (9, 0) <= number < (11, 0):  # 9.0 no longer takes 1, and still takes 2 in 10.0
        return 2
    raise HostError(
        f"the access log was not tried with QEMU {found[0]}, only with 7.2 to 10",
        hint="the other witnesses need no plugin: the run goes on without the access log",
    )


class Control:
    """The host's end of a log that a plugin writes.

    `check` raises when the guest is dead; `poke` makes a vCPU that sleeps wake up for a
    moment, since the plugin looks at its orders when a vCPU idles or resumes.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if create:
            self._create()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < HEADER_SIZE:
                raise TraceCorrupt(f"{path}: offset 0: expected a log, found a shorter file")
            self._map = mmap.mmap(fd, HEADER_SIZE)
        finally:
            os.close(fd)
        try:
            self.header()
        except TraceCorrupt:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a fresh log for a guest about to start, of its full size and no blocks.

        It is ours alone: whoever starts QEMU hands it to the user QEMU runs as.
        """
        return cls(path, create=True)

    def _create(self) -> None:
        self.path.unlink(missing_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, encode_header(capacity=RECORDS, content_capacity=CONTENT))
            os.ftruncate(fd, HEADER_SIZE + RECORDS * RECORD_LAYOUT.size + CONTENT)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(BufferError):
            self._map.close()

    def header(self) -> Header:
        """Return the counters and states as they are now."""
        return parse_header(self._map[:], where=str(self.path))

    @property
    def state(self) -> State:
        return self.header().state

    def arm(
        self,
        *,
        deadline: Deadline,
        check: Callable[[], None] = lambda: None,
        poke: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin a window: from now on every access is logged, what was logged is gone."""
        self._order(State.ARMED, deadline, check, poke)

    def disarm(
        self,
        *,
        deadline: Deadline,
        check: Callable[[], None] = lambda: None,
        poke: Callable[[], object] = lambda: None,
    ) -> None:
        """End the window: nothing is logged from now on, and the log is whole afterwards."""
        self._order(State.ASLEEP, deadline, check, poke)

    def _order(
        self,
        wanted: State,
        deadline: Deadline,
        check: Callable[[], None],
        poke: Callable[[], object],
    ) -> None:
        before = self.header()
        if before.state is State.ABSENT:
            raise HostError(f"no QEMU has loaded the plugin with {self.path}")
        number = (before.asked + 1) & 0xFFFFFFFF
        # In this order: the plugin reads the number first.
        struct.pack_into("<I", self._map, OFFSETS["command"], int(wanted is State.ARMED))
        struct.pack_into("<I", self._map, OFFSETS["asked"], number)
        next_poke = deadline.elapsed

        def done() -> bool:
            nonlocal next_poke
            now = self.header()
            if now.answered == number and now.state is wanted:
                return True
            check()
            if deadline.elapsed >= next_poke:
                poke()
                next_poke = deadline.elapsed + POKE_S
            return False

        wait_until(
            done,
            what=f"the access log to be {wanted.name.lower()}",
            deadline=deadline,
            interval_s=0.001,
        )

    def release(self) -> None:
        """Give the memory of what was logged back; for when the log was read, and asleep."""
        size = self.path.stat().st_size
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            # A hole in the file: QEMU has it mapped, so it keeps its size.
            with mmap.mmap(fd, size) as whole:
                whole.madvise(mmap.MADV_REMOVE, HEADER_SIZE, size - HEADER_SIZE)
        finally:
            os.close(fd)

    def raw(self) -> bytes:
        """Return the whole log, records and content without the room between them.

        Holes of the file are not read: reading would fill them.
        """
        now = self.header()
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            table = _read(fd, HEADER_SIZE, now.records * RECORD_LAYOUT.size)
            content = _read(fd, HEADER_SIZE + now.capacity * RECORD_LAYOUT.size, now.content)
        finally:
            os.close(fd)
        head = encode_header(now, capacity=now.records, content_capacity=now.content)
        return head + table + content


def _read(fd: int, at: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.pread(fd, size, at)
        if not part:
            raise TraceCorrupt(f"access log: offset {at}: expected {size} more bytes, found none")
        parts.append(part)
        at += len(part)
        size -= len(part)
    return b"".join(parts)


def plugin_argument(plugin: Path | str, *, log: Path, ram: Path) -> str:
    """Return the value of QEMU's -plugin."""
    for path in (plugin, log, ram):
        if "," in str(path):
            raise HostError(f"QEMU takes no ',' in the path of a plugin's file: {path}")
    return f"{plugin},log={log},ram={ram}"
