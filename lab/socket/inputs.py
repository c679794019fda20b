"""A run of socket(2) as its files tell it, every field checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab import clock, record
from lab.record import Record, Section, Trace
from lab.rundir import Fields, GuestDir, Manifest, RunDir
from lab.rundir.fields import read_json
from lab.symbols import Symbols

LATENCY, CHAIN, FAULT = "socket_latency_probe", "socket_chain_probe", "socket_fault"
BPF = "bpf"
SLACK_NS = 20_000  # a program's time is two clocks' comparison, and calls are milliseconds apart
CALLER = "socket_test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One system call as the program saw it: registers, instruction, what came back."""

    case: str
    number: int
    args: tuple[int, int, int]
    returned: int
    instruction: int
    bytes: str  # hex
    before: int  # TSC
    after: int
    signal: Signal | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """What the program's handler found: where it was interrupted, and with which rax."""

    count: int
    ip: int
    ax: int
    tsc: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Other:
    """Another program that ran meanwhile."""

    name: str
    pid: int
    before: int
    after: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What the kernel held of sockets at one moment."""

    sockstat: Mapping[str, int]  # "TCP alloc" and the like
    slabs: Mapping[str, int]  # objects, by cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeat:
    """One way to call, many times."""

    name: str
    count: int
    opened: int
    failed: int
    error: int  # what the first that failed returned
    other: int  # how many returned something else
    before: Held
    after: Held
    settled: Held  # when what is freed after a grace period was, or a few seconds later

    @property
    def moved(self) -> dict[str, int]:
        """Return by how much each count of sockstat changed; nothing: exactly back."""
        names = {**self.before.sockstat, **self.after.sockstat}
        return {
            name: change
            for name in names
            if (change := self.after.sockstat.get(name, 0) - self.before.sockstat.get(name, 0))
        }

    @property
    def grown(self) -> dict[str, int]:
        """Return by how many objects each cache grew."""
        return {name: count - self.before.slabs.get(name, 0)
                for name, count in self.settled.slabs.items()}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """All there is to judge."""

    run: RunDir
    manifest: Manifest
    trace: Trace
    records: tuple[Record, ...]  # by time
    symbols: Symbols
    clock: clock.ClockMap | None
    pid: int
    asked: tuple[Asked, ...]  # system calls, in order
    others: tuple[Other, ...]
    repeats: tuple[Repeat, ...]
    unloaded: Mapping[str, bool]  # module -> it took its ring away
    kernels: Mapping[str, tuple[int, ...]]  # guest -> where its kernel's text began, each restore
    returns: Mapping[str, str]  # function -> the type of what it returns, by BTF
    arguments: Mapping[str, int]  # function -> how many it takes, by BTF
    programs: Trace | None  # what BPF programs left; `records` has it too

    @property
    def guest(self) -> GuestDir:
        return self.run.guests()[0]

    @property
    def sections(self) -> tuple[Section, ...]:
        """All traces, those of BPF programs behind those of modules."""
        return (*self.trace.sections, *(self.programs.sections if self.programs else ()))

    @property
    def watchers(self) -> tuple[str, ...]:
        """Who watched the chain; the first one's records are what calls are made of."""
        names = {section.name for section in self.sections}
        return tuple(name for name in (CHAIN, BPF) if name in names) or (CHAIN,)

    @property
    def slack(self) -> int:
        """Ticks by which a program's record may lie outside of its call."""
        if self.clock is None:
            return 0
        return round(SLACK_NS / self.clock.ns_per_tick)

    @property
    def lost(self) -> tuple[int, int, int]:
        """Records missed, dropped and torn, in all traces."""
        traces = [self.trace, *([self.programs] if self.programs else [])]
        return (
            sum(one.missed for one in traces),
            sum(one.dropped for one in traces),
            sum(one.torn for one in traces),
        )

    @property
    def emulated(self) -> bool:
        """Whether durations are those of an emulator."""
        return self.manifest.accelerator == "tcg"

    def ns(self, start: int, end: int) -> int | None:
        """Return the nanoseconds between two TSCs; None where the clock was not sampled."""
        if self.clock is None:
            return None
        return round(self.clock.ns_per_tick * (end - start))

    def repeat(self, name: str) -> Repeat | None:
        return next((one for one in self.repeats if one.name == name), None)


def read(run: RunDir) -> Inputs:
    """Read a run; raises `TraceCorrupt` for what is missing or not whole."""
    guest = run.guests()[0]
    path = guest.file("calls.json")
    top = Fields(read_json(path), path)
    kernels = Fields(read_json(run.file("kernels.json")), run.file("kernels.json"))
    trace = record.read(guest.trace, guest=guest.name)
    programs = record.read(guest.bpf, guest=guest.name) if guest.bpf.is_file() else None
    records = [*trace.records, *(programs.records if programs else ())]
    asked: list[Asked] = []
    others: list[Other] = []
    for case in top.each("cases"):
        answer = case.inner("answer")
        if answer.has("call"):
            asked.append(_asked(case.text("name"), answer.inner("call"), answer))
        elif answer.has("calls"):
            asked += [_asked(case.text("name"), one, answer) for one in answer.each("calls")]
        elif answer.has("pid"):
            others.append(
                Other(
                    name=case.text("name"),
                    pid=answer.integer("pid"),
                    before=answer.size("before"),
                    after=answer.size("after"),
                )
            )
    return Inputs(
        run=run,
        manifest=run.manifest(),
        trace=trace,
        records=tuple(sorted(records, key=lambda one: (one.tsc, one.number))),
        symbols=Symbols(guest.symbols),
        clock=clock.fit(guest.tsc()) if guest.has("tsc.json") else None,
        pid=top.inner("program").integer("pid"),
        asked=tuple(asked),
        others=tuple(others),
        repeats=tuple(_repeat(one) for one in top.each("repeats")),
        unloaded=_unloaded(top),
        kernels=_kernels(kernels),
        returns={name: kernels.inner("returns").text(name) for name in _names(kernels, "returns")},
        arguments={
            name: kernels.inner("arguments").size(name) for name in _names(kernels, "arguments")
        },
        programs=programs,
    )


def _asked(case: str, call: Fields, answer: Fields) -> Asked:
    args = [_whole(one, call) for one in call.rows("args")]
    if len(args) != 3:
        raise call.fault("three arguments", call.values.get("args"), "args")
    signal = None
    if answer.has("signal"):
        seen = answer.inner("signal")
        signal = Signal(
            count=seen.size("count"),
            ip=seen.address("ip"),
            ax=seen.integer("ax"),
            tsc=seen.size("tsc"),
        )
    return Asked(
        case=case,
        number=call.integer("number"),
        args=(args[0], args[1], args[2]),
        returned=call.integer("returned"),
        instruction=call.address("instruction"),
        bytes=call.text("bytes"),
        before=call.size("before"),
        after=call.size("after"),
        signal=signal,
    )


def _whole(value: object, at: Fields) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise at.fault("a number", None, "args")
    return value


def _repeat(one: Fields) -> Repeat:
    answer = one.inner("answer")
    return Repeat(
        name=one.text("name"),
        count=answer.size("count"),
        opened=answer.size("opened"),
        failed=answer.size("failed"),
        error=answer.integer("error"),
        other=answer.size("other"),
        before=_held(answer.inner("before")),
        after=_held(answer.inner("after")),
        settled=_held(answer.inner("settled")),
    )


def _held(at: Fields) -> Held:
    slabs = at.inner("slabs")
    counts: dict[str, int] = {}
    for line in at.text("sockstat").splitlines():
        # `TCP: inuse 2 orphan 0 tw 0 alloc 2 mem 0`
        protocol, _, rest = line.partition(":")
        words = rest.split()
        for name, value in zip(words[::2], words[1::2], strict=False):
            if not value.isdecimal():
                raise at.fault("counts of /proc/net/sockstat", line, "sockstat")
            counts[f"{protocol} {name}"] = int(value)
    return Held(
        sockstat=counts,
        slabs={name: slabs.inner(name).size("objects") for name in slabs.values},
    )


def _unloaded(top: Fields) -> dict[str, bool]:
    out: dict[str, bool] = {}
    for one in top.each("unloaded"):
        for name in one.values:
            out[name] = one.flag(name) and out.get(name, True)
    return out


def _names(kernels: Fields, of: str) -> list[str]:
    return list(kernels.inner(of).values) if kernels.has(of) else []


def _kernels(kernels: Fields) -> dict[str, tuple[int, ...]]:
    text = kernels.inner("text")
    try:
        return {name: tuple(int(at, 16) for at in text.texts(name)) for name in text.values}
    except ValueError:
        raise text.fault("addresses in hexadecimal", None) from None
