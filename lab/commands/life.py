"""Bring a lab up and down, and see how it is."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit

from lab import paths
from lab.commands import Console, lab_name, told_drift
from lab.deadline import Deadline
from lab.errors import (
    GuestError,
)

if TYPE_CHECKING:
    from lab import topology
    from lab.guest import Guest
    from lab.spec import AnyKernel


REACH_S = 10.0


def up(
    console: Console, lab: str, *, kernel: AnyKernel, fresh: bool, locked: bool, offline: bool
) -> None:
    from lab import accelerator, image, topology

    name = lab_name(lab)
    start = time.monotonic()
    built = image.ensure(kernel, journal=console.journal, locked=locked, offline=offline)
    speed = accelerator.choose(built, journal=console.journal)
    with topology.opened(name, create=True) as pair:
        setup = topology.standard(built, speed, journal=console.journal)
        why = _not_as_asked(pair, setup, fresh=fresh)
        if why is None:
            state, how = pair.require_state(), "was already up"
        else:
            if pair.state is not None or any(guest.alive for guest in pair.guests.values()):
                console.journal.say(f"lab '{name}' is brought up anew: {why}")
                pair.bring_down()
            state = pair.bring_up(setup, journal=console.journal, fresh=fresh)
            how = f"{state.how} in {time.monotonic() - start:.1f} s"
        told_drift(console, built.drifted)
        mine = f" ({built.origin})" if built.own is not None else ""
        text = f"lab '{name}' {how}: {built.release}{mine}, {accelerator.describe(speed)}"
        console.result(text, {"lab": name, "how": how, **_state_json(pair, state)})


def _not_as_asked(pair: topology.Lab, setup: topology.Setup, *, fresh: bool) -> str | None:
    """Say why a lab cannot stay as it is; None where it can."""
    from lab import experiment

    if fresh:
        return "--fresh"
    return experiment.unlike(pair, setup) or pair.ails(deadline=Deadline(REACH_S))


def down(console: Console, lab: str) -> None:
    from lab import topology

    name = lab_name(lab)
    if name not in topology.names():
        console.result(f"lab '{name}' is not up", {"lab": name, "up": False})
        return
    with topology.opened(name) as pair:
        pair.bring_down()
    console.result(f"lab '{name}' is down", {"lab": name, "up": False})


def status(console: Console, lab: str) -> None:
    from lab import topology

    name = lab_name(lab)
    with topology.opened(name) as pair:
        state = pair.require_state()
        ails = pair.ails(deadline=Deadline(REACH_S))
        value = {"lab": name, "up": ails is None, "ails": ails, **_state_json(pair, state)}
    since = time.time() - state.since
    used = "untouched" if state.pristine else "used"
    head = f"lab '{name}' is up: kernel {state.kernel}, {state.device}, {state.how}"
    rows = [
        f"{head} {since:.0f} s ago, {used}",
        f"accelerator: {state.accelerator} ({state.accelerator_why})",
        *(_guest_line(pair.guests[guest], facts) for guest, facts in state.guests.items()),
    ]
    if ails is not None:
        rows[0] = f"lab '{name}' is broken: {ails}"
    console.result("\n".join(rows), value)
    if ails is not None:
        raise Exit(f"  try: invoke lab.reset --lab {name}", code=GuestError.exit_code)


def _guest_line(guest: Guest, facts: topology.GuestState) -> str:
    return (
        f"{guest.name}: {guest.me.address}, {facts.release},"
        f" ssh 127.0.0.1:{facts.port}, {_held_mib(guest)} MiB held"
    )


def _held_mib(guest: Guest) -> int:
    return (guest.folder.ram.stat().st_blocks * 512) >> 20


def _state_json(pair: topology.Lab, state: topology.LabState) -> dict[str, Any]:
    facts = dataclasses.asdict(state)
    facts["kernel"] = str(state.kernel)
    facts["guests"] = {
        name: {
            "address": pair.guests[name].me.address,
            "alive": pair.guests[name].alive,
            "ssh_port": held["port"],
            "release": held["release"],
            "ram_held_mib": _held_mib(pair.guests[name]),
            "console": str(pair.guests[name].folder.console),
        }
        for name, held in facts["guests"].items()
    }
    return facts


def reset(console: Console, lab: str) -> None:
    from lab import accelerator, image, spec, topology

    name = lab_name(lab)
    start = time.monotonic()
    with topology.opened(name) as pair:
        state = pair.state
        kernel = state.kernel if state is not None else image.DEFAULT_SERIES
        device = state.device if state is not None else "virtio-net-pci"
        backend: spec.Backend = state.backend if state is not None else "dgram"
        built = image.ensure(kernel, journal=console.journal, locked=False, offline=False)
        speed = accelerator.choose(built, journal=console.journal)
        pair.bring_down()
        setup = topology.standard(
            built, speed, journal=console.journal, device=device, backend=backend
        )
        state = pair.bring_up(setup, journal=console.journal)
        seconds = time.monotonic() - start
        console.result(
            f"lab '{name}' {state.how} in {seconds:.1f} s",
            {"lab": name, "seconds": round(seconds, 3), **_state_json(pair, state)},
        )


def ps(console: Console) -> None:
    from lab import process, topology

    rows: list[dict[str, Any]] = []
    for name in topology.names():
        busy = process.is_locked(paths.runtime() / name / "lab.lock")
        pair = topology.Lab(name)
        rows.append(
            {
                "lab": name,
                "up": pair.up,
                "busy": busy,
                "kernel": str(pair.state.kernel) if pair.state else None,
                "accelerator": pair.state.accelerator if pair.state else None,
                "owner": pair.state.owner if pair.state else None,
            }
        )
    text = "\n".join(
        f"{row['lab']:<24} {'up' if row['up'] else 'broken':<7}"
        f" {row['kernel'] or '-':<6} {row['accelerator'] or '-':<4}"
        f"{' busy' if row['busy'] else ''}"
        for row in rows
    )
    console.result(text or "no lab is up", rows)


def gc(console: Console) -> None:
    from lab import topology

    removed = topology.collect_garbage()
    console.result("\n".join(removed) or "nothing to remove", {"removed": removed})
