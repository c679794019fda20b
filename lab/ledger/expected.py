"""What a playbook expected of a ledger, beside what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any, NamedTuple

from lab import spec
from lab.ledger.entries import Ledger, Message
from lab.rundir import Manifest

_tuple = tuple.__new__  # a third of what calling a named tuple takes
FILE = "expect.json"  # of a run of whose ledger something was expected


class Expectation(NamedTuple):
    """One line of `expect:`, of one message where it is about messages; values as words."""

    name: str
    message: int | None
    expected: str
    found: str

    @property
    def held(self) -> bool:
        return self.expected == self.found

    def __str__(self) -> str:
        of = "" if self.message is None else f" of message {self.message}"
        return f"{self.name}{of} {self.expected}, found {self.found}"


def asked(manifest: Manifest) -> spec.Expect:
    """Return what the playbook of a run expected."""
    told = manifest.values.get("expect")
    known: dict[str, Any] = dict(told) if isinstance(told, dict) else {}
    return spec.Expect(**{name: known[name] for name in spec.EXPECTABLE if name in known})


def not_judged(ledger: Ledger, manifest: Manifest) -> dict[str, str]:
    """Return the lines of `expect:` that the run cannot answer, and why; none of it is a fault."""
    told = manifest.values.get("not_judged")
    gone = {str(line): str(why) for line, why in told.items()} if isinstance(told, dict) else {}
    if ledger.interrupted:
        lines = asdict(asked(manifest)).items()
        gone |= {line: "the run was interrupted" for line, value in lines if value is not None}
    order = [line for line in spec.EXPECTABLE if line in gone]
    return {line.replace("_", "-"): gone[line] for line in order}


def not_judged_words(found: Mapping[str, str]) -> str:
    """Return them as a person reads them, those that have one reason together."""
    groups: dict[str, list[str]] = {}
    for line, why in found.items():
        groups.setdefault(why, []).append(line)
    return "; ".join(f"{', '.join(lines)} ({why})" for why, lines in groups.items())


def expectations(ledger: Ledger, expect: spec.Expect) -> list[Expectation]:
    """Return every line that was expected, and of each message what was.

    Of a run that somebody interrupted nothing is: what is not there holds no line, and fails none.
    """
    if ledger.interrupted:
        return []
    stray = len(ledger.unexplained) if ledger.searched else None
    of_run = (
        ("complete", expect.complete, ledger.complete),
        ("unexplained", expect.unexplained, stray),
    )
    out = [
        _expectation(name, None, _word(wanted), _word(found))
        for name, wanted, found in of_run
        if wanted is not None
    ]
    of_messages = [
        (name.replace("_", "-"), _word(getattr(expect, name)), find)
        for name, find in OF_MESSAGES.items()
        if getattr(expect, name) is not None
    ]
    several = len(ledger.messages) > 1
    out += [
        _expectation(name, message.id if several else None, wanted, _word(find(message)))
        for message in (ledger.messages if of_messages else ())
        for name, wanted, find in of_messages
    ]
    return out


def _expectation(name: str, message: int | None, expected: str, found: str) -> Expectation:
    return _tuple(Expectation, (name, message, expected, found))


def check(ledger: Ledger, expect: spec.Expect) -> list[str]:
    """Return one line for every expectation the ledger does not meet: what was expected, found."""
    return [str(one) for one in expectations(ledger, expect) if not one.held]


def as_json(
    found: Sequence[Expectation], without: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Return the content of expect.json."""
    failed = [one for one in found if not one.held]
    rows = [{"name": one.name, "message": one.message, "expected": one.expected, "found": one.found}
            for one in failed]  # fmt: skip
    return {
        "schema": 1,
        "asked": len(found),
        "failed": len(failed),
        "not_held": rows,
        "not_judged": [{"name": name, "why": why} for name, why in (without or {}).items()],
    }


def _of_each_byte(name: str) -> Callable[[Message], int | str]:
    # What is expected is expected of each byte of a message.
    ends = attrgetter(f"totals.least_{name}", f"totals.{name}")

    def find(message: Message) -> int | str:
        least, most = ends(message)
        return most if least == most else f"{least} to {most}"

    return find


def _length_at_xmit(message: Message) -> int | str:
    lengths = [seen.len for seen in message.skb.sender if seen.at == "__dev_queue_xmit"]
    return lengths[0] if lengths else "no record"


# What a playbook may expect of each message, and where it is found.
OF_MESSAGES: dict[str, Callable[[Message], object]] = {
    "guest_cpu_copies": _of_each_byte("guest_cpu_copies"),
    "device_reads": _of_each_byte("device_reads"),
    "device_writes": _of_each_byte("device_writes"),
    "handovers": _of_each_byte("handovers"),
    "same_object": lambda message: message.skb.same_object,
    "same_head": lambda message: message.skb.same_head,
    "skb_len_at_xmit": _length_at_xmit,
}


def _word(value: object) -> str:
    if value is None:
        return "unknown"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
