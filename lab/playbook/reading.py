"""A playbook's text to `lab.spec`, by its nodes: all faults, each at its line and column."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lab.errors import did_you_mean
from lab.playbook.values import (
    ENTANGLED,
    READERS,
    Fault,
    contradictions,
    misplaced,
    one_of,
    shown,
    switch,
    whole,
)
from lab.spec import Expect, Playbook, Probes, Workload

FILE_LIMIT = 64 * 1024
DEPTH_LIMIT = 8

_SNIPPET = 96  # characters of a source line that are shown
_Schema = dict[str, tuple[dataclasses.Field[Any], object]]
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what PyYAML counts as the end of a line
_KEYS = {
    "name": "playbook",
    "deadline_s": "deadline",
    "delay_s": "delay",
    "soak_s": "soak",
    "mrg_rxbuf": "mrg_rxbuf",  # QEMU's and the driver's own word
}  # fields whose key is another word
_HIDDEN = ("source", "path", "not_judged")  # fields no file may set
# Values that name a file or folder, from where the playbook lies.
PATHS = frozenset({"module.path", "kernel.image", "kernel.modules", "kernel.headers"})
# Files that keep the name the playbook has of them: what they say is kept under it.
NEIGHBOURS = frozenset({"probes.foreign"})


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault of a playbook; prints as a compiler's message with the line and a caret."""

    line: int
    column: int
    message: str
    path: str
    source: str

    def __str__(self) -> str:
        head = f"{self.path}:{self.line}:{self.column}: {self.message}"
        if not self.source.strip():
            return head
        start = max(0, self.column - _SNIPPET + 16)
        shown = "".join(c if c.isprintable() else " " for c in self.source[start:][:_SNIPPET])
        return f"{head}\n    {shown.rstrip()}\n    {' ' * (self.column - 1 - start)}^"


class Reading:
    """One pass over one file; collects problems and goes on."""

    def __init__(self, text: str, path: str, *, folder: Path | None = None) -> None:
        """Read `text`, shown as `path`; files it names are looked for from `folder` on."""
        self.path = path
        self.folder = folder
        self.text = text.removeprefix("\ufeff")
        self.lines = _BREAK.split(self.text)
        self.problems: list[Problem] = []

    def sorted(self) -> list[Problem]:
        return sorted(set(self.problems))

    def playbook(self) -> Playbook | None:
        """Return what the file asks; None when faults leave too little to build it from."""
        if len(self.text.encode("utf-8", "replace")) > FILE_LIMIT:
            self._at(0, 0, f"a playbook has at most {FILE_LIMIT // 1024} KiB")
            return None
        root = self._compose()
        if root is None:
            return None
        value = self._mapping(root, Playbook, "")
        if not isinstance(value, Playbook):
            return None
        return dataclasses.replace(value, path=self.path)

    def _at(self, line: int, column: int, message: str) -> None:
        source = self.lines[line] if line < len(self.lines) else ""
        self.problems.append(Problem(line + 1, column + 1, message, self.path, source))

    def _mark(self, mark: Any, message: str) -> None:
        self._at(mark.line if mark else 0, mark.column if mark else 0, message)

    def _node(self, node: yaml.Node, message: str) -> None:
        self._mark(node.start_mark, message)

    def _compose(self) -> yaml.Node | None:
        try:
            root = yaml.compose(self.text, Loader=yaml.SafeLoader) if self._plain() else None
        except yaml.reader.ReaderError as error:
            before = _BREAK.split(self.text[: error.position])
            self._at(len(before) - 1, len(before[-1]), "a character that no YAML text may hold")
            return None
        except yaml.MarkedYAMLError as error:
            what = error.problem or error.context or "not YAML"
            self._mark(error.problem_mark or error.context_mark, what)
            return None
        except (ValueError, OverflowError):
            # PyYAML's own slip on "\U00110000" and on a %YAML of a thousand digits.
            self._at(0, 0, "an escape or a version in this file is no number YAML knows")
            return None
        if root is None and not self.problems:
            self._at(0, 0, "the playbook is empty")
        return root

    def _plain(self) -> bool:
        """Refuse all of YAML that is not keys, values and lists, before a node is made."""
        depth = documents = 0
        for event in yaml.parse(self.text, Loader=yaml.SafeLoader):
            mark = event.start_mark
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._mark(mark, "a playbook is one document; here is another")
                    break
            if isinstance(event, yaml.AliasEvent):
                self._mark(mark, "aliases (*name) are not allowed")
            elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
                self._mark(mark, "anchors (&name) are not allowed")
            if getattr(event, "tag", None) is not None:
                self._mark(mark, "tags (!name) are not allowed")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > DEPTH_LIMIT:
                    self._mark(mark, f"nested deeper than {DEPTH_LIMIT} levels")
                    break
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        return not self.problems

    def _mapping(self, node: yaml.Node, cls: type[Any], where: str) -> object:
        """Read a mapping into `cls`; None when it could not be built."""
        schema = _schema(cls)
        if not isinstance(node, yaml.MappingNode):
            keys = ", ".join(list(schema)[:3])
            self._node(node, f"expected keys such as {keys}; found {_found(node)}")
            return None
        faults = len(self.problems)
        nodes = self._keys(node, schema)
        values: dict[str, object] = {}
        for key, value_node in nodes.items():
            field, annotation = schema[key]
            before = len(self.problems)
            value = self._value(value_node, annotation, f"{where}.{key}" if where else key)
            if len(self.problems) == before:
                values[field.name] = value
        if cls is Workload and "size" not in nodes and isinstance(values.get("payload"), bytes):
            values["size"] = len(values["payload"])  # type: ignore[arg-type]
        if cls is Playbook:
            self._sections(node, nodes, values)
        if not any(key in ENTANGLED and schema[key][0].name not in values for key in nodes):
            absent = dict.fromkeys(field.name for field, _ in schema.values() if _required(field))
            for key, message in contradictions(cls(**(absent | values))):
                self._node(nodes.get(key, node), message)
        return cls(**values) if len(self.problems) == faults else None

    def _sections(
        self, node: yaml.Node, nodes: dict[str, yaml.Node], values: dict[str, object]
    ) -> None:
        """Note sections that this kind of experiment lacks, or does not have."""
        if "experiment" in nodes and "experiment" not in values:
            return  # a fault by itself
        kind = str(values.get("experiment", "message"))
        probes = values.get("probes", Probes())
        for key, message in misplaced(
            kind,
            nodes,
            # One that could not be read is a fault by itself.
            expect=values.get("expect", None if "expect" in nodes else Expect()),
            probes=probes if isinstance(probes, Probes) else Probes(),
        ):
            self._node(nodes.get(key, node), message)

    def _keys(self, node: yaml.MappingNode, schema: _Schema) -> dict[str, yaml.Node]:
        """Return the values of the keys that may be here, and note every other key."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._node(key_node, f"expected a key; found {_found(key_node)}")
                continue
            key = key_node.value
            if key in seen:
                self._node(key_node, f"duplicate key {shown(key)}, first given on line {seen[key]}")
            elif key not in schema:
                self._node(
                    key_node,
                    f"unknown key {shown(key)}{_did_you_mean_key(key, schema)};"
                    f" expected one of {', '.join(schema)}",
                )
            seen.setdefault(key, key_node.start_mark.line + 1 if key_node.start_mark else 0)
        for key, (field, _) in schema.items():
            if _required(field) and key not in seen:
                self._node(node, f"missing key '{key}'")
        # Backwards, so that the first of two keys stays.
        return {
            key_node.value: value_node
            for key_node, value_node in reversed(node.value)
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in schema
        }

    def _value(self, node: yaml.Node, annotation: object, where: str) -> object:
        nested = _nested(annotation)
        if nested is not None and (
            isinstance(node, yaml.MappingNode) or not _or_a_word(annotation)
        ):
            return self._mapping(node, nested, where)
        if get_origin(annotation) is tuple:
            return self._list(node, where)
        return self._scalar(node, _reader(annotation, where), where)

    def _list(self, node: yaml.Node, where: str) -> tuple[object, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._node(node, f"expected a list such as [a, b]; found {_found(node)}")
            return ()
        return tuple(
            dict.fromkeys(self._scalar(item, READERS[where], where) for item in node.value)
        )

    def _scalar(self, node: yaml.Node, read: Callable[[str], object], where: str) -> object:
        if not isinstance(node, yaml.ScalarNode):
            self._node(node, f"expected one value; found {_found(node)}")
            return None
        try:
            if any("\ud800" <= c <= "\udfff" for c in node.value):
                raise Fault("half a surrogate pair is no character")  # noqa: TRY301 - one way out
            value = read(node.value)
            if where in PATHS and self.folder is not None:
                value = _there(self.folder, node.value)
            if where in NEIGHBOURS and self.folder is not None:
                _there(self.folder, node.value, file=True)
        except Fault as fault:
            self._node(node, str(fault))
            return None
        return value


def _nested(annotation: object) -> type[Any] | None:
    """Return the dataclass that is a section of its own, optional or not; None for a value."""
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _or_a_word(annotation: object) -> bool:
    """Say whether a section may also be one value, as a kernel is the name of a series."""
    return str in get_args(annotation)


def _there(folder: Path, text: str, *, file: bool = False) -> str:
    """Return the path of what a playbook names from where it lies itself; `file`: no folder."""
    path = folder / text
    try:
        there = path.is_file() if file else path.exists()
    except OSError as error:
        raise Fault(f"{shown(text)} cannot be looked for: {error.strerror}") from error
    if not there:
        raise Fault(f"there is no {shown(text)} beside this playbook")
    return str(path)


def _reader(annotation: object, where: str) -> Callable[[str], object]:
    """Return what reads a field: the one named for its place, or the one its type asks for."""
    if where in READERS:
        return READERS[where]
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if get_origin(annotation) is Literal:
        return one_of([str(kind) for kind in kinds])
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal:
        return one_of(get_args(kinds[0]))
    if kinds == [bool]:
        return switch
    if kinds == [int]:
        return whole(0, 1_000_000)
    raise TypeError(f"nothing reads {where}: {annotation}")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _schema(cls: type[Any]) -> _Schema:
    """Return the keys a mapping for `cls` may have, with field and type."""
    hints = get_type_hints(cls)
    return {
        _KEYS.get(field.name, field.name.replace("_", "-")): (field, hints[field.name])
        for field in dataclasses.fields(cls)
        if cls is not Playbook or field.name not in _HIDDEN
    }


def _did_you_mean_key(key: str, schema: Iterable[str]) -> str:
    if near := did_you_mean(key, schema):
        return near
    top = _schema(Playbook)
    if key in top:
        return f" ('{key}' belongs to the top level)"
    for part, (_, annotation) in top.items():
        nested = _nested(annotation)
        if nested is not None and key in _schema(nested):
            return f" ('{key}' belongs under '{part}')"
    return ""


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return shown(str(node.value))
