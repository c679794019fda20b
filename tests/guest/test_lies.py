"""Planted lies: a probe that reports what was not so, and a copy that nobody reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import accelerator, image, topology
from lab.crash.module import prepare
from lab.journal import Journal
from tests.guest.conftest import TOP, Done, Invoke

HERE = Path(__file__).parent
CODE = "lab_probe.c"
# lab_fill_memcpy(), which reports the driver's copy, with a word changed.
WRONG_ADDRESS = ("event->dst = args->arg[0];", "event->dst = args->arg[0] + 64;")
NO_SUCH_COPY = (
    "event->dst = args->arg[0];",
    "event->dst = args->arg[0] + (args->part ? 4096 : 0);",
)
TWICE = (
    "lab_ring_bytes(event, event->src, event->size);\n\treturn false;",
    "lab_ring_bytes(event, event->src, event->size);\n\treturn !args->part;",
)


@pytest.fixture(scope="module", autouse=True)
def _can_see() -> None:
    speed = accelerator.choose(image.ensure("6.12", journal=Journal()), journal=Journal())
    if absent := topology.access_log_absent(speed):
        pytest.skip(f"needs an access log: {absent}")


def disagreements(done: Done) -> list[str]:
    assert 6 == done.code, done.out + done.err
    found: dict[str, Any] = json.loads((done.run / "ledger.json").read_text())
    return [one["text"] for one in found["disagreements"]]


def lying(folder: Path, *changes: tuple[str, str]) -> Path:
    """Return a checkout whose probe lies."""
    checkout = folder / "lying"
    shutil.copytree(
        TOP, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache")
    )
    source = checkout / "kmod" / CODE
    text = source.read_text()
    for old, new in changes:
        head, found, tail = text.partition("lab_fill_memcpy(")
        assert old in tail
        text = head + found + tail.replace(old, new, 1)
    source.write_text(text)
    # Only what a message needs is built.
    makefile = checkout / "kmod" / "Makefile"
    lines = makefile.read_text().splitlines(keepends=True)
    makefile.write_text("".join(line for line in lines if not line.startswith("obj-m +=")))
    return checkout


def test_a_probe_that_reports_a_wrong_address_is_caught(up: Invoke, tmp_path: Path) -> None:
    checkout = lying(tmp_path, WRONG_ADDRESS)
    texts = disagreements(up("lab.run-nic", cwd=checkout))
    assert any("a probe reports a copy that no CPU" in text for text in texts), texts
    assert any("no probe reported" in text and "memcpy" in text for text in texts), texts


def test_a_probe_that_reports_a_copy_that_did_not_happen_is_caught(
    up: Invoke, tmp_path: Path
) -> None:
    checkout = lying(tmp_path, NO_SUCH_COPY, TWICE)
    texts = disagreements(up("lab.run-nic", cwd=checkout))
    assert 1 == len(texts), texts
    assert "a probe reports a copy that no CPU was seen to make" in texts[0]
    assert "page_to_skb>memcpy" in texts[0]


def test_a_hidden_copy_is_caught_and_where_it_stays_is_named(up: Invoke) -> None:
    up("lab.reset")
    kernel = image.ensure("6.12", journal=Journal())
    module = prepare(HERE / "keeper.c", kernel, journal=Journal())
    assert 0 == up("lab.put", "receiver", str(module.ko), "/run/keeper.ko").code
    assert 0 == up("lab.exec", "receiver", "insmod /run/keeper.ko").code

    done = up("lab.run-nic", "--no-reset")
    texts = disagreements(done)
    assert any("a copy was made that no probe reported" in text for text in texts), texts
    (stray,) = json.loads((done.run / "ledger.json").read_text())["unexplained"]
    assert ("receiver", "slab kmalloc-512") == (stray["guest"], stray["page"])
    assert "(slab kmalloc-512) that no movement put there" in " ".join(done.out.split())
