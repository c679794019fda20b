"""Claims of both texts, held against the machine: one command, and what the document says."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from lab import claims
from tests.guest.conftest import LAB, TOP, Invoke, Taken

ROW = re.compile(r"^\| ([A-Z]+[0-9]+[a-z]?) \|.*?\| \*\*([a-z ]+)\*\*", re.MULTILINE)
# The runs of claims that other tests look at, too: what one of a user's own would report.
RUNS = {
    "socket": ("lab.run-socket",),
    "trap": ("lab.run-trap", "--kernel", "6.12"),
    "trap-6.1": ("lab.run-trap", "--kernel", "6.1"),
    "chain": ("lab.run-chain", "--kernel", "6.12"),
    "chain-6.1": ("lab.run-chain", "--kernel", "6.1"),
    "nic-6.1": ("lab.run-nic", "--kernel", "6.1"),
    "nic-tcp": ("lab.run-nic", "--protocol", "tcp"),
    "lo-tcp": ("lab.run-loopback", "--protocol", "tcp"),
}


def documented() -> dict[str, str]:
    """Return the verdict of each claim as docs/claims.md has it."""
    return dict(ROW.findall((TOP / "docs" / "claims.md").read_text(encoding="utf-8")))


def test_every_claim_gets_the_verdict_the_document_has(invoke: Invoke, taken: Taken) -> None:
    done = invoke("lab.claims", "--json", lab=f"{LAB}-claims", within_s=540.0)

    assert 0 == done.code, done.out + done.err
    for name, words in RUNS.items():
        run = str((Path(done.value["folder"]) / name).resolve())
        taken[words] = partial(invoke, "lab.report", run)
    found = {one["id"]: one["verdict"] for text in done.value["texts"] for one in text["claims"]}
    assert documented() == found
    assert {claims.CONFIRMED, claims.REFUTED, claims.DEPENDS, claims.NOT_HERE} == set(
        found.values()
    )
