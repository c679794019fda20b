"""Loading again and again: when it is done, what is written down, and what is called a leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.crash import leak
from lab.crash.held import Held
from lab.crash.watch import Seen
from lab.errors import EvidenceError
from lab.postmortem.leak import leaks
from lab.postmortem.verdict import decide


class Session:
    """Stands for `crash.Session`: a guest that holds what the test says."""

    def __init__(self, *counts: Held) -> None:
        self.seen = Seen()
        self.counts = list(counts)
        self.guest = self
        self.watcher = self
        self.written: list[bytes] = []

    def require_agent(self) -> Session:
        return self

    def put(self, path: str, value: bytes, **_: object) -> None:
        assert leak.DROP == path
        self.written.append(value)

    def until(self, done: Callable[[], bool], **_: object) -> None:
        pass

    def phase(self, name: str) -> dict[str, Any]:
        self.seen.phases.append({"name": name, "seconds": 0.0})
        return self.seen.phases[-1]

    def layout(self) -> None:
        pass

    def held(self, _: object) -> Held:
        if not self.counts:
            raise EvidenceError("a list has no end")
        return self.counts.pop(0)


def held(objects: int, pages: int = 10) -> Held:
    return Held({"kmalloc-8": objects, "other": 5}, {"kmalloc-8": 8, "other": 64}, pages)


def look(session: Session, *, loads: int = 3, fails_at: int = 0) -> int:
    """Return how often the module was loaded."""
    done = 0

    def step(*, phase: dict[str, Any] | None = None) -> bool:
        nonlocal done
        assert phase is not None
        assert "again" == phase["name"]
        done += 1
        return done != fails_at

    fake: Any = session
    leak.look(fake, [step], loads)
    return done


def test_what_changed_is_written_down_and_nothing_else() -> None:
    session = Session(held(5), held(8, 11), held(9, 9))

    assert 6 == look(session)
    assert {
        "loads": 3,
        "caches": {"kmalloc-8": {"size": 8, "objects": [5, 8, 9]}},
        "pages": [10, 11, 9],
    } == session.seen.held
    assert [leak.SHRINK] * 3 == session.written, "the guest frees what it can before each count"


@pytest.mark.parametrize(
    ("objects", "pages", "loads"),
    [
        ([5, 8, 11, 14, 17, 20], [10] * 6, 15),  # it goes on
        ([5, 5, 5, 5, 5, 5], [10, 13, 16, 19, 22, 25], 15),
        (
            [5, 5, 5, 5],
            [2098, 2102, 2104, 2104],
            9,
        ),  # of a module that leaks nothing, on a busy host
        ([5, 5, 5], [2097, 2099, 2102], 6),
    ],
)
def test_what_grows_is_watched_until_it_stops(
    objects: list[int], pages: list[int], loads: int
) -> None:
    session = Session(*(held(one, two) for one, two in zip(objects, pages, strict=True)))

    assert loads == look(session)
    found = decide({"phases": [{"name": "load", "exit": 0}], "held": session.seen.held}, [], [])
    assert ("leak" if loads == 15 else "loaded") == found.word


def test_a_load_that_fails_ends_it_without_numbers() -> None:
    session = Session(held(5), held(8), held(11))

    assert 4 == look(session, fails_at=4)
    assert session.seen.held is None


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda seen: setattr(seen, "complained", True), "the kernel complained before"),
        (
            lambda seen: seen.phases.append({"name": "run", "seconds": 3.0}),
            "6 loads of 3.0 s would take too long",
        ),
    ],
)
def test_it_is_said_when_it_is_not_done(prepare: Any, why: str) -> None:
    session = Session()
    prepare(session.seen)

    assert 0 == look(session)
    assert {"absent": why} == session.seen.held


def test_an_allocator_that_cannot_be_read_is_said() -> None:
    session = Session(held(1))

    look(session)
    assert {"absent": "a list has no end"} == session.seen.held


def observed(objects: list[int], pages: list[int], **more: Any) -> dict[str, Any]:
    caches = {"kmalloc-8": {"size": 8, "objects": objects}}
    return {
        "phases": [{"name": "load", "exit": 0}, {"name": "again", "exit": 0}],
        "held": {"loads": 3, "caches": caches, "pages": pages},
        **more,
    }


@pytest.mark.parametrize(
    ("objects", "pages", "word"),
    [
        ([5, 8, 11], [10, 10, 10], "leak"),
        ([5, 9, 11], [10, 10, 10], "leak"),  # one of the kernel's own came and went
        ([5, 7, 9], [10, 10, 10], "loaded"),  # fewer than loads
        ([5, 11, 12], [10, 10, 10], "loaded"),  # once, not with every load
        ([5, 8, 5], [10, 10, 10], "loaded"),
        ([9, 6, 3], [10, 10, 10], "loaded"),
        ([5, 5, 5], [10, 13, 16], "leak"),
        ([5, 5, 5], [10, 12, 13], "loaded"),
        ([5, 5, 5, 5, 5, 5], [9, 13, 15, 18, 21, 22], "loaded"),  # not in every window
    ],
)
def test_growth_with_every_load_is_a_leak(objects: list[int], pages: list[int], word: str) -> None:
    assert word == decide(observed(objects, pages), [], []).word


def test_a_leak_says_how_much_of_what_and_the_largest_first() -> None:
    seen = observed([5, 8, 11], [10, 13, 16])

    assert ["pages", "kmalloc-8"] == [one.name for one in leaks(seen)]
    found = decide(seen, [], [])
    assert "pages: 6 of 4096 bytes stayed after 6 more loads" == found.why
    assert ("kmalloc-8: 6 of 8 bytes stayed after 6 more loads",) == found.also


def test_what_comes_before_a_leak() -> None:
    assert "panic" == decide(observed([5, 8, 11], [0, 0, 0], end="panicked"), [], []).word
    assert "deadline" == decide(observed([5, 8, 11], [0, 0, 0], deadline=True), [], []).word


def test_a_module_that_loads_once_only_has_left_something() -> None:
    seen = {"phases": [{"name": "load", "exit": 0}, {"name": "again", "exit": 1, "said": "busy"}]}
    found = decide(seen, [], [])

    assert ("leak", "again") == (found.word, found.phase)
    assert found.why.endswith("another load: busy")


def test_loaded_says_whether_leaks_were_looked_for() -> None:
    looked = decide(observed([5, 5, 5], [1, 1, 1]), [], [])
    absent = decide({**observed([], []), "held": {"absent": "it could not be unloaded"}}, [], [])

    assert "nothing stayed behind" in looked.why
    assert "nothing stayed behind" not in absent.why
    assert ("leaks were not looked for: it could not be unloaded",) == absent.also
