"""Ground truth on a live guest: counts met exactly, and a copy nobody speaks of is caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import accelerator, image, topology
from lab.journal import Journal
from lab.known import LOG, PROBES
from tests.guest.conftest import Invoke

HIDDEN = """\
playbook: known-hidden
question: Is a copy caught of which the module says nothing?
experiment: known
probes: {kind: kmod}
known: {copies: 5, size: 211, hidden: yes}
deadline: 180s
expect: {complete: yes}
"""


def counts(found: dict[str, Any], witness: str) -> dict[str, int]:
    moves = [move["kind"] for move in found["seen"].get(witness, ())]
    return {kind: moves.count(kind) for kind in ("copy", "device read", "device write")}


@pytest.fixture(scope="module")
def sees() -> bool:
    speed = accelerator.choose(image.ensure("6.12", journal=Journal()), journal=Journal())
    return not topology.access_log_absent(speed)


def test_every_witness_meets_the_modules_word(invoke: Invoke, *, sees: bool) -> None:
    """Seven copies, three device reads, three device writes; the emulated device's DMA is real."""
    done = invoke("lab.run", "known", "--json")
    assert 0 == done.code, done.out + done.err
    assert {"copy": 7, "device read": 3, "device write": 3} == counts(done.value, PROBES)
    assert all("/trace.bin#" in one for one in done.value["records"][PROBES])
    if sees:
        assert {"copy": 7, "device read": 0, "device write": 3} == counts(done.value, LOG)
        assert ["known_copy>memcpy_orig"] == done.value["functions"][LOG]


def test_a_hidden_copy_is_caught_by_the_witness(
    invoke: Invoke, tmp_path: Path, *, sees: bool
) -> None:
    if not sees:
        pytest.skip("needs an access log")
    (tmp_path / "hidden.yaml").write_text(HIDDEN)
    done = invoke("lab.run", str(tmp_path / "hidden.yaml"))
    assert 6 == done.code, done.out + done.err
    found = json.loads((done.run / "known.json").read_text())
    assert (5, 6) == (counts(found, PROBES)["copy"], counts(found, LOG)["copy"])
    assert "the module does not say: copy of message 4" in found["trouble"][0]
