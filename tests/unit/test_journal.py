"""Every step is written down when it ends, however it ends."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from lab import journal as subject
from lab.errors import GuestLost, Interrupted
from lab.journal import Journal


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_step_is_one_line_of_json(tmp_path: Path) -> None:
    journal = Journal(stream=io.StringIO())
    journal.to_file(tmp_path / "journal.jsonl")

    with journal.step("boot", guest="sender"):
        pass

    (entry,) = entries(tmp_path / "journal.jsonl")
    assert {"at", "guest", "step", "outcome", "seconds"} == set(entry)
    assert ("sender", "boot", "ok") == (entry["guest"], entry["step"], entry["outcome"])


def test_a_step_that_fails_is_shown_and_written_and_still_fails(tmp_path: Path) -> None:
    stream = io.StringIO()
    journal = Journal(stream=stream)
    journal.to_file(tmp_path / "j")

    with pytest.raises(GuestLost), journal.step("wait", guest="receiver"):
        raise GuestLost("receiver", "gone")

    assert "GuestLost" == entries(tmp_path / "j")[0]["outcome"]
    assert "receiver  wait" in stream.getvalue()
    assert "GuestLost" in stream.getvalue()


def test_ctrl_c_ends_a_step_too(tmp_path: Path) -> None:
    journal = Journal(stream=io.StringIO())
    journal.to_file(tmp_path / "j")

    with pytest.raises(KeyboardInterrupt), journal.step("long"):
        raise KeyboardInterrupt

    assert "KeyboardInterrupt" == entries(tmp_path / "j")[0]["outcome"]


def test_what_came_before_the_file_goes_into_it_once(tmp_path: Path) -> None:
    journal = Journal(stream=io.StringIO())
    with journal.step("first"):
        pass
    journal.to_file(tmp_path / "a")
    journal.to_file(tmp_path / "b")
    with journal.step("second"):
        pass

    assert ["first"] == [e["step"] for e in entries(tmp_path / "a")]
    assert ["second"] == [e["step"] for e in entries(tmp_path / "b")]


def test_a_quick_step_is_silent_unless_verbose() -> None:
    quiet, loud = io.StringIO(), io.StringIO()

    with Journal(stream=quiet).step("quick"):
        pass
    with Journal(stream=loud, verbose=True).step("quick"):
        pass

    assert "" == quiet.getvalue()
    assert loud.getvalue().startswith("host      quick")


def test_a_long_step_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SHOWN_FROM_S", 0.01)
    said = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if "…" in text:
                said.set()
            return super().write(text)

    with Journal(stream=Stream()).step("slow"):
        assert said.wait(10)


def test_threads_share_a_journal_without_mixing_lines(tmp_path: Path) -> None:
    journal = Journal(stream=io.StringIO(), verbose=True)
    journal.to_file(tmp_path / "j")

    def work(name: str) -> None:
        for n in range(20):
            with journal.step(f"{name} {n}", guest=name):
                pass

    threads = [threading.Thread(target=work, args=(name,)) for name in ("sender", "receiver")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 40 == len(entries(tmp_path / "j"))


def test_what_is_said_is_written_too(tmp_path: Path) -> None:
    stream = io.StringIO()
    journal = Journal(stream=stream)
    journal.to_file(tmp_path / "j")

    journal.say("restored, not booted: ünïcode")

    assert "restored, not booted: ünïcode\n" == stream.getvalue()
    assert "said" == entries(tmp_path / "j")[0]["outcome"]


# --- What is usual --------------------------------------------------------------------------


def test_a_long_step_says_how_long_it_usually_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "SHOWN_FROM_S", 0.01)
    history = subject.History(tmp_path / "new" / "steps.json")
    for seconds in (3.0, 90.0, 4.0):
        history.add("boot", seconds)
    said = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            said.set()
            return super().write(text)

    stream = Stream()
    with Journal(stream=stream, history=history).step("boot"):
        assert said.wait(10)

    assert "boot" in stream.getvalue()
    assert ", usually 4 s" in stream.getvalue()
    assert len(json.loads(history.path.read_text())["boot"]) == 4


def test_a_history_stays_small(tmp_path: Path) -> None:
    history = subject.History(tmp_path / "steps.json")
    for number in range(subject.MOST_STEPS + 5):
        for _ in range(subject.REMEMBERED + 1):
            history.add(f"step {number}", 2.5)
    kept = json.loads(history.path.read_text())

    assert len(kept) == subject.MOST_STEPS
    assert {len(times) for times in kept.values()} == {subject.REMEMBERED}
    assert history.expected("step 0") is None
    assert history.expected(f"step {subject.MOST_STEPS}") == 2.5


@pytest.mark.parametrize("text", ["", "[1]", '{"boot": "x"}', '{"boot": [null]}', "\x00"])
def test_a_broken_history_expects_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "steps.json"
    path.write_text(text)

    assert subject.History(path).expected("boot") is None


@pytest.mark.parametrize(
    "error", [GuestLost("receiver", "gone"), Interrupted(), KeyboardInterrupt()]
)
def test_a_step_that_did_not_end_well_is_no_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(subject, "SHOWN_FROM_S", 0.0)
    history = subject.History(tmp_path / "steps.json")
    journal = Journal(stream=io.StringIO(), history=history)

    with pytest.raises(type(error)), journal.step("wait"):
        raise error

    assert history.expected("wait") is None


def test_a_step_is_expected_to_take_as_long_as_those_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "SHOWN_FROM_S", 0.0)
    history = subject.History(tmp_path / "steps.json")
    journal = Journal(stream=io.StringIO(), history=history)
    for scale in (10_000_000, 70_000, 100_000, 0):
        with journal.step("ledger", scale=scale):
            pass
    kept = json.loads(history.path.read_text())

    assert [1, 2, 1] == [len(times) for times in kept.values()]
    assert "ledger" == [*kept][-1]
