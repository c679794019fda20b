"""Push, run and get through Fabric, without its hour-long hangs on a dead guest.

The only importer of fabric and paramiko.  Every call is guarded: a watcher closes the
connection's socket the moment the guest is dead or the deadline is over, which ends
whatever the libraries are waiting for, and the error says which of the two it was.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.exceptions import UnexpectedExit

from lab import paths
from lab.deadline import Deadline, now, wait_until
from lab.errors import CommandFailed, DeadlineExceeded, GuestLost, LabError

if TYPE_CHECKING:
    from fabric import Connection
    from fabric.runners import Remote
    from paramiko import PKey

TICK_S = 0.05
DEATH_S = 1.0  # from a connection that closes to the end of its QEMU


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What a command in a guest left."""

    stdout: str
    stderr: str
    exit_code: int


def public_key() -> str:
    """Return our public key line, making the pair on first use (one per user)."""
    return _key_path().with_suffix(".pub").read_text(encoding="ascii").strip()


def _key_path() -> Path:
    path = paths.private(paths.cache()) / "id_ed25519"
    if path.exists() and path.with_suffix(".pub").exists():
        return path
    with paths.exclusive(path.with_suffix(".lock")):
        if not (path.exists() and path.with_suffix(".pub").exists()):
            _make_key(path)
    return path


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(text)
    # The public one first: both are there when the private one is.
    path.with_suffix(".pub").write_bytes(public + b" skblab\n")
    part.rename(path)


class Shell:
    """A guest's SSH server on 127.0.0.1; `check` raises when the guest is dead."""

    def __init__(self, guest: str, *, port: int, hostkey: str, check: Callable[[], None]) -> None:
        self.guest = guest
        self.port = port
        self.hostkey = hostkey
        self.check = check
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None

    def run(
        self, command: str, *, deadline: Deadline, ok: bool = True, show: bool = False
    ) -> Output:
        """Run `command` in the guest's shell; non-zero is `CommandFailed` unless `ok` is False.

        With `show` what it prints is printed here as it comes.  It has no stdin.
        """
        with self._guarded(command, deadline) as connection:
            # Asynchronous, and waited for here: Invoke's own wait keeps Ctrl-C for itself and
            # joins its threads before anybody else hears of it.
            promise = connection.run(
                f"exec </dev/null; {command}",
                asynchronous=True,
                warn=True,
                pty=False,
                out_stream=sys.stdout if show else None,
                err_stream=sys.stderr if show else None,
            )
            self._wait_finished(promise.runner, deadline)
            done = promise.join()
            if done.exited < 0:
                self._look_for_death(connection, command)
        output = Output(stdout=done.stdout, stderr=done.stderr, exit_code=done.exited)
        if ok and done.exited != 0:
            raise CommandFailed(self.guest, command, done.exited, done.stderr or done.stdout)
        return output

    def _wait_finished(self, runner: Remote, deadline: Deadline) -> None:
        try:
            wait_until(
                # A thread that died of a cut connection means that there is nothing to come.
                lambda: runner.process_is_finished or runner.has_dead_threads or None,
                what=f"a command in {self.guest}",
                deadline=deadline,
                interval_s=0.005,
            )
        except BaseException:
            self._drop()
            raise

    def _look_for_death(self, connection: Connection, command: str) -> None:
        """Raise if a command without an exit status ended because its guest did.

        A signal ends one so too; QEMU's connections close a moment before its lock is let go.
        """

        def dead() -> bool | None:
            self.check()
            return None

        if connection.transport is not None and connection.transport.is_active():
            self.check()
            return
        with contextlib.suppress(DeadlineExceeded):
            wait_until(dead, what="the guest's end", deadline=Deadline(DEATH_S))
        raise GuestLost(self.guest, f"SSH ended during '{command}'")

    def put(self, local: Path, remote: str, *, deadline: Deadline) -> None:
        """Copy a file into the guest."""
        with self._guarded(f"put {local.name}", deadline) as connection:
            connection.put(str(local), remote)

    def get(self, remote: str, local: Path, *, deadline: Deadline) -> None:
        """Copy a file out of the guest; `local` is a file's path, never a template."""
        with self._guarded(f"get {remote}", deadline) as connection, local.open("wb") as out:
            connection.get(remote, out)

    def interact(self) -> int:
        """Open a terminal in the guest for a person; return its exit code."""
        with self._guarded("shell", Deadline(30 * 24 * 3600.0)) as connection:
            try:
                return int(connection.shell().exited)
            except UnexpectedExit as error:  # the last command's, on leaving
                return int(error.result.exited)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
        self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._connection = None
        self._socket = None

    @contextlib.contextmanager
    def _guarded(self, what: str, deadline: Deadline) -> Iterator[Connection]:
        """Yield a connection that is cut when the guest dies or time is over."""
        start = now()
        done = threading.Event()
        cause: list[LabError] = []

        def watch() -> None:
            while not done.wait(TICK_S):
                try:
                    self.check()
                    deadline.check(f"'{what}' in {self.guest}", since=start)
                except LabError as error:
                    cause.append(error)
                    if self._socket is not None:
                        with contextlib.suppress(OSError):
                            self._socket.shutdown(socket.SHUT_RDWR)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield self._connected(deadline)
        except LabError:
            raise
        except Exception as error:
            # Whatever the libraries make of a cut connection, the cause is ours to tell.
            self._drop()
            if cause:
                raise cause[0] from error
            self.check()
            deadline.check(f"'{what}' in {self.guest}", since=start)
            if isinstance(error, FileNotFoundError | PermissionError):
                raise CommandFailed(self.guest, what, 1, str(error)) from error
            raise GuestLost(
                self.guest, f"SSH ended during '{what}': {type(error).__name__}: {error}"
            ) from error
        finally:
            done.set()
            watcher.join()
        if cause:
            self._drop()
            raise cause[0]

    def _connected(self, deadline: Deadline) -> Connection:
        if self._connection is not None:
            return self._connection
        import fabric
        import paramiko
        from paramiko.config import SSHConfig

        # An explicit empty SSHConfig keeps the user's own files out of a run.
        config = fabric.Config(lazy=True, ssh_config=SSHConfig())
        connection = fabric.Connection(
            "127.0.0.1", user="root", port=self.port, config=config, connect_timeout=10
        )
        self._socket = socket.create_connection(
            ("127.0.0.1", self.port), timeout=max(deadline.remaining, 0.1)
        )
        self._socket.settimeout(None)
        kind, blob = self.hostkey.split()[:2]
        known = paramiko.PKey.from_type_string(kind, _decode(blob))
        client = connection.client
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.get_host_keys().add(f"[127.0.0.1]:{self.port}", kind, known)
        client.connect(
            "127.0.0.1",
            port=self.port,
            username="root",
            pkey=_private_key(),
            sock=self._socket,
            allow_agent=False,
            look_for_keys=False,
            timeout=deadline.remaining,
            banner_timeout=deadline.remaining,
            auth_timeout=deadline.remaining,
            channel_timeout=deadline.remaining,
        )
        connection.transport = client.get_transport()
        self._connection = connection
        return connection


def _private_key() -> PKey:
    from paramiko import Ed25519Key

    return Ed25519Key(filename=str(_key_path()))


def _decode(blob: str) -> bytes:
    import base64

    return base64.b64decode(blob)
