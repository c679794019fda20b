"""Read members of a Debian package without dpkg and without unpacking it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab.errors import ImageError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_SIZE = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file or symbolic link of a package; `target` is set for links only."""

    path: str
    mode: int
    data: bytes
    target: str | None = None


@contextmanager
def opened(package: Path) -> Iterator[tarfile.TarFile]:
    """Open a package's data archive as a stream: members can be read once, in order."""
    with package.open("rb") as raw:
        _seek_data(raw, package)
        try:
            with tarfile.open(fileobj=raw, mode="r|*") as archive:
                yield archive
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ImageError(f"{package.name} is no readable package: {error}") from error


def members(package: Path, wanted: Callable[[str], bool]) -> dict[str, Member]:
    """Return by path the files and links of `package` whose path is `wanted`."""
    found: dict[str, Member] = {}
    with opened(package) as archive:
        for info in archive:
            path = info.name.removeprefix("./").rstrip("/")
            if not (info.isfile() or info.issym()) or not wanted(path):
                continue
            if info.issym():
                found[path] = Member(path=path, mode=0o777, data=b"", target=info.linkname)
                continue
            source = archive.extractfile(info)
            assert source is not None  # isfile() says so
            found[path] = Member(path=path, mode=info.mode & 0o7777, data=source.read())
    return found


def _seek_data(raw: IO[bytes], package: Path) -> None:
    # Leaves `raw` at the start of data.tar.*; the decompressor stops at its own end marker.
    if raw.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ImageError(f"{package.name} is no Debian package: it does not begin as an ar archive")
    while len(head := raw.read(_AR_HEADER_SIZE)) == _AR_HEADER_SIZE:
        name = head[:16].decode("ascii", "replace").strip().rstrip("/")
        if name.startswith("data.tar"):
            if name not in {"data.tar", "data.tar.gz", "data.tar.bz2", "data.tar.xz"}:
                raise ImageError(f"{package.name} is packed as {name}, which cannot be read here")
            return
        size = int(head[48:58])
        raw.seek(size + size % 2, 1)
    raise ImageError(f"{package.name} has no data archive")
