"""The exercises answered from cooked runs, left blank, and marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import worksheet
from lab.errors import EvidenceError
from lab.rundir import RunDir
from lab.worksheet import Answer
from tests.unit import cooked


def of_run(run: RunDir) -> dict[str, Answer]:
    return {one.id: one for one in worksheet.answers(run)}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return cooked.loopback(tmp_path).serve()


def test_every_exercise_is_answered_with_its_evidence(run: RunDir) -> None:
    found = of_run(run)
    assert list(found) == list(worksheet.QUESTIONS)
    assert found["E01"].value == "3"
    assert found["E02"].evidence == ("sender/workload.json#sender/ready",)
    assert found["E05"].value == "58"
    assert found["E06"].value == "0"
    assert "nothing was padded" in found["E06"].note
    assert "2 times" in found["E08"].value
    assert all(one.evidence for one in found.values() if one.value)
    copied, queued = int(found["E03"].value, 16), int(found["E04"].value, 16)
    assert copied - queued == 42  # the three headers lie between


def test_ipv6_has_headers_of_its_own(tmp_path: Path) -> None:
    found = of_run(cooked.nic(tmp_path, family="ipv6").serve())
    assert ("78", "0") == (found["E05"].value, found["E06"].value)
    assert "14 Ethernet + 40 IPv6 + 8 UDP + 16 payload = 78" in found["E05"].note


def test_what_a_run_did_not_record_stays_blank(run: RunDir) -> None:
    run.guest("sender").trace.unlink()
    found = of_run(run)
    assert (found["E03"].value, found["E04"].value, found["E07"].value) == ("", "", "")
    assert "nobody looked" in found["E04"].note
    checked = worksheet.check(list(found.values()), "E04 = 0x1")
    assert (checked[3].right, checked[3].word) == (None, "unknown")
    assert "E04  unknown 0x1   (this run cannot tell)" in worksheet.marks(checked).splitlines()
    assert "E03  blank   ___" in worksheet.marks(checked).splitlines()


def test_registers_of_a_run_that_was_followed(run: RunDir) -> None:
    saved = {"orig_ax": 44, "di": 3, "si": 0x1000, "dx": 16}
    call = {
        "number": 0,
        "parent": -1,
        "how": "call",
        "function": "__x64_sys_sendto",
        "module": "",
        "address": 1,
        "site": 2,
        "task": 3,
        "comm": "sender",
        "entered": 0,
        "entered_ns": 1,
        "arguments": [],
        "returned": None,
        "before": {"regs": saved},
    }
    data = {"schema": 1, "guest": "sender", "kernel": "6.12", "seconds": 1, "breakpoints": 1}
    data |= {"foreign": 0, "dropped": 0, "calls": [call]}
    path = run.guest("sender").file("calls.json")
    path.write_text(json.dumps(data))
    assert of_run(run)["E07"].value == "RDI"
    saved["di"] = 4  # another descriptor than the program's: nothing is known
    path.write_text(json.dumps(data))
    assert of_run(run)["E07"].value == ""


def test_the_blank_sheet_asks_all_and_answers_none(run: RunDir) -> None:
    text = worksheet.blank()
    assert all(f"{name} = ___" in text for name in worksheet.QUESTIONS)
    checked = worksheet.check(worksheet.answers(run), text)
    assert [one.right for one in checked] == [None] * 7


def test_the_filled_in_sheet_is_all_right(run: RunDir) -> None:
    found = worksheet.answers(run)
    checked = worksheet.check(found, worksheet.render(found))
    assert {one.right for one in checked if one.expected} == {True}


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("E01 = 4", 0),
        ("E02 = 0x1", 1),
        ("E03 = ffff", 2),
        ("E04 = nothing", 3),
        ("E05 = 66", 4),  # what the worksheet shows
        ("E06 = 8", 5),  # what its hint would give
    ],
)
def test_a_wrong_answer_is_marked(run: RunDir, line: str, place: int) -> None:
    checked = worksheet.check(worksheet.answers(run), line)
    assert checked[place].right is False
    assert "WRONG" in worksheet.marks(checked)


@pytest.mark.parametrize("line", ["E05 = ___ bytes", "E05 = ___", "E05 =", "E05 = _______ bytes"])
def test_underscores_are_blank_whatever_follows(run: RunDir, line: str) -> None:
    checked = worksheet.check(worksheet.answers(run), line)
    assert (checked[4].right, checked[4].word) == (None, "blank")


def test_a_file_with_nothing_in_it_is_refused(run: RunDir) -> None:
    with pytest.raises(EvidenceError, match="nothing is filled in"):
        worksheet.check(worksheet.answers(run), "hello\n")
