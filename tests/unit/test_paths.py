"""Where things lie, and whose they must be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import paths
from lab.errors import HostError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a folder away")
FOLDERS = {
    "LAB_CACHE": paths.cache,
    "LAB_RUNTIME": paths.runtime,
    "LAB_RAM": paths.ram,
    "LAB_RUNS": paths.runs,
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_variable_moves_its_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/elsewhere/x")

    assert Path("/elsewhere/x") == FOLDERS[name]()


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_variable_counts_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")

    assert Path() != FOLDERS[name]()


@pytest.mark.parametrize("name", FOLDERS)
def test_two_users_share_no_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    for variable in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable)
    found = []
    for uid in (1000, 1001, 0):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        monkeypatch.setenv("HOME", f"/home/{uid}")
        found.append(FOLDERS[name]())

    assert 3 == len(set(found)) or name == "LAB_RUNS"


def test_a_socket_path_fits_the_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_RUNTIME")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)

    assert 40 > len(str(paths.runtime()))


def test_our_own_data_is_where_the_playbooks_are() -> None:
    assert (paths.data() / "playbooks" / "nic.yaml").is_file()


def test_a_private_folder_is_ours_alone(tmp_path: Path) -> None:
    made = paths.private(tmp_path / "a" / "b")

    assert 0o700 == made.stat().st_mode & 0o777
    assert made == paths.private(made)


def test_a_file_in_the_way_is_a_fault_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match="cannot be made a folder"):
        paths.private(tmp_path / "file" / "below")
    with pytest.raises(HostError, match="cannot be made a folder"):
        paths.private(tmp_path / "file")


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)

    with pytest.raises(HostError, match="belongs to uid 65534, not to us"):
        paths.private(tmp_path)


@as_root
def test_a_link_another_user_laid_to_a_folder_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "ours")
    os.lchown(link, 65534, 65534)

    with pytest.raises(HostError, match="belongs to uid 65534"):
        paths.private(link)
