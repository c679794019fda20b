"""The lock of an image: which packages it is made of, to the byte; and Debian's version order."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import total_ordering
from pathlib import Path
from typing import Any

from lab.errors import ImageError

SCHEMA = 1
ROLES = ("kernel", "headers", "userland")
_HEAD = "# Written by `invoke lab.image --lock`; do not edit by hand.\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One package to the byte: where in the pool it lies and what its digest is."""

    name: str
    role: str
    suite: str
    version: str
    pool: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        return self.pool.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """All packages of one kernel series."""

    series: str
    packages: tuple[Package, ...]

    def dump(self) -> str:
        """Return the lock as the text of its file."""
        import yaml

        body = {
            "schema": SCHEMA,
            "series": self.series,
            "packages": [asdict(package) for package in self.packages],
        }
        text: str = yaml.safe_dump(body, sort_keys=False, width=200)
        return _HEAD + text


def load(path: Path, *, suites: set[str]) -> Lock:
    """Return the lock in `path`; raise `ImageError` with all its faults at once."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ImageError(
            f"there is no lock {path.name}", hint="invoke lab.image --lock writes it"
        ) from None
    return parse(text, name=path.name, suites=suites)


def parse(text: str, *, name: str, suites: set[str]) -> Lock:
    """Return the lock in `text`; raise `ImageError` with all its faults at once."""
    faults: list[str] = []
    body = mapping(text, name=name, faults=faults)
    closed(body, {"schema", "series", "packages"}, "the lock", faults)
    if body.get("schema", str(SCHEMA)) != str(SCHEMA):
        faults.append(f"schema: expected {SCHEMA}, found {body['schema']}")
    entries = body.get("packages")
    packages: list[Package] = []
    if not isinstance(entries, list) or not entries:
        faults.append("packages: expected a list of packages")
        entries = []
    for number, entry in enumerate(entries):
        package = _package(entry, f"packages[{number}]", suites, faults)
        if package is not None:
            if any(package.name == other.name for other in packages):
                faults.append(f"packages[{number}]: {package.name} is there twice")
            packages.append(package)
    if not faults:
        present = {package.role for package in packages}
        faults += [f"packages: none has the role {role}" for role in ROLES if role not in present]
    if faults:
        raise ImageError(
            f"{name}: " + "; ".join(faults), hint="invoke lab.image --lock writes it anew"
        )
    return Lock(series=str(body["series"]), packages=tuple(packages))


def mapping(text: str, *, name: str, faults: list[str]) -> dict[str, Any]:
    """Return the YAML mapping in `text`, its scalars as strings; note keys that are there twice."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ImageError(f"{name}: not YAML: {error}") from error
    body = _plain(root, faults)
    if not isinstance(body, dict):
        raise ImageError(f"{name}: expected a mapping, found {type(body).__name__}")
    return body


def closed(body: dict[str, Any], keys: set[str], where: str, faults: list[str]) -> None:
    """Note the keys that are missing from `body` and those that should not be there."""
    faults += [f"{where}: {key} is missing" for key in sorted(keys - set(body))]
    faults += [f"{where}: unknown key {key}" for key in sorted(set(body) - keys)]


def _plain(node: Any, faults: list[str]) -> Any:
    # Strings, lists and mappings alone: a loader that guesses types would read a version as a
    # number, and takes the last of two equal keys without a word.
    import yaml

    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key, value in node.value:
            if key.value in result:
                faults.append(f"line {key.start_mark.line + 1}: {key.value} is there twice")
            result[key.value] = _plain(value, faults)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, faults) for item in node.value]
    return node.value if node is not None else None


def _package(entry: Any, where: str, suites: set[str], faults: list[str]) -> Package | None:
    before = len(faults)
    if not isinstance(entry, dict):
        faults.append(f"{where}: expected a mapping")
        return None
    closed(entry, set(Package.__dataclass_fields__), where, faults)
    patterns = {
        "name": r"[a-z0-9][a-z0-9.+-]+",
        "version": r"[0-9A-Za-z.+:~-]+",
        "pool": r"pool/[0-9A-Za-z.+:~%_/-]+\.deb",
        "sha256": r"[0-9a-f]{64}",
        "size": r"[1-9][0-9]*",
    }
    for key, pattern in patterns.items():
        value = entry.get(key, "")
        # `..` would lead a download out of the cache folder.
        if key in entry and (
            not isinstance(value, str) or not re.fullmatch(pattern, value) or "/.." in value
        ):
            faults.append(f"{where}: {key}: expected {pattern}, found {value!r}")
    if "role" in entry and entry["role"] not in ROLES:
        faults.append(f"{where}: role: expected {'|'.join(ROLES)}, found {entry['role']!r}")
    if "suite" in entry and entry["suite"] not in suites:
        faults.append(
            f"{where}: suite: expected {'|'.join(sorted(suites))}, found {entry['suite']!r}"
        )
    if len(faults) > before:
        return None
    return Package(**{**entry, "size": int(entry["size"])})


@total_ordering
class Version:
    """A Debian version, ordered as dpkg orders them (deb-version(7))."""

    def __init__(self, text: str) -> None:
        epoch, colon, rest = text.partition(":")
        if not colon:
            epoch, rest = "0", text
        upstream, dash, revision = rest.rpartition("-")
        if not dash:
            upstream, revision = rest, "0"
        self._key = (int(epoch), _sortable(upstream), _sortable(revision))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key == other._key

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _sortable(text: str) -> list[tuple[list[int], int]]:
    # Alternating runs of non-digits and digits: `~` sorts before the end of the text, the end
    # before letters, letters before everything else; numbers by value.
    result: list[tuple[list[int], int]] = []
    for letters, digits in re.findall(r"(\D*)(\d*)", text):
        if not letters and not digits:
            continue
        ranks = [_rank(letter) for letter in letters]
        result.append(([*ranks, 0], int(digits or 0)))
    result.append(([0], 0))
    return result


def _rank(letter: str) -> int:
    if letter == "~":
        return -1
    return ord(letter) if letter.isalpha() else ord(letter) + 256
