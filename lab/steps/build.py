"""Steps from a run's directory alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import access, calls, correlate, paths
from lab.calls import Call, Calls, How
from lab.correlate import outside
from lab.errors import EvidenceError
from lab.rundir import RunDir, to_json
from lab.steps import compare, lines, rows
from lab.steps.compare import Compared
from lab.steps.rows import Step, Touch, Type
from lab.symbols import Symbols

FILE = "steps.json"
SCHEMA = 1
BUSY = ": the guest's timer ticks filled the log, as on a busy host: LAB_ACCESS_ROOM=8"
TABLES = {"send": "__x64_sys_sendto", "receive": "__x64_sys_recvfrom"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """All that happened to one message, in order, and what is wrong with the account."""

    run: str
    kernel: str
    over: str
    family: str
    protocol: str
    size: int
    steps: tuple[Step, ...]
    compared: tuple[Compared, ...]
    trouble: tuple[str, ...]
    followed: Mapping[str, Mapping[str, float]]  # guest -> calls, seconds, breakpoints

    def to_json(self) -> str:
        """Return steps.json."""
        return to_json(
            {
                "schema": SCHEMA,
                "run": self.run,
                "kernel": self.kernel,
                "over": self.over,
                "family": self.family,
                "protocol": self.protocol,
                "size": self.size,
                "followed": self.followed,
                "trouble": list(self.trouble),
                "steps": [asdict(step) for step in self.steps],
                "worksheet": [_compared(one, self.steps) for one in self.compared],
            }
        )


def build(run: RunDir, *, debuginfo: Path | None = None) -> Steps:
    """Make the steps of a run; `EvidenceError` for one that was not followed."""
    manifest = run.manifest()
    inputs = correlate.load(run)
    seen = outside.look(inputs)
    if seen is None:
        raise EvidenceError(f"run {run.name} has no access log", log=run.path)
    followed = {guest.name: _read(run, guest.name) for guest in inputs.guests}
    touched = {
        guest.name: _touched(guest)
        for guest in seen.inputs.guests
        if isinstance(guest, outside.OutsideGuest)
    }
    trouble = [
        f"{name}: {lost} accesses were lost{BUSY}" for name, lost in seen.lost.items() if lost
    ]
    moved = windows(followed)
    trouble += [f"no {name} was followed to its end" for name in TABLES if name not in moved]
    steps: list[Step] = []
    way: set[tuple[str, int]] = set()
    for guest in inputs.guests:
        account = followed[guest.name]
        if account.dropped:
            trouble.append(f"{guest.name}: {account.dropped} calls found no room")
        kept = _of_message(account, touched[guest.name], moved)
        names = rows.Names(_namer(guest.symbols), _liner(account, kept, guest.symbols, debuginfo))
        found, faults = rows.walk(account, touched[guest.name], names, kept=kept)
        steps += found
        trouble += faults
        way |= {(guest.name, number) for number in _way(account, found)}
    compared = compare.compare(
        compare.load(paths.data() / "claims" / "functions" / "worksheet.yaml"),
        moved,
        {name for guest in inputs.guests for name in guest.symbols.names()},
    )
    trouble += compare.out_of_order(compared)
    if not any(step.type is Type.CPU_WRITE for step in steps):
        trouble.append("no CPU was seen to write the message")
    return Steps(
        run=run.name,
        kernel=manifest.kernel,
        over=manifest.over,
        family=manifest.family,
        protocol=manifest.protocol,
        size=manifest.size,
        steps=tuple(rows.number(steps, way=frozenset(way))),
        compared=tuple(compared),
        trouble=tuple(trouble),
        followed={
            name: {
                "calls": len(one.calls),
                "seconds": one.seconds,
                "breakpoints": one.breakpoints,
            }
            for name, one in followed.items()
        },
    )


def _read(run: RunDir, guest: str) -> Calls:
    path = run.guest(guest).file(calls.FILE)
    if not path.is_file():
        raise EvidenceError(
            f"run {run.name} was not followed: it has no {guest}/{calls.FILE}",
            log=run.path,
            hint="invoke lab.run-steps",
        )
    return calls.read(path)


def _touched(guest: outside.OutsideGuest) -> list[Touch]:
    log = access.read(guest.folder.file("access.bin"), guest=guest.name)
    return rows.touches(guest.seen.copies, guest.seen.reads, log.host_ns)


def windows(followed: Mapping[str, Calls]) -> dict[str, tuple[Calls, Call]]:
    """Return of each table the system call that moved the message: the first that did."""
    found = {}
    for table, function in TABLES.items():
        for one in followed.values():
            for root in one.roots:
                moved = root.returned is not None and 0 < root.returned.value < 1 << 31
                if root.function == function and moved and table not in found:
                    found[table] = one, root
    return found


def _of_message(
    followed: Calls, touched: Sequence[Touch], windows: Mapping[str, tuple[Calls, Call]]
) -> frozenset[int]:
    """Return the numbers of the calls of those windows that the message has a part in.

    An interrupt or softirq is the message's if its bytes were touched in it, or if one of
    its calls was given the socket that the message was read from.
    """
    socket = _socket(*windows["receive"]) if "receive" in windows else 0
    kept: set[int] = set()
    for root in followed.roots:
        inside = followed.inside(root)
        if (
            root.function in TABLES.values()
            or any(root.entered_ns <= touch.ns <= root.left_ns for touch in touched)
            or any(
                one.points_to == "sock" and one.value == socket
                for call in inside
                for one in call.arguments
            )
        ):
            kept |= {call.number for call in inside}
    return frozenset(kept)


def _socket(followed: Calls, root: Call) -> int:
    """Return the first socket that a function under a system call was given."""
    for call in followed.inside(root):
        for one in call.arguments:
            if one.points_to == "sock":
                return one.value
    return 0


CARRIERS = frozenset({"sk_buff", "sock", "socket", "msghdr", "iov_iter"})


def _way(account: Calls, steps: Sequence[Step]) -> set[int]:
    """Return the calls the message passed through.

    Those that were given its packet, socket or iterator, those in which its bytes were
    touched, and whoever called them.
    """
    found = {step.call for step in steps if step.type in (Type.CPU_READ, Type.CPU_WRITE)}
    for call in account.calls:
        given = (*call.arguments, *([call.returned] if call.returned else ()))
        if any(one.points_to in CARRIERS and one.value for one in given):
            found.add(call.number)
    for number in list(found):
        parent = account.calls[number].parent
        while parent >= 0 and parent not in found:
            found.add(parent)
            parent = account.calls[parent].parent
    return found


def _namer(symbols: Symbols) -> rows.Lookup:
    return lambda address: symbols.name(address) or ""


def _liner(
    account: Calls, kept: frozenset[int], symbols: Symbols, debuginfo: Path | None
) -> rows.Lookup:
    if debuginfo is None:
        return lambda _: ""
    mine = [call for call in account.calls if call.number in kept]
    # What an interrupt returns to is no call's.
    back = [call.site for call in mine if call.how is not How.INTERRUPT]
    entries = [call.address for call in mine]
    found = lines.look_up(debuginfo, symbols, entries, back)
    return lambda address: found.get(address, "")


def _compared(one: Compared, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "table": one.claimed.table,
        "step": one.claimed.step,
        "function": one.claimed.function,
        "fate": one.fate,
        "reason": one.reason,
        "seen_at": seen_at(one, steps),
    }


def seen_at(one: Compared, steps: Sequence[Step]) -> int | None:
    """Return the number of the step at which a compared function was entered."""
    if one.call is None:
        return None
    for step in _entries(steps):
        if step.guest == one.guest and step.ns == one.call.entered_ns:
            return step.number
    return None


def _entries(steps: Sequence[Step]) -> Iterator[Step]:
    return (step for step in steps if step.type in (Type.CALL, Type.SYSCALL, Type.CHECK))
