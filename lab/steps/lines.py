"""File and line of kernel addresses, from a kernel with debug information."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lab.errors import HostError, ToolMissing
from lab.symbols import Symbols

DEADLINE_S = 300
START = "_stext"
LINE = re.compile(r"(?:.*?/)??((?:arch|block|crypto|drivers|fs|include|io_uring|ipc|kernel|lib|mm|"
                  r"net|security)/\S+:\d+)")  # fmt: skip


def look_up(
    vmlinux: Path, symbols: Symbols, entries: Iterable[int], returns: Iterable[int] = ()
) -> Mapping[int, str]:
    """Return `net/ipv4/udp.c:1156` for addresses of the guest's kernel, where it is known.

    `entries` are where functions begin; `returns` lie behind a call, and the line is the
    call's.  `vmlinux` was linked to run elsewhere than the guest runs it (KASLR): the distance
    is that of the symbol `_stext`.  Raises `HostError` where the file is no kernel with
    lines, or another one than the run's.
    """
    tool = shutil.which("addr2line")
    if tool is None:
        raise ToolMissing("addr2line is not installed", hint="apt-get install binutils")
    if not vmlinux.is_file():
        raise HostError(f"{vmlinux} is no file", hint="--debuginfo=/usr/lib/debug/boot/vmlinux-…")
    names = {address: symbols.at(address) for address in entries}
    linked = symbols_in(vmlinux, {START, *names.values()})
    if START not in linked:
        raise HostError(f"{vmlinux} has no symbol {START}: expected the guest's kernel")
    runs, end = symbols.address(START), symbols.address("_etext")
    if not runs:
        raise HostError(f"the run's symbols have no {START}")
    shift = runs - min(linked[START])
    for address, name in names.items():
        if name in linked and address - shift not in linked[name]:
            raise HostError(
                f"{vmlinux} is not the kernel of this run: {name} lies elsewhere in it",
                hint="the debug package must have the version the guest runs, to the last digit",
            )
    asked = {address: address for address in names} | {back: back - 1 for back in returns}
    # Modules lie beyond the kernel's text: their lines are in files of their own.
    wanted = sorted(at for at in asked if at >= runs and (not end or at < end))
    text = "\n".join(f"{asked[address] - shift:#x}" for address in wanted) + "\n"
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


def symbols_in(vmlinux: Path, names: Collection[str]) -> Mapping[str, set[int]]:
    """Return where symbols were linked to; a name may stand for several functions."""
    tool = shutil.which("nm")
    if tool is None:
        raise ToolMissing("nm is not installed", hint="apt-get install binutils")
    found: dict[str, set[int]] = {}
    for line in _run([tool, str(vmlinux)], "").splitlines():
        words = line.split()
        if len(words) == 3 and words[2] in names:
            found.setdefault(words[2], set()).add(int(words[0], 16))
    return found


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
