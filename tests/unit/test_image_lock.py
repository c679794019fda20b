"""Locks: what they hold comes back, all faults are said at once, versions sort as dpkg sorts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab import paths
from lab.errors import ImageError
from lab.image import lock, recipe
from lab.image.lock import Lock, Package, Version

SUITES = {"stable", "stable-security"}
KERNEL = Package(
    name="linux-image-6.12.9-amd64",
    role="kernel",
    suite="stable",
    version="6.12.9-1~deb12u1",
    pool="pool/main/l/linux/linux-image-6.12.9-amd64_6.12.9-1~deb12u1_amd64.deb",
    sha256="0" * 64,  # all digits: a loader that guesses types would make a number of it
    size=10,
)
HEADERS = replace(KERNEL, name="linux-headers-6.12.9-amd64", role="headers", sha256="1e" * 32)
TOOL = replace(KERNEL, name="libfoo++", role="userland", version="1:2.0+b1")
LOCK = Lock(series="6.12", packages=(KERNEL, HEADERS, TOOL))


def parse(text: str) -> Lock:
    return lock.parse(text, name="x.lock.yaml", suites=SUITES)


def test_a_lock_comes_back_from_its_text() -> None:
    assert parse(LOCK.dump()) == LOCK


def test_all_faults_are_said_at_once() -> None:
    text = LOCK.dump()
    text = text.replace("role: kernel", "role: kernal").replace("'" + "0" * 64 + "'", "abc", 1)
    text = text.replace("suite: stable\n", "suite: unstable\n", 1) + "extra: 1\n"
    with pytest.raises(ImageError) as caught:
        parse(text)
    for part in ("'kernal'", "'abc'", "'unstable'", "unknown key extra"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema: 1", "schema: 2", "schema: expected 1"),
        ("series: '6.12'\n", "", "series is missing"),
        ("size: 10", "size: 0", "size: expected"),
        ("size: 10", "size: ten", "size: expected"),
        ("pool: pool/main", "pool: pool/../..", "pool: expected"),
        ("pool: pool/main", "pool: /main", "pool: expected"),
        ("version: 1:2.0+b1", "version: '1;2'", "version: expected"),
        ("name: libfoo++", "name: Foo", "name: expected"),
        ("name: libfoo++", "name: linux-headers-6.12.9-amd64", "is there twice"),
        ("  size: 10", "  size: 10\n  size: 11", "size is there twice"),
        ("  size: 10", "  size: 10\n  colour: red", "unknown key colour"),
        ("role: kernel", "role: userland", "none has the role kernel"),
        ("role: headers", "role: userland", "none has the role headers"),
    ],
)
def test_a_fault_is_said(old: str, new: str, said: str) -> None:
    text = LOCK.dump()
    assert old in text
    with pytest.raises(ImageError, match=said):
        parse(text.replace(old, new))


@pytest.mark.parametrize("text", ["", "[]", "a: [", "packages: 3", "packages: [3]"])
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        parse(text)


def test_an_absent_lock_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        lock.load(tmp_path / "6.12.lock.yaml", suites=SUITES)
    assert caught.value.hint is not None
    assert "--lock" in caught.value.hint


def test_the_locks_of_the_project_are_whole() -> None:
    """Every series has a lock, which has all that the recipe takes and names no host."""
    folder = paths.data() / "images"
    made_of = recipe.load(folder)
    for series in made_of.series:
        path = folder / f"{series}.lock.yaml"
        found = lock.load(path, suites=set(made_of.suites))
        assert series == found.series
        userland = {one.name for one in found.packages if one.role == "userland"}
        assert userland == {*made_of.userland, *made_of.libraries}
        assert "://" not in path.read_text(encoding="utf-8")


# Each is older than the next; from deb-version(7) and the cases that hurt.
SORTED = [
    "1.0~~",
    "1.0~~a",
    "1.0~",
    "1.0",
    "1.0-0.1",
    "1.0-1~deb12u1",
    "1.0-1",
    "1.0-1+b1",
    "1.0-2",
    "1.0a",
    "1.0+dfsg-1",
    "1.0.1-1",
    "1.2",
    "1.10",
    "6.12.117-1~deb12u1",
    "6.12.117-1",
    "6.12.120-1~deb12u1",
    "1:0.1",
]


def test_versions_sort_as_dpkg_sorts_them() -> None:
    shuffled = [*SORTED[::2], *SORTED[1::2]]
    assert SORTED == sorted(shuffled, key=Version)


def test_versions_that_say_the_same_are_equal() -> None:
    assert Version("1.0") == Version("0:1.0-0")
    assert Version("1.00") == Version("1.0")
    assert Version("1.0") != Version("1.1")


def test_the_recipe_says_all_its_faults_at_once() -> None:
    text = (paths.data() / "images" / recipe.FILENAME).read_text(encoding="utf-8")
    broken = text.replace("archive: security", "archive: secure").replace('mode: "0644"', "mode: x")
    with pytest.raises(ImageError) as caught:
        recipe.parse(broken + "colour: red\n", name="packages.yaml")
    for part in ("'secure'", "octal", "unknown key colour"):
        assert part in str(caught.value)
