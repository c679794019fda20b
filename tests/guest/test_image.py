"""The real image: the same bytes from another checkout and another cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab import image, paths
from lab.journal import Journal
from tests.guest.conftest import TOP

SCRIPT = """
from lab import image
from lab.journal import Journal
print(image.ensure("6.12", journal=Journal(), offline=True).digest)
"""


def digest_elsewhere(tmp_path: Path, *, old: str = "", new: str = "") -> str:
    """Build the image from a copy of the checkout in which `old` of receiver.c is `new`."""
    checkout = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(
        TOP, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache")
    )
    if old:
        source = checkout / "guest" / "receiver.c"
        source.write_text(source.read_text().replace(old, new))
    shutil.copytree(paths.cache() / "packages", tmp_path / "cache" / "packages")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=checkout,
        env={**os.environ, "LAB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_two_folders_two_caches_one_digest(tmp_path: Path) -> None:
    assert image.ensure("6.12", journal=Journal()).digest == digest_elsewhere(tmp_path)


def test_a_changed_program_is_another_digest(tmp_path: Path) -> None:
    """See the comparison above fail: a word of a program's text makes another image."""
    changed = digest_elsewhere(tmp_path, old="timed_out", new="timed_uot")
    assert image.ensure("6.12", journal=Journal()).digest != changed
