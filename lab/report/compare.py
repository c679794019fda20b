"""Two runs beside each other: what differs in movements, places and conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from lab.ledger import Ledger, Message, Place
from lab.report import verdict
from lab.report.blocks import Block, plain, table
from lab.report.conditions import conditions
from lab.report.drawing import Drawing, Words, draw
from lab.report.evidence import Archive
from lab.report.page import environment
from lab.report.stations import heads, way
from lab.report.tables import paragraph, span
from lab.report.words import KINDS, PLACES, function_name
from lab.rundir import RunDir

MOST = 4  # places of one kind
COLUMN = 36  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One thing of both runs; "–" where one has no such thing."""

    name: str
    first: str
    second: str

    @property
    def same(self) -> bool:
        return self.first == self.second


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What two runs have alike and what not; of each the message that was copied most often."""

    first: str
    second: str
    totals: tuple[Row, ...]
    movements: tuple[Row, ...]
    places: tuple[Row, ...]
    conditions: tuple[Row, ...]

    def as_json(self) -> dict[str, object]:
        """Return all rows as JSON values."""
        return asdict(self)


def compare(first: tuple[Ledger, RunDir], second: tuple[Ledger, RunDir]) -> Comparison:
    """Return what differs between two runs."""
    ledgers = first[0], second[0]
    one, two = (verdict.largest(ledger) for ledger in ledgers)
    return Comparison(
        first=first[1].name,
        second=second[1].name,
        totals=tuple(_totals(ledgers, one, two)),
        movements=tuple(_aligned("movement", _movements(one), _movements(two))),
        places=tuple(_places(one, two)),
        conditions=tuple(_conditions(first, second)),
    )


def render(found: Comparison) -> str:
    """Return the comparison as plain text."""
    return "\n".join(plain(told(found))) + "\n"


def told(found: Comparison) -> list[Block]:
    """Return the comparison, its tables to be shown at any width."""
    out: list[Block] = [f"A  {found.first}", f"B  {found.second}"]
    for title, rows in (
        ("TOTALS", found.totals),
        ("MOVEMENTS", found.movements),
        ("PLACES", found.places),
        ("CONDITIONS", found.conditions),
    ):
        shown = [row for row in rows if title != "CONDITIONS" or not row.same]
        if title == "CONDITIONS" and not shown:
            out += ["", "The conditions are the same."]
            continue
        cells = [(row.name, row.first, row.second, "" if row.same else "*") for row in shown]
        out += ["", *table((title, "A", "B", "DIFFERS"), _fitted(cells))]
    return out


def page(found: Comparison, first: tuple[Ledger, RunDir], second: tuple[Ledger, RunDir]) -> str:
    """Return compare.html: both journeys, drawn alike, and the rows."""
    return environment().get_template("compare.html.j2").render(
        run=f"{found.first} · {found.second}",
        found=found,
        names=_names(first, second),
        sides=[_side(*first, "a"), _side(*second, "b")],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One run's half of the page."""

    run: str
    word: str
    good: bool
    sentences: Sequence[str]
    wide: Drawing
    narrow: Drawing


def _side(ledger: Ledger, run: RunDir, anchor: str) -> Side:
    manifest = run.manifest()
    message = verdict.largest(ledger)
    words = Words(
        kernel=f"Linux {manifest.kernel}",
        device=manifest.device,
        rings=Archive(run).descriptors(message, heads(message)),
        anchor=anchor,
        linked=False,
    )
    return Side(
        run=run.name,
        word=verdict.word(ledger),
        good=ledger.proven,
        sentences=verdict.sentences(ledger),
        wide=draw(message, words, wide=True),
        narrow=draw(message, words, wide=False),
    )


def _names(first: tuple[Ledger, RunDir], second: tuple[Ledger, RunDir]) -> tuple[str, str]:
    names = first[0].playbook, second[0].playbook
    return names if names[0] != names[1] else (f"A ({names[0]})", f"B ({names[1]})")


def _totals(ledgers: tuple[Ledger, Ledger], one: Message, two: Message) -> Iterator[Row]:
    yield Row(name="verdict", first=verdict.word(ledgers[0]), second=verdict.word(ledgers[1]))
    for name, field in (
        ("CPU copies", "guest_cpu_copies"),
        ("device reads", "device_reads"),
        ("device writes", "device_writes"),
        ("handovers", "handovers"),
    ):
        values = [span(*message.totals.spread(field)) for message in (one, two)]
        yield Row(name=name, first=values[0], second=values[1])
    yield Row(name="skb", first=verdict.skb_words(one), second=verdict.skb_words(two))
    lost = [verdict.lost_words(ledger) for ledger in ledgers]
    yield Row(name="lost", first=lost[0], second=lost[1])


def _movements(message: Message) -> list[str]:
    out = []
    for arrow in way(message).arrows:
        first = message.movements[arrow.movements[0]]
        out.append(f"{KINDS[arrow.kind]}: {function_name(first)}")
    return out


def _aligned(name: str, one: Sequence[str], two: Sequence[str]) -> Iterator[Row]:
    """Yield the entries of two sequences, equal ones beside each other."""
    matcher = SequenceMatcher(None, one, two, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        for left, right in zip_longest(one[a:b], two[c:d], fillvalue="–"):
            yield Row(name=name, first=left, second=right)


def _whose(message: Message, place: Place) -> str:
    """Return what a place is called and whose it is; over loopback a buffer is a program's."""
    name = PLACES.get(place.place, place.place)
    if place.place == "wire":
        return name
    side = place.guest
    if message.over == "loopback":
        users = [one for one in message.places if one.place == "user"]
        side = "kernel"
        if place.place == "user":
            side = "sender" if place is users[0] else "receiver"
    return f"{side} {name}"


def _places(one: Message, two: Message) -> Iterator[Row]:
    kinds = list(
        dict.fromkeys(_whose(message, p) for message in (one, two) for p in message.places)
    )
    for kind in kinds:
        sides = [
            [p for p in message.places if _whose(message, p) == kind] for message in (one, two)
        ]
        for number, (left, right) in enumerate(zip_longest(*sides)):
            if number >= MOST:
                rest = [str(max(0, len(side) - MOST)) for side in sides]
                yield Row(name=f"{kind}, more", first=rest[0], second=rest[1])
                break
            words = [
                "–" if place is None else f"0x{place.virtual:x}" if place.virtual else "a frame"
                for place in (left, right)
            ]
            yield Row(name=kind, first=words[0], second=words[1])


def _conditions(first: tuple[Ledger, RunDir], second: tuple[Ledger, RunDir]) -> Iterator[Row]:
    one = dict(conditions(first[0], first[1].manifest()))
    two = dict(conditions(second[0], second[1].manifest()))
    for name in dict.fromkeys((*one, *two)):
        if name != "lost":
            yield Row(name=name, first=one.get(name, "–"), second=two.get(name, "–"))


def _fitted(cells: list[tuple[str, str, str, str]]) -> Iterator[tuple[str, str, str, str]]:
    """Wrap long cells to several rows, so that the table fits."""
    for name, first, second, differs in cells:
        lines = zip_longest(
            paragraph(first, width=COLUMN, indent=""),
            paragraph(second, width=COLUMN, indent=""),
            fillvalue="",
        )
        for number, (left, right) in enumerate(lines):
            yield (name if not number else "", left, right, differs if not number else "")
