"""The measurements: medians of several rounds in one run, with the machine they were taken on."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import accelerator, image, process, qemu, topology
from lab.deadline import Deadline
from lab.errors import HostError
from lab.guest import Guest
from lab.journal import Journal

LAB = "bench"
TARGETS = {  # seconds, or MiB; what issue 2 asks for
    "pair boot / bare boot": 1.5,
    "pair restore": 0.5,
    "invoke lab.up (warm)": 1.0,
    "invoke --list": 0.4,
    "invoke lab.up lab.run-nic (warm)": 4.0,
    "host memory per idle guest, MiB": 200.0,
}


def measure(*, rounds: int, journal: Journal) -> dict[str, Any]:
    """Measure everything `rounds` times; returns medians, extremes and the machine."""
    if rounds < 1:
        raise HostError(f"rounds is {rounds}", hint="at least 1")
    built = image.ensure("6.12", journal=journal)
    speed = accelerator.choose(built, journal=journal)
    series: dict[str, list[float]] = {}
    for number in range(rounds):
        with journal.step(f"round {number + 1} of {rounds}"):
            for name, value in _round(built, speed).items():
                series.setdefault(name, []).append(value)
    ratios = [
        pair / bare for pair, bare in zip(series["pair boot"], series["bare boot"], strict=True)
    ]
    series["pair boot / bare boot"] = ratios
    return {
        "machine": machine(),
        "accelerator": {"name": speed.name, "why": speed.why},
        "rounds": rounds,
        "figures": {
            name: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
                "target": TARGETS.get(name),
            }
            for name, values in series.items()
        },
    }


def _round(built: image.Image, speed: accelerator.Accelerator) -> dict[str, float]:
    quiet = Journal(stream=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    found: dict[str, float] = {}
    found["bare boot"] = _timed(lambda: _boot(built, speed, only=True))
    found["pair boot"] = _timed(lambda: _boot(built, speed, only=False))
    with topology.opened(LAB, create=True) as pair:
        setup = replace(topology.standard(built, speed, journal=quiet), owner=os.getpid())
        pair.bring_up(setup, journal=quiet)
        pair.bring_down()
        start = time.monotonic()
        pair.bring_up(setup, journal=quiet)
        found["pair restore"] = time.monotonic() - start
        with pair.guests["sender"].memory() as memory:
            sum(1 for _ in memory.find(b"\xa5no such bytes\x5a"))
        found["host memory per idle guest, MiB"] = _held(pair.guests["sender"])
        pair.bring_down()
    environment = {**os.environ, "LAB_NAME": LAB}
    found["invoke --list"] = _process(["--list"], environment)
    found["invoke lab.up (warm)"] = _process(["lab.up"], environment)
    _process(["lab.down"], environment)
    found["invoke lab.up lab.run-nic (warm)"] = _process(["lab.up", "lab.run-nic"], environment)
    _process(["lab.down"], environment)
    return found


def _boot(built: image.Image, speed: accelerator.Accelerator, *, only: bool) -> None:
    """Boot one guest, or the pair, from QEMU's start until each agent answers; then stop."""
    deadline = Deadline(topology.BOOT_S)
    with topology.opened(LAB, create=True) as pair:
        guests = list(pair.guests.values())[: 1 if only else 2]
        pair.prepare(journal=Journal())
        try:
            for guest in guests:
                guest.launch(
                    built,
                    accelerator=speed.name,
                    device="virtio-net-pci",
                    incoming=False,
                    dies_with_us=True,
                )

            def wait(guest: Guest) -> None:
                if guest in guests:
                    guest.attach(deadline=deadline)
                    guest.greet(deadline=deadline)

            pair.both(wait)
        finally:
            pair.bring_down()


def _timed(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _process(words: list[str], environment: Mapping[str, str]) -> float:
    """Return how long `invoke WORDS` takes as a whole process."""
    invoke = shutil.which("invoke", path=str(Path(sys.executable).parent)) or "invoke"
    start = time.monotonic()
    done = subprocess.run(
        [invoke, *words], capture_output=True, text=True, env=dict(environment), check=False
    )
    seconds = time.monotonic() - start
    if done.returncode != 0:
        said = done.stderr[-300:]
        raise HostError(f"invoke {' '.join(words)} returned {done.returncode}: {said}")
    return seconds


def _held(guest: Guest) -> float:
    """Return what a guest holds of the host's memory, in MiB: its RAM file and QEMU's own."""
    held = guest.folder.ram.stat().st_blocks * 512 / 1024**2
    for pid in process.holders(guest.folder.lock):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            # Not Pss_Shmem: that is the RAM file, counted above whether mapped or not.
            if line.startswith(("Pss_Anon:", "Pss_File:")):
                held += int(line.split()[1]) / 1024
    return held


def machine() -> dict[str, str]:
    """Return what the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "processor": f"{os.cpu_count()} x {model}",
        "memory": f"{memory} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": qemu.installed().version,
    }


def render(found: Mapping[str, Any]) -> str:
    """Return the figures as a table, the machine above it."""
    rows = [", ".join(found["machine"].values())]
    rows.append(f"accelerator {found['accelerator']['name']}; {found['rounds']} rounds")
    rows.append(f"{'':<36} {'median':>8} {'min':>8} {'max':>8} {'target':>8}")
    for name, figure in found["figures"].items():
        target = "" if figure["target"] is None else f"{figure['target']:8.1f}"
        rows.append(
            f"{name:<36} {figure['median']:8.2f} {figure['min']:8.2f} {figure['max']:8.2f} {target}"
        )
    return "\n".join(rows)
