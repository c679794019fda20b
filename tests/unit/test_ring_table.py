"""The rings as a table: what was given, what the device did with it, and for which movement."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import ledger, report
from lab.report import ring_table
from lab.report.ring_table import Table
from lab.rundir import RunDir
from tests.unit import cooked
from tests.unit.cooked import edit


def found(run: RunDir) -> dict[tuple[str, str], Table]:
    return {(one.guest, one.queue): one for one in ring_table.tables(run, ledger.build(run))}


def test_a_filled_buffer_is_told_with_its_movement(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    rx = found(run)["receiver", "rx"]
    filled = [one for one in rx.entries if one.movements]

    assert 1 == len(filled)
    assert "given" == filled[0].before
    assert filled[0].after.startswith("used #0, ")
    assert "message 0: virtio-net-pci writes" in filled[0].movements[0]
    assert filled[0].movements[0].endswith("receiver/trace.bin#0")
    assert rx.used_before + 1 == rx.used_after


def test_what_was_sent_is_in_the_senders_ring(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    read = [one for one in found(run)["sender", "tx"].entries if one.movements]

    assert 1 == len(read)
    assert "read" in read[0].flags
    assert "virtio-net-pci reads" in read[0].movements[0]


def test_a_buffer_that_nobody_filled_has_no_movement(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    rx = found(run)["receiver", "rx"]
    others = [one for one in rx.entries if not one.touched]

    assert others
    assert {"given"} == {one.before for one in others} == {one.after for one in others}


@pytest.mark.parametrize("whole", [True, False])
def test_the_table_is_short_unless_it_is_asked_for_whole(tmp_path: Path, *, whole: bool) -> None:
    run = cooked.nic(tmp_path).serve()
    tables = list(found(run).values())
    text = "\n".join(ring_table.lines(tables, whole=whole))

    entries = max(len(one.entries) for one in tables)
    assert entries > ring_table.LIKE + 1
    assert whole == ("more that nothing happened to" not in text)


def test_a_status_word_is_shown_where_the_device_has_one(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()

    def mark(value: dict[str, list[dict[str, dict[str, dict[str, object]]]]]) -> None:
        for queue in value["queues"]:
            for name, gate in queue["gates"].items():
                gate["status"] = [[0, 0x60007]] if name == "received" else []

    edit(run, "receiver/rings.json", mark)
    first = found(run)["receiver", "rx"].entries[0]

    assert "given, status 0x0" == first.before
    assert "status 0x60007" in first.after


def test_the_report_has_one_line_of_it(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    text = report.render(ledger.build(run), run)

    lines = [line for line in text.splitlines() if line.startswith("Rings: ")]
    assert 1 == len(lines)
    assert "receiver rx descriptor 0 filled" in lines[0]


def test_over_loopback_there_is_none(tmp_path: Path) -> None:
    run = cooked.loopback(tmp_path).serve()

    assert {} == found(run)
    assert "Rings:" not in report.render(ledger.build(run), run)
