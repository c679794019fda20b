"""Tests of tally.ko, in guests of the lab."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.testing import Guest, Lab

MODULE = Path(__file__).parent.parent
BROKEN = Path(__file__).parent / "broken" / "tally_broken.c"
SEND = "printf 'go\\ngo\\n' | sender --protocol udp --port 9999 --size 16 --seed 1"


def tally(guest: Guest) -> dict[int, int]:
    """Return what /proc/tally says, as {port: count}."""
    lines = guest.run("cat /proc/tally").stdout.splitlines()
    return {int(port): int(count) for port, count in map(str.split, lines)}


def test_it_counts_what_comes_over_the_link(sender: Guest, receiver: Guest) -> None:
    receiver.load(MODULE)
    sender.run(f"{SEND} --address {receiver.address} --count 5")
    assert tally(receiver) == {9999: 5}


def test_every_test_has_a_guest_that_knows_nothing_of_the_last(guest: Guest) -> None:
    assert guest.run("test -e /proc/tally", check=False).exit_code != 0


def test_writing_starts_anew(guest: Guest) -> None:
    guest.load(MODULE)
    guest.run(f"{SEND} --address 127.0.0.1 --count 3")
    assert tally(guest) == {9999: 3}
    guest.run("echo > /proc/tally")
    assert tally(guest) == {}


def test_it_unloads_while_datagrams_come_in(sender: Guest, receiver: Guest) -> None:
    receiver.load(MODULE)
    sender.run(f"({SEND} --address {receiver.address} --count 2000) >/dev/null 2>&1 &")
    receiver.unload("tally")
    receiver.watch(0.5)


def test_it_copies_nothing(lab: Lab) -> None:
    """A message over the link is copied three times, and tally is none of them."""
    lab.guest("receiver").load(MODULE)
    ledger = lab.measure("nic")
    assert ledger.messages[0].totals.guest_cpu_copies == 3
    assert tally(lab.guest("receiver")) == {9999: 1}


def test_the_first_version_dies_of_its_first_datagram(guest: Guest) -> None:
    guest.load(BROKEN)
    with guest.expect_crash(verdict="panic", at="tally_broken.c:20") as seen:
        guest.run(f"{SEND} --address 127.0.0.1 --count 1")
    assert "NULL pointer" in seen.crash.title


@pytest.mark.lab_kernel("6.1")
def test_it_counts_on_the_older_kernel_too(guest: Guest) -> None:
    guest.load(MODULE)
    guest.run(f"{SEND} --address 127.0.0.1 --count 3")
    assert tally(guest) == {9999: 3}
