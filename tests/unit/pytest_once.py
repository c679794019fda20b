"""A pytest that is imported once: every run of it is a fork, which saves the second that takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 60
TOP = Path(__file__).parents[2]
# A fork has what a new process would have: its folder, environment and output.
SERVER = """
import importlib, json, os, signal, sys
import pytest
pytest.main(["--version", "-p", "no:cacheprovider"])
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(asked["limit"])
        for fd, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fd)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.path[:0] = [path for path in asked["env"].get("PYTHONPATH", "").split(":") if path]
        exec(asked["first"])
        sys.exit(pytest.main(asked["argv"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps({"code": code}), file=sys.stderr, flush=True)
"""


class Pytest:
    """Runs pytest in forks of one process."""

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.server = server
        self.runs = 0

    def run(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], first: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it as `python -m pytest ARGV` would, after the statements of `first`."""
        assert self.server.stdin is not None
        assert self.server.stderr is not None
        self.runs += 1
        out, err = (self.folder / f"{self.runs}.{name}" for name in ("out", "err"))
        asked: dict[str, object] = {"argv": list(argv), "cwd": str(cwd), "env": dict(env)}
        asked |= {"first": first, "out": str(out), "err": str(err), "limit": LIMIT_S}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        code = json.loads(self.server.stderr.readline())["code"]
        return subprocess.CompletedProcess(argv, code, out.read_text(), err.read_text())


@contextmanager
def started(folder: Path, *names: str) -> Iterator[Pytest]:
    """Yield a pytest that has been imported, and modules with it; it ends with its stdin."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *names],
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTEST")},
        text=True,
    ) as server:
        yield Pytest(folder, server)
