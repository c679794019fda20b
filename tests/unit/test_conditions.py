"""What a playbook asks of the link, as commands for the guests at its ends."""

from __future__ import annotations

import pytest

from lab.experiment import conditions
from lab.rundir import conditions as said_of
from lab.spec import Link


def test_a_link_as_it_is_by_default_asks_for_nothing() -> None:
    assert [] == conditions.settings(Link(), receives=True)


@pytest.mark.parametrize(
    ("link", "sender", "receiver"),
    [
        (Link(mtu=9000), *[["ip link set lab0 mtu 9000", conditions.WAIT_LINK]] * 2),
        (Link(xdp="pass"), [], ["xdp lab0 pass"]),
    ],
)
def test_each_end_is_told_its_part(link: Link, sender: list[str], receiver: list[str]) -> None:
    assert sender == conditions.settings(link, receives=False)
    assert receiver == conditions.settings(link, receives=True)


def test_what_the_guest_said_is_what_is_noted() -> None:
    said = "xdp: pass\nFeatures for lab0:\ntx-checksumming: on [fixed]\nmtu: 1500\n"

    assert {"xdp": "pass", "mtu": "1500"} == said_of.as_found(said)
    assert {"tx-checksum": "on"} == said_of.offloads(said)
