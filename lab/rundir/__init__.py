"""Where each artefact of a run lies, and the checked reading of it.

The run directory is the seam: machine code writes it, evidence code reads it.
What is read here was written by others and may be cut short or garbled; every
reader raises `TraceCorrupt` naming the file and the place in it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import paths
from lab.errors import HostError, PlaybookError, TraceCorrupt, did_you_mean
from lab.rundir import faults, reading
from lab.rundir.artefacts import (
    Census,
    CensusGate,
    Descriptor,
    Exchanged,
    Held,
    HeldAt,
    Hit,
    Manifest,
    Queue,
    Ready,
    RingGate,
    Rings,
    TscSample,
    UserBuffer,
    Workload,
    transport,
)
from lab.rundir.fields import Fields, Json, read_bytes, read_json
from lab.rundir.making import is_being_made
from lab.rundir.prune import FOLDERS, RAM, runs

__all__ = [
    "Census",
    "CensusGate",
    "Descriptor",
    "Exchanged",
    "Fields",
    "GuestDir",
    "Held",
    "HeldAt",
    "Hit",
    "Json",
    "Manifest",
    "Queue",
    "Ready",
    "RingGate",
    "Rings",
    "RunDir",
    "TscSample",
    "UserBuffer",
    "Workload",
    "called",
    "create",
    "resolve",
    "to_json",
    "transport",
    "usable",
]

LAST = "last"
JOURNAL = "journal.jsonl"
WORKLOAD = "workload.json"  # of a guest
ATTEMPTS = ("try", "test")  # kinds of manifests: `lab.try`, and a crash in a test of pytest
ATTEMPT_PARTS = ("module", "build.log", "playbook.yaml")  # of an attempt, besides its guest's
BUFFER = 1 << 18  # bytes of an artefact that are written at a time


def to_json(value: object) -> str:
    """Return JSON that is the same text for the same value: keys sorted, two spaces."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _write(path: Path, pieces: Iterable[str]) -> None:
    # A reader sees the old file or the new one, never half of one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=BUFFER) as out:
            out.writelines(piece.encode() for piece in pieces)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class GuestDir:
    """The files of one guest."""

    name: str
    path: Path

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        """Tell whether a file was written; reading one that was not is an error."""
        return (self.path / name).is_file()

    @property
    def trace(self) -> Path:
        return self.path / "trace.bin"

    @property
    def bpf(self) -> Path:
        """The records of BPF programs."""
        return self.path / "bpf.bin"

    @property
    def wire(self) -> Path:
        return self.path / "wire.pcap"

    @property
    def symbols(self) -> Path:
        return self.path / "symbols"

    def workloads(self) -> tuple[Workload, ...]:
        path = self.file(WORKLOAD)
        return reading.read_workloads(read_json(path), path)

    def census(self) -> Census:
        path = self.file("census.json")
        return reading.read_census(read_json(path), path)

    def rings(self) -> Rings:
        path = self.file("rings.json")
        return reading.read_rings(read_json(path), path)

    def tsc(self) -> tuple[TscSample, ...]:
        path = self.file("tsc.json")
        return reading.read_tsc(read_json(path), path)

    def held_at(self) -> tuple[HeldAt, ...]:
        """Return when the host held the guests at which gate; () where nobody wrote it down."""
        path = self.file("tsc.json")
        return reading.read_held_at(read_json(path), path)

    def write_json(self, name: str, value: object) -> Path:
        """Write one artefact whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.file(name)
        _write(path, [to_json(value)])
        return path


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def file(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def guest(self, name: str) -> GuestDir:
        """Return one guest's files, whether or not any was written."""
        return GuestDir(name, self.path / name)

    def guests(self) -> tuple[GuestDir, ...]:
        """Return the guests the manifest names, in its order."""
        return tuple(self.guest(name) for name in self.manifest().guests)

    def only_guest(self) -> GuestDir:
        """Return the guest of a run that has one; raise `TraceCorrupt` where it names others."""
        found = self.guests()
        if len(found) != 1:
            path = self.file("manifest.json")
            raise TraceCorrupt(f"{path}: expected one guest, found {len(found)}", log=path)
        return found[0]

    def changes(self) -> tuple[str, ...]:
        """Return what is not as the run wrote it: files that are gone, changed, or not its own."""
        if "files" not in self.manifest_json():
            return ()
        folders = {guest.name: guest.path for guest in self.guests()}
        return tuple(why for _, why in faults.file_faults(self.manifest().values, folders))

    def interrupted(self) -> bool:
        """Tell whether somebody ended the run (Ctrl-C, SIGTERM) before it was whole.

        A run that ends lists its files in the manifest; how its last step ended is in the journal.
        """
        return "files" not in self.manifest_json() and faults.interrupted(self.file(JOURNAL))

    def is_attempt(self) -> bool:
        """Tell whether a module was tried: such a run has a verdict, and no experiment."""
        return self.manifest_json().get("kind") in ATTEMPTS

    def attempt_guest(self) -> GuestDir | None:
        """Return the guest that a module was tried in, None where the manifest names none."""
        names = self.manifest_json().get("guests", ["receiver"])
        known = [str(one) for one in names] if isinstance(names, list) else []
        return next((self.guest(name) for name in known if name.isidentifier()), None)  # no path

    def attempt_changes(self, *, ram: bool = False) -> tuple[str, ...]:
        """Return what of an attempt is not as it was written.

        Of its kept RAM only if told to: that is 512 MiB, a verdict needs none of it, and it
        goes by itself when others are kept.
        """
        parts = {part: self.file(part) for part in self._attempt_parts()}
        unread = RAM[1:] if ram else RAM  # a core is made of the RAM later
        found = faults.file_faults(self.manifest_json(), parts, unread=unread)
        return tuple(why for _, why in found)

    def attempt_digests(self) -> dict[str, str]:
        """Return the digests of all that an attempt wrote."""
        return self.digests(self._attempt_parts())

    def _attempt_parts(self) -> list[str]:
        guest = self.attempt_guest()
        return [*([] if guest is None else [guest.name]), *ATTEMPT_PARTS]

    def digests(self, parts: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of each file in these folders, by its path in the run."""
        return faults.digests(self.path, parts)

    def manifest(self) -> Manifest:
        path = self.file("manifest.json")
        return reading.read_manifest(read_json(path), path)

    def manifest_json(self) -> dict[str, Json]:
        """Return the manifest as it is written, of whatever kind the run is."""
        value = self.read_json("manifest.json")
        return value if isinstance(value, dict) else {}

    def write_manifest(self, values: Mapping[str, object]) -> Path:
        """Write manifest.json whole or not at all."""
        return self.write_json("manifest.json", dict(values))

    def write_json(self, name: str, value: object) -> Path:
        """Write one JSON artefact, byte for byte the same for the same value."""
        return self.write_text(name, to_json(value))

    def write_text(self, name: str, text: str) -> Path:
        return self.write_pieces(name, [text])

    def write_pieces(self, name: str, pieces: Iterable[str]) -> Path:
        """Write a text whose whole is too much to hold in memory for no reason."""
        path = self.file(name)
        _write(path, pieces)
        return path

    def read_json(self, name: str) -> Json:
        return read_json(self.file(name))

    def read_bytes(self, name: str) -> bytes:
        return read_bytes(self.file(name))


def create(
    base: Path,
    playbook_name: str,
    digest: str,
    *,
    guests: Sequence[str] = ("sender", "receiver"),
    last: bool = True,
) -> RunDir:
    """Make a new run directory under `base` and point `last` at it.

    Two runs that start in the same second get different folders.  A sweep and its runs
    leave `last` alone: it means a run.
    """
    usable(base)
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(base, error.strerror) from error
    utc = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    plain = re.sub(r"[^a-z0-9-]+", "-", playbook_name.lower()).strip("-") or "run"
    stem = f"{utc}-{plain}-{digest[:8]}"
    number = 1
    while True:
        path = base / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _unusable(base, error.strerror) from error
    for guest in guests:
        (path / guest).mkdir()
    if last:
        point_last(path)
    return RunDir(path)


def usable(base: Path) -> None:
    """Raise `HostError` where `base` can be no folder of runs; it is not made yet.

    Asked before anything is started whose findings would then have no place.
    """
    there = base.absolute()
    try:
        while not (os.path.lexists(there) or there == there.parent):
            there = there.parent
        if not stat.S_ISDIR(there.stat().st_mode):
            raise _unusable(base, f"{there} is no folder")
    except OSError as error:
        raise _unusable(base, error.strerror) from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unusable(base, f"{there} is not writable")


def _unusable(base: Path, why: str | None) -> HostError:
    return HostError(f"{base} cannot be the folder of runs: {why}", hint="LAB_RUNS=/another/folder")


def point_last(path: Path) -> None:
    """Make `last`, beside `path`, point at it; what it was before is replaced at once."""
    temporary = path.parent / f".{LAST}.{os.getpid()}.{path.name}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    temporary.replace(path.parent / LAST)


def foreign_file(name: str) -> str:
    """Return the file, in a guest's folder, of what a probe of the user's own said."""
    return f"foreign-{name.replace('/', ',')}.txt"


def called(run: RunDir) -> str:
    """Return what a task is told to mean this run: its name, or where it lies."""
    at_home = run.path.parent.resolve() == paths.runs().resolve()
    return run.name if at_home else shlex.quote(str(run.path))


def resolve(text: str | Path = LAST, base: Path | None = None) -> RunDir:
    """Return the run that `last`, a name below `base`, or a path means."""
    base = paths.runs() if base is None else base
    for path in (base / text, Path(text)):
        if not path.is_dir():
            continue
        if is_being_made(path):
            raise PlaybookError(
                f"'{text}' is still being made: {path.resolve()}",
                hint="once the command that makes it has ended; invoke lab.runs has the others",
            )
        if (path / "manifest.json").is_file():
            return RunDir(path.resolve())
        for index, kind in FOLDERS.items():
            if (path / index).is_file():
                raise _of_many(path, str(text), kind)
    known = [path.name for path in runs(base)]
    raise PlaybookError(
        f"no run '{text}'{did_you_mean(Path(text).name, known)}: expected a run directory with a "
        f"manifest.json in {base} or at that path",
        hint="invoke lab.runs",
    )


def _of_many(path: Path, text: str, kind: str) -> PlaybookError:
    named = sorted(one.name for one in path.iterdir() if (one / "manifest.json").is_file())
    return PlaybookError(
        f"'{text}' is {kind}, a folder of {len(named)} runs: expected one of these",
        log=path.resolve(),
        hint=f"{text.rstrip('/')}/{named[0]}" if named else None,
    )
