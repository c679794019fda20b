"""The real image: the same bytes from another checkout and another cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab import image, paths
from lab.journal import Journal
from tests.guest.conftest import TOP

SCRIPT = """
from lab import image
from lab.journal import Journal
print(image.ensure("6.12", journal=Journal(), offline=True).digest)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the checkout, and a cache that has the packages."""
    folder = tmp_path_factory.mktemp("elsewhere")
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache")
    shutil.copytree(TOP, folder / "deeper", ignore=ignored)
    shutil.copytree(paths.cache() / "packages", folder / "cache" / "packages")
    return folder


def digest(folder: Path) -> str:
    """Build the image there."""
    checkout = folder / "deeper"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=checkout,
        env={**os.environ, "LAB_CACHE": str(folder / "cache"), "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_two_folders_two_caches_one_digest(elsewhere: Path) -> None:
    assert image.ensure("6.12", journal=Journal()).digest == digest(elsewhere)


def test_a_changed_program_is_another_digest(elsewhere: Path) -> None:
    """See the comparison above fail: a word of a program's text makes another image."""
    source = elsewhere / "deeper" / "guest" / "receiver.c"
    text = source.read_text()
    assert "timed_out" in text
    source.write_text(text.replace("timed_out", "timed_uot"))
    try:
        assert image.ensure("6.12", journal=Journal()).digest != digest(elsewhere)
    finally:
        source.write_text(text)
