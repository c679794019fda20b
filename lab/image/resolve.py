"""Choose packages from what the suites offer: the newest to pin, the nearest newer on drift."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from lab.errors import ImageError
from lab.image.apt import Offer
from lab.image.lock import Lock, Package, Version
from lab.image.recipe import Recipe


def newest(series: str, *, recipe: Recipe, offers: Sequence[Offer]) -> Lock:
    """Return a lock of the newest of everything; what `lab.image --lock` writes."""
    packages = _kernel(series, recipe=recipe, offers=offers, above=None)
    for name in [*sorted(recipe.userland), *sorted(recipe.libraries)]:
        found = _best(offers, name, lambda versions: max(versions, key=_version))
        if found is None:
            raise ImageError(f"no suite offers {name}")
        packages.append(_package(found, "userland"))
    return Lock(series=series, packages=tuple(packages))


def drifted(
    lock: Lock, gone: Iterable[str], *, recipe: Recipe, offers: Sequence[Offer]
) -> tuple[Lock, tuple[str, ...]]:
    """Return the lock with packages named in `gone` replaced, and what changed, for people.

    A kernel and its headers change together, or modules would not fit the kernel.
    """
    lost = set(gone)
    packages = list(lock.packages)
    said: list[str] = []
    if any(package.name in lost and package.role != "userland" for package in packages):
        old = [package for package in packages if package.role != "userland"]
        pinned = next(package for package in old if package.role == "kernel")
        new = _kernel(lock.series, recipe=recipe, offers=offers, above=pinned.version)
        packages = [*new, *(package for package in packages if package.role == "userland")]
        said.append(f"{pinned.name}: locked {pinned.version}, got {new[0].version} ({new[0].name})")
    for number, package in enumerate(packages):
        if package.role == "userland" and package.name in lost:
            floor = Version(package.version)
            found = _best(
                [offer for offer in offers if Version(offer.version) > floor]
                if any(offer.name == package.name for offer in offers)
                else [],
                package.name,
                lambda versions: min(versions, key=_version),
            )
            if found is None:
                raise ImageError(
                    f"{package.name} {package.version} is no longer served, nor is a newer one",
                    hint="invoke lab.image --lock pins what is served now",
                )
            packages[number] = _package(found, "userland")
            said.append(f"{package.name}: locked {package.version}, got {found.version}")
    return Lock(series=lock.series, packages=tuple(packages)), tuple(said)


def _kernel(
    series: str, *, recipe: Recipe, offers: Sequence[Offer], above: str | None
) -> list[Package]:
    # Metapackages of one source and version name the kernel and the headers that belong together.
    names = recipe.series[series]
    by_name: dict[str, list[Offer]] = {}
    for offer in offers:
        by_name.setdefault(offer.name, []).append(offer)
    candidates = sorted(by_name.get(names.image, []), key=_version, reverse=above is None)
    if above is not None:
        candidates = [one for one in candidates if Version(one.version) > Version(above)]
    for meta in candidates:
        group = _group(meta, names.headers, by_name)
        if group is not None:
            return group
    newer = f" newer than {above}" if above is not None else ""
    raise ImageError(
        f"no suite offers a kernel of series {series}{newer} with its headers",
        hint="invoke lab.image --lock pins what is served now" if above is not None else None,
    )


def _group(meta: Offer, headers: str, by_name: dict[str, list[Offer]]) -> list[Package] | None:
    def same(name: str) -> Offer | None:
        fitting = [one for one in by_name.get(name, []) if one.version == meta.version]
        return fitting[0] if fitting else None

    image = next((same(name) for name in _depends(meta) if name.startswith("linux-image-")), None)
    headers_meta = same(headers)
    if image is None or headers_meta is None:
        return None
    group = [_package(image, "kernel")]
    queue = [name for name in _depends(headers_meta) if name.startswith("linux-headers-")]
    while queue:
        name = queue.pop(0)
        found = same(name)
        if found is None:
            return None
        if any(package.name == name for package in group):
            continue
        group.append(_package(found, "headers"))
        queue += [
            other
            for other in _depends(found)
            if other.startswith(("linux-headers-", "linux-kbuild-"))
        ]
    return group if len(group) > 1 else None


def _depends(offer: Offer) -> list[str]:
    # The first of alternatives: `a | b` means a wherever it can be had.
    return [
        match.group(1)
        for part in offer.depends.split(",")
        if (match := re.match(r"\s*([a-z0-9][a-z0-9.+-]+)", part))
    ]


def _version(offer: Offer) -> Version:
    return Version(offer.version)


def _best(
    offers: Sequence[Offer], name: str, choose: Callable[[list[Offer]], Offer]
) -> Offer | None:
    fitting = [offer for offer in offers if offer.name == name]
    return choose(fitting) if fitting else None


def _package(offer: Offer, role: str) -> Package:
    return Package(
        name=offer.name,
        role=role,
        suite=offer.suite,
        version=offer.version,
        pool=offer.pool,
        sha256=offer.sha256,
        size=offer.size,
    )
