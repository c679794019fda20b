"""Where things lie on the host: caches, sockets, RAM files, runs, our own data.

Every folder is private to the user; `LAB_CACHE`, `LAB_RUNTIME`, `LAB_RAM` and
`LAB_RUNS` move them.  QEMU, which runs as nobody when root starts it, reaches
only what lies under `runtime()` and `ram()` and the files it is handed open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lab.errors import HostError

_MOVE = "LAB_CACHE, LAB_RUNTIME, LAB_RAM and LAB_RUNS name other folders"


def data() -> Path:
    """Return the folder that holds images/, playbooks/, kmod/, guest/ and the rest.

    In a checkout that is its top; in an installed wheel it is `lab/_data`.
    """
    installed = Path(__file__).parent / "_data"
    return installed if installed.is_dir() else Path(__file__).parent.parent


def cache() -> Path:
    """Return the folder of downloads, images, built probes and snapshots."""
    if chosen := os.environ.get("LAB_CACHE"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/cache/skblab")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "skblab"


def runtime() -> Path:
    """Return the folder of sockets, locks and logs of labs that are up.

    Kept short: a UNIX socket's path ends at 107 bytes.
    """
    if chosen := os.environ.get("LAB_RUNTIME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/skblab")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "skblab" if base else Path(f"/tmp/skblab-{os.geteuid()}")


def ram() -> Path:
    """Return the folder of the guests' RAM files, a tmpfs where there is one."""
    if chosen := os.environ.get("LAB_RAM"):
        return Path(chosen)
    return Path(f"/dev/shm/skblab-{os.geteuid()}")


def runs() -> Path:
    """Return the folder of run directories.

    That is `runs/` of the checkout, wherever one stands in it, or of the current folder
    for an installed skblab.
    """
    if chosen := os.environ.get("LAB_RUNS"):
        return Path(chosen)
    top = data()
    if not (top / "tasks.py").is_file():
        return Path("runs")
    return Path(os.path.relpath(top / "runs"))


def private(path: Path, *, mode: int = 0o700) -> Path:
    """Make `path` and return it; refuse one that another user owns or linked to."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        owners = {path.lstat().st_uid, path.stat().st_uid}
    except OSError as error:
        raise HostError(f"{path} cannot be made a folder: {error.strerror}", hint=_MOVE) from error
    if owners != {os.geteuid()}:
        others = owners - {os.geteuid()}
        raise HostError(f"{path} belongs to uid {others.pop()}, not to us", hint=_MOVE)
    return path


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the lock of a file in a folder of ours, waiting for whoever has it."""
    with lock.open("a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
