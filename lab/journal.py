"""Steps a person watches and a program reads back."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

SHOWN_FROM_S = 2.0
REMEMBERED = 5  # durations of one step
MOST_STEPS = 100  # names in a history: what has not been seen for longest goes


class History:
    """How long steps took before, in a small file: only those that people wait for.

    A file that cannot be read or written is no fault: then nothing is expected.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def expected(self, name: str) -> float | None:
        """Return the usual seconds of a step, None for one that was never long."""
        known = self._read().get(name)
        return statistics.median(known) if known else None

    def add(self, name: str, seconds: float) -> None:
        """Remember how long a step took."""
        steps = self._read()
        steps[name] = [*steps.pop(name, []), round(seconds, 2)][-REMEMBERED:]
        for old in list(steps)[:-MOST_STEPS]:
            del steps[old]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(steps), encoding="utf-8")
            temporary.replace(self.path)

    def _read(self) -> dict[str, list[float]]:
        try:
            found = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return {
            str(name): [float(one) for one in times]
            for name, times in (found.items() if isinstance(found, dict) else ())
            if isinstance(times, list) and all(isinstance(one, int | float) for one in times)
        }


class Journal:
    """Writes one line per step when it ends, however it ends.

    To people (`stream`) go the steps that took over two seconds or failed, all
    of them with `verbose`; to `file` go all, as JSON lines
    `{"at","guest","step","outcome","seconds"}`.  Threads may share a journal.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        stream: TextIO | None = None,
        history: History | None = None,
    ) -> None:
        self.verbose = verbose
        self.history = history
        self.stream = stream if stream is not None else sys.stderr
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._file: Path | None = None

    def to_file(self, path: Path) -> None:
        """From now on append to `path`; what was said before goes there first."""
        with self._lock:
            self._file = path
            with path.open("a", encoding="utf-8") as out:
                out.writelines(self._lines)
            self._lines = []

    @contextmanager
    def step(self, name: str, *, guest: str = "host", scale: int = 0) -> Iterator[None]:
        """Time what happens inside and record how it ended.

        With a `scale`, such as how many bytes are read, it is expected to take as long as
        those did that had about as much to do: from half to twice.
        """
        start = time.monotonic()
        outcome = "ok"
        alike = f"{name} of 2^{scale.bit_length()}" if scale else name
        ticker = _Ticker(self._show, name, guest, self.history, alike)
        try:
            with ticker:
                yield
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            seconds = time.monotonic() - start
            self._record(name, guest, outcome, seconds)
            if self.history is not None and outcome == "ok" and seconds >= SHOWN_FROM_S:
                self.history.add(alike, seconds)
            if self.verbose or outcome != "ok" or seconds >= SHOWN_FROM_S:
                self._show(f"{guest:<9} {name:<34} {outcome:<16} {seconds:6.2f} s")

    def say(self, text: str) -> None:
        """Tell people something that is not a step."""
        self._record(text, "host", "said", 0.0)
        self._show(text)

    def _record(self, name: str, guest: str, outcome: str, seconds: float) -> None:
        entry = {
            "at": round(time.time(), 3),
            "guest": guest,
            "step": name,
            "outcome": outcome,
            "seconds": round(seconds, 4),
        }
        line = json.dumps(entry) + "\n"
        with self._lock:
            if self._file is None:
                self._lines.append(line)
            else:
                with self._file.open("a", encoding="utf-8") as out:
                    out.write(line)

    def _show(self, text: str) -> None:
        with self._lock:
            print(text, file=self.stream, flush=True)


class _Ticker:
    """Says that a step is still going on, two seconds in and every ten after."""

    def __init__(
        self,
        show: Callable[[str], None],
        name: str,
        guest: str,
        history: History | None,
        alike: str,
    ) -> None:
        self.show = show
        self.history = history
        self.name = name
        self.alike = alike  # what it is called in the history
        self.guest = guest
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _run(self) -> None:
        wait = SHOWN_FROM_S
        passed = 0.0
        usual = None
        while not self._done.wait(wait):
            passed += wait
            wait = 10.0
            if usual is None and self.history is not None:
                usual = self.history.expected(self.alike)
            of = "" if usual is None else f", usually {usual:.0f} s"
            self.show(f"{self.guest:<9} {self.name:<34} … {passed:.0f} s{of}")
