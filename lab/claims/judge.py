"""From measured values to a verdict; nothing but the values decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from lab.claims.types import (
    CONFIRMED,
    DEPENDS,
    NOT_HERE,
    REFUTED,
    UNDECIDED,
    Answer,
    Claim,
    Measured,
    NotHere,
    Op,
    Test,
    Value,
    Verdict,
)
from lab.errors import EvidenceError

# How a comparison reads before what is claimed.
WAYS: dict[Op, str] = {
    "is": "", "is-not": "not ", "at-least": "at least ", "at-most": "at most ",
    "among": "one of ", "has": "with ",
}  # fmt: skip

# (value, evidence) of a test's measure on its experiment, and the run's conditions.
Look = Callable[[Test], tuple[Measured, Mapping[str, str]]]


def verdict(claim: Claim, look: Look) -> Verdict:
    """Ask every test of a claim, and say what that makes of it.

    All hold: confirmed; none: refuted; some: it depends on what tells those that hold
    from the others.  What cannot be measured here decides nothing; a value that should be
    there and is not leaves it undecided.
    """
    answers = tuple(_answer(test, look) for test in claim.tests)
    told = {
        state: [one for one in answers if one.state == state]
        for state in ("holds", "fails", "unavailable", "missing")
    }
    if told["missing"]:
        return Verdict(claim=claim, word=UNDECIDED, on=_reasons(told["missing"]), answers=answers)
    holds, fails = told["holds"], told["fails"]
    if not holds and not fails:
        why = claim.untestable or _reasons(told["unavailable"])
        return Verdict(claim=claim, word=NOT_HERE, on=why, answers=answers)
    if holds and fails:
        return Verdict(claim=claim, word=DEPENDS, on=_depends(holds, fails), answers=answers)
    return Verdict(claim=claim, word=CONFIRMED if holds else REFUTED, on="", answers=answers)


def _answer(test: Test, look: Look) -> Answer:
    try:
        measured, conditions = look(test)
    except NotHere as reason:
        return Answer(test=test, state="unavailable", why=str(reason))
    except EvidenceError as error:
        return Answer(test=test, state="missing", why=str(error))
    good = agrees(measured.value, test.op, test.value)
    return Answer(
        test=test,
        state="holds" if good else "fails",
        measured=measured,
        conditions=conditions,
    )


def agrees(found: Value, op: Op, said: Value) -> bool:
    """Compare a measured value with what a claim says of it."""
    match op:
        case "is":
            return _same(found, said)
        case "is-not":
            return not _same(found, said)
        case "among":
            return any(_same(found, one) for one in _many(said))
        case "has":
            return all(any(_same(one, two) for two in _many(found)) for one in _many(said))
    if isinstance(found, bool) or not isinstance(found, int) or not isinstance(said, int):
        raise EvidenceError(f"'{op}' compares numbers; found {found!r} and {said!r}")
    return found >= said if op == "at-least" else found <= said


def _same(found: Value, said: Value) -> bool:
    # In Python True is 1; a count is no answer to a yes or no.
    return isinstance(found, bool) == isinstance(said, bool) and found == said


def _many(value: Value) -> tuple[bool | int | str, ...]:
    return value if isinstance(value, tuple) else (value,)


def _reasons(answers: Sequence[Answer]) -> str:
    return "; ".join(dict.fromkeys(one.why for one in answers))


def _depends(holds: Sequence[Answer], fails: Sequence[Answer]) -> str:
    """Say by which conditions those that hold differ from the others, or name them all."""
    for names in _separating(holds, fails):
        said = [
            f"{word} {_under(answers, names)}"
            for word, answers in (("holds for", holds), ("not for", fails))
        ]
        return f"{' and '.join(names)}: {'; '.join(said)}"
    return f"holds for {_tests(holds)}; not for {_tests(fails)}"


def _separating(holds: Sequence[Answer], fails: Sequence[Answer]) -> Iterator[tuple[str, ...]]:
    """Yield the conditions whose values tell the two apart: one alone, else two together."""
    answers = (*holds, *fails)
    known = list(dict.fromkeys(name for one in answers for name in one.conditions))
    common = [name for name in known if all(name in one.conditions for one in answers)]
    for count in (1, 2):
        for names in combinations(common, count):
            if not _values(holds, names) & _values(fails, names):
                yield names


def _values(answers: Sequence[Answer], names: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(one.conditions[name] for name in names) for one in answers}


def _under(answers: Sequence[Answer], names: Sequence[str]) -> str:
    seen = dict.fromkeys(" ".join(one.conditions[name] for name in names) for one in answers)
    return ", ".join(seen)


def _tests(answers: Sequence[Answer]) -> str:
    return ", ".join(
        dict.fromkeys(
            f"{one.test.measure}{f' of {one.test.of}' if one.test.of else ''} on {one.test.on}"
            for one in answers
        )
    )
