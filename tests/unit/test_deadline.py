"""Deadlines that are met, that never are, and that nest."""

from __future__ import annotations

import pytest

from lab import deadline as subject
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded


class Clock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(subject, "time", clock)
    return clock


def test_what_never_happens_ends_at_the_deadline(clock: Clock) -> None:
    asked = []

    with pytest.raises(DeadlineExceeded) as caught:
        wait_until(lambda: asked.append(1), what="a miracle", deadline=Deadline(2.0))

    assert "waited 2.0 s for a miracle" == str(caught.value)
    assert 2.0 <= clock.now - 1000 < 2.01
    assert 190 < len(asked)


def test_what_has_happened_costs_no_sleep(clock: Clock) -> None:
    assert 7 == wait_until(lambda: 7, what="seven", deadline=Deadline(1.0))
    assert [] == clock.slept


def test_a_deadline_in_the_past_still_asks_once(clock: Clock) -> None:
    assert "yes" == wait_until(lambda: "yes", what="it", deadline=Deadline(0))


def test_the_value_is_what_the_condition_returned(clock: Clock) -> None:
    answers = iter(["", None, "there"])

    assert "there" == wait_until(lambda: next(answers), what="it", deadline=Deadline(1))


def test_an_error_of_the_condition_is_not_waited_out(clock: Clock) -> None:
    def broken() -> bool:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        wait_until(broken, what="it", deadline=Deadline(9))

    assert [] == clock.slept


def test_a_deadline_within_another_is_never_later(clock: Clock) -> None:
    outer = Deadline(10)
    clock.now += 7

    assert pytest.approx(3) == outer.within(60).remaining
    assert pytest.approx(1) == outer.within(1).remaining


def test_remaining_ends_at_zero_and_check_raises(clock: Clock) -> None:
    deadline = Deadline(1)
    deadline.check("it")
    clock.now += 5

    assert 0.0 == deadline.remaining
    assert deadline.expired
    with pytest.raises(DeadlineExceeded, match=r"waited 5\.0 s for it"):
        deadline.check("it")


def test_the_sleeps_do_not_pass_the_deadline(clock: Clock) -> None:
    with pytest.raises(DeadlineExceeded):
        wait_until(lambda: None, what="it", deadline=Deadline(0.025), interval_s=0.01)

    assert pytest.approx(0.025, abs=0.001) == sum(clock.slept)


def test_what_was_waited_for_last_is_told_apart_from_the_time_that_all_had(clock: Clock) -> None:
    run = Deadline.of_run(60.0)
    clock.now += 57.5  # what came before

    with pytest.raises(DeadlineExceeded) as caught:
        wait_until(lambda: None, what="the receiver", deadline=run.within(10.0))

    said = "waited 2.5 s for the receiver; with that the run's deadline of 60.0 s was used up"
    assert said == str(caught.value)
    assert caught.value.hint is not None
    assert "deadline:" in caught.value.hint


def test_a_wait_with_a_time_of_its_own_blames_no_other(clock: Clock) -> None:
    run = Deadline.of_run(60.0)
    clock.now += 20

    with pytest.raises(DeadlineExceeded) as caught:
        wait_until(lambda: None, what="the agent", deadline=run.within(10.0))

    assert "waited 10.0 s for the agent" == str(caught.value)
    assert caught.value.hint is None
