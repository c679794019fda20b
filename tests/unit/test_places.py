"""What a place of a run is called."""

from __future__ import annotations

from pathlib import Path

from lab import places
from tests.unit import cooked


def test_over_the_link_a_place_is_its_guest_s(tmp_path: Path) -> None:
    found = places.names(cooked.nic(tmp_path).serve())
    assert ["sender/user", "receiver/user"] == [name for name in found if name.endswith("/user")]
    assert "receiver/rx-buffer" in found


def test_over_loopback_each_program_has_its_own_buffer(tmp_path: Path) -> None:
    found = places.names(cooked.loopback(tmp_path).serve())
    assert ["sender/user", "receiver/user"] == [name for name in found if name.endswith("/user")]
