"""Debian packages are read as they are, and what is none is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.errors import ImageError
from lab.image import deb, headers


def package(path: Path, files: Mapping[str, str | bytes], *, name: str = "data.tar.xz") -> Path:
    """Write a package; a value that begins with -> is a link's target."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:xz", preset=0) as archive:
        for inner, text in files.items():
            info = tarfile.TarInfo("./" + inner)
            if isinstance(text, str) and text.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, text[2:]
                archive.addfile(info)
                continue
            data = text.encode() if isinstance(text, str) else text
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (name, raw.getvalue())]
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for member, data in members:
            out.write(f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
            out.write(data + b"\n" * (len(data) % 2))
    return path


def test_files_and_links_are_read(tmp_path: Path) -> None:
    path = package(tmp_path / "x.deb", {"bin/a": "one", "bin/b": "->a", "share/c": "no"})
    found = deb.members(path, lambda inner: inner.startswith("bin/"))
    assert {"bin/a", "bin/b"} == set(found)
    assert (b"one", 0o755, None) == (
        found["bin/a"].data,
        found["bin/a"].mode,
        found["bin/a"].target,
    )
    assert found["bin/b"].target == "a"


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ImageError, match="no Debian package"):
        deb.members(path, lambda _: True)


def test_a_package_cut_short_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "x.deb", {"a": "x" * 5000})
    path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(ImageError, match="no readable package"):
        deb.members(path, lambda _: True)


def test_a_packing_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "x.deb", {"a": "x"}, name="data.tar.lz9")
    with pytest.raises(ImageError, match=r"data\.tar\.lz9"):
        deb.members(path, lambda _: True)


def test_a_package_without_data_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "x.deb", {"a": "x"}, name="other")
    with pytest.raises(ImageError, match="no data archive"):
        deb.members(path, lambda _: True)


RELEASE = "6.12.9-amd64"
TREE = f"usr/src/linux-headers-{RELEASE}"
HEADERS = {
    f"{TREE}/Makefile": "include /usr/src/linux-headers-6.12.9-common/Makefile\n",
    f"{TREE}/.kernelvariables": (
        "override ARCH = x86\noverride KERNELRELEASE = 6.12.9-amd64\nCCACHE = ccache\n"
        "CC = $(CROSS_COMPILE)gcc-12\nifneq (,$(X))\noverride CROSS_COMPILE = x86-\nendif\n"
    ),
    f"{TREE}/include/config/SMP": "",
    f"{TREE}/include/config/auto.conf": "CONFIG_SMP=y\n",
    f"{TREE}/scripts": "->../../lib/linux-kbuild-6.12.9/scripts",
    "usr/lib/linux-kbuild-6.12.9/scripts/modpost": "tool",
    "usr/share/doc/changelog": "long",
}


def unpack(path: Path, root: Path) -> None:
    headers.unpack([path], root)
    headers.settle(root, RELEASE, final=root)


def test_headers_are_unpacked_and_led_to_where_they_lie(tmp_path: Path) -> None:
    root = tmp_path / "root"
    unpack(package(tmp_path / "h.deb", HEADERS), root)
    tree = headers.tree(root, RELEASE)
    assert (tree / "Makefile").read_text() == (
        f"include {root}/usr/src/linux-headers-6.12.9-common/Makefile\n"
    )
    assert (tree / ".kernelvariables").read_text() == (
        "override ARCH = x86\noverride KERNELRELEASE = 6.12.9-amd64\n"
    )
    assert (tree / "scripts/modpost").stat().st_mode & 0o111
    assert (tree / "include/config/auto.conf").is_file()
    assert not (tree / "include/config/SMP").exists()
    assert not (root / "usr/share").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{TREE}/Makefile": None}, "Makefile"),
        ({"usr/lib/linux-kbuild-6.12.9/scripts/modpost": None}, "leads nowhere"),
        ({f"{TREE}/out": "->/etc"}, "absolute link"),
        ({f"{TREE}/../../../up": "x"}, "holds the path"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, str | None], said: str
) -> None:
    files = {path: text for path, text in (HEADERS | change).items() if text is not None}
    path = package(tmp_path / "h.deb", files)
    with pytest.raises(ImageError, match=said):
        unpack(path, tmp_path / "root")
