"""Everything lab raises on purpose, and whose fault it is.

::

    LabError
     +-- PlaybookError     2   the question is wrong; nothing was started
     +-- HostError         3   this host cannot do it
     |    +-- ToolMissing
     |    +-- NoSpace
     |    +-- ImageError        absent, or its digest differs
     |    +-- SnapshotError     absent, stale or corrupt: callers fall back to a boot
     |    +-- LabBusy           another command holds the lab
     |    +-- LabNotUp
     |    +-- NeedUnmet         a test asks for what this host is not
     +-- GuestError        4   .guest
     |    +-- LaunchFailed      QEMU did not start
     |    +-- GuestLost         QEMU or its line died under us
     |    +-- GuestPanicked     the kernel declared it
     |    +-- GuestCrashed      seen from outside, with a post-mortem
     |    +-- CommandFailed     a command in the guest returned non-zero
     |    +-- UncleanStop       it had to be killed; raised after cleaning up
     +-- ProbeError        5
     |    +-- ProbeBuildFailed  compiler output in .log
     |    +-- ProbeRejected     the guest's kernel refused the module
     +-- EvidenceError     6   the measurement cannot be trusted
     |    +-- TraceCorrupt
     |    +-- BadAddress        of guest memory; also a ValueError
     |    +-- LedgerIncomplete  raised last, when all files are written
     +-- DeadlineExceeded  7   also a TimeoutError

The numbers are exit codes.  Anything else that escapes is a bug of ours (70).
Every error prints as three lines: what failed, where its log is, what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BUG = 70
INTERRUPTED = 130


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM.

    Not a KeyboardInterrupt: Invoke takes those for itself while a remote command runs.
    """


class LabError(Exception):
    """Root of the tree; `log` is where the details are, `hint` what to try."""

    exit_code = BUG

    def __init__(
        self, message: str, *, log: Path | str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.log = log
        self.hint = hint

    def lines(self) -> list[str]:
        """Return the message a person gets: what failed, where, what to try."""
        out = [f"{type(self).__name__}: {self}"]
        if self.log is not None:
            out.append(f"  log: {self.log}")
        if self.hint is not None:
            out.append(f"  try: {self.hint}")
        return out


class PlaybookError(LabError):
    """The question is wrong; all faults are listed, nothing was started."""

    exit_code = 2


class HostError(LabError):
    """This host cannot do it."""

    exit_code = 3


class ToolMissing(HostError):
    """A program the lab needs is not installed."""


class NoSpace(HostError):
    """A folder has too little room; checked before QEMU can die of it."""


class ImageError(HostError):
    """A package, kernel or initramfs is absent or its digest differs."""


class SnapshotError(HostError):
    """A snapshot is absent, stale or corrupt."""


class LabBusy(HostError):
    """Another command is working on this lab."""


class LabNotUp(HostError):
    """The command needs a lab that is up."""


class NeedUnmet(HostError):
    """A test needs what this host does not have; `need` is the word for LAB_MUST_RUN."""

    def __init__(self, need: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"needs {need}: {message}", hint=hint)
        self.need = need


class GuestError(LabError):
    """A guest did what it should not; `guest` names it."""

    exit_code = 4

    def __init__(
        self,
        guest: str,
        message: str,
        *,
        log: Path | str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{guest}: {message}", log=log, hint=hint)
        self.guest = guest


class LaunchFailed(GuestError):
    """QEMU did not start, or the guest never announced itself."""


class GuestLost(GuestError):
    """QEMU died, or its line went dead, under us."""


class GuestPanicked(GuestError):
    """The guest's kernel declared a panic."""


class GuestCrashed(GuestError):
    """A guest's kernel came to harm; the message is the beginning of its post-mortem."""


class CommandFailed(GuestError):
    """A command in the guest returned non-zero."""

    def __init__(
        self, guest: str, command: str, exit_code: int, output: str, *, hint: str | None = None
    ) -> None:
        tail = output.strip()[-600:]
        super().__init__(guest, f"'{command}' returned {exit_code}: {tail}", hint=hint)
        self.command = command
        self.returned = exit_code
        self.output = output


class UncleanStop(GuestError):
    """A guest had to be killed; raised after everything was cleaned up."""


class ProbeError(LabError):
    """A probe or module could not be built or was refused."""

    exit_code = 5


class ProbeBuildFailed(ProbeError):
    """The compiler refused; its words are in the log."""


class ProbeRejected(ProbeError):
    """The guest's kernel refused the module."""


class EvidenceError(LabError):
    """The measurement cannot be trusted."""

    exit_code = 6


class BadAddress(EvidenceError, ValueError):
    """An address that the guest has no memory at: what led there was changing, or is a lie."""


class TraceCorrupt(EvidenceError):
    """A file of a run does not hold what it should; says offset, expected, found."""


class LedgerIncomplete(EvidenceError):
    """The ledger is written, and does not prove what was asked."""


class DeadlineExceeded(LabError, TimeoutError):
    """Something awaited did not happen in time."""

    exit_code = 7


@contextmanager
def hinted(*, log: Path | str | None = None, hint: str | None = None) -> Iterator[None]:
    """Give errors raised inside a log and a hint where they have none of their own."""
    try:
        yield
    except LabError as error:
        if error.log is None:
            error.log = log
        if error.hint is None:
            error.hint = hint
        raise


def did_you_mean(text: str, choices: Iterable[str]) -> str:
    """Return a remark with the nearest of the choices, empty when none is near."""
    plain = {choice.replace("_", "-"): choice for choice in choices}
    near = difflib.get_close_matches(text[:80].lower().replace("_", "-"), plain, n=1)
    return f" (did you mean '{plain[near[0]]}'?)" if near else ""
