"""What CPUs did with the bytes besides copying them, as reports tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab import ledger, report
from lab.ledger import Ledger, Touch
from lab.report import touches
from tests.unit import cooked


def touch(function: str, *, kind: str = "read", times: int = 1, message: int = 0) -> Touch:
    return Touch(
        kind=kind, guest="receiver", message=message, function=function, caller="f+0x1",
        physical=0x1000, offset=0, size=16, times=times, evidence=("receiver/access.bin#7",),
    )  # fmt: skip


def served(tmp_path: Path, *found: Touch) -> tuple[Ledger, str]:
    run = cooked.nic(tmp_path).serve()
    built = replace(ledger.build(run), touches=found)
    return built, report.render(built, run)


def test_a_checksum_and_a_spill_are_told_with_their_record(tmp_path: Path) -> None:
    _, text = served(tmp_path, touch("csum_partial", times=3), touch("irq", kind="spill"))
    (read,) = [line for line in text.splitlines() if "csum_partial" in line]
    assert ["receiver", "reads", "csum_partial", "f+0x1", "16", "3"] == read.split()[:6]
    assert "receiver/access.bin#7" in read
    assert "receiver spills" in text


def test_the_probes_own_reads_are_one_row(tmp_path: Path) -> None:
    built, _ = served(tmp_path, *(touch("[recv_trace]", times=n) for n in (2, 3)))
    assert [("receiver reads", touches.PROBES, "5")] == [
        (row[0], row[1], row[4]) for row in touches.rows(built, 0)
    ]


def test_another_message_s_are_not_told(tmp_path: Path) -> None:
    built, text = served(tmp_path, touch("csum_partial", message=1))
    assert [] == touches.rows(built, 0)
    assert "TOUCHED BY" not in text
