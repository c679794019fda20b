"""Whether the files of a run are those that it wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from lab.rundir.fields import Json


def digests(root: Path, parts: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file in these parts of a run, by its path in it.

    A part is a folder, with all below it, or one file; one that is not there has none.
    """
    return {
        name: _sha256(path)
        for part in parts
        for name, path in sorted(_there(part, root / part).items())
    }


def interrupted(journal: Path) -> bool:
    """Tell whether a step of a journal ended by Ctrl-C or SIGTERM."""
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(f'"outcome": "{name}"' in text for name in ("Interrupted", "KeyboardInterrupt"))


def file_faults(
    values: Mapping[str, Json], parts: Mapping[str, Path], *, unread: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (part, what is wrong): a file that is gone, was changed, or is not of the run.

    `values` are the manifest's; `parts` are the folders of guests by name, or what else the
    manifest lists files of.  Files called as in `unread` may come and go and are not read.
    """
    files = values.get("files")
    if "files" in values and not isinstance(files, dict):
        yield next(iter(parts)), "the manifest's list of files is none"
    if not isinstance(files, dict):
        return
    # A folder that is gone holds nothing; below each of its files is said to be gone.
    there = {part: _there(part, path) for part, path in parts.items()}
    for part, found in there.items():
        for name in sorted(found.keys() - files.keys()):
            if name.rpartition("/")[2] not in unread:
                yield part, f"{name} is not among the files of the run"
    for name, digest in sorted(files.items()):
        part = name.partition("/")[0]
        if part not in parts or name.rpartition("/")[2] in unread:
            continue
        # Only what was found there is opened: a name of the list may lead anywhere.
        path = there[part].get(name)
        if path is None or not path.is_file():
            yield part, f"{name} is gone since the run"
        elif _sha256(path) != digest:
            yield part, f"{name} was changed since the run"


def _there(part: str, path: Path) -> dict[str, Path]:
    """Return what lies in a part of a run, folders apart, by its path in the run."""
    if not path.is_dir():
        return {part: path} if path.is_file() else {}
    return {
        f"{part}/{one.relative_to(path)}": one
        for one in path.rglob("*")
        if one.is_symlink() or not one.is_dir()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
