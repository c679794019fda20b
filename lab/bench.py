"""The measurements: medians of several rounds in one run, with the machine they were taken on."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import accelerator, crash, image, process, qemu, topology
from lab.crash import corpus
from lab.deadline import Deadline, wait_until
from lab.errors import HostError, PlaybookError
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
    "lab.try, prebuilt, dies on load": 3.0,  # twenty in a minute
    "lab.watch, from save to verdict": 4.0,
    "witnessed run / run without plugin": 1.3,
}
DIE_ON_LOAD = (
    "null_write", "double_free", "stack_overflow", "bug_on", "skb_shared_info", "bad_jump",
    "reboot", "poweroff", "triple_fault", "init_fails",
)  # fmt: skip
VERDICT_S = 60.0


def measure(*, rounds: int, journal: Journal) -> dict[str, Any]:
    """Measure everything `rounds` times; returns medians, extremes and the machine."""
    if rounds < 1:
        raise PlaybookError(f"--rounds: expected at least 1; found {rounds}")
    built = image.ensure("6.12", journal=journal)
    speed = accelerator.choose(built, journal=journal)
    series: dict[str, list[float]] = {}
    for number in range(rounds):
        with journal.step(f"round {number + 1} of {rounds}"):
            for name, value in _round(built, speed).items():
                series.setdefault(name, []).append(value)
    with journal.step("crashes"):
        series |= _crashes(built, rounds)
    ratios = [
        pair / bare for pair, bare in zip(series["pair boot"], series["bare boot"], strict=True)
    ]
    series["pair boot / bare boot"] = ratios
    for over, under in (
        ("pair boot", "bare boot"),
        ("witnessed run", "run without plugin"),
    ):
        pairs = zip(series[over], series[under], strict=True)
        series[f"{over} / {under}"] = [one / other for one, other in pairs]
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
    # One after the other, each on a pair of its own: what the witness costs a whole run.
    found["witnessed run"] = _process(["lab.run-nic"], environment)
    blind = environment | {"LAB_ACCESS_LOG": "off"}
    found["run without plugin"] = _process(["lab.run-nic"], blind)
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


def _crashes(built: image.Image, rounds: int) -> dict[str, list[float]]:
    """Time `lab.try` and `lab.watch` as a user types them, with a lab that is up."""
    quiet = Journal(stream=Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    known = [one for one in corpus.load() if one.name in DIE_ON_LOAD]
    crash.prepare_all([one.path for one in known], built, journal=quiet)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environment = {**os.environ, "LAB_NAME": LAB, "LAB_RUNS": f"{folder}/runs"}
        _process(["lab.up"], environment)
        try:
            tried = [
                _process(["lab.try", str(one.path), "--expect", one.verdict["6.12"]], environment)
                for one in known * 2
            ]
            watched = _watched(Path(folder), environment, rounds)
        finally:
            _process(["lab.down"], environment)
    return {
        "lab.try, prebuilt, dies on load": tried,
        "lab.watch, from save to verdict": watched,
    }


def _watched(folder: Path, environment: Mapping[str, str], rounds: int) -> list[float]:
    """Return how long each of some saves took until its verdict was printed."""
    source = (corpus.folder() / "null_write.c").read_text(encoding="utf-8")
    shutil.copyfile(corpus.folder() / "guest_only.h", folder / "guest_only.h")
    module, log = folder / "null_write.c", folder / "verdicts"

    def wait_verdicts(number: int) -> None:
        wait_until(
            lambda: log.read_text(encoding="utf-8").count("fingerprint") >= number,
            what=f"verdict {number} of lab.watch",
            deadline=Deadline(VERDICT_S),
        )

    module.write_text(source, encoding="utf-8")
    with log.open("wb") as out:
        watching = subprocess.Popen(
            [_invoke(), "lab.watch", str(module)],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )
    try:
        wait_verdicts(1)
        seconds = []
        for number in range(rounds):
            # Another number each time, so that the compiler has to run.
            text = source.replace("count = 7", f"count = {time.time_ns() % 10**9}")
            start = time.monotonic()
            module.write_text(text, encoding="utf-8")
            wait_verdicts(number + 2)
            seconds.append(time.monotonic() - start)
    finally:
        watching.send_signal(signal.SIGINT)
        watching.wait(VERDICT_S)
    return seconds


def _timed(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _process(words: list[str], environment: Mapping[str, str]) -> float:
    """Return how long `invoke WORDS` takes as a whole process."""
    start = time.monotonic()
    done = subprocess.run(
        [_invoke(), *words], capture_output=True, text=True, env=dict(environment), check=False
    )
    seconds = time.monotonic() - start
    if done.returncode != 0:
        said = done.stderr[-300:]
        raise HostError(f"invoke {' '.join(words)} returned {done.returncode}: {said}")
    return seconds


def _invoke() -> str:
    return shutil.which("invoke", path=str(Path(sys.executable).parent)) or "invoke"


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
