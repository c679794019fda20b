"""What a place of a run is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import places
from lab.errors import PlaybookError
from tests.unit import cooked


def test_over_the_link_a_place_is_its_guest_s(tmp_path: Path) -> None:
    found = places.names(cooked.nic(tmp_path).serve())
    assert ["sender/user", "receiver/user"] == [name for name in found if name.endswith("/user")]
    assert "receiver/rx-buffer" in found


def test_over_loopback_each_program_has_its_own_buffer(tmp_path: Path) -> None:
    found = places.names(cooked.loopback(tmp_path).serve())
    assert ["sender/user", "receiver/user"] == [name for name in found if name.endswith("/user")]


def test_a_place_that_is_none_is_a_wrong_argument(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    with pytest.raises(PlaybookError, match="did you mean 'receiver/rx-buffer'") as refused:
        list(places.told(run, "receiver/rx-bufer"))
    assert 2 == refused.value.exit_code
