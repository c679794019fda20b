"""The archive writer: what goes in comes out, and the same goes in as the same bytes."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from lab.errors import ImageError
from lab.image import cpio


def archive(*entries: cpio.Entry) -> bytes:
    out = io.BytesIO()
    cpio.write(entries, out)
    return out.getvalue()


ENTRIES = (
    cpio.file("usr/bin/tool", b"\x7fELF and more", 0o755),
    cpio.link("bin", "usr/bin"),
    cpio.node("dev/console", 0o600, 5, 1),
    cpio.folder("tmp", 0o1777),
    cpio.file("etc/empty", b""),
)


def test_what_goes_in_comes_out() -> None:
    found = {entry.path: entry for entry in cpio.read(archive(*ENTRIES))}
    for entry in ENTRIES:
        assert entry == found[entry.path]


def test_folders_are_made_for_what_lies_in_them() -> None:
    found = {entry.path: entry.mode for entry in cpio.read(archive(cpio.file("a/b/c", b"x")))}
    assert found["a"] == found["a/b"] == stat.S_IFDIR | 0o755
    assert ["a", "a/b", "a/b/c"] == list(found)


def test_the_order_of_entries_does_not_matter() -> None:
    assert archive(*ENTRIES) == archive(*reversed(ENTRIES))


def test_other_content_gives_other_bytes() -> None:
    assert archive(cpio.file("a", b"1")) != archive(cpio.file("a", b"2"))


def test_two_entries_of_one_path_are_refused() -> None:
    with pytest.raises(ImageError, match="two entries for a/b"):
        archive(cpio.file("a/b", b"1"), cpio.file("a/b", b"2"))


def test_a_file_below_a_file_is_refused() -> None:
    with pytest.raises(ImageError, match="a in the initramfs is no folder"):
        archive(cpio.file("a", b"1"), cpio.file("a/b", b"2"))


@pytest.mark.parametrize("path", ["", "/etc", "a//b", "a/../b", "./a", "a/"])
def test_a_bad_path_is_refused(path: str) -> None:
    with pytest.raises(ImageError, match="bad path"):
        archive(cpio.file(path, b""))


@pytest.mark.parametrize("cut", [0, 50, 200])
def test_an_archive_cut_short_is_refused(cut: int) -> None:
    whole = archive(cpio.file("a", b"x" * 300))
    with pytest.raises(ImageError, match="offset"):
        cpio.read(whole[:cut])


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
def test_cpio_itself_reads_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["cpio", "-it", "--quiet"],
        input=archive(*ENTRIES),
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    expected = [entry.path for entry in cpio.read(archive(*ENTRIES))]
    assert expected == done.stdout.decode().split()
