"""What a playbook expected of a ledger, beside what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lab import spec
from lab.ledger.entries import Ledger, Totals
from lab.rundir import Manifest

FILE = "expect.json"  # of a run of whose ledger something was expected
OF_MESSAGES = (
    "guest_cpu_copies", "device_reads", "device_writes", "handovers",
    "same_object", "same_head", "skb_len_at_xmit",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
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


def expectations(ledger: Ledger, expect: spec.Expect) -> list[Expectation]:
    """Return every line that was expected, and of each message what was."""
    return [
        Expectation(name=name, message=message, expected=_word(wanted), found=_word(found))
        for name, message, wanted, found in _compared(ledger, expect)
        if wanted is not None
    ]


def check(ledger: Ledger, expect: spec.Expect) -> list[str]:
    """Return one line for every expectation the ledger does not meet: what was expected, found."""
    return [str(one) for one in expectations(ledger, expect) if not one.held]


def as_json(found: Sequence[Expectation]) -> dict[str, object]:
    """Return the content of expect.json."""
    failed = [one for one in found if not one.held]
    rows = [{"name": one.name, "message": one.message, "expected": one.expected, "found": one.found}
            for one in failed]  # fmt: skip
    return {"schema": 1, "asked": len(found), "failed": len(failed), "not_held": rows}


def _compared(
    ledger: Ledger, expect: spec.Expect
) -> Iterator[tuple[str, int | None, object, object]]:
    yield "complete", None, expect.complete, ledger.complete
    stray = len(ledger.unexplained) if ledger.searched else None
    yield "unexplained", None, expect.unexplained, stray
    wanted = {name: getattr(expect, name) for name in OF_MESSAGES}
    if all(one is None for one in wanted.values()):
        return
    for message in ledger.messages:
        of = message.id if len(ledger.messages) > 1 else None
        lengths = [seen.len for seen in message.skb.sender if seen.at == "__dev_queue_xmit"]
        totals, skb = message.totals, message.skb
        found = (
            *(_of_each_byte(totals, name) for name in OF_MESSAGES[:4]),
            skb.same_object, skb.same_head, lengths[0] if lengths else "no record",
        )  # fmt: skip
        for name, value in zip(OF_MESSAGES, found, strict=True):
            yield name.replace("_", "-"), of, wanted[name], value


def _of_each_byte(totals: Totals, name: str) -> int | str:
    # What is expected is expected of each byte of a message.
    least, most = totals.spread(name)
    return most if least == most else f"{least} to {most}"


def _word(value: object) -> str:
    if value is None:
        return "unknown"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
