"""Start, watch and stop one child, bounded and without our privileges.

A child holds a lock file open for as long as it lives, so that "is it alive?"
is answered by the kernel and never by a process id that may have been reused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, ToolMissing

# Caps console.log, wire.pcap and qemu.log alike; guest RAM is mapped, not written, and
# the device state goes to a file that is much smaller (0.9 MiB seen).
FILE_LIMIT_BYTES = 64 * 1024 * 1024
ADDRESS_LIMIT_BYTES = 4 << 30  # QEMU with a guest's RAM, the access log and its code: 1.6 GB
NICE = 5  # what else the host does comes first; a host that does nothing gives all it has
IDLE = 19  # what has time
PREFERRED = -15  # nice
PROBED_S = 1.0  # so long a lock may seem taken, because others look whether it is
TASK_LIMIT = 1024  # of the user that children run as, all labs together: 4 to 10 each


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A started process; `lock` is the file whose lock it holds while it lives."""

    pid: int
    lock: Path

    @property
    def alive(self) -> bool:
        return is_locked(self.lock)


def unprivileged() -> tuple[int, int] | None:
    """Return the uid and gid children get when we are root, else None."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def give(path: Path, *, mode: int) -> Path:
    """Hand `path` to the user children run as, with `mode`."""
    path.chmod(mode)
    if (who := unprivileged()) is not None:
        os.chown(path, *who)
    return path


def read_given(path: Path, *, most: int = FILE_LIMIT_BYTES) -> bytes:
    """Return what a child wrote into a folder we gave it; OSError unless it is a plain file.

    The child may have laid a link there to a file that only we may read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise OSError(errno.ELOOP, "not a plain file of its own", str(path))
        file.seek(max(0, facts.st_size - most))
        return file.read(most)


def tool(name: str, *, package: str) -> str:
    """Return the full path of program `name`, or say which package brings it."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise ToolMissing(
            f"{name} is not installed", hint=f"apt-get install {package}   (or ./bootstrap)"
        )
    return found


def take_lock(fd: int) -> None:
    """Lock an open file; BlockingIOError where somebody holds it for longer than a look takes."""

    def taken() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        wait_until(taken, what="a lock", deadline=Deadline(PROBED_S), interval_s=0.005)
    except DeadlineExceeded as error:
        raise BlockingIOError(errno.EAGAIN, "somebody holds the lock") from error


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock of `path`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def start(
    argv: Sequence[str],
    *,
    lock: Path,
    log: Path,
    cwd: Path,
    pass_fds: Sequence[int] = (),
    dies_with_us: bool = False,
    group: int | None = None,
    as_root: bool = False,
) -> Child:
    """Start `argv` with no privileges, its output in `log`, holding the lock of `lock`.

    `dies_with_us` ties its life to ours (SIGKILL when our thread that started it ends);
    `group` is one more group it is in; `as_root` leaves root what it is.
    """
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        take_lock(fd)
        log.touch(mode=0o600)
        with log.open("ab") as output:
            # start_new_session: Ctrl-C at the terminal is ours to handle, not the child's.
            # restore_signals=False: Python ignores SIGXFSZ and the child inherits that, so
            # a file at its limit is a failed write and not the end of the guest.
            child = subprocess.Popen(
                [*_confined(dies_with_us=dies_with_us, group=group, as_root=as_root), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                pass_fds=(fd, *pass_fds),
                start_new_session=True,
                restore_signals=False,
            )
    finally:
        os.close(fd)
    set_group_niceness(child.pid, NICE)
    # It outlives us on purpose: nothing of ours waits for it but `stop`.
    child.returncode = 0
    return Child(pid=child.pid, lock=lock)


def set_group_niceness(pid: int, nice: int) -> None:
    """Set the niceness of a session that `pid` leads, where sessions are scheduled as groups.

    There a process's own counts within its session alone (sched(7), autogroup).
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")


def _confined(*, dies_with_us: bool, group: int | None, as_root: bool) -> list[str]:
    """Return the command prefix that takes privileges away and sets bounds."""
    who = None if as_root else unprivileged()
    prefix = [
        tool("nice", package="coreutils"),
        f"--adjustment={NICE}",
        tool("prlimit", package="util-linux"),
        # Counted for a user as a whole, so not for people, who have other processes.
        *([] if who is None else [f"--nproc={TASK_LIMIT}:{TASK_LIMIT}"]),
        f"--fsize={FILE_LIMIT_BYTES}:{FILE_LIMIT_BYTES}",
        f"--as={ADDRESS_LIMIT_BYTES}:{ADDRESS_LIMIT_BYTES}",
        "--core=0:0",
        tool("setpriv", package="util-linux"),
        "--no-new-privs",
    ]
    if dies_with_us:
        prefix += ["--pdeathsig", "KILL"]
    if who is not None:
        prefix += [f"--reuid={who[0]}", f"--regid={who[1]}"]
        prefix += ["--clear-groups" if group is None else f"--groups={group}"]
        prefix += ["--inh-caps=-all", "--bounding-set=-all"]
    return prefix


def holders(lock: Path) -> list[int]:
    """Return the ids of the processes that have `lock` open, ours not among them."""
    found: list[int] = []
    wanted = str(lock.resolve())
    for folder in Path("/proc").glob("[0-9]*/fd"):
        pid = int(folder.parent.name)
        if pid == os.getpid():
            continue
        names: list[str] = []
        with contextlib.suppress(OSError):  # the process is gone meanwhile, or another user's
            for entry in folder.iterdir():
                with contextlib.suppress(OSError):  # this file was closed meanwhile
                    names.append(str(entry.readlink()))
        if wanted in names:
            found.append(pid)
    return found


@contextlib.contextmanager
def preferred(pids: Iterable[int]) -> Iterator[None]:
    """Give these processes and ours the CPUs before others, where we may (root), for a while."""
    theirs = tuple(pids)
    groups: dict[Path, str] = {}
    for pid in theirs:  # our own session may be a person's shell and all that runs in it
        group = Path(f"/proc/{pid}/autogroup")
        with contextlib.suppress(OSError, IndexError):  # no such groups here, or not root
            was = group.read_text(encoding="ascii").split()[-1]  # "/autogroup-26 nice 5"
            group.write_text(str(PREFERRED), encoding="ascii")
            groups[group] = was
    before: dict[int, int] = {}
    for pid in (os.getpid(), *theirs):
        for task in Path("/proc").glob(f"{pid}/task/[0-9]*"):
            with contextlib.suppress(OSError):  # not root, or a thread that ended meanwhile
                thread = int(task.name)
                before[thread] = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, PREFERRED)
    try:
        yield
    finally:
        for group, was in groups.items():
            with contextlib.suppress(OSError):
                group.write_text(was, encoding="ascii")
        for thread, nice in before.items():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, nice)


def reap(pid: int) -> None:
    """Take the exit status of a child of ours, so that it does not stay a zombie.

    Its lock is let go a moment before it ends, so it is waited for.
    """
    with contextlib.suppress(ChildProcessError, DeadlineExceeded):
        wait_until(
            lambda: os.waitpid(pid, os.WNOHANG) != (0, 0),
            what=f"process {pid} to end",
            deadline=Deadline(15.0),
            interval_s=0.002,
        )


def stop(lock: Path, *, grace_s: float = 3.0) -> bool:
    """End whoever holds `lock`; return whether it had to be killed.  It is gone afterwards."""
    if _gone(lock, grace_s=grace_s):
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in holders(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if _gone(lock, grace_s=2.0):
            return True
    raise DeadlineExceeded(f"the holder of {lock} does not die", log=lock)


def _gone(lock: Path, *, grace_s: float) -> bool:
    try:
        wait_until(
            lambda: not is_locked(lock),
            what=f"the holder of {lock.name} to end",
            deadline=Deadline(grace_s),
            interval_s=0.005,
        )
    except DeadlineExceeded:
        return False
    return True
