"""The whole post-mortem from a cooked run directory, its fingerprint, and what groups."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

from lab import postmortem
from lab.commands import Console, crash
from lab.errors import GuestError
from lab.journal import Journal
from lab.rundir import RunDir

LOGS = Path(__file__).parent / "postmortem_logs"
SEEN: dict[str, Any] = {"phases": [{"name": "load", "exit": None}], "seconds": 0.3}


def cook(base: Path, name: str, log: str, **seen: Any) -> RunDir:
    """Write what an attempt leaves, with a real kernel log."""
    run = base / name
    (run / "receiver").mkdir(parents=True)
    manifest = {"module": f"{log}.c", "kernel": "6.12", "guests": ["receiver"]}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (run / "receiver" / "observations.json").write_text(json.dumps({**SEEN, **seen}))
    shutil.copyfile(LOGS / f"{log}.log", run / "receiver" / "kernel.log")
    return RunDir(run)


def finish(run: RunDir) -> postmortem.Postmortem:
    found = postmortem.analyse(run)
    run.write_json("postmortem.json", found.as_json())
    return found


def test_the_page_has_what_is_known_and_makes_up_nothing(tmp_path: Path) -> None:
    found = postmortem.analyse(cook(tmp_path, "a", "null_write"))
    page = postmortem.render(found)

    assert page.startswith("OOPS in phase 'load'")
    assert "address      0x10" in page
    assert "null_write_init+0x" in page
    assert found.member is None  # no debug information here, so no line and no member
    assert "" == found.source


def test_a_panic_says_what_it_began_with_and_nothing_twice(tmp_path: Path) -> None:
    found = postmortem.analyse(cook(tmp_path, "a", "worksheet_bug1", end="panicked"))
    page = postmortem.render(found)

    assert page.startswith("PANIC in phase 'load'")
    assert "BUG: unable to handle page fault" in page
    assert 1 == page.count(found.verdict.why)
    quiet = cook(tmp_path, "b", "null_write")
    (quiet.path / "receiver" / "kernel.log").write_text("")
    assert postmortem.render(postmortem.analyse(quiet)).startswith("LOADED\n")


def test_json_has_the_five_fields_of_the_contract(tmp_path: Path) -> None:
    value = postmortem.analyse(cook(tmp_path, "a", "null_write")).as_json()

    assert {"verdict", "phase", "at", "fingerprint", "run"} <= value.keys()
    assert "oops" == value["verdict"]


def test_the_same_fault_has_one_fingerprint_and_another_has_another(tmp_path: Path) -> None:
    first = finish(cook(tmp_path, "a", "null_write"))
    moved = cook(tmp_path, "b", "null_write")
    log = moved.path / "receiver" / "kernel.log"
    # Another boot: other addresses, another pid, another time.
    text = log.read_text().replace("ffff", "fffe").replace("PID: 1", "PID: 9").replace("5.", "7.")
    log.write_text(text)
    again = finish(moved)
    other = finish(cook(tmp_path, "c", "bad_jump"))

    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    groups = postmortem.group(tmp_path)
    assert [2, 1] == [one.count for one in groups]
    assert "b" == groups[0].last


def test_last_and_loaded_runs_are_not_counted(tmp_path: Path) -> None:
    run = cook(tmp_path, "a", "null_write")
    finish(run)
    (tmp_path / "last").symlink_to(run.path)
    quiet = cook(tmp_path, "b", "null_write")
    (quiet.path / "receiver" / "kernel.log").write_text("")
    assert "loaded" == finish(quiet).verdict.word
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "postmortem.json").write_text("{ half")

    assert [1] == [one.count for one in postmortem.group(tmp_path)]


def test_a_failed_build_shows_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"module": "x.c", "kernel": "6.1"}))
    (tmp_path / "build.log").write_text("x.c: refused\nx.c:3:9: error: no such thing\n")
    found = postmortem.analyse(RunDir(tmp_path))

    assert "build-failed" == found.verdict.word
    assert "x.c:3" == found.at
    assert "no such thing" in found.verdict.why
    assert "x.c:3:9: error: no such thing" in postmortem.render(found)


@pytest.mark.parametrize(
    ("verdict", "at", "faults"),
    [
        ("oops", None, 0),
        ("oops", "null_write_init", 0),
        ("panic", None, 1),
        ("oops", "other.c", 1),
        ("panic", "other.c", 2),
        (None, None, 0),
    ],
)
def test_an_expectation(tmp_path: Path, verdict: str | None, at: str | None, faults: int) -> None:
    found = postmortem.analyse(cook(tmp_path, "a", "null_write"))

    assert faults == len(postmortem.matches(found, verdict, at))


def test_line_1_is_not_the_beginning_of_line_12() -> None:
    assert postmortem._begins("a.c:12 f+0x1", "a.c:12")
    assert not postmortem._begins("a.c:12 f+0x1", "a.c:1")


def test_a_damaged_trace_is_said_and_is_no_crash_of_ours(tmp_path: Path) -> None:
    run = cook(tmp_path, "a", "null_write")
    (run.path / "receiver" / "trace.bin").write_bytes(b"half a header")

    assert "damaged" in postmortem.analyse(run).records[0]


def test_reading_a_crash_again_suggests_no_option_of_the_task_that_tried_it(tmp_path: Path) -> None:
    console = Console(json=False, journal=Journal(stream=io.StringIO()))

    with pytest.raises(Exit) as failed:
        crash.recompute(console, cook(tmp_path, "a", "null_write"))

    assert GuestError.exit_code == failed.value.code
    assert "oops at null_write_init" in str(failed.value.message)
    assert "--expect" not in str(failed.value.message)
