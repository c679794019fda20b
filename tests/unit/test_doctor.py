"""The doctor: each lack is found, and comes with what mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import doctor
from lab.errors import HostError


def test_a_missing_tool_is_a_lack_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor._tool("no-such-make", "some-package", "--version")
    assert not found.ok
    assert "some-package" in found.mend


def test_a_tool_that_does_not_run_is_a_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-tool"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not doctor._tool("broken-tool", "some-package", "--version").ok


def test_a_folder_with_too_little_room_is_a_lack(tmp_path: Path) -> None:
    assert doctor._space("disk", tmp_path / "not" / "made", 1, "free space").ok
    found = doctor._space("disk", tmp_path, 1 << 40, "free space")
    assert not found.ok
    assert "free space" == found.mend


def test_the_table_names_the_mend_and_the_exit_is_the_host_s() -> None:
    good = doctor.Finding(name="gcc", ok=True, found="12")
    bad = doctor.Finding(name="make", ok=False, found="not installed", mend="apt-get install make")
    text = doctor.render([good, bad])
    assert "LACK make" in text
    assert "try: apt-get install make" in text
    doctor.require_fit([good])
    with pytest.raises(HostError, match="lacks: make"):
        doctor.require_fit([good, bad])
