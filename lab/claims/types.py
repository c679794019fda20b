"""What a claims file holds, and what became of it: frozen values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Value: TypeAlias = bool | int | str | tuple[bool | int | str, ...]
Op = Literal["is", "is-not", "at-least", "at-most", "among", "has"]
Word = Literal["confirmed", "refuted", "depends", "not testable here", "undecided"]
State = Literal["holds", "fails", "unavailable", "missing"]

CONFIRMED: Word = "confirmed"
REFUTED: Word = "refuted"
DEPENDS: Word = "depends"
NOT_HERE: Word = "not testable here"
UNDECIDED: Word = "undecided"
WORDS: tuple[Word, ...] = (CONFIRMED, REFUTED, DEPENDS, NOT_HERE, UNDECIDED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What is run for claims: a playbook with options, or a module that is tried."""

    name: str
    playbook: str = ""
    module: str = ""  # a .c file: of kmod/, or beside the claims file
    send: bool = False  # send a message once the module is loaded
    kernel: str = ""
    options: tuple[tuple[str, str], ...] = ()  # as `lab.run` takes them


@dataclass(frozen=True, kw_only=True, slots=True)
class Test:
    """One measured value of one experiment, and what the claim says it is."""

    on: str
    measure: str
    of: str = ""
    op: Op
    value: Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One statement of a text; without tests `untestable` says why."""

    id: str
    at: str  # block or chapter
    says: str
    tests: tuple[Test, ...] = ()
    untestable: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A claims file: a text, what is run for it, what it says."""

    name: str
    title: str
    experiments: Mapping[str, Experiment]
    claims: tuple[Claim, ...]
    path: str = ""
    source: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A value and the evidence ids that carry it, as they are in the run."""

    value: Value
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a test came to; `why` says it where there is no value."""

    test: Test
    state: State
    measured: Measured | None = None
    why: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a claim; `on` says what it depends on, or why nothing can be said."""

    claim: Claim
    word: Word
    on: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A text and what became of each of its claims."""

    text: Text
    verdicts: tuple[Verdict, ...]


class NotHere(Exception):
    """A value that cannot be measured on this host or in this build, and why."""
