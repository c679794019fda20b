"""SSH to a guest that is dead, silent or a stranger: typed, and within seconds."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL

from lab import ssh
from lab.deadline import Deadline
from lab.errors import DeadlineExceeded, GuestLost, GuestPanicked

# Any well-formed key: these servers never get as far as proving it.
HOSTKEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJtbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1t"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Open a port that accepts, as a forwarded one does, and never says a word."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    kept: list[socket.socket] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                kept.append(server.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    stop.set()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for line in kept:
        line.close()
    thread.join()


def test_a_silent_server_ends_at_the_deadline(silent_port: int) -> None:
    shell = ssh.Shell("sender", port=silent_port, hostkey=HOSTKEY, check=lambda: None)
    deadline = Deadline(1.0)
    with pytest.raises(DeadlineExceeded):
        shell.run("true", deadline=deadline)
    assert deadline.elapsed < 5
    shell.close()


def test_a_panic_ends_a_call_long_before_its_deadline(silent_port: int) -> None:
    dead = threading.Timer(0.3, lambda: None)
    dead.start()

    def check() -> None:
        if dead.finished.is_set():
            raise GuestPanicked("sender", "kernel BUG")

    shell = ssh.Shell("sender", port=silent_port, hostkey=HOSTKEY, check=check)
    deadline = Deadline(60)
    with pytest.raises(GuestPanicked):
        shell.run("true", deadline=deadline)
    assert deadline.elapsed < 5
    dead.join()
    shell.close()


def test_a_closed_port_is_a_lost_guest() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        shell = ssh.Shell(
            "sender", port=taken.getsockname()[1], hostkey=HOSTKEY, check=lambda: None
        )
        with pytest.raises(GuestLost, match="SSH ended"):
            shell.run("true", deadline=Deadline(5))
        shell.close()


class _Server(paramiko.ServerInterface):
    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"


def test_a_stranger_with_another_host_key_is_refused() -> None:
    """The key that was pinned is not this server's, so nothing is said to it."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    asked: list[paramiko.Transport] = []

    def serve() -> None:
        line, _ = server.accept()
        transport = paramiko.Transport(line)
        transport.add_server_key(paramiko.ECDSAKey.generate())
        asked.append(transport)
        with contextlib.suppress(paramiko.SSHException, EOFError):
            transport.start_server(server=_Server())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    shell = ssh.Shell("sender", port=server.getsockname()[1], hostkey=HOSTKEY, check=lambda: None)
    with pytest.raises(GuestLost):
        shell.run("true", deadline=Deadline(10))
    thread.join()
    assert not asked[0].is_authenticated()
    asked[0].close()
    server.close()
    shell.close()


def test_our_key_is_made_once_and_private() -> None:
    first = ssh.public_key()
    assert first.startswith("ssh-ed25519 ")
    assert first == ssh.public_key()
    assert 0o600 == (ssh._key_path().stat().st_mode & 0o777)


def test_a_hostile_ssh_config_changes_nothing(silent_port: int, tmp_path: Path) -> None:
    """~/.ssh/config of the user is never read: its proxy would leave a file."""
    home = Path.home() / ".ssh"
    home.mkdir()
    mark = tmp_path / "was-read"
    (home / "config").write_text(f"Host *\n  ProxyCommand touch {mark}\n")
    shell = ssh.Shell("sender", port=silent_port, hostkey=HOSTKEY, check=lambda: None)
    with pytest.raises(DeadlineExceeded):
        shell.run("true", deadline=Deadline(1.0))
    assert not mark.exists()
    shell.close()
