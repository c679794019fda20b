"""Ground truth: what a witness has more or less of than the module says is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from lab.blocks import Table
from lab.known import COPY, LOG, PROBES, READ, WRITE, Move, Truth, told
from lab.rundir import Manifest

COPIED = Move(COPY, 0, 0x1000, 0x2000, 1009)
OUT, IN = Move(READ, 1, 0x3000, 0, 1009), Move(WRITE, 1, 0, 0x4000, 1009)
SAID = (COPIED, OUT, IN)


def truth(seen: dict[str, tuple[Move, ...]], **lost: int) -> Truth:
    return Truth(said=SAID, seen=seen, functions={}, absent={}, lost=lost)


def test_just_what_was_said_is_no_trouble() -> None:
    """Of the log no device read is expected: it sees CPUs."""
    assert () == truth({PROBES: SAID, LOG: (COPIED, IN)}).trouble


@pytest.mark.parametrize(
    ("witness", "seen", "text"),
    [
        (LOG, (COPIED, COPIED, IN), "access-log: the module does not say: copy of message 0"),
        (LOG, (COPIED,), "access-log has not seen: device write of message 1, 1009 bytes, to"),
        (PROBES, (COPIED, IN), "probe:kmod has not seen: device read of message 1"),
        (PROBES, (Move(COPY, 0, 0x1000, 0x2040, 1009), OUT, IN), "0x2040"),
        (PROBES, (Move(COPY, 0, 0x1000, 0x2000, 1008), OUT, IN), "1008 bytes"),
    ],
)
def test_more_or_less_than_was_said_is_told(
    witness: str, seen: tuple[Move, ...], text: str
) -> None:
    assert any(text in line for line in truth({witness: seen}).trouble)


def test_each_move_is_shown_with_the_record_of_each_witness() -> None:
    found = replace(
        truth({PROBES: SAID, LOG: (COPIED, COPIED)}),
        records={
            PROBES: tuple(f"guest/trace.bin#{n}" for n in (4, 5, 6)),
            LOG: ("guest/access.bin#40", "guest/access.bin#80"),
        },
    )
    manifest = cast("Manifest", SimpleNamespace(size=1009, kernel="6.12", accelerator="tcg"))
    *_, moves = [block for block in told(found, manifest) if isinstance(block, Table)]

    assert [
        ("trace.bin#4", "access.bin#40, access.bin#80"),
        ("trace.bin#5", "cannot see"),
        ("trace.bin#6", "✗"),
    ] == [row[-2:] for row in moves.rows]


def test_a_loss_is_told() -> None:
    assert ("access-log lost 3 records",) == Truth(
        said=(), seen={LOG: ()}, functions={}, absent={}, lost={LOG: 3}
    ).trouble


def test_what_nobody_saw_is_not_proven() -> None:
    assert ("no witness saw anything",) == truth({}).trouble


def test_what_no_witness_can_see_is_not_proven() -> None:
    """Without probes nobody sees that a device read."""
    (line,) = truth({LOG: (COPIED, IN)}).trouble
    assert line.startswith("nobody could see: device read of message 1")
