"""What the tasks do, and how it is told to people and to programs."""

from __future__ import annotations

import contextlib
import errno
import json as jsonlib
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from invoke.exceptions import Exit
from invoke.main import program

from lab import paths
from lab.errors import (
    BUG,
    INTERRUPTED,
    HostError,
    Interrupted,
    LabError,
    PlaybookError,
)
from lab.journal import History, Journal

if TYPE_CHECKING:
    from lab.blocks import Block
    from lab.spec import AnyKernel

BUG_TEXT = "this is a bug of skblab; please report it with the lines above"
HOST_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.EIO),
}
# The options that say which kernel guests run.
KERNEL = {
    "kernel": "kernel series, 6.12 or 6.1, or a bzImage of your own",
    "modules": "of your own kernel: lib/modules/RELEASE, or the INSTALL_MOD_PATH above it",
    "headers": "of your own kernel: its build tree or headers (default: MODULES/build)",
}
PIPE_CLOSED = 141  # what a shell gives for SIGPIPE


@dataclass(slots=True)
class Console:
    """Where results go (stdout) and where people are told things (stderr)."""

    json: bool
    journal: Journal
    printed: bool = False

    def result(self, text: str, value: object, blocks: Sequence[Block] = ()) -> None:
        """Print the result: `text` for people, `value` as JSON for programs.

        With `blocks` people get these at a terminal, at its width.
        """
        if blocks and not self.json:
            self.told(text, blocks)
            return
        self.printed = True
        told = jsonlib.dumps(value, indent=1, sort_keys=True) if self.json else text
        print(told, file=self._out(), flush=True)

    def _out(self) -> TextIO:
        """Return where results go: not between a program and the JSON of another task.

        In `invoke lab.up lab.run-nic --json | jq` only the second was asked for JSON.
        """
        return sys.stderr if not self.json and _a_task_has_json() else sys.stdout

    def told(self, text: str, blocks: Sequence[Block]) -> None:
        """Print for people: tables that fit a terminal, or `text` where it is piped."""
        self.printed = True
        if not (blocks and sys.stdout.isatty()):
            print(text.rstrip(), file=self._out(), flush=True)
            return
        from rich.console import Console as Terminal

        from lab import report

        terminal = Terminal(highlight=False)
        for one in report.shown(blocks, width=terminal.width):
            terminal.print(one)

    def line(self, text: str) -> None:
        """Print one of many lines for people; at a terminal it breaks between its words."""
        self.printed = True
        width = self.width
        if width is None or len(text) <= width:
            print(text, file=self._out())
            return
        print(
            textwrap.fill(
                text, max(width, 20), subsequent_indent="    ", break_on_hyphens=False,
                break_long_words=False,
            ),
            file=self._out(),
        )  # fmt: skip

    @property
    def width(self) -> int | None:
        """Return how many columns the terminal has that results go to; None where none is."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _a_task_has_json() -> bool:
    """Say whether a task of this command has --json, as Invoke read its words."""
    return any(one.as_kwargs.get("json") for one in getattr(program, "tasks", ()))


@contextlib.contextmanager
def told(*, json: bool = False, verbose: bool = False) -> Iterator[Console]:
    """Turn errors into three lines and an exit code; the only place that does."""
    # A cancelled CI job is a Ctrl-C: it cleans up too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it says is in our errors
    console = Console(
        json=json, journal=Journal(verbose=verbose, history=History(paths.cache() / "steps.json"))
    )
    try:
        _refuse_empty(sys.argv[1:])
        yield console
    except LabError as error:
        raise _told(error, console) from error
    except (Interrupted, KeyboardInterrupt) as error:
        notes = [f"  {note}" for note in getattr(error, "__notes__", [])]
        raise Exit("\n".join(["interrupted", *notes]), code=INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader of our stdout had enough (`| head`): not worth a word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Exit(code=PIPE_CLOSED) from error
    except Exit:
        raise
    except OSError as error:
        if error.errno not in HOST_FAULTS:
            traceback.print_exc()
            raise Exit(BUG_TEXT, code=BUG) from error
        raise _told(_of_host(error), console) from error
    except Exception as error:
        traceback.print_exc()
        raise Exit(BUG_TEXT, code=BUG) from error


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise for an option that is given nothing: to Invoke that is the same as not given.

    `--lab "$UNSET"` would be the default lab, and `--payload ''` one of the lab's own making.
    """
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value:
            raise PlaybookError(f"{option}: expected a value, found nothing", hint="leave it out")
        if not word:
            before = words[number - 1] if number else ""
            name = before if before.startswith("-") else f"word {number + 1} of the command"
            raise PlaybookError(f"{name}: expected a value, found nothing", hint="leave it out")


def _told(error: LabError, console: Console) -> Exit:
    """Return how the process ends: for people three lines, for programs one JSON document."""
    lines = [*error.lines(), *(f"  {note}" for note in getattr(error, "__notes__", []))]
    if console.json and not console.printed:
        console.result("", _as_json(error))
    return Exit("\n".join(lines), code=error.exit_code)


def _interrupted(*_: object) -> None:
    """Raise `Interrupted` once; a second Ctrl-C must not cut the cleanup short.

    Everything in the cleanup has a deadline, so that it ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted


def _of_host(error: OSError) -> HostError:
    where = f" ({error.filename})" if error.filename else ""
    return HostError(
        f"{error.strerror or error}{where}",
        log=error.filename,
        hint="free space, or LAB_RUNS, LAB_CACHE, LAB_RUNTIME or LAB_RAM=/another/folder",
    )


def _as_json(error: LabError) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "message": str(error),
        "log": None if error.log is None else str(error.log),
        "try": error.hint,
        "exit_code": error.exit_code,
    }


def lab_name(given: str) -> str:
    """Return which lab is meant; names end up in socket paths, so they are short."""
    name = given or os.environ.get("LAB_NAME") or "default"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", name):
        raise PlaybookError(f"'{name}' is no name for a lab", hint="1 to 24 of a-z, 0-9 and '-'")
    return name


def kernel_of(kernel: str, modules: str, headers: str) -> AnyKernel:
    """Return the kernel that --kernel, --modules and --headers name together."""
    from lab import playbook

    return playbook.kernel_of(kernel, modules, headers)


def told_drift(console: Console, drifted: Sequence[str]) -> None:
    """Say which packages are not the pinned ones."""
    if drifted:
        console.journal.say(f"drifted: {'; '.join(drifted)}")
