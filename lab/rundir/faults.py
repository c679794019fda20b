"""Whether the files of a run are those that it wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lab.rundir.fields import Json


def file_faults(
    values: Mapping[str, Json], folders: Mapping[str, Path]
) -> Iterator[tuple[str, str]]:
    """Yield (guest, what is wrong): a file that is gone, was changed, or is not of the run.

    `values` are the manifest's, `folders` those of the guests by name.
    """
    files = values.get("files")
    if "files" in values and not isinstance(files, dict):
        yield next(iter(folders)), "the manifest's list of files is none"
    if not isinstance(files, dict):
        return
    for guest, folder in folders.items():
        # A folder that is gone holds nothing; below each of its files is said to be gone.
        there = {f"{guest}/{path.name}" for path in folder.iterdir()} if folder.is_dir() else set()
        for name in sorted(there - set(files)):
            yield guest, f"{name} is not among the files of the run"
    for name, digest in sorted(files.items()):
        guest, _, file = name.partition("/")
        if guest not in folders or "/" in file:
            continue
        path = folders[guest] / file
        if not path.is_file():
            yield guest, f"{name} is gone since the run"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield guest, f"{name} was changed since the run"
