"""Steps a person watches and a program reads back."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

SHOWN_FROM_S = 2.0


class Journal:
    """Writes one line per step when it ends, however it ends.

    To people (`stream`) go the steps that took over two seconds or failed, all
    of them with `verbose`; to `file` go all, as JSON lines
    `{"at","guest","step","outcome","seconds"}`.  Threads may share a journal.
    """

    def __init__(self, *, verbose: bool = False, stream: TextIO | None = None) -> None:
        self.verbose = verbose
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
    def step(self, name: str, *, guest: str = "host") -> Iterator[None]:
        """Time what happens inside and record how it ended."""
        start = time.monotonic()
        outcome = "ok"
        ticker = _Ticker(self._show, name, guest)
        try:
            with ticker:
                yield
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            seconds = time.monotonic() - start
            self._record(name, guest, outcome, seconds)
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

    def __init__(self, show: Callable[[str], None], name: str, guest: str) -> None:
        self.show = show
        self.name = name
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
        while not self._done.wait(wait):
            passed += wait
            wait = 10.0
            self.show(f"{self.guest:<9} {self.name:<34} … {passed:.0f} s")
