"""Labs on the host: what garbage collection may take, and whose folders it may be in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import admission, paths, topology
from lab.errors import HostError, LabBusy, LabNotUp


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


def test_half_a_state_is_none() -> None:
    with topology.opened("half", create=True) as lab:
        (lab.base / "state.json").write_text('{"kernel": "6.12"')
        assert topology.Lab("half").state is None
