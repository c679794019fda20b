"""Fill the package cache by lock: verify, mend once, and drift or refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ImageError
from lab.image import resolve
from lab.image.apt import Market, Wanted
from lab.image.lock import Lock, Package
from lab.image.recipe import Recipe
from lab.journal import Journal


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """Packages on disk, verified, by name; `lock` is what they are, after any drift."""

    lock: Lock
    files: dict[str, Path]
    drifted: tuple[str, ...]


def gather(
    lock: Lock,
    *,
    recipe: Recipe,
    folder: Path,
    market: Callable[[], Market],
    journal: Journal,
    locked: bool,
    offline: bool,
) -> Gathered:
    """Return all packages of `lock`, from `folder` or else from `market`, verified.

    One that is no longer served drifts to the nearest newer one; `locked` refuses that, and
    `offline` asks nobody.  Raises `ImageError`; `folder` then holds verified packages only.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = [package for package in lock.packages if not _sound(package, folder, journal)]
    if missing and offline:
        names = ", ".join(f"{package.name} {package.version}" for package in missing)
        raise ImageError(f"not in the cache, and offline: {names}", hint="once without --offline")
    drift: tuple[str, ...] = ()
    if missing:
        gone = _download(missing, folder, market(), journal)
        if gone and locked:
            names = ", ".join(f"{package.name} {package.version}" for package in gone)
            raise ImageError(
                f"no longer served: {names}",
                hint="without --locked the nearest newer one is taken; lab.image --lock re-pins",
            )
        if gone:
            with journal.step("ask the suites for newer packages"):
                lock, drift = resolve.drifted(
                    lock,
                    [package.name for package in gone],
                    recipe=recipe,
                    offers=market().offers(),
                )
            for text in drift:
                journal.say(f"drifted  {text}")
            rest = [package for package in lock.packages if not _sound(package, folder, journal)]
            again = _download(rest, folder, market(), journal)
            if again:
                names = ", ".join(f"{package.name} {package.version}" for package in again)
                raise ImageError(f"offered by the index and not served: {names}")
    files = {package.name: folder / package.filename for package in lock.packages}
    return Gathered(lock=lock, files=files, drifted=drift)


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sound(package: Package, folder: Path, journal: Journal) -> bool:
    # Whether the cache has it; what is there and differs is taken away.
    path = folder / package.filename
    if not path.is_file():
        return False
    found = sha256(path)
    if found == package.sha256:
        return True
    journal.say(
        f"{path.name} in the cache is corrupt: expected sha256 {package.sha256}, found {found}"
    )
    path.unlink()
    return False


def _download(
    packages: Sequence[Package], folder: Path, market: Market, journal: Journal
) -> list[Package]:
    # Returns those no longer served.  A file that differs is fetched once more, then it is said.
    left = list(packages)
    gone: list[Package] = []
    for attempt in (1, 2):
        if not left:
            break
        parts = {package.name: folder / f"{package.filename}.part" for package in left}
        megabytes = sum(package.size for package in left) / 1e6
        try:
            with journal.step(f"download {len(left)} packages, {megabytes:.0f} MB"):
                absent = market.download(
                    [
                        Wanted(suite=package.suite, pool=package.pool, target=parts[package.name])
                        for package in left
                    ]
                )
            again: list[Package] = []
            for package in left:
                if package.pool in absent:
                    gone.append(package)
                    continue
                part = parts[package.name]
                found = sha256(part)
                if found == package.sha256:
                    part.replace(folder / package.filename)
                    continue
                if attempt == 2:
                    raise ImageError(
                        f"{package.filename}: expected sha256 {package.sha256}, found {found}",
                        hint="another mirror by LAB_MIRROR, or lab.image --lock to re-pin",
                    )
                again.append(package)
            left = again
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
    return gone
