"""A claims file to `lab.claims.types`: a closed schema, every fault at its line and column."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from lab import paths
from lab.claims.measures import MEASURES
from lab.claims.types import Claim, Experiment, Op, Test, Text, Value
from lab.errors import PlaybookError, did_you_mean
from lab.playbook.reading import Reading
from lab.playbook.values import KERNELS, OPTIONS, shown

T = TypeVar("T")
FILE_LIMIT = 256 * 1024
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}")
ID = re.compile(r"[A-Z]{1,4}[0-9]{1,3}[a-z]?")
OPS: tuple[Op, ...] = get_args(Op)
OPTION_NAMES = frozenset(OPTIONS) - {"kernel"}


def names() -> list[str]:
    """Return the names of the claims files that come with the lab."""
    return sorted(file.stem for file in folder().glob("*.yaml"))


def folder() -> Path:
    """Return where the claims files that come with the lab lie."""
    return paths.data() / "claims"


def load(path_or_name: str | Path) -> Text:
    """Read a claims file by path, or by name among those that come with the lab.

    Raises `PlaybookError` with all its faults at once.
    """
    text = str(path_or_name)
    path = folder() / f"{text}.yaml" if text in names() else Path(text)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PlaybookError(f"{text} is not a file", hint="name a YAML file")
        source = path.read_bytes()
        words = source.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlaybookError(
            f"claims {shown(text)} cannot be read: {getattr(error, 'strerror', None) or error}"
            f"{did_you_mean(text, names())}",
            hint=f"one of {', '.join(names())}, or a path such as ./mine.yaml",
        ) from error
    if len(source) > FILE_LIMIT:
        raise PlaybookError(f"{text} is over {FILE_LIMIT // 1024} KiB, the most a file may have")
    return parse(words, str(path))


def parse(words: str, path: str) -> Text:
    """Return what a claims file says; raise `PlaybookError` with every fault in it."""
    reading = _ClaimsReading(words, path)
    found = reading.text_of_claims()
    if found is None or reading.problems:
        faults = reading.sorted()
        many = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        listing = "\n".join(str(fault) for fault in faults)
        raise PlaybookError(
            f"{path} has {many}; nothing was started\n{listing}", hint="docs/guide.md has a model"
        )
    return found


class _ClaimsReading(Reading):
    """Walks the nodes of a claims file; what faults are and how they print is a playbook's."""

    def text_of_claims(self) -> Text | None:
        root = self._compose()
        if root is None:
            return None
        nodes = self._fields(root, needs=("claims", "title", "experiments"), may=())
        if self.problems:
            return None
        experiments = {
            name: one
            for name, node in self._pairs(nodes["experiments"])
            if (one := self._experiment(name, node)) is not None
        }
        claims = [
            claim
            for node in self._items(nodes["claims"])
            if (claim := self._claim(node, experiments)) is not None
        ]
        self._unique(nodes["claims"], claims)
        return Text(
            name=Path(self.path).stem,
            title=self._text(nodes["title"]),
            experiments=experiments,
            claims=tuple(claims),
            path=self.path,
            source=self.text.encode(),
        )

    def _unique(self, node: yaml.Node, claims: list[Claim]) -> None:
        seen: set[str] = set()
        for claim in claims:
            if claim.id in seen:
                self._node(node, f"two claims are called {claim.id}")
            seen.add(claim.id)

    # -- parts ---------------------------------------------------------------------

    def _experiment(self, name: str, node: yaml.Node) -> Experiment | None:
        may = ("playbook", "try", "send", "kernel", *sorted(OPTION_NAMES))
        nodes = self._fields(node, needs=(), may=may)
        told = {key: self._text(one) for key, one in nodes.items()}
        if not NAME.fullmatch(name):
            self._node(node, f"{shown(name)} is no name for an experiment: a-z, 0-9, '-', '.'")
        if ("playbook" in told) == ("try" in told):
            self._node(node, "an experiment has either a playbook or a module to try")
        if "try" in told and (wrong := OPTION_NAMES & told.keys()):
            self._node(node, f"a module to try takes no {', '.join(sorted(wrong))}")
        if told.get("kernel", KERNELS[0]) not in KERNELS:
            self._node(nodes["kernel"], f"expected one of {', '.join(KERNELS)}")
        return Experiment(
            name=name,
            playbook=told.get("playbook", ""),
            module=told.get("try", ""),
            send=told.get("send") in ("yes", "on"),
            kernel=told.get("kernel", ""),
            options=tuple((key, told[key]) for key in told if key in OPTION_NAMES),
        )

    def _claim(self, node: yaml.Node, experiments: Mapping[str, Experiment]) -> Claim | None:
        nodes = self._fields(node, needs=("id", "at", "says"), may=("tests", "untestable", "note"))
        if not {"id", "at", "says"} <= nodes.keys():
            return None
        told = {key: self._text(one) for key, one in nodes.items() if key != "tests"}
        if not ID.fullmatch(told["id"]):
            self._node(nodes["id"], "expected an id such as W12; found " + shown(told["id"]))
        tests: list[Test] = []
        for one in self._items(nodes["tests"]) if "tests" in nodes else ():
            tests += self._tests(one, experiments)
        if not tests and "untestable" not in told and "tests" not in nodes:
            self._node(node, "a claim has tests, or says why it is untestable")
        return Claim(
            id=told["id"],
            at=told["at"],
            says=told["says"],
            tests=tuple(tests),
            untestable=told.get("untestable", ""),
            note=told.get("note", ""),
        )

    def _tests(self, node: yaml.Node, experiments: Mapping[str, Experiment]) -> list[Test]:
        """Read one line of tests; `on` may be a list: the same on each."""
        nodes = self._fields(node, needs=("on", "measure"), may=("of", *OPS))
        ops = [op for op in OPS if op in nodes]
        if len(ops) != 1:
            self._node(node, f"a test compares in one of these ways: {', '.join(OPS)}")
        if not {"on", "measure"} <= nodes.keys() or len(ops) != 1:
            return []
        name = self._text(nodes["measure"])
        measure = MEASURES.get(name)
        if measure is None:
            mean = did_you_mean(name, MEASURES)
            self._node(nodes["measure"], f"unknown measure {shown(name)}{mean}")
        elif bool(measure.of) != ("of" in nodes):
            asks = f"asks 'of' which {measure.of}" if measure.of else "has no 'of'"
            self._node(node, f"measure {name} {asks}")
        on = self._words(nodes["on"])
        for one in on:
            if one not in experiments:
                mean = did_you_mean(one, experiments)
                self._node(nodes["on"], f"unknown experiment {shown(one)}{mean}")
        of = self._text(nodes["of"]) if "of" in nodes else ""
        value = self._value_of(nodes[ops[0]])
        return [Test(on=one, measure=name, of=of, op=ops[0], value=value) for one in on]

    # -- nodes ---------------------------------------------------------------------

    def _fields(
        self, node: yaml.Node, *, needs: tuple[str, ...], may: tuple[str, ...]
    ) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value in self._pairs(node):
            if key not in (*needs, *may):
                self._node(node, f"unknown key {shown(key)}{did_you_mean(key, (*needs, *may))}")
            found[key] = value
        for key in needs:
            if key not in found:
                self._node(node, f"missing key '{key}'")
        return found

    def _pairs(self, node: yaml.Node) -> list[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._node(node, "expected keys and values")
            return []
        seen: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = self._text(key_node)
            if key in seen:
                self._node(key_node, f"duplicate key {shown(key)}")
            seen[key] = value
        return list(seen.items())

    def _items(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        self._node(node, "expected a list")
        return []

    def _text(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode):
            return str(node.value).strip()
        self._node(node, "expected one value")
        return ""

    def _words(self, node: yaml.Node) -> list[str]:
        return self._each(node, self._text)

    def _each(self, node: yaml.Node, read: Callable[[yaml.Node], T]) -> list[T]:
        if isinstance(node, yaml.SequenceNode):
            return [read(one) for one in node.value]
        return [read(node)]

    def _value_of(self, node: yaml.Node) -> Value:
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._each(node, self._plain_value))
        return self._plain_value(node)

    def _plain_value(self, node: yaml.Node) -> bool | int | str:
        """Read yes, no, a number or a text; quotes make a text of any."""
        text = self._text(node)
        style: Any = getattr(node, "style", None)
        if style in ("'", '"'):
            return text
        if text in ("yes", "no"):
            return text == "yes"
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text
