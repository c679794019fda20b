"""Ground truth: what a witness has more or less of than the module says is told."""

from __future__ import annotations

import pytest

from lab.known import COPY, LOG, PROBES, READ, WRITE, Move, Truth

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
