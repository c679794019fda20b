"""Records to calls: which belong to which system call, in which order and how deep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.record import Kind, Record
from lab.socket import status
from lab.socket.inputs import BPF, FAULT, LATENCY, Asked, Inputs

SYSCALLS = {41: "__x64_sys_socket", 44: "__x64_sys_sendto", 45: "__x64_sys_recvfrom"}
ENTRY, RETURN = Kind.ENTRY, Kind.RETURN


class NotSeenError(Exception):
    """A record that a proof rests on is not there; says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One record of a call, `depth` calls below __sys_socket's caller."""

    depth: int
    record: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One system call: what the program saw, and what was recorded between its two TSCs."""

    asked: Asked
    chain: tuple[Record, ...]
    latency: tuple[Record, ...]
    faults: tuple[Record, ...]

    @property
    def case(self) -> str:
        return self.asked.case

    @property
    def text(self) -> str:
        """Return the call as C writes it."""
        name = SYSCALLS.get(self.asked.number, "").removeprefix("__x64_sys_")
        return f"{name}({', '.join(_argument(one) for one in self.asked.args)})"

    def find(self, function: str, kind: Kind) -> Record | None:
        """Return the first record of a function's entry or return."""
        return next((r for r in self.chain if r.hook == function and r.kind == kind), None)

    def need(self, function: str, kind: Kind = ENTRY) -> Record:
        """Return it, or raise `NotSeenError`."""
        found = self.find(function, kind)
        if found is None:
            what = "return" if kind == RETURN else "entry"
            raise NotSeenError(f"{self.case}: no record of {function}'s {what}")
        return found

    def reached(self, function: str) -> bool:
        return self.find(function, ENTRY) is not None

    @property
    def barrier(self) -> Record | None:
        return self.find(SYSCALLS.get(self.asked.number, ""), ENTRY)

    @property
    def result(self) -> int:
        """Return what __sys_socket returned, as an int; `NotSeenError` where nobody saw it."""
        return status.as_int(rax(self.need("__sys_socket", RETURN)))

    @property
    def timed(self) -> tuple[Record, Record] | None:
        """Return the latency probe's two records of this call."""
        start = next((r for r in self.latency if r.kind == ENTRY), None)
        end = next((r for r in self.latency if r.kind == RETURN), None)
        return (start, end) if start and end else None

    def steps(self) -> Iterator[Step]:
        """Yield what ran in __sys_socket, nested as it ran."""
        stack: list[str] = []
        for number, one in enumerate(self.chain):
            if one.hook.startswith("__x64_sys_") or (not stack and one.hook != "__sys_socket"):
                continue
            if one.kind == RETURN and one.hook in stack:
                while stack.pop() != one.hook:
                    pass
            yield Step(depth=len(stack), record=one)
            if one.kind == ENTRY and any(
                later.hook == one.hook and later.kind == RETURN for later in self.chain[number:]
            ):
                stack.append(one.hook)


def follow(inputs: Inputs) -> tuple[Call, ...]:
    """Return each call the program made, with its records: its own, between its TSCs."""
    mine = [one for one in inputs.records if one.pid == inputs.pid and one.kind != Kind.SKIPPED]
    return tuple(_call(inputs, asked, mine) for asked in inputs.asked)


def _call(inputs: Inputs, asked: Asked, records: Sequence[Record]) -> Call:
    def of(module: str) -> tuple[Record, ...]:
        return tuple(one for one in records if one.module == module and _is_of(inputs, one, asked))

    chain, latency, faults = of(inputs.watchers[0]), of(LATENCY), of(FAULT)
    return Call(asked=asked, chain=chain, latency=latency, faults=faults)


def _is_of(inputs: Inputs, one: Record, asked: Asked) -> bool:
    """Tell whether a record was made in a call; of a program's, whether that call is nearest."""

    def away(from_: Asked) -> int:
        return max(from_.before - one.tsc, one.tsc - from_.after, 0)

    if one.module != BPF:
        return not away(asked)
    return away(asked) <= inputs.slack and away(asked) == min(map(away, inputs.asked))


def rax(record: Record) -> int:
    """Return the 64 bits a function returned; 0 where the record has none."""
    return record.args.ret if record.args is not None else 0


def argument(record: Record, number: int) -> int:
    """Return a function's argument as it was at entry; 0 where the record has none."""
    return record.args.arg[number] if record.args is not None else 0


def _argument(value: int) -> str:
    return str(value) if value < 1 << 31 else f"0x{value:x}"
