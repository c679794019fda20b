"""A cache for a test that spoils snapshots: they are its own, all else is ours by link."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from lab import paths

# What tells this host's accelerator and who may come in, with all that is built.
LINKED = (
    *("images", "headers", "packages", "witness", "kmod", "guest", "crash", "bpf"),
    *("id_ed25519", "id_ed25519.pub", "id_ed25519.lock", "accelerator.json"),
)


@contextlib.contextmanager
def beside(cache: Path, *, snapshot: str = "") -> Iterator[Path]:
    """Make a cache at `cache`, with a copy of one snapshot if one is named; yield its folder."""
    cache.mkdir(mode=0o700)
    for name in LINKED:
        if (paths.cache() / name).exists():
            (cache / name).symlink_to(paths.cache() / name)
    folder = cache / "snapshots" / snapshot
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if snapshot:
        shutil.copytree(paths.cache() / "snapshots" / snapshot, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(cache)
