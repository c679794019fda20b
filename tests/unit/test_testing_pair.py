"""Which playbook a test's `lab.measure` means, and what it says of a name that is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.errors import PlaybookError
from lab.journal import Journal
from lab.testing import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return two guests that were never started: whatever is asked of them fails."""
    nobody: Any = SimpleNamespace(guests={})
    lab = Lab(nobody, nobody, journal=Journal())
    lab.beside = tmp_path
    return lab


@pytest.mark.parametrize("there", [False, True])
def test_a_name_that_is_no_playbook_is_refused_with_a_guess(lab: Lab, *, there: bool) -> None:
    if there:
        (lab.beside / "nick").mkdir()
    with pytest.raises(PlaybookError) as caught:
        lab.measure("nick")
    assert "unknown playbook 'nick' (did you mean 'nic'?)" == str(caught.value)
    assert "loopback, " in (caught.value.hint or "")
    assert "./mine.yaml" in (caught.value.hint or "")


def test_a_file_beside_the_test_is_read(lab: Lab) -> None:
    for name in ("mine.yaml", "mine"):
        (lab.beside / name).write_text("name: mine\nprotokol: udp\n", encoding="utf-8")
        with pytest.raises(PlaybookError, match="protokol"):
            lab.measure(name)


def test_a_file_that_there_is_none_of_is_named(lab: Lab) -> None:
    with pytest.raises(PlaybookError, match=r"^mine/no\.yaml cannot be read"):
        lab.measure("mine/no.yaml")
