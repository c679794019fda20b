"""What a run of socket(2) came to, and socket.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab.record import Record
from lab.socket import status
from lab.socket.both import Agreement
from lab.socket.calls import Call, NotSeenError, rax
from lab.socket.hooked import Function
from lab.socket.inputs import BPF, CHAIN, Inputs, Repeat
from lab.socket.proofs import Proof

SCHEMA = 1
WITNESSES = {CHAIN: "probe:kmod", BPF: "probe:bpf"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Calls, functions and proofs of one run."""

    inputs: Inputs
    calls: tuple[Call, ...]
    functions: tuple[Function, ...]
    proofs: tuple[Proof, ...]
    agreement: Agreement | None  # of two accounts, where there are two

    @property
    def complete(self) -> bool:
        """Whether every proof holds."""
        return all(one.holds for one in self.proofs)

    def case(self, name: str) -> Call | None:
        """Return the first call of a case."""
        return next((one for one in self.calls if one.case == name), None)

    @property
    def pairs(self) -> Mapping[str, str]:
        """The module's records by id, each with the BPF programs' of the same moment."""
        return {} if self.agreement is None else self.agreement.pairs

    def to_json(self) -> dict[str, Any]:
        """Return socket.json; addresses are hexadecimal strings, times raw TSCs."""
        inputs = self.inputs
        manifest = inputs.manifest
        return {
            "schema": SCHEMA,
            "playbook": manifest.playbook,
            "complete": self.complete,
            "kernel": manifest.kernel,
            "accelerator": {"name": manifest.accelerator, "why": manifest.accelerator_why},
            "durations": "emulated" if inputs.emulated else "measured",
            "lost": dict(zip(("missed", "dropped", "torn"), inputs.lost, strict=True)),
            "skipped": inputs.trace.skipped,
            "proofs": [
                {
                    "name": one.name,
                    "holds": one.holds,
                    "says": one.says,
                    "evidence": list(one.evidence),
                }
                for one in self.proofs
            ],
            "watchers": [WITNESSES[name] for name in inputs.watchers],
            "calls": [_call(inputs, one, self.pairs) for one in self.calls],
            "functions": [
                {**asdict(one), "symbol": None if one.symbol is None else _hex(one.symbol)}
                for one in self.functions
            ],
            "repeats": [_repeat(one) for one in inputs.repeats],
            "kernels": {name: [_hex(at) for at in all_] for name, all_ in inputs.kernels.items()},
        }


def _call(inputs: Inputs, call: Call, pairs: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "case": call.case,
        "call": call.text,
        "number": call.asked.number,
        "args": list(call.asked.args),
        "program_returned": call.asked.returned,
        "returned": None,
        "error": "",
        "status": "",
        "ns": None,
        "steps": [_step(one.depth, one.record, pairs) for one in call.steps()],
    }
    try:
        value = call.result
    except NotSeenError:
        pass
    else:
        out |= {"returned": value, "error": status.name(value), "status": status.status(value)}
    if call.timed is not None:
        start, end = call.timed
        out["ns"] = inputs.ns(start.tsc, end.tsc)
    if call.barrier is not None and (seen := call.barrier.barrier) is not None:
        out["barrier"] = {
            "number": seen.number,
            "args": [seen.di, seen.si, seen.dx],
            "instruction": _hex(call.barrier.user),
            "bytes": call.barrier.aux.to_bytes(2, "little").hex(),
            "privilege_before": seen.cs_before & 3,
            "privilege_after": seen.cs_after & 3,
            "entry": _hex(seen.lstar),
            "entry_symbol": inputs.symbols.show(seen.lstar),
            "evidence": call.barrier.id,
        }
    return out


def _step(depth: int, record: Record, pairs: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "depth": depth,
        "function": record.hook,
        "kind": record.kind.name.lower(),
        "tsc": record.tsc,
        "evidence": record.id,
        "seen_by": [WITNESSES[record.module], *([WITNESSES[BPF]] if record.id in pairs else [])],
    }
    if record.id in pairs:
        out["evidence_beside"] = pairs[record.id]
    if record.args is not None:
        out["args"] = [_hex(one) for one in record.args.arg]
        out["signal_pending"] = record.args.signal_pending
        if record.kind.name == "RETURN":
            out["rax"] = _hex(rax(record))
    if record.socket is not None:
        seen = asdict(record.socket)
        plain = ("state", "type")
        out["socket"] = {name: v if name in plain else _hex(v) for name, v in seen.items()}
    return out


def _repeat(one: Repeat) -> dict[str, Any]:
    return {
        "name": one.name,
        "count": one.count,
        "opened": one.opened,
        "failed": one.failed,
        "error": status.name(one.error),
        "other": one.other,
        "sockstat": {"before": dict(one.before.sockstat), "after": dict(one.after.sockstat)},
        "moved": one.moved,
        "grown": one.grown,
    }


def _hex(value: int) -> str:
    return f"0x{value:x}"
