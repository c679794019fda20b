"""Reset, run, verify, over and over: no cycle fails, and nothing grows."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from lab import experiment, paths, playbook, topology
from lab.experiment import message
from lab.journal import Journal
from tests.guest.conftest import LAB

SHORT = 3  # as many as thirds
LONG = int(os.environ.get("LAB_CYCLES", "500"))
WARM = 2  # the first cycles fill caches
# The C library's arenas, one a thread, fill for some 15 cycles and stay as they are.
WARM_LONG = 20
ARENAS = 600 << 20  # bytes resident at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Cycle:
    """What one cycle came to, and what this process was after it."""

    seconds: float  # of wall time, guests included
    cpu_s: float  # of this process alone: does not see what else the host does
    memory: int  # bytes in use of what the C library gave: buffers, all that is not small
    resident: int  # bytes of our own that are in RAM, what the C library keeps for later included
    blocks: int  # live in Python's allocator of small objects
    descriptors: int
    threads: int


def cycle(pair: topology.Lab, setup: topology.Setup, modules: dict[str, Path]) -> Cycle:
    """Put the pair back, measure a message, compute the ledger and hold it to the playbook."""
    start, cpu, journal = time.monotonic(), time.process_time(), Journal()
    if pair.state is not None:
        pair.bring_down()
    pair.bring_up(setup, journal=journal)
    asked = playbook.load("nic")
    ready = experiment.Stand(
        pair=pair, setup=setup, modules=modules, how="endurance", restored=True
    )
    run_dir = experiment.new_run(
        asked, setup, paths.runs(), guests=message.guests(asked), last=False
    )
    message.take(ready, asked, run_dir, journal=journal, command="endurance")
    answer = message.answer(run_dir, asked.expect, journal=journal)
    assert answer.ledger.complete
    assert not answer.trouble
    shutil.rmtree(run_dir.path)
    seconds, used = time.monotonic() - start, time.process_time() - cpu
    gc.collect()
    (resident,) = (
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    )
    return Cycle(
        seconds=seconds,
        cpu_s=used,
        memory=in_use(),
        resident=resident,
        blocks=sys.getallocatedblocks(),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        threads=len(list(Path("/proc/self/task").iterdir())),
    )


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def in_use() -> int:
    """Return how many bytes of this process malloc has given out and not got back.

    Resident memory does not tell it: every thread has an arena, up to eight a core, and each
    keeps what its largest moment took.
    """
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = MallInfo
    told = library.mallinfo2()
    return int(told.uordblks + told.hblkhd)


def growth(values: list[float]) -> float:
    """Return by how much the last third exceeds the one before it, by their medians.

    What leaks goes on to the end; what is fetched once, however late, was there before.
    """
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) - statistics.median(values[-2 * third : -third])


@pytest.mark.parametrize(
    "cycles",
    [SHORT, pytest.param(LONG, marks=(pytest.mark.long, pytest.mark.slow))],
    ids=["short", "long"],
)
def test_cycles_do_not_fail_and_nothing_grows(
    cycles: int, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_RUNS", str(runs))
    setup, modules = experiment.setup_for(playbook.load("nic"), journal=Journal())
    log = Path(os.environ.get("LAB_ENDURANCE_LOG", os.devnull))
    taken: list[Cycle] = []
    warming = WARM if cycles == SHORT else WARM_LONG
    with (
        log.open("a", encoding="utf-8") as out,
        topology.opened(f"{LAB}-endure", create=True) as pair,
    ):
        try:
            for _ in range(cycles + warming):
                taken.append(cycle(pair, replace(setup, owner=os.getpid()), modules))
                print(json.dumps(asdict(taken[-1])), file=out, flush=True)
        finally:
            pair.bring_down()
    warm = taken[warming:]
    assert len(warm) == cycles
    told = f"{warm[0]} … {warm[-1]}"
    assert {one.descriptors for one in warm} == {warm[0].descriptors}, told
    assert growth([one.threads for one in warm]) <= 0, told
    assert growth([one.blocks for one in warm]) < 0.01 * warm[0].blocks, told
    assert growth([one.memory for one in warm]) < 0.05 * warm[0].memory, told
    assert max(one.resident for one in warm) < ARENAS, told
    cpu = [one.cpu_s for one in warm]
    assert growth(cpu) < 0.5 * statistics.median(cpu), told


def test_what_is_kept_is_in_use() -> None:
    before = in_use()
    kept = bytes(50 << 20)
    assert 50 << 20 <= in_use() - before < 51 << 20
    del kept
    assert in_use() - before < 1 << 20


def test_growth_is_seen() -> None:
    """The guard itself: what grows a little each time is found, what wavers is not."""
    assert growth([float(n) for n in range(30)]) == 10
    assert growth([1.0, 2.0, 1.0] * 10) == 0
