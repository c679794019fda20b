"""What of a guest's memory should never change, compared with its snapshot.

Kernel text, apart from what the kernel itself patches there, and the page cache of the
programs it booted with: a module that writes there is noticed though nothing complains.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import snapshot
from lab.image import Image, cpio
from lab.kernel import Kernel
from lab.memory import GuestMemory

PAGE = 4096
PIECE = 1 << 18
LISTED = 16  # changes that are written down; the others are counted
NOP5 = bytes.fromhex("0f1f440000")
NOP2 = bytes.fromhex("6690")
RET5 = bytes.fromhex("c3cccccccc")
INT3 = 0xCC


class Packed:
    """The RAM of a guest as its snapshot keeps it: read at physical addresses."""

    def __init__(self, path: Path, frozen: snapshot.Frozen) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._starts = [at for at, _ in frozen.runs]
        self._runs = frozen.runs
        self._places: list[int] = []
        place = 0
        for _, length in frozen.runs:
            self._places.append(place)
            place += length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at physical `address`; what was not kept is zeros."""
        out = bytearray(size)
        number = max(0, bisect_right(self._starts, address) - 1)
        for (at, length), place in zip(self._runs[number:], self._places[number:], strict=True):
            if at >= address + size:
                break
            first, last = max(at, address), min(at + length, address + size)
            if first < last:
                piece = os.pread(self._fd, last - first, place + first - at)
                out[first - address : last - address] = piece
        return bytes(out)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Yield the physical address and the bytes of every page that was kept."""
        for (at, length), place in zip(self._runs, self._places, strict=True):
            for done in range(0, length, PIECE):
                piece = os.pread(self._fd, min(PIECE, length - done), place + done)
                for offset in range(0, len(piece), PAGE):
                    yield at + done + offset, piece[offset : offset + PAGE]


def packed(stored: snapshot.Snapshot, guest: str) -> Packed:
    """Open a guest's RAM as the snapshot keeps it."""
    return Packed(stored.file(guest, "ram"), stored.guests[guest])


def runs(old: bytes, new: bytes, *, gap: int = 4) -> list[tuple[int, int]]:
    """Return (start, end) of the parts in which two equally long texts differ."""
    found: list[tuple[int, int]] = []
    for at in (i for i in range(len(old)) if old[i] != new[i]):
        if found and at - found[-1][1] < gap:
            found[-1] = found[-1][0], at + 1
        else:
            found.append((at, at + 1))
    return found


def patched(old: bytes, new: bytes, start: int, end: int) -> str | None:
    """Say what the kernel itself did to `old[start:end]`, None when it was not the kernel.

    It patches one instruction of at most five bytes: calls and jumps to no-ops and back
    (ftrace, static keys and calls), and a probe's int3 or jump over anything.
    """
    for site in range(max(0, end - 5), start + 1):
        before, after = old[site : site + 5], new[site : site + 5]
        if _patchable(before) and _patchable(after):
            return "ftrace, static key or static call"
    if end - start == 1 and (new[start] == INT3 or old[start] == INT3):
        return "probe"
    if end - start <= 5 and 0xE9 in (new[start], old[start]):
        return "probe"
    return None


def _patchable(code: bytes) -> bool:
    return (
        code[:1] in (b"\xe8", b"\xe9")
        or code in (NOP5, RET5)
        or code[:2] == NOP2
        or (code[:1] == b"\xeb")
    )


def text(
    core: Kernel, stored: snapshot.Snapshot, guest: str, symbols: Mapping[str, int]
) -> dict[str, Any]:
    """Compare kernel text with the snapshot's; `foreign` is what no kernel would do."""
    start, end = symbols["_stext"], symbols["_etext"]
    base = core.physical(start)
    foreign: list[dict[str, Any]] = []
    probes: list[str] = []
    count = own = 0
    with packed(stored, guest) as frozen:
        for done in range(0, end - start, PIECE):
            size = min(PIECE, end - start - done)
            # A little over the edge, so that an instruction that crosses it is seen whole.
            old = frozen.read(base + done, size + 8)
            new = core.memory.read(base + done, size + 8)
            if old == new:
                continue
            for first, last in runs(old, new):
                if first >= size:
                    continue
                kind = patched(old, new, first, last)
                if kind == "probe":
                    probes.append(f"0x{start + done + first:x}")
                elif kind is not None:
                    own += 1
                else:
                    count += 1
                    foreign.append(_change(start + done, old, new, first, last))
    return {
        "bytes": end - start,
        "foreign": count,
        "listed": foreign[:LISTED],
        "probes": probes[:LISTED],
        "patched": own,
    }


def _change(base: int, old: bytes, new: bytes, first: int, last: int) -> dict[str, Any]:
    last = min(last, first + 16)
    return {
        "at": f"0x{base + first:x}",
        "old": old[first:last].hex(),
        "new": new[first:last].hex(),
    }


def files(
    memory: GuestMemory, stored: snapshot.Snapshot, guest: str, image: Image
) -> dict[str, Any]:
    """Compare the page cache of programs and libraries with the snapshot's."""
    known = _file_pages(stored, guest, image)
    changed: list[dict[str, Any]] = []
    count = 0
    with packed(stored, guest) as frozen:
        for path, number, places in known:
            copies = [(memory.read(at, PAGE), frozen.read(at, PAGE)) for at in places]
            # A process may have a copy of its own and change that: then one stays as it was.
            if any(new == old for new, old in copies):
                continue
            count += 1
            new, old = copies[0]
            first, last = runs(old, new)[0]
            changed.append({"file": path, **_change(number * PAGE, old, new, first, last)})
    return {"pages": len(known), "foreign": count, "listed": changed[:LISTED]}


def _file_pages(
    stored: snapshot.Snapshot, guest: str, image: Image
) -> list[tuple[str, int, list[int]]]:
    """Return (file, page, physical addresses) of what was cached when the snapshot was taken."""
    path = stored.file(guest, "files.json")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return [(name, number, places) for name, number, places in kept]
    except (OSError, ValueError):
        pass
    wanted: dict[bytes, tuple[str, int]] = {}
    for entry in cpio.read(image.initramfs.read_bytes()):
        if not stat.S_ISREG(entry.mode) or not (entry.mode & 0o111 or ".so" in entry.path):
            continue
        for at in range(0, len(entry.data), PAGE):
            page = entry.data[at : at + PAGE].ljust(PAGE, b"\0")
            wanted.setdefault(page, (entry.path, at // PAGE))
    wanted.pop(bytes(PAGE), None)
    found: dict[tuple[str, int], list[int]] = {}
    with packed(stored, guest) as frozen:
        for place, page in frozen.pages():
            if (known := wanted.get(page)) is not None:
                found.setdefault(known, []).append(place)
    result = [(name, number, places) for (name, number), places in sorted(found.items())]
    keep(path, result)
    return result


def keep(path: Path, value: object) -> None:
    """Remember something beside a snapshot, unless that was evicted meanwhile."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(path)
