"""What this host can do, proven by trying it, and how to mend what it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import accelerator, access, fnv, image, paths, qemu, tap
from lab.errors import HostError, LabError
from lab.guest import MEMORY_MIB, PAIR
from lab.journal import Journal
from lab.spec import AnyKernel

DISK_MIB = 3072  # packages, two kernels with headers, two snapshots
RAM_MIB = len(PAIR) * (MEMORY_MIB + (access.SIZE >> 20) + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked at: whether it will do, what was found, what mends it."""

    name: str
    ok: bool
    found: str
    mend: str = ""
    needed: bool = True  # False: something can be done without it


def examine(kernel: AnyKernel, *, journal: Journal, locked: bool, offline: bool) -> list[Finding]:
    """Look at everything; nothing stops at the first lack."""
    findings = [_python(), _qemu(), _tap()]
    findings += [
        _tool("gcc", "gcc", "--version"),
        _tool("make", "make", "--version"),
        _tool("depmod", "kmod", "--version"),
        _tool("setpriv", "util-linux", "--version"),
        _tool("apt-get", "apt", "--version"),
        _tool("dpkg-deb", "dpkg", "--version"),
    ]
    findings += [
        _walk(),
        _space("disk (cache)", paths.cache(), DISK_MIB, "LAB_CACHE=FOLDER, or free space"),
        _space("RAM folder", paths.ram(), RAM_MIB, "LAB_RAM=FOLDER, or free memory"),
        _space("disk (runs)", paths.runs(), 64, "LAB_RUNS=FOLDER, or free space"),
    ]
    if all(finding.ok or not finding.needed for finding in findings):
        findings += _proven(kernel, journal=journal, locked=locked, offline=offline)
    return findings


def _proven(kernel: AnyKernel, *, journal: Journal, locked: bool, offline: bool) -> list[Finding]:
    try:
        built = image.ensure(kernel, journal=journal, locked=locked, offline=offline)
    except LabError as error:
        return [Finding(name="image", ok=False, found=str(error), mend=error.hint or "")]
    drift = f", drifted: {'; '.join(built.drifted)}" if built.drifted else ""
    found = [Finding(name="image", ok=True, found=f"{built.release} {built.digest[:12]}{drift}")]
    try:
        speed = accelerator.choose(built, journal=journal)
    except LabError as error:
        verdict = Finding(name="accelerator", ok=False, found=str(error), mend=error.hint or "")
    else:
        verdict = Finding(name="accelerator", ok=True, found=f"{speed.name} ({speed.why})")
    return [*found, verdict]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        name="python",
        ok=sys.version_info >= (3, 11),
        found=f"{version} ({sys.executable})",
        mend="apt-get install python3 (3.11 or newer)",
    )


def _walk() -> Finding:
    """Say whether reports are made by compiled code; either will do."""
    told = "compiled" if fnv.COMPILED else "Python (invoke lab.compile: large reports in half)"
    return Finding(name="walk", ok=True, found=told)


def _qemu() -> Finding:
    try:
        binary = qemu.installed()
    except (LabError, OSError, subprocess.SubprocessError) as error:
        mend = error.hint if isinstance(error, HostError) else None
        return Finding(name="qemu", ok=False, found=str(error), mend=mend or "./bootstrap")
    return Finding(name="qemu", ok=True, found=f"{binary.version}, {binary.machine}")


def _tap() -> Finding:
    why = tap.absent()
    found = "taps and a bridge were made, and are gone"
    return Finding(name="backend tap", ok=not why, found=why or found, mend=tap.HINT, needed=False)


def _tool(name: str, package: str, flag: str) -> Finding:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    mend = f"apt-get install {package}   (or ./bootstrap)"
    if path is None:
        return Finding(name=name, ok=False, found="not installed", mend=mend)
    try:
        done = subprocess.run([path, flag], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name=name, ok=False, found=f"{path}: {error}", mend=mend)
    first = (done.stdout or done.stderr).strip().splitlines()
    number = re.search(r"\d+(\.\d+)+|\b\d+\b", first[0]) if first else None
    return Finding(
        name=name,
        ok=done.returncode == 0,
        found=number.group(0) if number else f"{path} returned {done.returncode}",
        mend=mend,
    )


def _space(name: str, folder: Path, needed_mib: int, mend: str) -> Finding:
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free >> 20
    ok = free >= needed_mib and os.access(there, os.W_OK)
    return Finding(
        name=name,
        ok=ok,
        found=f"{free} MiB free in {folder}, {needed_mib} needed",
        mend=mend,
    )


def render(findings: Sequence[Finding]) -> str:
    """Return one line per finding, and under each lack the command that mends it."""
    rows: list[str] = []
    for one in findings:
        word = "ok  " if one.ok else "LACK" if one.needed else "no  "
        rows.append(f"{word} {one.name:<13} {one.found}")
        if not one.ok:
            rows.append(f"     try: {one.mend}")
    return "\n".join(rows)


def require_fit(findings: Sequence[Finding]) -> None:
    """Raise `HostError` when anything is lacking."""
    lacks = [one.name for one in findings if one.needed and not one.ok]
    if lacks:
        raise HostError(f"this host lacks: {', '.join(lacks)}", hint="the commands above")
