"""Claims of both texts, held against the machine: one command, and what the document says."""

from __future__ import annotations

import re

from lab import claims
from tests.guest.conftest import LAB, TOP, Invoke

ROW = re.compile(r"^\| ([A-Z]+[0-9]+[a-z]?) \|.*?\| \*\*([a-z ]+)\*\*", re.MULTILINE)


def documented() -> dict[str, str]:
    """Return the verdict of each claim as docs/claims.md has it."""
    return dict(ROW.findall((TOP / "docs" / "claims.md").read_text(encoding="utf-8")))


def test_every_claim_gets_the_verdict_the_document_has(invoke: Invoke) -> None:
    done = invoke("lab.claims", "--json", lab=f"{LAB}-claims", within_s=540.0)

    assert 0 == done.code, done.out + done.err
    found = {one["id"]: one["verdict"] for text in done.value["texts"] for one in text["claims"]}
    assert documented() == found
    assert {claims.CONFIRMED, claims.REFUTED, claims.DEPENDS, claims.NOT_HERE} == set(
        found.values()
    )
