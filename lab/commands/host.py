"""What this host can do, and what is built on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lab.commands import Console, told_drift
from lab.errors import PlaybookError

if TYPE_CHECKING:
    from lab.spec import AnyKernel


def doctor(console: Console, *, kernel: AnyKernel, locked: bool, offline: bool) -> None:
    from lab import doctor as diagnosis

    found = diagnosis.examine(kernel, journal=console.journal, locked=locked, offline=offline)
    console.result(diagnosis.render(found), [dataclasses.asdict(one) for one in found])
    diagnosis.require_fit(found)


def image(
    console: Console, *, kernel: AnyKernel, lock: bool, verify: bool, locked: bool, offline: bool
) -> None:
    from lab import image as images

    if lock:
        if not isinstance(kernel, str):
            raise PlaybookError("--lock pins a series of ours, and --kernel names your own")
        path = images.relock(kernel, journal=console.journal)
        console.journal.say(f"pinned: {path}")
    built = images.ensure(kernel, journal=console.journal, locked=locked, offline=offline)
    if verify:
        images.verify(built)
    told_drift(console, built.drifted)
    console.result(
        f"{built.release} {built.digest[:16]}\n{built.kernel}\n{built.initramfs}",
        {
            "release": built.release,
            "digest": built.digest,
            "kernel": str(built.kernel),
            "initramfs": str(built.initramfs),
            "drifted": list(built.drifted),
        },
    )


def build(console: Console, *, kernel: AnyKernel, locked: bool, offline: bool) -> None:
    from lab import build as builds
    from lab import image as images

    built = images.ensure(kernel, journal=console.journal, locked=locked, offline=offline)
    modules = builds.build_modules(built, journal=console.journal)
    console.result(
        "\n".join(str(path) for path in modules.values()),
        {name: str(path) for name, path in modules.items()},
    )


def compile_walk(console: Console) -> None:
    from lab import compiled

    home = compiled.compile_all(journal=console.journal)
    console.result(str(home), {"compiled": str(home), "modules": list(compiled.MODULES)})


def check(console: Console, wanted: Sequence[str]) -> None:
    from lab import playbook

    chosen = list(wanted) or playbook.names()
    own = {one: playbook.load(one).probes.foreign for one in chosen}
    console.result("\n".join(f"{one}: ok" for one in chosen), dict.fromkeys(chosen, "ok"))
    for one, names in own.items():
        if absent := [name for name in names if name.endswith(".bt")]:
            from lab.foreign import NO_BPFTRACE

            console.journal.say(f"{one}: {', '.join(absent)} will be {NO_BPFTRACE}")


def bench(console: Console, *, rounds: int) -> None:
    from lab import bench as benchmark

    found = benchmark.measure(rounds=rounds, journal=console.journal)
    console.result(benchmark.render(found), found)


def bench_trace(
    console: Console, *, rounds: int, count: int, kernel: AnyKernel, bpftrace: bool
) -> None:
    from lab import bench_trace as benchmark

    found = benchmark.measure(
        rounds=rounds,
        count=count,
        kernel=kernel,
        with_bpftrace=bpftrace,
        journal=console.journal,
    )
    console.result(benchmark.render(found), found)
