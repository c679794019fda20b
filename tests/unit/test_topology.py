"""Labs on the host: what garbage collection may take, and whose folders it may be in."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from threading import Timer
from typing import cast

import pytest

from lab import admission, paths, process, snapshot, topology
from lab.accelerator import Accelerator
from lab.errors import HostError, LabBusy, LabNotUp, NoSpace


def test_gc_takes_only_what_a_lab_made() -> None:
    """LAB_RAM may be a folder of the user's with other things in it."""
    ram = paths.private(paths.ram())
    (ram / "thesis").mkdir()
    ours = ram / "gone"
    ours.mkdir()
    (ours / admission.MARK).write_text(f"{paths.runtime() / 'gone'}\n")
    assert ["RAM of gone"] == topology.collect_garbage()
    assert (ram / "thesis").is_dir()
    assert not ours.exists()


def test_gc_leaves_a_lab_of_another_runtime_folder(tmp_path: Path) -> None:
    ram = paths.private(paths.ram())
    elsewhere = tmp_path / "elsewhere" / "other"
    elsewhere.mkdir(parents=True)
    (elsewhere / "state.json").write_text("{}")
    folder = ram / "other"
    folder.mkdir()
    (folder / admission.MARK).write_text(f"{elsewhere}\n")
    assert [] == topology.collect_garbage()
    assert folder.is_dir()


def test_a_snapshot_of_a_lab_that_is_up_is_in_use(tmp_path: Path) -> None:
    """Whoever saves a snapshot evicts old ones, and would take what others restore from."""
    ram = paths.private(paths.ram())
    state = {
        **dict.fromkeys(topology.LabState.__slots__, ""),
        "snapshot": "theirs",
        "guests": {},
        "pristine": True,
    }
    for name, text in (("up", json.dumps(state)), ("torn", "{"), ("down", None)):
        base = tmp_path / "elsewhere" / name
        base.mkdir(parents=True)
        if text is not None:
            (base / "state.json").write_text(text)
        (ram / name).mkdir()
        (ram / name / admission.MARK).write_text(f"{base}\n")
    assert {"theirs"} == topology._snapshots_used()


def test_a_lab_that_saves_its_snapshot_leaves_those_that_others_restore_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evict = snapshot.evict
    monkeypatch.setattr(snapshot, "evict", lambda *, keep: evict(keep=keep, budget=-1))
    monkeypatch.setattr(topology, "_snapshots_used", lambda: {"theirs"})
    monkeypatch.setattr(topology.Lab, "both", lambda *_: {})  # there are no guests to freeze
    for name in ("theirs", "idle"):
        (paths.private(snapshot.folder()) / name).mkdir()
        (snapshot.folder() / name / "meta.json").touch()

    topology.Lab("mine")._save("new", {})

    assert {"theirs", "new"} == {path.name for path in snapshot.folder().iterdir()}


def test_gc_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / admission.MARK).write_text("/nowhere\n")
    ram = paths.private(paths.ram())
    (ram / "link").symlink_to(victim)
    assert [] == topology.collect_garbage()
    assert victim.is_dir()


def test_a_runtime_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to make a folder another user's")
    base = paths.runtime()
    base.mkdir(parents=True)
    os.chown(base, 12345, 12345)
    with pytest.raises(HostError, match="belongs to uid 12345"), topology.opened("x", create=True):
        pass


def test_a_runtime_folder_too_long_for_sockets_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAB_RUNTIME", str(tmp_path / ("x" * 100)))
    with pytest.raises(HostError, match="too long"), topology.opened("x", create=True):
        pass


def test_a_lab_is_held_once() -> None:
    with (
        topology.opened("held", create=True),
        pytest.raises(LabBusy, match="process"),
        topology.opened("held"),
    ):
        pass
    with pytest.raises(LabNotUp), topology.opened("held"):
        pass


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_whoever_finds_a_lab_busy_is_told_how_to_wait_for_it() -> None:
    def waits(hint: str | None) -> int:
        found = re.search(r"\((flock -w) 60 (.*)\)", hint or "")
        assert found is not None
        return subprocess.run(
            [*found[1].split(), "0.1", *shlex.split(found[2])], check=False
        ).returncode

    with topology.opened("held", create=True) as lab:
        lab.state = cast("topology.LabState", "one that stays up")
        with pytest.raises(LabBusy) as busy, topology.opened("held"):
            pass
        assert 1 == waits(busy.value.hint)
    assert 0 == waits(busy.value.hint)


def test_gc_leaves_a_lab_that_another_takes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROBED_S", 0.05)
    monkeypatch.setattr(topology, "names", lambda: ["gone", "held"])
    with topology.opened("held", create=True):
        monkeypatch.setattr(process, "is_locked", lambda _: False)  # it was not, a moment ago
        assert [] == topology.collect_garbage()


def test_a_lock_whose_file_was_removed_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process had the lab, and removed it, between our opening of the lock and its end."""
    take = process.take_lock
    gone: list[int] = []

    def late(fd: int) -> None:
        if not gone:
            gone.append(fd)
            shutil.rmtree(paths.runtime() / "late")
        take(fd)

    monkeypatch.setattr(process, "take_lock", late)
    with topology.opened("late", create=True) as lab:
        assert process.is_locked(lab.base / "lab.lock")
    gone.clear()
    paths.private(paths.runtime() / "late")
    with pytest.raises(LabNotUp), topology.opened("late"):
        pass


def test_a_look_at_a_lock_makes_nobody_busy(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock.open("w") as look, lock.open("w") as ours:
        fcntl.flock(look, fcntl.LOCK_EX)
        Timer(0.05, fcntl.flock, (look, fcntl.LOCK_UN)).start()
        process.take_lock(ours.fileno())
    assert not process.is_locked(lock)


def test_half_a_state_is_none() -> None:
    with topology.opened("half", create=True) as lab:
        (lab.base / "state.json").write_text('{"kernel": "6.12"')
        assert topology.Lab("half").state is None


def test_the_access_log_is_on_or_off_and_nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    tcg = Accelerator(name="tcg", why="test")
    monkeypatch.setenv("LAB_ACCESS_LOG", "off")
    assert "LAB_ACCESS_LOG=off" == topology.access_log_absent(tcg)
    monkeypatch.setenv("LAB_ACCESS_LOG", "0")
    with pytest.raises(HostError, match="LAB_ACCESS_LOG is '0'") as wrong:
        topology.access_log_absent(tcg)
    assert "LAB_ACCESS_LOG=on|off" == wrong.value.hint


def test_a_snapshot_that_there_is_no_room_for_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise NoSpace("a snapshot needs more")

    monkeypatch.setattr(snapshot, "require_space", full)
    with pytest.raises(NoSpace):
        topology.Lab("mine")._save("0" * 24, {})
    assert [] == list(snapshot.folder().iterdir())
