"""Commands that go into one guest."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.exceptions import Exit

from lab.commands import Console, lab_name
from lab.deadline import Deadline
from lab.errors import (
    CommandFailed,
    GuestLost,
    HostError,
    PlaybookError,
    hinted,
)

if TYPE_CHECKING:
    from lab import topology
    from lab.guest import Guest


REACH_S = 10.0


@contextlib.contextmanager
def _in_guest(lab: str, guest: str) -> Iterator[Guest]:
    from lab import topology

    name = lab_name(lab)
    with topology.opened(name) as pair:
        pair.require_up()
        machine = _known(pair, guest)
        pair.touch()
        with hinted(log=machine.folder.console, hint=f"invoke lab.console {guest}"):
            pair.attach(guest, deadline=Deadline(REACH_S))
            yield machine


def ssh(console: Console, lab: str, guest: str) -> None:
    from lab import process, topology
    from lab.ssh import Shell

    if not sys.stdin.isatty():
        raise PlaybookError(
            "lab.ssh is for a terminal, and stdin is none", hint=f"invoke lab.exec {guest} COMMAND"
        )
    name = lab_name(lab)
    with topology.opened(name) as pair:
        state = pair.require_up()
        facts = state.guests[_known(pair, guest).name]
        pair.touch()
        lock = pair.guests[guest].folder.lock

    def check() -> None:
        if not process.is_locked(lock):
            raise GuestLost(guest, "QEMU ended", hint="invoke lab.up")

    # Without holding the lab: a shell may stay open for hours beside other commands.
    shell = Shell(guest, port=facts.port, hostkey=facts.hostkey, check=check)
    try:
        code = shell.interact()
    finally:
        shell.close()
    del console
    if code:
        raise Exit(code=code)


def _known(pair: topology.Lab, guest: str) -> Guest:
    if guest not in pair.guests:
        raise PlaybookError(f"there is no guest '{guest}'", hint=" or ".join(pair.guests))
    return pair.guests[guest]


def execute(console: Console, lab: str, guest: str, command: str, *, seconds: float) -> None:
    with _in_guest(lab, guest) as machine:
        done = machine.require_shell().run(
            command, deadline=Deadline(seconds), ok=False, show=not console.json
        )
    if console.json:
        value = {"stdout": done.stdout, "stderr": done.stderr, "exit_code": done.exit_code}
        console.result("", value)
    if done.exit_code:
        raise CommandFailed(guest, command, done.exit_code, "see above")


def put(console: Console, lab: str, guest: str, local: str, remote: str) -> None:
    source = Path(local)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise PlaybookError(f"{source} {what}", hint="lab.put takes one file")
    with _in_guest(lab, guest) as machine:
        machine.require_shell().put(source, remote, deadline=Deadline(120))
    console.result(f"{guest}:{remote}", {"guest": guest, "remote": remote})


def get(console: Console, lab: str, guest: str, remote: str, local: str) -> None:
    target = Path(local)
    if target.is_dir() or not target.parent.is_dir():
        raise PlaybookError(f"{target} is no name for a file here", hint="name a file")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with _in_guest(lab, guest) as machine:
            machine.require_shell().get(remote, part, deadline=Deadline(120))
        part.replace(target)  # what was there stays until all of the new one is
    finally:
        part.unlink(missing_ok=True)
    console.result(local, {"guest": guest, "local": local})


def show_console(console: Console, lab: str, guest: str, *, lines: int) -> None:
    from lab import process, topology

    pair = topology.Lab(lab_name(lab))
    if guest not in pair.guests:
        raise PlaybookError(f"there is no guest '{guest}'", hint=" or ".join(pair.guests))
    log = pair.guests[guest].folder.console
    if not log.exists():
        pair.require_up()
    said = process.read_given(log, most=1 << 20).decode("utf-8", "replace")
    # Firmware clears the screen and turns off wrapping: of use to nobody's terminal here.
    text = re.sub(r"\x1b(\[[0-9;?=]*[A-Za-z]|[^\[])", "", said).splitlines()[-lines:]
    shown = "\n".join(text).strip()
    console.result(shown or "nothing was said since the restore", text)


def gdb(console: Console, lab: str, guest: str) -> None:
    with _in_guest(lab, guest) as machine:
        socket = machine.folder.own / "gdb"
        monitor = machine.require_monitor()
        # QEMU 7.2 opens the port once and cannot do it again ("duplicate yank instance").
        if not any(str(socket) in one["filename"] for one in monitor.execute("query-chardev")):
            answer = monitor.human(f"gdbserver unix:path={socket},server=on,wait=off")
            if "Could not" in answer:
                raise HostError(f"the debugger's port is not open: {answer.strip()}")
    console.result(
        f"gdb -ex 'target remote {socket}'",
        {"guest": guest, "socket": str(socket)},
    )
