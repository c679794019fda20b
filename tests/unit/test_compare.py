"""Two runs beside each other, the list of runs, and the page of a module that was tried."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

import tasks
from lab import experiment, ledger, report
from lab.commands import Console, read
from lab.errors import PlaybookError, TraceCorrupt
from lab.journal import Journal
from lab.ledger import Ledger
from lab.report import compare, crash, listing, tables
from lab.rundir import RunDir
from tests.unit import cooked, reader
from tests.unit.cooked import Cook, edit

Side = tuple[Ledger, RunDir]
GOOD = ("COMPLETE", "AGREED", "PROVEN")


def side(cook: Cook) -> Side:
    run = cook.serve()
    return ledger.build(run), run


@pytest.fixture
def both(tmp_path: Path) -> tuple[Side, Side]:
    return side(cooked.loopback(tmp_path / "lo")), side(cooked.nic(tmp_path / "nic"))


def test_loopback_against_link(both: tuple[Side, Side]) -> None:
    found = compare.compare(*both)
    totals = {row.name: (row.first, row.second) for row in found.totals}
    moved = [(row.first, row.second) for row in found.movements]

    assert totals["CPU copies"] == ("2", "3")
    assert totals["device reads"] == ("0", "1")
    assert totals["handovers"] == ("1", "0")
    assert totals["skb"] == ("same skb, same head", "different skbs")
    assert moved[-1] == ("CPU copy: _copy_to_iter", "CPU copy: _copy_to_iter")
    assert ("–", "CPU copy: memcpy in page_to_skb") in moved
    assert "offloads" in {row.name for row in found.conditions if not row.same}


def test_a_run_against_itself_differs_in_nothing(both: tuple[Side, Side]) -> None:
    found = compare.compare(both[1], both[1])
    rows = (*found.totals, *found.movements, *found.places, *found.conditions)

    names = [row.name for row in found.places]
    assert len(names) == len(set(names)), "each place is told from the others"
    assert {"sender user buffer", "receiver user buffer"} <= {*names}
    assert all(row.same for row in rows)
    assert "The conditions are the same." in compare.render(found)


def test_the_comparison_fits_and_tells_what_differs(both: tuple[Side, Side]) -> None:
    text = compare.render(compare.compare(*both))

    assert max(map(len, text.splitlines())) <= tables.WIDTH
    assert any(line.startswith("CPU copies") and line.endswith("*") for line in text.splitlines())


def test_both_are_in_one_picture(both: tuple[Side, Side]) -> None:
    found = compare.compare(*both)
    tags = reader.tags(compare.page(found, *both))
    drawn = [
        (told["data-kind"], told["data-movements"]) for _, told in tags if "data-movements" in told
    ]
    links = [told["href"] for _, told in tags if "href" in told]

    # Each side in a drawing for a screen and in one for a phone.
    assert len(drawn) == 2 * (3 + 5)
    assert {"copy", "dma-read", "dma-write", "handover"} == {kind for kind, _ in drawn}
    assert links == ["data:,"]


# --- The list of runs -----------------------------------------------------------------------


def test_a_run_is_listed_with_what_it_came_to(tmp_path: Path) -> None:
    path = tmp_path / "20261122T011610Z-nic-5d4478a4"
    run = cooked.nic(path, count=5, size=1400).serve()
    run.write_text("ledger.json", ledger.build(run).to_json())
    row = listing.row(path)

    assert row is not None
    assert (row.when, row.message) == ("2026-11-22 01:16:10", "5 x 1400 udp")
    assert (row.verdict, row.complete) == ("COMPLETE", True)
    assert row.size == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert listing.row(tmp_path) is None


def test_a_crash_is_listed_by_its_verdict(tmp_path: Path) -> None:
    RunDir(tmp_path).write_json("manifest.json", {"kind": "try", "playbook": "try-x"})
    RunDir(tmp_path).write_json("postmortem.json", {"verdict": "oops"})
    row = listing.row(tmp_path)

    assert row is not None
    assert (row.verdict, row.complete, row.playbook) == ("oops", None, "try-x")


def test_witnesses_that_disagree_are_the_verdict(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    found = ledger.build(run)
    one = ledger.Disagreement(guest="sender", what="order", message=None, text="x", evidence=())
    many = "x" * (listing.HEAD * 4)
    for changed, verdict in (
        (found, "COMPLETE"),
        (replace(found, disagreements=(one,)), "DISAGREEMENT"),
        (replace(found, disagreements=(one,) * 9, notes=(many,)), "DISAGREEMENT"),
        (replace(found, complete=False, disagreements=(one,)), "INCOMPLETE"),
        (replace(found, notes=('"disagreements": [1',)), "COMPLETE"),
    ):
        run.write_text("ledger.json", changed.to_json())
        row = listing.row(tmp_path)
        assert row is not None
        assert row.verdict == verdict


@pytest.mark.parametrize(
    ("experiment", "file", "result", "verdict"),
    [
        ("trap", "result.json", {"trouble": []}, "COMPLETE"),
        ("trap", "result.json", {"trouble": ["x"]}, "DISAGREEMENT"),
        ("chain", "chain.json", {"trouble": []}, "AGREED"),
        ("chain", "chain.json", {"trouble": ["x"]}, "DISAGREEMENT"),
        ("known", "known.json", {"trouble": []}, "COMPLETE"),
        ("known", "known.json", {"trouble": ["x"]}, "DISAGREEMENT"),
        ("as-written", "as_written.json", {"complete": True, "trouble": []}, "COMPLETE"),
        ("as-written", "as_written.json", {"complete": False, "trouble": ["x"]}, "INCOMPLETE"),
        ("socket", "socket.json", {"complete": True}, "PROVEN"),
        ("socket", "socket.json", {"complete": False}, "NOT PROVEN"),
        ("trap", "chain.json", {"trouble": []}, "no result"),
    ],
)
def test_a_run_without_a_ledger_is_listed_by_its_own_result(
    tmp_path: Path, experiment: str, file: str, result: dict[str, Any], verdict: str
) -> None:
    RunDir(tmp_path).write_json("manifest.json", {"experiment": experiment})
    RunDir(tmp_path).write_json(file, result)
    row = listing.row(tmp_path)

    assert row is not None
    assert row.verdict == verdict
    assert row.complete is (None if verdict == "no result" else verdict in GOOD)


@pytest.mark.parametrize(("trouble", "verdict"), [([], "COMPLETE"), (["x"], "INCOMPLETE")])
def test_trouble_beside_a_ledger_is_the_verdict(
    tmp_path: Path, trouble: list[str], verdict: str
) -> None:
    run = cooked.loopback(tmp_path).serve()
    edit(run, "manifest.json", lambda value: value.update(experiment="arrival"))
    run.write_text("ledger.json", ledger.build(run).to_json())
    run.write_json("arrival.json", {"trouble": trouble})
    row = listing.row(tmp_path)

    assert row is not None
    assert row.verdict == verdict


@pytest.mark.parametrize("keep", ["-1", "-7", "some"])
def test_to_keep_fewer_than_no_runs_is_refused(keep: str) -> None:
    console = Console(json=False, journal=Journal(stream=io.StringIO()))

    with pytest.raises(PlaybookError, match=f"--prune={keep}: expected how many"):
        read.prune(console, keep)


def test_the_task_refuses_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.commands.signal.signal", lambda *_: None)  # the tests' own stay
    with pytest.raises(Exit, match="--prune=-1"):
        tasks.runs(Context(), prune="-1")


# --- What was expected ----------------------------------------------------------------------


def expecting(path: Path, **lines: object) -> tuple[str, str, str]:
    """Return report.txt, report.html and the listed verdict of a run of which that is expected."""
    run = cooked.nic(path, count=2).serve()
    edit(run, "manifest.json", lambda value: value.update(expect=lines))
    journal = Journal(stream=io.StringIO())
    experiment.analyse(run, journal=journal)
    row = listing.row(path)
    assert row is not None
    return (
        run.read_bytes("report.txt").decode(),
        run.read_bytes("report.html").decode(),
        row.verdict,
    )


def test_a_failed_expectation_is_in_both_reports_and_in_the_list(tmp_path: Path) -> None:
    text, page, verdict = expecting(tmp_path, complete=True, guest_cpu_copies=3, device_reads=7)

    assert "! expected device-reads of message 0 7, found 1" in text
    assert "! expected device-reads of message 1 7, found 1" in text
    assert "Expected by the playbook, and held: complete yes, guest-cpu-copies 3 (x 2)." in text
    assert "<li>device-reads of 2 messages, 0 to 1: expected 7, found 1</li>" in page
    assert "What the playbook expected" in page
    assert verdict == "COMPLETE, NOT AS EXPECTED"


def test_expectations_that_hold_are_said(tmp_path: Path) -> None:
    text, page, verdict = expecting(tmp_path, complete=True, device_reads=1)

    assert "! expected" not in text
    assert "and held: complete yes, device-reads 1 (x 2)." in text
    assert "What the playbook expected</h3>" in page
    assert "is not so" not in page
    assert verdict == "COMPLETE"


# --- A module that was tried ----------------------------------------------------------------

FOUND: dict[str, Any] = {
    "verdict": "oops",
    "phase": "load",
    "at": "null_write.c:20 null_write_init+0x101",
    "fingerprint": "12237693cf85",
    "module": "null_write",
    "kernel": "6.12",
    "why": "BUG: <script>alert(1)</script>",
    "fault": {"address": "0x10", "registers": {"RAX": "0"}, "title": "BUG", "comm": "<b>insmod"},
    "member": "struct thing.count",
    "instruction": "movl $0x7,0x10(%rax)",
    "trace": [{"frame": "null_write_init+0x101/0xff0", "at": "null_write.c:20"}],
    "log": ["<img src=x>"] * 300,
    "build": "",
    "phases": [{"name": "load", "seconds": 0.41}],
}


def tried(path: Path, **changed: Any) -> str:
    run = RunDir(path)
    source = path / "module" / "src"
    source.mkdir(parents=True)
    (source / "null_write.c").write_text("".join(f"line {n};\n" for n in range(1, 41)))
    run.write_json("manifest.json", {"kind": "try", "module": "null_write.c"})
    run.write_json("postmortem.json", {**FOUND, **changed})
    return crash.page(run)


def test_a_crash_names_its_line(tmp_path: Path) -> None:
    text = reader.words(tried(tmp_path))

    assert "OOPS null_write in phase 'load', at null_write.c:20 null_write_init+0x101" in text
    assert "20 ▸ line 20;" in text
    assert "line 15;" in text
    assert "line 26;" not in text
    assert "struct thing.count" in text
    assert "Left out here: 100 more lines" in text


def test_what_a_guest_said_stays_words(tmp_path: Path) -> None:
    html = tried(tmp_path)

    assert {"script", "img"}.isdisjoint(name for name, _ in reader.tags(html))
    assert "&lt;b&gt;insmod" in html


@pytest.mark.parametrize("at", ["../../../etc/passwd:1 x", "/etc/passwd:1", "gone.c:3", "x", ""])
def test_only_the_modules_own_sources_are_shown(tmp_path: Path, at: str) -> None:
    assert "▸" not in tried(tmp_path, at=at)


def test_a_module_that_loaded_is_no_fault(tmp_path: Path) -> None:
    text = reader.words(tried(tmp_path, verdict="loaded", at="", fault=None))

    assert "✓ LOADED" in text
    assert "✗" not in text


def test_without_a_post_mortem_there_is_no_page(tmp_path: Path) -> None:
    RunDir(tmp_path).write_json("manifest.json", {})

    with pytest.raises(TraceCorrupt):
        report.crash_page(RunDir(tmp_path))
    assert json.loads((tmp_path / "manifest.json").read_text()) == {}
