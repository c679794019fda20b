"""A link with offloads: a tap for each guest, and a bridge, in a network namespace without a name.

A tap holds the namespace it was made in, and who has its file descriptor holds the tap. So
the namespace, bridge and all, lives by the file descriptors of QEMU and goes with the last
of them, however QEMU ends. The host's own namespace has nothing of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.errors import HostError
from lab.process import tool

INSIDE = Path(__file__).with_name("inside.py")
MAKE_S = 20.0  # 0.07 s; 0.3 s where the host loads its bridge
HINT = (
    "as root; or with /dev/net/tun open to you (chmod 666) and user namespaces allowed"
    " (sysctl kernel.unprivileged_userns_clone=1); or link: {backend: dgram}"
)


@contextlib.contextmanager
def joined(names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Yield a file descriptor of a tap for each of `names`, all on one bridge.

    They are closed with the block: who is to keep one has to have inherited it by then.
    Raises `HostError` where this host or user may not make them.
    """
    ours, theirs = socket.socketpair()
    fds: list[int] = []
    try:
        with ours, theirs:
            _make(theirs.fileno(), names)
            fds = list(socket.recv_fds(ours, 16, len(names), socket.MSG_CMSG_CLOEXEC)[1])
        yield dict(zip(names, fds, strict=True))
    finally:
        for fd in fds:
            os.close(fd)


def _make(number: int, names: Sequence[str]) -> None:
    ip = tool("ip", package="iproute2")
    # In a user namespace of their own people may do what root may, to what is in there.
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        [
            *(tool("unshare", package="util-linux"), *own, "--net"),
            *(sys.executable, "-I", "-S", str(INSIDE), str(number), *names),
        ],
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MAKE_S,
        check=False,
        env={"PATH": str(Path(ip).parent), "LC_ALL": "C"},
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HostError(f"no link of taps can be made here: {said}", hint=HINT)


@functools.cache
def absent() -> str:
    """Return why there can be no such link here, "" where one was made (and let go)."""
    try:
        with joined(["one", "other"]):
            return ""
    except HostError as error:
        return str(error)
