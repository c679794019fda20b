"""The socket experiment: socket(2) called, failed, leaked and interrupted, under probes."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import secrets
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import bpf, caller, kernel, probe, probe_bpf, rundir, spec
from lab import socket as evidence
from lab.caller import Caller
from lab.deadline import Deadline
from lab.experiment import watchers
from lab.experiment.outcome import Outcome
from lab.experiment.stand import Stand, common_manifest, keep_logs, keep_symbols
from lab.guest import Guest
from lab.journal import Journal

GUEST = "sender"
LATENCY, CHAIN = "socket_latency_probe", "socket_chain_probe"
RECORDS = 8192
BESIDE = 64  # records of a fault's ring beyond the calls that are told to fail
CLOCK_SAMPLES = 5
WARM_UP = 4
TYPED = ("__sys_socket", "sock_alloc", "sock_alloc_file", "fd_install")
ATTACH_S = 10.0

# The call of the book, and calls that are wrong in one thing each.
CALL = (2, 1, 0)  # AF_INET, SOCK_STREAM, 0
WRONG = {
    "bad family": (255, 1, 0),  # above AF_MAX
    "bad type": (2, 11, 0),  # SOCK_MAX
    "bad protocol": (2, 1, 17),  # UDP is no stream
}


@dataclass(slots=True)
class _Measurement:
    """One run while it is being taken."""

    asked: spec.Playbook
    run: rundir.RunDir
    stand: Stand
    journal: Journal
    deadline: Deadline
    nonce: bytes
    trace: list[bytes] = field(default_factory=list)
    unloaded: list[dict[str, bool]] = field(default_factory=list)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    clock: list[dict[str, int]] = field(default_factory=list)
    programs: probe_bpf.Bpf | None = None
    text: dict[str, list[str]] = field(default_factory=dict)  # where each guest's kernel lies

    @property
    def guest(self) -> Guest:
        return self.stand.pair.guests[GUEST]

    def pushed(self) -> set[str]:
        return self.stand.pushed.setdefault(GUEST, set())


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guest that calls; the other one only boots, for its addresses."""
    del asked
    return (GUEST,)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Take one measurement on a pair that is ready; every artefact of the run is written."""
    taken = _Measurement(
        asked=asked,
        run=run_dir,
        stand=ready,
        journal=journal,
        deadline=Deadline.of_run(asked.deadline_s),
        nonce=secrets.token_bytes(16),
    )
    manifest = {
        **common_manifest(ready, asked, guests=guests(asked), command=command),
        "calls": asdict(asked.calls),
        "probes": {
            "kind": asked.probes.kind,
            "modules": {GUEST: _modules(asked)},
            "without": list(asked.probes.without),
            "comm": asked.probes.comm,
        },
    }
    run_dir.write_manifest(manifest)
    try:
        _measure(taken, manifest)
    except BaseException:
        keep_logs(run_dir, [taken.guest])
        raise


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Compute socket.json and report of a run from its directory alone."""
    with journal.step("proofs"):
        found = evidence.build(run_dir)
        run_dir.write_json("socket.json", found.to_json())
        run_dir.write_text("report.txt", evidence.render(found))
        run_dir.write_text("report.html", evidence.page(found))
    trouble = [f"not proven: {one.name}" for one in found.proofs if not one.holds]
    if expect.complete is not None and expect.complete is not found.complete:
        trouble.append(f"expected complete to be {expect.complete}, found {found.complete}")
    return Outcome(
        run=run_dir,
        result="socket.json",
        value=found.to_json(),
        trouble=tuple(trouble),
        hint=f"invoke lab.lines {rundir.called(run_dir)}",
        told=tuple(evidence.told(found)),
    )


def _measure(taken: _Measurement, manifest: dict[str, Any]) -> None:
    journal, deadline, pair = taken.journal, taken.deadline, taken.stand.pair
    pair.touch()
    pair.attach(deadline=deadline.within(ATTACH_S))
    target = taken.run.guest(GUEST)
    with journal.step("conditions"):
        keep_symbols(taken.stand, taken.guest, target.symbols, journal=journal, deadline=deadline)
        _where_kernels_lie(taken)
        types = _prototypes(taken.guest, target.symbols.read_bytes())
        _start_programs(taken, target.symbols)
    program = Caller(taken.guest, deadline)
    program.start()
    with journal.step("call, timed"):
        _sample_clock(taken)
        latency = _load(taken, LATENCY)
        # With no other probe in between; what is done once only is done by the first.
        for name in (*["first"] * WARM_UP, "timed"):
            program.case(name, _call(CALL))
            program.case(name, "close")
    with journal.step("call, followed"):
        chain = _load(taken, CHAIN) if CHAIN in _modules(taken.asked) else None
        if taken.programs is not None:
            probe_bpf.attach(taken.programs, deadline=deadline)
        _single_calls(program)
        _sample_clock(taken)
    watching: list[dict[str, Any]] = [
        probe.hooks(one) for one in (latency, chain) if one is not None
    ]
    if taken.programs is not None:
        watching.append(probe_bpf.hooks(taken.programs))
    manifest["probes"]["hooks"] = {GUEST: {name: v for one in watching for name, v in one.items()}}
    with journal.step("fail and interrupt"):
        fault = _load_fault(taken, taken.asked.calls.fault)
        _broken_calls(taken, program)
    with journal.step("read out traces"):
        _read_programs(taken)
        for loaded in (latency, chain, fault):
            if loaded is not None:
                _read_out(taken, loaded)
    with journal.step("repeat"):
        _repeat(taken, program)
    program.stop()
    _write(taken, program)
    keep_logs(taken.run, [taken.guest])  # a restored guest begins new ones
    with journal.step("restore again"):
        _restore_again(taken)
    taken.run.write_json("kernels.json", {"text": taken.text, **types})
    manifest["digests"]["modules"] = {
        name: hashlib.sha256(taken.stand.modules[name].read_bytes()).hexdigest()
        for name in _modules(taken.asked)
    }
    if taken.programs is not None:
        built = taken.programs.programs
        manifest["digests"]["bpf"] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (built.loader, built.object)
        }
    manifest["witnesses"] = watchers.witnesses(taken.asked.probes.kind)
    manifest["files"] = taken.run.digests(guests(taken.asked))
    taken.run.write_manifest(manifest)


def _modules(asked: spec.Playbook) -> list[str]:
    """Return the modules: one times the call, one makes it fail; one may watch the chain."""
    chain = [CHAIN] if asked.probes.kind in ("kmod", "both") else []
    return [LATENCY, *chain, caller.FAULT]


def _start_programs(taken: _Measurement, symbols: Path) -> None:
    """Load BPF programs, where they are asked for; they watch once they are attached."""
    if taken.asked.probes.kind not in ("bpf", "both"):
        return
    taken.programs = probe_bpf.start(
        taken.guest,
        taken.asked.probes,
        symbols=symbols,
        sides=bpf.SOCKET,
        nonce=taken.nonce,
        records=RECORDS,
        pushed=taken.pushed(),
        journal=taken.journal,
        deadline=taken.deadline,
    )


def _read_programs(taken: _Measurement) -> None:
    if taken.programs is None:
        return
    probe_bpf.finish(taken.programs, deadline=taken.deadline)
    taken.run.guest(GUEST).bpf.write_bytes(probe_bpf.drain(taken.programs))
    probe_bpf.stop(taken.programs, deadline=taken.deadline)
    taken.unloaded.append(probe_bpf.gone(taken.programs))


def _single_calls(program: Caller) -> None:
    """Call as the book does; be another program; call wrongly; cross the barrier thrice."""
    program.case("plain", _call(CALL))
    program.case("plain", "close")
    program.other_program("ping", "/bin/ping", "-c", "1", "127.0.0.1")
    for name, numbers in WRONG.items():
        program.case(name, _call(numbers))
    program.case("no descriptor", "limit")
    program.case("no descriptor", _call(CALL))
    program.case("no descriptor", "unlimit")
    program.case("message", "message")


def _broken_calls(taken: _Measurement, program: Caller) -> None:
    """Fail between sock_alloc and fd_install, and be interrupted there."""
    guest, deadline = taken.guest, taken.deadline
    caller.set_fault(guest, fail=errno.ENFILE, deadline=deadline)
    program.case("injected", _call(CALL))
    program.case("signal", "watch")
    caller.set_fault(guest, signal=signal.SIGUSR1, deadline=deadline)
    program.case("signal", _call(CALL))
    program.case("signal", "close")
    caller.set_fault(guest, deadline=deadline)


def _repeat(taken: _Measurement, program: Caller) -> None:
    """Do each of it thousands of times, with nothing loaded that the failing does not take."""
    asked = taken.asked.calls

    def repeat(name: str, count: int) -> None:
        taken.repeats.append(program.repeat(name, count, _numbers(CALL)))

    repeat("plain", asked.repeats)
    program.case("no descriptor", "limit")
    repeat("no descriptor", asked.repeats)
    program.case("no descriptor", "unlimit")
    failing: tuple[tuple[str, spec.Fault, int], ...] = (
        ("injected", asked.fault, asked.repeats),
        ("control", "sock_alloc_file", asked.control),
    )
    for name, function, count in failing:
        fault = _load_fault(taken, function, records=count + BESIDE)
        caller.set_fault(taken.guest, fail=errno.ENFILE, deadline=taken.deadline)
        repeat(name, count)
        _read_out(taken, fault)


def _call(numbers: tuple[int, int, int]) -> str:
    return f"call {_numbers(numbers)}"


def _numbers(numbers: tuple[int, int, int]) -> str:
    return " ".join(str(number) for number in numbers)


def _load(
    taken: _Measurement,
    name: str,
    *,
    without: tuple[str, ...] | None = None,
    records: int = RECORDS,
) -> probe.Probe:
    asked = taken.asked.probes
    return probe.load(
        taken.guest,
        {name: taken.stand.modules[name]},
        asked if without is None else dataclasses.replace(asked, without=without),
        nonce=taken.nonce,
        records=records,
        pushed=taken.pushed(),
        deadline=taken.deadline,
    )


def _load_fault(
    taken: _Measurement, function: spec.Fault, *, records: int = RECORDS
) -> probe.Probe:
    """Load the module that makes `function` fail; it does nothing until it is told to."""
    others = tuple(one for one in spec.FAULTS if one != function)
    return _load(taken, caller.FAULT, without=others, records=records)


def _read_out(taken: _Measurement, loaded: probe.Probe) -> None:
    probe.finish(loaded, deadline=taken.deadline)
    taken.trace.append(probe.drain(loaded))
    probe.unload(loaded, deadline=taken.deadline)
    taken.unloaded.append(probe.gone(loaded))


def _sample_clock(taken: _Measurement) -> None:
    for sample in taken.guest.sample_clock(count=CLOCK_SAMPLES, deadline=taken.deadline):
        taken.clock.append(asdict(sample))


def _where_kernels_lie(taken: _Measurement, *names: str) -> None:
    """Ask guests for the address of their kernel's first byte."""

    def ask(guest: Guest) -> None:
        if names and guest.name not in names:
            return
        command = "grep -m1 ' _text$' /proc/kallsyms"
        said = guest.require_shell().run(command, deadline=taken.deadline).stdout
        taken.text.setdefault(guest.name, []).append(f"0x{said.split()[0].lstrip('0')}")

    taken.stand.pair.both(ask)


def _prototypes(guest: Guest, symbols: bytes) -> dict[str, dict[str, Any]]:
    """Return what functions return and how much they take, as the guest's kernel says (BTF)."""
    with guest.memory() as memory:
        types = kernel.find(memory).types(kernel.addresses(symbols, kernel.BTF))
    names = dict.fromkeys(one.function for one in bpf.HOOKS if one.sides & bpf.SOCKET)
    found = {name: one for name in names if (one := types.prototype(name)) is not None}
    return {
        "returns": {
            name: types.describe(found[name].returns) or "void" for name in TYPED if name in found
        },
        "arguments": {name: len(one.parameters) for name, one in found.items()},
    }


def _restore_again(taken: _Measurement) -> None:
    """Put the guest back to the snapshot and ask again, if it came from there."""
    if not taken.stand.restored:
        return
    pair = taken.stand.pair
    pair.restore_guest(GUEST, taken.stand.setup)
    taken.stand.pushed.pop(GUEST, None)
    pair.attach(GUEST, deadline=taken.deadline.within(ATTACH_S))
    _where_kernels_lie(taken, GUEST)


def _write(taken: _Measurement, program: Caller) -> None:
    folder = taken.run.guest(GUEST)
    folder.trace.write_bytes(b"".join(taken.trace))
    folder.write_json("tsc.json", {"samples": taken.clock})
    folder.write_json(
        "calls.json",
        {
            "program": program.ready,
            "cases": program.cases,
            "repeats": taken.repeats,
            "unloaded": taken.unloaded,
        },
    )
