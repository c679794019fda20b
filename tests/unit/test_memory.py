"""Guest RAM read from its file: holes stay holes, nothing is missed at the seams."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import memory
from lab.memory import GuestMemory


def sparse(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as out:
        out.truncate(size)
        for at, data in pieces.items():
            out.seek(at)
            out.write(data)
    return path


def test_find_sees_every_occurrence(tmp_path: Path) -> None:
    ram = sparse(tmp_path / "ram", 1 << 20, {4096: b"xxneedlexx", 200000: b"needle"})
    with GuestMemory(ram) as guest:
        assert [4098, 200000] == list(guest.find(b"needle"))
        assert [] == list(guest.find(b"no such"))


@pytest.mark.parametrize("shift", [-5, -3, -1, 0, 1])
def test_find_sees_across_the_seams_of_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    monkeypatch.setattr(memory, "PIECE", 4096)
    at = 3 * 4096 + shift
    ram = sparse(tmp_path / "ram", 1 << 16, {4096: b"z" * 40000, at: b"needle"})
    with GuestMemory(ram) as guest:
        assert [at] == list(guest.find(b"needle"))


def test_find_does_not_count_one_occurrence_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PIECE", 16)
    ram = sparse(tmp_path / "ram", 4096, {0: b"a" * 40})
    with GuestMemory(ram) as guest:
        assert list(range(37)) == list(guest.find(b"aaaa"))


def test_reading_does_not_fill_holes(tmp_path: Path) -> None:
    ram = sparse(tmp_path / "ram", 64 << 20, {32 << 20: b"data"})
    before = ram.stat().st_blocks
    with GuestMemory(ram) as guest:
        assert [32 << 20] == list(guest.find(b"data"))
        assert bytes(8) == guest.read(1 << 20, 8)
    assert before == ram.stat().st_blocks


def test_read_outside_ram_is_refused(tmp_path: Path) -> None:
    ram = sparse(tmp_path / "ram", 4096, {})
    with GuestMemory(ram) as guest:
        for at, size in ((4096, 1), (-1, 1), (4090, 7)):
            with pytest.raises(ValueError, match="outside"):
                guest.read(at, size)


def test_extents_of_an_empty_file(tmp_path: Path) -> None:
    ram = sparse(tmp_path / "ram", 1 << 20, {})
    fd = os.open(ram, os.O_RDONLY)
    try:
        assert [] == list(memory.extents(fd, 1 << 20))
    finally:
        os.close(fd)
