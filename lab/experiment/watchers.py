"""Who watches inside the guests of a run: modules, BPF programs, both or nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import bpf, probe, probe_bpf, rundir, spec
from lab.deadline import Deadline
from lab.experiment.stand import Stand
from lab.guest import Guest
from lab.journal import Journal

SIDES = {"send_trace": bpf.SEND, "recv_trace": bpf.RECV}


@dataclass(frozen=True, slots=True)
class Watchers:
    """The probes of one guest."""

    modules: probe.Probe | None
    programs: probe_bpf.Bpf | None


def load(
    wanted: Mapping[str, Sequence[str]],
    asked: spec.Playbook,
    ready: Stand,
    modules: Mapping[str, Path],
    *,
    symbols: Mapping[str, Path],
    nonce: bytes,
    journal: Journal,
    deadline: Deadline,
) -> dict[str, Watchers]:
    """Return what watches in each guest of `wanted`, guest -> modules; it watches already.

    BPF programs stand for the modules of the same side.
    """
    probes, work = asked.probes, asked.workload
    records = probes.records or probe.records_for(work.count, work.size)

    def one(guest: Guest) -> Watchers | None:
        if guest.name not in wanted:
            return None
        pushed = ready.pushed.setdefault(guest.name, set())
        programs = loaded = None
        if probes.kind in ("bpf", "both"):
            programs = probe_bpf.start(
                guest,
                probes,
                symbols=symbols[guest.name],
                sides=sum(SIDES[name] for name in wanted[guest.name]),
                nonce=nonce,
                records=records,
                pushed=pushed,
                journal=journal,
                deadline=deadline,
            )
        if probes.kind in ("kmod", "both"):
            loaded = probe.load(
                guest,
                {name: modules[name] for name in wanted[guest.name]},
                probes,
                nonce=nonce,
                records=records,
                pushed=pushed,
                deadline=deadline,
                symbols=symbols[guest.name],
            )
        if programs is not None:
            probe_bpf.attach(programs, deadline=deadline)
        return Watchers(loaded, programs)

    if probes.kind == "none":
        return {name: Watchers(None, None) for name in wanted}
    with journal.step("load probes"):
        return {name: found for name, found in ready.pair.both(one).items() if found is not None}


def describe(
    loaded: Mapping[str, Watchers], manifest: dict[str, Any], modules: Mapping[str, Path]
) -> None:
    """Write into the manifest which hooks there are, and what was loaded."""
    if all(one == Watchers(None, None) for one in loaded.values()):
        return
    probes, digests = manifest["probes"], manifest["digests"]
    probes["hooks"] = {
        name: (probe.hooks(one.modules) if one.modules else {})
        | (probe_bpf.hooks(one.programs) if one.programs else {})
        for name, one in loaded.items()
    }
    if any(one.modules for one in loaded.values()):
        digests["modules"] = {name: _digest(path) for name, path in modules.items()}
    programs = [one.programs for one in loaded.values() if one.programs]
    if programs:
        built = programs[0].programs
        digests["bpf"] = {path.name: _digest(path) for path in (built.loader, built.object)}
        probes["notes"] = {one.guest.name: probe_bpf.notes(one) for one in programs}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_out(loaded: Watchers, folder: rundir.GuestDir, *, deadline: Deadline) -> None:
    """Turn all hooks off, keep their records in the run, and unload."""
    if loaded.programs is not None:
        probe_bpf.finish(loaded.programs, deadline=deadline)
    if loaded.modules is not None:
        probe.finish(loaded.modules, deadline=deadline)
        folder.trace.write_bytes(probe.drain(loaded.modules))
        probe.unload(loaded.modules, deadline=deadline)
    if loaded.programs is not None:
        folder.bpf.write_bytes(probe_bpf.drain(loaded.programs))
        probe_bpf.stop(loaded.programs, deadline=deadline)


def witnesses(kind: spec.ProbeKind) -> dict[str, str]:
    """Return what the manifest says of the two probes."""
    return {
        "probe:kmod": "present" if kind in ("kmod", "both") else "absent: not asked for",
        "probe:bpf": "present" if kind in ("bpf", "both") else "absent: not asked for",
    }
