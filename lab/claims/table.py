"""The table of verdicts: for a terminal, for a program, and as docs/claims.md."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.claims.judge import WAYS
from lab.claims.types import NOT_HERE, WORDS, Answer, Judged, Value, Verdict
from lab.report.tables import WIDTH

NO_EXPERIMENT = "no experiment yet"
SHOWN_EVIDENCE = 2
COMMAND = "invoke lab.claims --markdown docs/claims.md"


def shown(value: Value) -> str:
    """Return a value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(shown(one) for one in value)
    return str(value)


def summary(all_judged: Sequence[Judged]) -> str:
    """Return one sentence that counts the verdicts."""
    verdicts = [one for judged in all_judged for one in judged.verdicts]
    counts = Counter(one.word for one in verdicts)
    yet = sum(one.on.startswith(NO_EXPERIMENT) for one in verdicts)
    words = [f"{counts[word]} {word}" for word in WORDS if counts[word]]
    text = f"{len(verdicts)} claims: {', '.join(words)}"
    return f"{text} ({yet} of these because there is {NO_EXPERIMENT})" if yet else text


def measured(answer: Answer) -> str:
    """Return one line: what was measured where, against what was said."""
    test = answer.test
    of = f" of {test.of}" if test.of else ""
    what = f"{test.measure}{of} on {test.on}"
    if answer.measured is None:
        state = f"{NOT_HERE}: " if answer.state == "unavailable" else ""
        return f"{what}: {state}{answer.why}"
    said = f"{WAYS[test.op]}{shown(test.value)}"
    return f"{what}: {shown(answer.measured.value)} (claimed: {said})"


def told(one: Verdict) -> list[Answer]:
    """Return the answers to show: values, and beside them what could not be measured.

    Where there is no value at all, the verdict itself gives the reasons.
    """
    values = any(answer.measured is not None for answer in one.answers)
    return [answer for answer in one.answers if answer.measured is not None or values]


def evidence(answer: Answer) -> str:
    """Return the first records that carry a value, and how many more there are."""
    ids = answer.measured.evidence if answer.measured else ()
    more = f" and {len(ids) - SHOWN_EVIDENCE} more" if len(ids) > SHOWN_EVIDENCE else ""
    return ", ".join(ids[:SHOWN_EVIDENCE]) + more


def render(all_judged: Sequence[Judged], *, width: int = WIDTH) -> str:
    """Return the table for a terminal: a claim, its verdict, its values and their records."""
    lines: list[str] = []
    for judged in all_judged:
        lines += [judged.text.title, "─" * min(width, len(judged.text.title)), ""]
        for one in judged.verdicts:
            lines += _block(one, width)
    return "\n".join([*lines, summary(all_judged)])


def _block(one: Verdict, width: int) -> Iterator[str]:
    def wrapped(text: str, first: str, rest: str) -> list[str]:
        return textwrap.wrap(
            text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip

    indent = " " * 6
    yield from wrapped(f"{one.claim.id:<6}{one.claim.at}: {one.claim.says}", "", indent)
    on = f": {one.on}" if one.on else ""
    yield from wrapped(f"{one.word.upper()}{on}", indent, indent + "  ")
    for answer in told(one):
        records = f"  [{evidence(answer)}]" if answer.measured else ""
        yield from wrapped(f"{measured(answer)}{records}", indent + "- ", indent + "  ")
    if one.claim.note:
        yield from wrapped(f"Note: {one.claim.note}", indent, indent + "  ")
    yield ""


def to_json(all_judged: Sequence[Judged]) -> dict[str, Any]:
    """Return the content of claims.json."""
    return {
        "schema": 1,
        "summary": summary(all_judged),
        "texts": [
            {
                "name": judged.text.name,
                "title": judged.text.title,
                "claims": [_claim(one) for one in judged.verdicts],
            }
            for judged in all_judged
        ],
    }


def _claim(one: Verdict) -> dict[str, Any]:
    return {
        "id": one.claim.id,
        "at": one.claim.at,
        "says": one.claim.says,
        "verdict": one.word,
        "on": one.on,
        "note": one.claim.note,
        "measured": [
            {
                "experiment": answer.test.on,
                "measure": answer.test.measure,
                "of": answer.test.of,
                "claimed": {answer.test.op: _plain(answer.test.value)},
                "state": answer.state,
                "value": _plain(answer.measured.value) if answer.measured else None,
                "evidence": list(answer.measured.evidence) if answer.measured else [],
                "why": answer.why,
                "conditions": dict(answer.conditions),
            }
            for answer in one.answers
        ],
    }


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def conditions(folder: Path) -> str:
    """Say on what the experiments of a folder ran, as their manifests tell."""
    told: dict[str, dict[str, None]] = {"kernel": {}, "qemu": {}, "accelerator": {}}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        told["kernel"][f"Linux {manifest['kernel']}"] = None
        told["qemu"][f"QEMU {manifest.get('versions', {}).get('qemu', '?')}"] = None
        told["accelerator"][manifest["accelerator"]["name"]] = None
    return "; ".join(", ".join(values) for values in told.values() if values)


def markdown(all_judged: Sequence[Judged], *, conditions: str) -> str:
    """Return docs/claims.md: every claim, verdict, value and record."""
    lines = [
        "# What became of the claims",
        "",
        f"Made by `{COMMAND}`; do not edit it. Measured on {conditions}.",
        "",
        f"{summary(all_judged)}.",
        "",
        "*Confirmed*: every measured value is what the text says. *Refuted*: none is. *Depends*:",
        "some are, and what tells them apart is named. *Not testable here*: the reason is given; a",
        "part of a claim that is so decides nothing.",
        "Each value names the experiment and the record it comes from, as a path below the folder",
        "that the command leaves.",
    ]
    for judged in all_judged:
        lines += ["", f"## {judged.text.title}", ""]
        lines += ["| | Where | Claim | Verdict | Measured, and the record |", "|-|-|-|-|-|"]
        lines += [_row(one) for one in judged.verdicts]
    return "\n".join(lines) + "\n"


def _row(one: Verdict) -> str:
    values = [
        f"{measured(answer)} `{answer.measured.evidence[0]}`"
        if answer.measured
        else measured(answer)
        for answer in told(one)
    ]
    if one.claim.note:
        values.append(f"*{one.claim.note}*")
    on = f": {one.on}" if one.on else ""
    cells = (
        one.claim.id, one.claim.at, one.claim.says, f"**{one.word}**{on}", "<br>".join(values),
    )  # fmt: skip
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
