"""The recipe of a guest, `images/packages.yaml`: which files of which packages, and what else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import ImageError
from lab.image.lock import closed, mapping

FILENAME = "packages.yaml"
_ARCHIVES = ("main", "security")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A suite: which of a mirror's archives has it, and the components taken."""

    archive: str
    components: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A kernel series by the metapackages that lead to its newest member."""

    image: str
    headers: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFile:
    """A small file written as it stands."""

    mode: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a guest is made of; `userland` is by package, guest path to path in the package."""

    architecture: str
    keyrings: tuple[str, ...]
    suites: dict[str, Suite]
    series: dict[str, Series]
    boot_modules: tuple[str, ...]
    more_modules: tuple[str, ...]
    userland: dict[str, dict[str, str]]
    libraries: tuple[str, ...]
    links: dict[str, tuple[str, ...]]
    files: dict[str, TextFile]
    folders: dict[str, int]


def load(folder: Path) -> Recipe:
    """Return the recipe in `folder`; raise `ImageError` with all its faults at once."""
    return parse((folder / FILENAME).read_text(encoding="utf-8"), name=FILENAME)


def parse(text: str, *, name: str) -> Recipe:
    """Return the recipe in `text`; raise `ImageError` with all its faults at once."""
    faults: list[str] = []
    body = mapping(text, name=name, faults=faults)
    keys = {"schema", "architecture", "keyrings", "suites", "series", "modules", "userland"}
    keys |= {"libraries", "links", "files", "folders"}
    closed(body, keys, "the recipe", faults)
    if body.get("schema", "1") != "1":
        faults.append(f"schema: expected 1, found {body['schema']}")
    reader = _Reader(faults)
    modules = reader.section(body, "modules", {"boot", "more"})
    suites = {
        key: Suite(
            archive=reader.choice(value, "archive", _ARCHIVES, f"suites.{key}"),
            components=reader.texts(value, "components", f"suites.{key}"),
        )
        for key, value in reader.table(body, "suites", {"archive", "components"}).items()
    }
    series = {
        key: Series(
            image=reader.text(value, "image", f"series.{key}"),
            headers=reader.text(value, "headers", f"series.{key}"),
        )
        for key, value in reader.table(body, "series", {"image", "headers"}).items()
    }
    files = {
        key: TextFile(
            mode=reader.octal(value.get("mode"), f"files.{key}"),
            text=reader.text(value, "text", f"files.{key}"),
        )
        for key, value in reader.table(body, "files", {"mode", "text"}).items()
    }
    recipe = Recipe(
        architecture=reader.text(body, "architecture", "the recipe"),
        keyrings=reader.texts(body, "keyrings", "the recipe"),
        suites=suites,
        series=series,
        boot_modules=reader.texts(modules, "boot", "modules"),
        more_modules=reader.texts(modules, "more", "modules"),
        userland={
            key: {path: reader.text(value, path, f"userland.{key}") for path in value}
            for key, value in reader.table(body, "userland", None).items()
        },
        libraries=reader.texts(body, "libraries", "the recipe"),
        links={
            key: reader.texts(reader.section(body, "links", None), key, "links")
            for key in reader.section(body, "links", None)
        },
        files=files,
        folders={
            key: reader.octal(value, f"folders.{key}")
            for key, value in reader.section(body, "folders", None).items()
        },
    )
    if faults:
        raise ImageError(f"{name}: " + "; ".join(dict.fromkeys(faults)))
    return recipe


class _Reader:
    """Takes values out of a mapping, noting faults and going on."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults

    def section(self, body: dict[str, Any], key: str, keys: set[str] | None) -> dict[str, Any]:
        value = body.get(key, {})
        if not isinstance(value, dict):
            self.faults.append(f"{key}: expected a mapping")
            return {}
        if keys is not None:
            closed(value, keys, key, self.faults)
        return value

    def table(
        self, body: dict[str, Any], key: str, keys: set[str] | None
    ) -> dict[str, dict[str, Any]]:
        section = self.section(body, key, None)
        return {name: self.section(section, name, keys) for name in section}

    def text(self, body: dict[str, Any], key: str, where: str) -> str:
        value = body.get(key, "")
        if not isinstance(value, str):
            self.faults.append(f"{where}: {key}: expected text")
            return ""
        return value

    def texts(self, body: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
        value = body.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.faults.append(f"{where}: {key}: expected a list of words")
            return ()
        return tuple(value)

    def choice(self, body: dict[str, Any], key: str, choices: tuple[str, ...], where: str) -> str:
        value = self.text(body, key, where)
        if value not in choices:
            self.faults.append(f"{where}: {key}: expected {'|'.join(choices)}, found {value!r}")
        return value

    def octal(self, value: object, where: str) -> int:
        try:
            return int(str(value), 8)
        except ValueError:
            self.faults.append(f"{where}: mode: expected octal digits, found {value!r}")
            return 0
