"""Write and read the newc archives that a kernel unpacks as its first root file system."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from lab.errors import ImageError

_MAGIC = b"070701"
_HEADER_SIZE = 110
_FIELDS = 13
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file: `mode` holds type and permissions, `data` content or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str, permissions: int = 0o755) -> Entry:
    """Return an entry for a folder."""
    return Entry(path=path, mode=stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Return an entry for a regular file."""
    return Entry(path=path, mode=stat.S_IFREG | permissions, data=data)


def link(path: str, target: str) -> Entry:
    """Return an entry for a symbolic link."""
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def node(path: str, permissions: int, major: int, minor: int) -> Entry:
    """Return an entry for a character device."""
    return Entry(path=path, mode=stat.S_IFCHR | permissions, device=(major, minor))


def write(entries: Iterable[Entry], out: BinaryIO) -> None:
    """Write `entries` sorted by path, with the folders they need, owned by root at time 0.

    The bytes depend on nothing but the entries: not on their order, the clock, or the host.
    """
    tree: dict[str, Entry] = {}
    for entry in entries:
        path = _clean(entry.path)
        if path in tree:
            raise ImageError(f"two entries for {path} in the initramfs")
        tree[path] = entry
    for path in list(tree):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if not stat.S_ISDIR(tree.setdefault(above, folder(above)).mode):
                raise ImageError(f"{above} in the initramfs is no folder, yet holds files")
    for inode, path in enumerate(sorted(tree), start=1):
        _write_one(out, path, tree[path], inode)
    _write_one(out, _TRAILER, Entry(path=_TRAILER, mode=0), 0)


def _clean(path: str) -> str:
    parts = path.split("/")
    if not path or any(part in {"", ".", ".."} for part in parts):
        raise ImageError(f"bad path in the initramfs: expected a/b/c, found {path!r}")
    return path


def _write_one(out: BinaryIO, path: str, entry: Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    out.write(head + _padding(len(head)))
    out.write(entry.data + _padding(len(entry.data)))


def _padding(size: int) -> bytes:
    return bytes(-size % 4)


def read(archive: bytes) -> list[Entry]:
    """Return the entries of an archive; raise `ImageError` where it is not one."""
    entries: list[Entry] = []
    at = 0
    while True:
        head = archive[at : at + _HEADER_SIZE]
        if len(head) < _HEADER_SIZE or head[:6] != _MAGIC:
            raise ImageError(f"offset {at}: expected a cpio header, found {head[:6]!r}")
        values = [int(head[6 + 8 * i : 14 + 8 * i], 16) for i in range(_FIELDS)]
        name_size, data_size = values[11], values[6]
        name_end = at + _HEADER_SIZE + name_size
        path = archive[at + _HEADER_SIZE : name_end - 1].decode()
        start = name_end + -name_end % 4
        end = start + data_size
        if end > len(archive):
            raise ImageError(f"offset {at}: {path} ends at {end}, the archive at {len(archive)}")
        if path == _TRAILER:
            return entries
        entries.append(
            Entry(
                path=path,
                mode=values[1],
                data=archive[start:end],
                device=(values[9], values[10]),
            )
        )
        at = end + -end % 4
