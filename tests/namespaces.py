"""Whether a network namespace without a name lives: the kernel forgets the number we gave it.

A number is no reference: it keeps nothing alive.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIOCGSKNS = 0x894C  # linux/sockios.h: the namespace of a socket, or a tap
PIDFD_GETFD = 438  # asm/unistd_64.h
RTM_NEWNSID, NETNSA_NSID, NETNSA_FD = 88, 1, 3  # linux/rtnetlink.h, linux/net_namespace.h
NUMBERS = itertools.count(1 + os.getpid() * 16)


@contextlib.contextmanager
def opened(tap: int) -> Iterator[int]:
    """Yield the namespace of a tap, open."""
    fd = fcntl.ioctl(tap, SIOCGSKNS)
    try:
        yield fd
    finally:
        os.close(fd)


def number(tap: int) -> int:
    """Return a number that stands for the namespace of a tap."""
    wanted = next(NUMBERS)
    with opened(tap) as fd, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        body = struct.pack("=Bxxx", socket.AF_UNSPEC)
        body += struct.pack("=HHi", 8, NETNSA_NSID, wanted) + struct.pack("=HHI", 8, NETNSA_FD, fd)
        flags = 1 | 4  # a request, to be acknowledged
        netlink.send(struct.pack("=IHHII", 16 + len(body), RTM_NEWNSID, flags, 1, 0) + body)
        (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
        assert error == 0, os.strerror(-error)
    return wanted


def alive(wanted: int) -> bool:
    """Tell whether the namespace that was given this number is there."""
    listed = subprocess.run(
        ["ip", "netns", "list-id"], capture_output=True, text=True, check=True
    ).stdout
    return any(line.split()[:2] == ["nsid", str(wanted)] for line in listed.splitlines())


def tap_of(pid: int) -> tuple[int, str]:
    """Return a copy of the tap that a process has open, to be closed, and the tap's name."""
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        found = [line for line in entry.read_text().splitlines() if line.startswith("iff:")]
        if found:
            handle = os.pidfd_open(pid)
            try:
                fd = ctypes.CDLL(None).syscall(PIDFD_GETFD, handle, int(entry.name), 0)
            finally:
                os.close(handle)
            assert fd >= 0
            return fd, found[0].split()[1]
    raise AssertionError(f"process {pid} has no tap open")


def in_use() -> set[str]:
    """Return the namespaces that processes are in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.add(str(path.readlink()))
    return found


def links() -> str:
    """Return the network interfaces of the host's own namespace."""
    return subprocess.run(
        ["ip", "-brief", "link"], capture_output=True, text=True, check=True
    ).stdout
