"""Whether a run is still being made: whoever makes it holds a lock on its directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lab.errors import Interrupted


@contextlib.contextmanager
def being_made(path: Path, *, called: str = "run") -> Iterator[None]:
    """Hold the directory of a run, or of many, until it is made, or nobody makes it any more.

    The lock ends with the process, however that ends.  To who interrupts it, it is said
    where it lies: as far as it came.
    """
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then nobody can tell
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        error.add_note(f"{called}, as far as it came: {path}")
        raise
    finally:
        os.close(held)


def is_being_made(path: Path) -> bool:
    """Tell whether somebody still makes what lies in a directory."""
    try:
        asked = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(asked, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(asked)
    return False
