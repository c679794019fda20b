"""File and line of kernel addresses, from a kernel with debug information."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.errors import HostError, ToolMissing
from lab.symbols import Symbols

DEADLINE_S = 300
LINE = re.compile(r"(?:.*?/)??((?:arch|block|crypto|drivers|fs|include|io_uring|ipc|kernel|lib|mm|"
                  r"net|security)/\S+:\d+)")  # fmt: skip


def look_up(vmlinux: Path, symbols: Symbols, addresses: Iterable[int]) -> Mapping[int, str]:
    """Return `net/ipv4/udp.c:1156` for addresses of the guest's kernel, where it is known.

    `vmlinux` was linked to run elsewhere than the guest runs it (KASLR): the distance is that
    of the symbol `_stext`.  Raises `HostError` where the file is no kernel with lines.
    """
    tool = shutil.which("addr2line")
    if tool is None:
        raise ToolMissing("addr2line is not installed", hint="apt-get install binutils")
    if not vmlinux.is_file():
        raise HostError(f"{vmlinux} is no file", hint="--debuginfo=/usr/lib/debug/boot/vmlinux-…")
    linked = symbol_in(vmlinux, "_stext")
    runs = symbols.address("_stext")
    if not runs:
        raise HostError("the run's symbols have no _stext")
    shift = runs - linked
    wanted = sorted(set(addresses))
    text = "\n".join(f"{address - shift:#x}" for address in wanted) + "\n"
    done = _run([tool, "-e", str(vmlinux)], text)
    found = {}
    for address, line in zip(wanted, done.splitlines(), strict=False):
        place = source_line(line)
        if place:
            found[address] = place
    if wanted and not found:
        raise HostError(
            f"{vmlinux} names no lines: expected a kernel with debug information",
            hint="the package linux-image-…-dbg has one",
        )
    return found


def source_line(text: str) -> str:
    """Return the path within the kernel's tree and the line; "" where there is none."""
    place = text.partition(" (")[0].strip()
    if place.startswith("?") or place.endswith((":0", ":?")):
        return ""
    inside = LINE.match(place)
    return inside[1] if inside else place


def symbol_in(vmlinux: Path, name: str) -> int:
    """Return where a symbol was linked to."""
    tool = shutil.which("nm")
    if tool is None:
        raise ToolMissing("nm is not installed", hint="apt-get install binutils")
    for line in _run([tool, str(vmlinux)], "").splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == name:
            return int(words[0], 16)
    raise HostError(f"{vmlinux} has no symbol {name}: expected the guest's kernel, with symbols")


def _run(argv: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{argv[0]} took over {DEADLINE_S} s") from error
    if done.returncode:
        raise HostError(f"{argv[0]}: {done.stderr.strip()[:200]}")
    return done.stdout
