"""Whether there is memory for one more lab; who has to wait for it is told for whom.

A guest's RAM is a file that fills as the guest touches it, so what is free says nothing of
what labs that are up may still come to take.  What is promised to them stands in the RAM
folder itself: a folder there with a mark is a reservation for as long as its lab has an owner
or a guest, which the kernel knows by their locks.  Nobody has to take one back.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import access, paths, process
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, HostError, NoSpace
from lab.guest import MEMORY_MIB, PAIR
from lab.journal import Journal

MARK = ".skblab"  # in a RAM folder: whose it is
GATE = "admission.lock"
OWN_MIB = 128  # of a QEMU beside its guest's RAM: 34 are its own, 64 the translator's at most
GUEST_BYTES = ((MEMORY_MIB + OWN_MIB) << 20) + access.SIZE
NEED = len(PAIR) * GUEST_BYTES  # of one lab, when all its memory is touched
PATIENCE_S = 900.0
LOOK_S = 0.25
MOST = 1e9  # of any such number: MiB, seconds
HINT = "invoke lab.ps, lab.down; LAB_MEMORY=MIB is what labs may take, LAB_RAM=FOLDER where"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """Memory promised to a lab: `need` bytes in all, of which `held` are taken by now."""

    lab: str
    need: int
    held: int


def enter(folder: Path, base: Path, *, journal: Journal) -> None:
    """Mark `folder` for the lab with runtime folder `base` once there is memory for it.

    Waits for other labs of this user to go, in no particular order, and says so; raises
    `NoSpace` where nobody is to be waited for, or after `LAB_QUEUE_S` seconds (900).
    """
    deadline = Deadline(_number("LAB_QUEUE_S", PATIENCE_S))
    _budget()
    told = False

    def entered() -> bool:
        nonlocal told
        with _gate() as free:
            if free:
                others = promises(but=folder)
                lacks = lacking(others)
                if not lacks:
                    (folder / MARK).write_text(f"{base}\n", encoding="utf-8")
                    return True
                if not others:
                    raise NoSpace(lacks, hint=HINT)
                if not told:
                    told = True
                    names = ", ".join(one.lab for one in others)
                    journal.say(f"waiting for memory: {lacks}; up are {names}")
        return False

    if entered():
        return
    try:
        with journal.step("wait for memory"):
            wait_until(entered, what="memory", deadline=deadline, interval_s=LOOK_S)
    except DeadlineExceeded as error:
        names = ", ".join(one.lab for one in promises(but=folder))
        raise NoSpace(
            f"no memory for a lab in {deadline.seconds:.0f} s; up are {names}", hint=HINT
        ) from error


def lacking(others: list[Promise]) -> str:
    """Say what there is too little of for one more lab beside `others`; "" where nothing."""
    still = sum(max(0, one.need - one.held) for one in others)
    for free, where in (*_host(), (_tmpfs(), str(paths.ram()))):
        if free - still < NEED:
            return (
                f"{where} has {_mib(free)} MiB free, of which {_mib(still)} are promised;"
                f" a lab needs {_mib(NEED)}"
            )
    budget = _budget()
    taken = sum(one.need for one in others)
    if budget and budget - taken < NEED:
        return (
            f"LAB_MEMORY allows {_mib(budget)} MiB, {_mib(taken)} are promised;"
            f" a lab needs {_mib(NEED)}"
        )
    return ""


def promises(*, but: Path) -> list[Promise]:
    """Return what is promised to the labs of this user, the one with RAM folder `but` left out."""
    found = []
    for mark in sorted(paths.ram().glob(f"*/{MARK}")):
        folder = mark.parent
        with contextlib.suppress(OSError):  # it goes away while we look
            base = owner(mark)
            if folder == but or base is None or not alive(base):
                continue
            held = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
            up = sum(process.is_locked(base / f"{me.name}.lock") for me in PAIR)
            found.append(Promise(lab=base.name, need=NEED, held=held + up * (OWN_MIB << 20)))
    return found


def owner(mark: Path) -> Path | None:
    """Return the runtime folder of the lab that a mark names; None where it is not ours."""
    if mark.parent.is_symlink() or mark.is_symlink() or mark.stat().st_uid != os.geteuid():
        return None
    return Path(mark.read_text(encoding="utf-8").strip())


def alive(base: Path) -> bool:
    """Say whether a command works on the lab with this runtime folder, or a guest of it runs."""
    locks = [base / "lab.lock", *(base / f"{me.name}.lock" for me in PAIR)]
    return base.is_dir() and any(process.is_locked(lock) for lock in locks)


@contextlib.contextmanager
def _gate() -> Iterator[bool]:
    """Let one process at a time look and mark; yield whether it is us."""
    fd = os.open(paths.ram() / GATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def _tmpfs() -> int:
    return shutil.disk_usage(paths.ram()).free


def _host() -> Iterator[tuple[int, str]]:
    """Yield bytes free and where: the host, and the cgroup that we are in if it has a limit."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) << 10, "the host"
    for limit, used, stat in _cgroup_files():
        with contextlib.suppress(OSError, ValueError):
            most = int(limit.read_text(encoding="ascii"))  # "max": no limit
            cached = _field(stat, "inactive_file")
            yield most - int(used.read_text(encoding="ascii")) + cached, f"cgroup {limit.parent}"


def _cgroup_files() -> Iterator[tuple[Path, Path, Path]]:
    top = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                folder = top / path.lstrip("/")
                yield folder / "memory.max", folder / "memory.current", folder / "memory.stat"
            elif "memory" in controllers.split(","):
                folder = top / "memory" / path.lstrip("/")
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
                limit, used, stat = (folder / name for name in names)
                yield limit, used, stat


def _field(path: Path, name: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[0] == name:
            return int(words[1])
    return 0


def _budget() -> int:
    """Return the bytes that all labs of this user may take together; 0: no limit of theirs."""
    return int(_number("LAB_MEMORY", 0) * (1 << 20))


def _number(name: str, usual: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else usual
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST:  # nan is neither
        raise HostError(f"{name} is '{text[:40]}'", hint=f"{name}=NUMBER, 0 to {MOST:g}")
    return value


def _mib(size: int) -> int:
    return size >> 20
