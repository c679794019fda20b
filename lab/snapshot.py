"""Paired snapshots: RAM packed without its zero pages, device state, and what proves them.

A snapshot is a folder `cache()/snapshots/<key>/` with, per guest, `<name>.ram` (the
non-zero parts of its RAM, one after the other), `<name>.state` (QEMU's device state) and
`<name>.<nonce>.symbols` (its /proc/kallsyms), and `meta.json`, written last.  The key is a digest
of everything that must be equal for a restore to make sense.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import paths, process
from lab.errors import NoSpace, SnapshotError
from lab.journal import Journal
from lab.memory import extents

FORMAT = 2
PAGE = 4096
PIECE = 1024 * 1024
BUDGET_BYTES = 4 * 1024**3  # of all snapshots together; the oldest go first
ZEROS = bytes(PIECE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """One guest in a snapshot: sizes in bytes, `runs` are (physical address, length)."""

    ram_size: int
    runs: tuple[tuple[int, int], ...]
    ram_sha256: str
    state_sha256: str
    nonce: str
    hostkey: str
    release: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A stored pair of guests."""

    folder: Path
    guests: dict[str, Frozen]

    def file(self, guest: str, kind: str) -> Path:
        """Return the path of a guest's "ram" or "state"."""
        return self.folder / f"{guest}.{kind}"


def key(facts: Mapping[str, object]) -> str:
    """Return the name of the snapshot that these facts decide."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def folder() -> Path:
    """Return where all snapshots of this user lie."""
    return paths.cache() / "snapshots"


def load(name: str) -> Snapshot | None:
    """Return the snapshot called `name`, None where there is none (or half of one)."""
    meta = folder() / name / "meta.json"
    try:
        stored: dict[str, Any] = json.loads(meta.read_text(encoding="utf-8"))
        text = json.dumps(stored["guests"], sort_keys=True)
        _compare(meta, hashlib.sha256(text.encode()).hexdigest(), stored["sha256"])
        guests = {
            guest: Frozen(**{**facts, "runs": tuple((at, n) for at, n in facts["runs"])})
            for guest, facts in stored["guests"].items()
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(f"snapshot {name} is garbled: {error}", log=meta) from error
    meta.touch()  # oldest out first: this one was used just now
    return Snapshot(folder=meta.parent, guests=guests)


@contextlib.contextmanager
def making(name: str, *, journal: Journal) -> Iterator[None]:
    """Be the only one on this host who makes snapshot `name`; others wait for it."""
    lock = paths.private(folder()) / f"{name}.lock"
    with contextlib.ExitStack() as held:
        if process.is_locked(lock):
            with journal.step("wait for another lab that boots the same pair"):
                held.enter_context(paths.exclusive(lock))
        else:
            held.enter_context(paths.exclusive(lock))
        yield


def begin(name: str) -> Path:
    """Return an empty folder to save into; `commit` makes it the snapshot."""
    target = paths.private(folder()) / f"{name}.{os.getpid()}.part"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    return target


def commit(
    part: Path, name: str, guests: Mapping[str, Frozen], *, used: Collection[str] = ()
) -> Snapshot:
    """Make the folder `part` the snapshot `name` and evict old ones beyond the budget.

    Those `used`, which labs that are up restore from, stay.
    """
    facts = {guest: asdict(frozen) for guest, frozen in guests.items()}
    # Where each page goes is as much part of the memory as what is in it.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    meta = {"guests": facts, "sha256": digest}
    (part / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    final = folder() / name
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    evict(keep={name, *used})
    return Snapshot(folder=final, guests=dict(guests))


def discard(name: str) -> None:
    """Remove snapshot `name`; the next use boots."""
    shutil.rmtree(folder() / name, ignore_errors=True)


def evict(*, keep: Collection[str], budget: int = BUDGET_BYTES) -> list[str]:
    """Remove the least recently used snapshots beyond `budget` bytes; return their names."""
    known = [path for path in folder().iterdir() if (path / "meta.json").exists()]
    known.sort(key=lambda path: (path / "meta.json").stat().st_mtime, reverse=True)
    gone: list[str] = []
    used = 0
    for path in known:
        used += sum(file.stat().st_blocks * 512 for file in path.iterdir())
        if used > budget and path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path.name)
    return gone


def require_space(where: Path, needed: int, *, what: str, hint: str) -> None:
    """Raise `NoSpace` when `where` has less than `needed` bytes left."""
    free = shutil.disk_usage(where).free
    if free < needed:
        raise NoSpace(
            f"{where} has {free >> 20} MiB free, {what} needs {needed >> 20} MiB", hint=hint
        )


def pack(ram: Path, target: Path) -> tuple[tuple[tuple[int, int], ...], str]:
    """Write the non-zero pages of `ram` to `target`; return their runs and the digest."""
    digest = hashlib.sha256()
    runs: list[list[int]] = []
    with ram.open("rb", buffering=0) as source, target.open("wb") as out:
        size = os.fstat(source.fileno()).st_size
        for start, end in extents(source.fileno(), size):
            for at in range(start, end, PIECE):
                piece = os.pread(source.fileno(), min(PIECE, end - at), at)
                if piece == ZEROS[: len(piece)]:
                    continue
                for offset in range(0, len(piece), PAGE):
                    page = piece[offset : offset + PAGE]
                    if page == ZEROS[: len(page)]:
                        continue
                    if runs and sum(runs[-1]) == at + offset:
                        runs[-1][1] += len(page)
                    else:
                        runs.append([at + offset, len(page)])
                    digest.update(page)
                    out.write(page)
    return tuple((at, length) for at, length in runs), digest.hexdigest()


def unpack(source: Path, target: Path, frozen: Frozen) -> None:
    """Make `target` the RAM file that `source` was packed from; `SnapshotError` if it differs."""
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as packed, target.open("r+b", buffering=0) as out:
        out.truncate(frozen.ram_size)
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        for at, piece in _pieces(frozen.runs):
            if packed.readinto(view[:piece]) != piece:
                raise SnapshotError(f"{source.name} is truncated", log=source)
            digest.update(view[:piece])
            os.pwrite(out.fileno(), view[:piece], at)
    _compare(source, digest.hexdigest(), frozen.ram_sha256)


def verify_state(source: Path, frozen: Frozen) -> None:
    """Raise `SnapshotError` when the device state is not the one that was saved."""
    try:
        found = hashlib.sha256(source.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise SnapshotError(f"{source.name} is missing", log=source) from error
    _compare(source, found, frozen.state_sha256)


def _compare(source: Path, found: str, expected: str) -> None:
    if found != expected:
        raise SnapshotError(
            f"{source.name} is corrupt: expected sha256 {expected[:16]}…, found {found[:16]}…",
            log=source,
        )


def _pieces(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [
        (at + done, min(PIECE, length - done))
        for at, length in runs
        for done in range(0, length, PIECE)
    ]
