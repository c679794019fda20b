"""What tracing costs: one guest, every kind of probe in turn, one burst of messages each."""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import (
    accelerator,
    bench,
    bench_report,
    bpf,
    bpftrace,
    build,
    compiled,
    image,
    probe,
    probe_bpf,
    record,
    spec,
    topology,
)
from lab import workload as workloads
from lab.deadline import Deadline
from lab.errors import HostError, ImageError, PlaybookError
from lab.guest import Guest
from lab.journal import Journal
from lab.playbook.values import COUNT_LIMIT
from lab.spec import AnyKernel

KINDS = ("none", "kmod", "bpf", "both")
BPFTRACE = "bpftrace"
SIZE = 64  # bytes of a message
REACH_S = 30.0
DEADLINE_S = 600.0
READ_AT_LEAST = 500_000  # records per second
REPORTED = (111, 1_111, 10_000, 111_111)  # messages: 1,000 to 1,000,000 records
READS = (1_000, 10_000, 100_000, 1_000_000)
MODULES = ("send_trace", "recv_trace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Burst:
    """One burst under one kind of probe."""

    kind: str
    seconds: float  # from "go" to "sent", on the host's clock
    events: int  # records that the hooks asked for
    records_lost: int  # missed, dropped or torn
    messages_lost: int


def measure(
    *, rounds: int, count: int, kernel: AnyKernel, with_bpftrace: bool, journal: Journal
) -> dict[str, Any]:
    """Send `count` messages over loopback under each kind, `rounds` times in turn."""
    if rounds < 1:
        raise PlaybookError(f"--rounds: expected at least 1; found {rounds}")
    if not 1 <= count <= COUNT_LIMIT:
        raise PlaybookError(f"--count: expected 1 to {COUNT_LIMIT} messages; found {count}")
    bpf.require_tools()
    built = image.ensure(kernel, journal=journal)
    modules = build.build_modules(built, journal=journal)
    speed = accelerator.choose(built, journal=journal)
    packed, why = _bundle(journal) if with_bpftrace else (None, "not asked for")
    kinds = (*KINDS, BPFTRACE) if packed is not None else KINDS
    bursts: list[Burst] = []
    with topology.opened("bench-trace", create=True) as pair:
        pair.bring_up(topology.standard(built, speed, journal=journal), journal=journal)
        try:
            pair.attach(deadline=Deadline(REACH_S))
            tracer = _Tracer(pair.guests["sender"], modules, journal)
            # Under TCG the first burst pays for translating the guest's code.
            if packed is not None:
                with journal.step("push bpftrace"):
                    bpftrace.push(tracer.guest, packed, deadline=Deadline(DEADLINE_S))
            with journal.step("warm up"):
                tracer.burst("none", count)
            for number in range(rounds):
                for kind in kinds:
                    with journal.step(f"round {number + 1} of {rounds}: {kind}"):
                        bursts.append(tracer.burst(kind, count))
        finally:
            pair.bring_down()
    with journal.step("read records"):
        reading = read_speed(tracer.trace)
    compiled.compile_all(journal=journal)
    reported = bench_report.measure(REPORTED, by=bench_report.COMPILED, journal=journal)
    by_python = bench_report.measure(REPORTED[:-1], by=bench_report.PYTHON, journal=journal)
    with_census = {
        by: bench_report.measure((bench_report.BURST,), by=by, journal=journal, census=True)
        for by in (bench_report.COMPILED, bench_report.PYTHON)
    }
    return {
        "machine": bench.machine(),
        "accelerator": {"name": speed.name, "why": speed.why},
        "kernel": built.release,
        "rounds": rounds,
        "messages": count,
        "kinds": {kind: summary(bursts, kind, count) for kind in kinds},
        "bpftrace": why,
        "reading": reading,
        "reporting": reported,
        "reporting_by_python": by_python,
        "reporting_with_census": with_census,
        "targets": targets(reading, reported, with_census[bench_report.COMPILED]),
    }


def targets(
    reading: dict[str, dict[str, float]],
    reported: dict[str, dict[str, float]],
    with_census: dict[str, dict[str, float]],
) -> dict[str, bool]:
    """Tell which of what is asked of reading and reporting holds."""
    most = max(reading.values(), key=lambda one: one["read_per_s"])
    asked = {
        f"read {READ_AT_LEAST} records/s": most["read_per_s"] >= READ_AT_LEAST,
        f"at most {bench_report.LINEAR_WITHIN} times as long per record in the largest run": (
            bench_report.growth(reported) <= bench_report.LINEAR_WITHIN
        ),
    }
    for what, found in (("a burst", reported), ("a burst with its census", with_census)):
        burst = found.get(str(bench_report.BURST * bench_report.EVENTS))
        if burst is not None:
            text = f"report {bench_report.REPORT_AT_LEAST} records/s of {what}, by the clock"
            asked[text] = burst["per_s"] >= bench_report.REPORT_AT_LEAST
    return asked


def summary(bursts: list[Burst], kind: str, count: int) -> dict[str, float | int]:
    """Return medians of one kind; the cost of an event is what it adds to the bare run."""
    mine = [burst for burst in bursts if burst.kind == kind]
    bare = statistics.median(burst.seconds for burst in bursts if burst.kind == "none")
    seconds = statistics.median(burst.seconds for burst in mine)
    events = statistics.median(burst.events for burst in mine)
    return {
        "messages_per_s": round(count / seconds),
        "events": int(events),
        "cost_per_event_us": round((seconds - bare) / events * 1e6, 2) if events else 0.0,
        "slowdown": round(seconds / bare, 2),
        "records_lost": sum(burst.records_lost for burst in mine),
        "messages_lost": sum(burst.messages_lost for burst in mine),
    }


def ratio_to_bpftrace(kinds: dict[str, dict[str, float | int]]) -> float:
    """Return how many times as long as one of the BPF programs an event of bpftrace takes."""
    one, other = (kinds.get(kind, {}).get("cost_per_event_us", 0) for kind in (BPFTRACE, "bpf"))
    return round(one / other, 2) if one and other else 0.0


class _Tracer:
    """One guest and the probes that are put into it, again and again."""

    def __init__(self, guest: Guest, modules: dict[str, Path], journal: Journal) -> None:
        self.guest = guest
        self.modules = {name: modules[name] for name in MODULES}
        self.journal = journal
        self.pushed: set[str] = set()
        self.trace = b""  # the largest there was
        shell, deadline = guest.require_shell(), Deadline(DEADLINE_S)
        self.folder = tempfile.TemporaryDirectory(prefix="skblab-bench-")
        self.symbols = Path(self.folder.name) / "symbols"
        shell.run("cat /proc/kallsyms > /run/symbols", deadline=deadline)
        shell.get("/run/symbols", self.symbols, deadline=deadline)
        self.hooks: tuple[str, ...] = ()  # of functions, that BPF programs saw called

    def burst(self, kind: str, count: int) -> Burst:
        """Send once under `kind`; nothing of it is left in the guest."""
        deadline = Deadline(DEADLINE_S)
        if kind == BPFTRACE:
            return self._counted(count, deadline)
        seconds, got, traces = 0.0, 0, [b""]
        with self._watched(kind, count, deadline) as read_out:
            seconds, got = _send(self.guest, count, deadline)
            traces = read_out()
        self.trace = max([self.trace, *traces], key=len)
        path = Path(self.folder.name) / "trace.bin"
        events = lost = 0
        for data in traces:
            path.write_bytes(data)
            trace = record.read(path, guest=self.guest.name)
            events += trace.seen
            lost += trace.lost
            if kind == "bpf":
                self.hooks = attachable(trace.hooks)
        return Burst(
            kind=kind, seconds=seconds, events=events, records_lost=lost, messages_lost=count - got
        )

    def _counted(self, count: int, deadline: Deadline) -> Burst:
        """Send once while bpftrace counts the calls that the BPF programs have seen."""
        folder = Path(self.folder.name)
        with bpftrace.counting(self.guest, self.hooks, folder=folder, deadline=deadline) as stop:
            seconds, got = _send(self.guest, count, deadline)
            seen = stop()
        return Burst(
            kind=BPFTRACE,
            seconds=seconds,
            events=sum(seen.values()),
            records_lost=0,  # it counts, and leaves no records
            messages_lost=count - got,
        )

    @contextmanager
    def _watched(
        self, kind: str, count: int, deadline: Deadline
    ) -> Iterator[Callable[[], list[bytes]]]:
        nonce, records = secrets.token_bytes(16), probe.records_for(count, SIZE)
        programs = modules = None
        asked = spec.Probes()
        if kind in ("bpf", "both"):
            programs = probe_bpf.start(
                self.guest,
                asked,
                symbols=self.symbols,
                sides=bpf.SEND | bpf.RECV,
                nonce=nonce,
                records=records,
                pushed=self.pushed,
                journal=self.journal,
                deadline=deadline,
            )
        if kind in ("kmod", "both"):
            modules = probe.load(
                self.guest,
                self.modules,
                asked,
                nonce=nonce,
                records=records,
                pushed=self.pushed,
                deadline=deadline,
            )
        if programs is not None:
            probe_bpf.attach(programs, deadline=deadline)

        def read_out() -> list[bytes]:
            out = []
            if programs is not None:
                probe_bpf.finish(programs, deadline=deadline)
                out.append(probe_bpf.drain(programs))
            if modules is not None:
                probe.finish(modules, deadline=deadline)
                out.append(probe.drain(modules))
            return out

        yield read_out
        if modules is not None:
            probe.unload(modules, deadline=deadline)
        if programs is not None:
            probe_bpf.stop(programs, deadline=deadline)


def _bundle(journal: Journal) -> tuple[Path | None, str]:
    try:
        packed = bpftrace.bundle(journal=journal)
    except ImageError as error:
        return None, f"absent: {error}"
    return packed, "counts calls of the functions that the BPF programs are attached to at entry"


def attachable(hooks: Sequence[record.Hook]) -> tuple[str, ...]:
    """Return the functions among hooks that were called, where a kprobe is at their entry."""
    return tuple(
        hook.name
        for hook in hooks
        if hook.attached and hook.hits and ">" not in hook.name and ":" not in hook.name
    )


def _send(guest: Guest, count: int, deadline: Deadline) -> tuple[float, int]:
    """Send over loopback; return the seconds it took and how many messages were received."""
    moments: list[float] = []
    asked = spec.Workload(over="loopback", size=SIZE, count=count)

    def gate(name: str) -> None:
        if name in ("armed", "sent"):
            moments.append(time.monotonic())

    sides = workloads.run(
        asked,
        sender=guest,
        receiver=guest,
        seed=secrets.randbits(64),
        gate=gate,
        deadline=deadline,
    )
    return moments[1] - moments[0], int(sides[1].said["received"]["received"])


def read_speed(section: bytes) -> dict[str, dict[str, float]]:
    """Return how fast traces of these records are read and decoded, by how many there are."""
    header = record.parse_header(section)
    events = section[record.HEADER_SIZE :]
    if not header.stored:
        raise HostError("no record was taken to measure the reading of")
    out: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="skblab-bench-") as folder:
        path = Path(folder) / "trace.bin"
        for count in READS:
            path.write_bytes(_sections(section, events, header.stored, count))
            start = time.process_time()  # of this process alone: the machine may be busy
            trace = record.read(path, guest="sender")
            whole = len(trace.records)
            read = time.process_time() - start
            decoded = sum(1 for _ in trace.records)
            seconds = time.process_time() - start
            if whole != count or decoded != count:
                raise HostError(f"{whole} and {decoded} records came back of {count}")
            out[str(count)] = {
                "read_per_s": round(count / read),
                "decoded_per_s": round(count / seconds),
            }
    return out


def _sections(section: bytes, events: bytes, stored: int, count: int) -> bytes:
    # A section holds at most 131,072 records: more are more sections, of the same records.
    parts = []
    while count:
        part = min(count, stored)
        head = bytearray(section[: record.HEADER_SIZE])
        record.HEADER_LAYOUT.pack_into(
            head, 0, *_cut(record.HEADER_LAYOUT.unpack_from(head, 0), part)
        )
        parts += [bytes(head), events[: part * record.EVENT_SIZE]]
        count -= part
    return b"".join(parts)


def _cut(values: tuple[Any, ...], claimed: int) -> list[Any]:
    names = [name for name, _ in record.HEADER_FIELDS]
    return [
        claimed if name == "claimed" else value for name, value in zip(names, values, strict=True)
    ]


def render(found: dict[str, Any]) -> str:
    """Return the figures as a table, the machine above it."""
    rows = [", ".join(found["machine"].values())]
    rows.append(
        f"accelerator {found['accelerator']['name']}; Linux {found['kernel']}; "
        f"{found['rounds']} rounds of {found['messages']} messages of {SIZE} bytes over loopback"
    )
    rows.append(
        f"{'probes':<8} {'messages/s':>11} {'events':>8} {'us/event':>9} {'slower':>7} "
        f"{'records lost':>13} {'messages lost':>14}"
    )
    for kind, one in found["kinds"].items():
        rows.append(
            f"{kind:<8} {one['messages_per_s']:>11} {one['events']:>8} "
            f"{one['cost_per_event_us']:>9.2f} {one['slowdown']:>6.2f}x "
            f"{one['records_lost']:>13} {one['messages_lost']:>14}"
        )
    rows.append(f"bpftrace: {found['bpftrace']}")
    ratio = ratio_to_bpftrace(found["kinds"])
    if ratio:
        rows.append(f"an event of bpftrace takes {ratio:.2f} times one of the BPF programs")
    rows.append(f"{'records':<8} {'read/s':>11} {'decoded/s':>11}   target {READ_AT_LEAST} read/s")
    for count, speed in found["reading"].items():
        rows.append(f"{count:<8} {speed['read_per_s']:>11} {speed['decoded_per_s']:>11}")
    rows.append(f"{'records':<8} {'report s':>11} {'reported/s':>11} {'CPU s':>8} {'/CPU s':>8}")
    with_census = found["reporting_with_census"]
    for by, reported in (
        ("compiled", found["reporting"]),
        ("Python", found["reporting_by_python"]),
        ("compiled, census", with_census[bench_report.COMPILED]),
        ("Python, census", with_census[bench_report.PYTHON]),
    ):
        for count, one in reported.items():
            rows.append(
                f"{count:<8} {one['seconds']:>11.2f} {one['per_s']:>11} "
                f"{one['cpu_s']:>8.2f} {one['per_cpu_s']:>8}   {by}"
            )
    for text, held in found["targets"].items():
        rows.append(f"{'holds' if held else 'does not hold'}: {text}")
    return "\n".join(rows)
