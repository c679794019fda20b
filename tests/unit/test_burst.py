"""A burst of messages: when the access log is left asleep, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab import playbook, spec
from lab.experiment import message


def asked(**work: Any) -> spec.Playbook:
    return playbook.override(playbook.load("loopback"), **work)


@pytest.mark.parametrize(
    ("work", "why"),
    [
        ({"count": 100}, None),
        ({"count": 101}, "101 messages are more than it has room for"),
        ({"count": 64, "size": 65507}, None),
        ({"count": 100, "size": 65507}, "6 MiB of messages are more than it has room for"),
    ],
)
def test_a_burst_leaves_the_access_log_asleep_and_says_why(
    work: dict[str, Any], why: str | None
) -> None:
    assert why == message.unlogged(asked(**work))


def test_where_it_is_the_only_account_it_logs_what_it_has_room_for() -> None:
    burst = asked(count=10_000)

    blind = replace(burst, probes=replace(burst.probes, kind="none"))
    assert message.unlogged(burst)
    assert message.unlogged(blind) is None
