"""The whole post-mortem from a cooked run directory, its fingerprint, and what groups."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

from lab import attempt, postmortem
from lab.commands import Console, crash, read
from lab.errors import EvidenceError, GuestError, LabError, TraceCorrupt
from lab.journal import Journal
from lab.rundir import RunDir
from tests.unit import cooked

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
    groups, _ = postmortem.group(tmp_path)
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

    groups, left_out = postmortem.group(tmp_path)
    assert [1] == [one.count for one in groups]
    assert ["c"] == [run for run, _ in left_out]


def test_a_failed_build_shows_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"module": "x.c", "kernel": "6.1"}))
    (tmp_path / "build.log").write_text("x.c: refused\nx.c:3:9: error: no such thing\n")
    found = postmortem.analyse(RunDir(tmp_path))

    assert "build-failed" == found.verdict.word
    assert "x.c:3" == found.at
    assert "no such thing" in found.verdict.why
    assert "x.c:3:9: error: no such thing" in postmortem.render(found)


def listed(run: RunDir) -> RunDir:
    """Give an attempt the list of its files, as `lab.try` does when it is over."""
    run.write_manifest({**run.manifest_json(), "kind": "try"})
    attempt.list_files(run)
    return run


def test_an_attempt_as_it_was_written_has_no_changes(tmp_path: Path) -> None:
    run = cook(tmp_path, "a", "null_write")
    assert "whether they are as the attempt wrote them is not known" in postmortem.render(
        finish(run)
    )
    found = finish(listed(run))

    assert () == found.changes
    assert "not known" not in postmortem.render(found)
    assert ([1], []) == ([one.count for one in postmortem.group(tmp_path)[0]], [])


CHANGES: list[tuple[str, bytes | None, str]] = [
    ("receiver/kernel.log", None, "receiver/kernel.log is gone since the run"),
    ("receiver/kernel.log", b"", "receiver/kernel.log was changed since the run"),
    ("receiver/console.log", b"more", "receiver/console.log is not among the files of the run"),
    ("module/src/a.c", b"int b;", "module/src/a.c was changed since the run"),
    ("build.log", None, "build.log is gone since the run"),
]


@pytest.mark.parametrize(("name", "data", "why"), CHANGES)
def test_what_was_changed_is_said_before_any_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None, why: str
) -> None:
    run = cook(tmp_path, "a", "null_write")
    (run.path / "module" / "src").mkdir(parents=True)
    run.file("module/src/a.c").write_text("int a;")
    run.write_text("build.log", "made\n")
    finish(listed(run))
    change(run, name, data)

    with pytest.raises(Exit) as failed:
        crash.recompute(Console(json=False, journal=Journal(stream=io.StringIO())), run)

    assert EvidenceError.exit_code == failed.value.code
    assert why in str(failed.value.message)
    assert capsys.readouterr().out.startswith(f"! {why}\n")
    assert why in run.file("report.html").read_text()
    assert ([], [("a", why)]) == postmortem.group(tmp_path)


def change(run: RunDir, name: str, data: bytes | None) -> None:
    path = run.file(name)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def test_observations_that_are_gone_are_no_failed_build(tmp_path: Path) -> None:
    run = listed(cook(tmp_path, "a", "null_write"))
    run.file("receiver/observations.json").unlink()

    with pytest.raises(EvidenceError, match=r"observations.json is gone since the run: .* no file"):
        postmortem.analyse(run)
    run.write_manifest({"kind": "try", "module": "x.c"})  # nor of one that lists no files
    with pytest.raises(TraceCorrupt, match=r"receiver/observations.json: expected what was seen"):
        postmortem.analyse(run)
    run.write_text("build.log", "x.c:1: warning: built all the same\n")
    run.file("module").mkdir()
    with pytest.raises(TraceCorrupt, match=r"receiver/observations.json: expected what was seen"):
        postmortem.analyse(run)


def test_a_run_of_messages_is_no_attempt_that_failed_to_build(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    cooked.edit(run, "manifest.json", lambda found: found.update(kind="try", experiment="message"))

    with pytest.raises(TraceCorrupt, match=r'manifest.json: kind: expected none .* found "try"'):
        postmortem.analyse(run)


def test_kept_ram_may_go_and_a_core_be_made_but_none_of_changed_ram(tmp_path: Path) -> None:
    run = cook(tmp_path, "a", "null_write")
    run.file("receiver/ram").write_bytes(bytes(64))
    listed(run).file("receiver/vmcore").write_bytes(b"made later")
    assert () == run.attempt_changes() == run.attempt_changes(ram=True)

    run.file("receiver/ram").write_bytes(bytes(63))
    with pytest.raises(EvidenceError, match="receiver/ram was changed since the run"):
        attempt.vmcore(run)
    run.file("receiver/ram").unlink()
    with pytest.raises(EvidenceError, match="receiver/ram is gone since the run"):
        attempt.vmcore(run)
    assert () == run.attempt_changes()


@pytest.mark.parametrize("task", [read.compare, crash.vmcore])
def test_tasks_that_need_no_verdict_say_what_was_changed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path))
    run = listed(cook(tmp_path, "a", "null_write"))
    change(run, "receiver/kernel.log", b"")
    said = io.StringIO()

    with pytest.raises(LabError):
        task(
            Console(json=False, journal=Journal(stream=said)), *["a"] * (task is read.compare), "a"
        )

    assert "a: receiver/kernel.log was changed since the run" in said.getvalue()


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
