"""Images in the cache: build when something changed, otherwise hand out at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import paths
from lab.errors import ImageError
from lab.journal import Journal

if TYPE_CHECKING:
    from lab.image.apt import Market
    from lab.image.fetch import Gathered
    from lab.image.lock import Package
    from lab.image.recipe import Recipe

DEFAULT_SERIES = "6.12"
_SCHEMA = 1
_MANIFEST = "manifest.json"
_KEPT = 3  # images of a series, 35 MB each: a developer goes back and forth between two
_IN_USE_S = 3600.0  # used so lately, an image stays: a lab that is up may be restored from it


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A kernel, an initramfs and the header tree that modules for it are built against."""

    series: str
    digest: str
    kernel: Path
    initramfs: Path
    release: str
    headers: Path
    drifted: tuple[str, ...]
    packages: tuple[Package, ...]


def ensure(
    series: str = DEFAULT_SERIES,
    *,
    journal: Journal,
    locked: bool = False,
    offline: bool = False,
    market: Callable[[], Market] | None = None,
) -> Image:
    """Return the image of a kernel series, building what is not in the cache.

    `locked` refuses packages other than the pinned ones, `offline` asks no mirror; both raise
    `ImageError`.  A failure leaves the cache as it was, but for verified packages added.
    """
    home = paths.cache() / "images" / f"{series}-{_key(series)[:16]}"
    image = _known(home, journal)
    if image is not None and not (locked and image.drifted):
        return image
    with _held(paths.cache() / "images"):
        image = _known(home, journal)
        if image is not None and not (locked and image.drifted):
            return image  # another command built it while we waited
        return _build(home, series, journal=journal, locked=locked, offline=offline, market=market)


def verify(image: Image) -> None:
    """Hash kernel and initramfs again; raise `ImageError` with both digests where one differs."""
    from lab.image.fetch import sha256

    manifest = _read_manifest(image.kernel.parent)
    if manifest is None:
        raise ImageError(f"the image {image.kernel.parent} has no readable manifest")
    for path in (image.kernel, image.initramfs):
        expected = manifest["files"][path.name]["sha256"]
        found = sha256(path) if path.is_file() else "no file"
        if expected != found:
            raise ImageError(
                f"{path}: expected sha256 {expected}, found {found}",
                hint="remove its folder; the next command builds it anew",
            )


def relock(
    series: str = DEFAULT_SERIES,
    *,
    journal: Journal,
    market: Callable[[], Market] | None = None,
) -> Path:
    """Pin the newest packages of a series; return the path of the lock written."""
    from lab.image import resolve

    recipe = _recipe(series)
    with journal.step(f"read the suites' indexes for {series}"):
        offers = (market or _market(recipe))().offers()
    lock = resolve.newest(series, recipe=recipe, offers=offers)
    path = lock_path(series)
    path.write_text(lock.dump(), encoding="utf-8")
    return path


def lock_path(series: str) -> Path:
    """Return where the lock of a series lies."""
    return paths.data() / "images" / f"{series}.lock.yaml"


def _recipe(series: str) -> Recipe:
    from lab.image import recipe as recipes

    recipe = recipes.load(paths.data() / "images")
    if series not in recipe.series:
        raise ImageError(
            f"there is no kernel series {series!r}", hint=f"one of {', '.join(recipe.series)}"
        )
    return recipe


def _key(series: str) -> str:
    # Everything the bytes of an image are made from: pins, recipe, guest sources, this code.
    data = paths.data()
    files = [lock_path(series), data / "images/packages.yaml"]
    for folder, patterns in ((data / "guest", ("*.c", "*.h")), (data / "kmod", ("*.h",))):
        files += sorted(path for pattern in patterns for path in folder.glob(pattern))
    files += sorted(Path(__file__).parent.glob("*.py"))
    files.append(Path(__file__).parent.parent / "build.py")
    whole = hashlib.sha256(f"{_SCHEMA} {series}\0".encode())
    for path in files:
        whole.update(f"{path.name}\0".encode())
        if path.is_file():
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _known(home: Path, journal: Journal) -> Image | None:
    # A quick look: sizes and times.  Whatever changed is hashed, and dropped where it differs.
    manifest = _read_manifest(home)
    if manifest is None:
        return None
    for name, stamp in manifest["files"].items():
        try:
            status = (home / name).stat()
        except FileNotFoundError:
            return None
        if [status.st_size, status.st_mtime_ns] != [stamp["size"], stamp["mtime_ns"]]:
            from lab.image.fetch import sha256

            found = sha256(home / name)
            if found != stamp["sha256"]:
                journal.say(
                    f"{home / name} is corrupt and is built anew: "
                    f"expected sha256 {stamp['sha256']}, found {found}"
                )
                return None
    headers = Path(manifest["headers"])
    if not (headers / "Makefile").is_file():
        return None
    return _image(home, manifest)


def _read_manifest(home: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((home / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    known = isinstance(manifest, dict) and manifest.get("schema") == _SCHEMA
    return manifest if known else None


def _image(home: Path, manifest: dict[str, Any]) -> Image:
    from lab.image.lock import Package

    return Image(
        series=manifest["series"],
        digest=manifest["digest"],
        kernel=home / "vmlinuz",
        initramfs=home / "initramfs",
        release=manifest["release"],
        headers=Path(manifest["headers"]),
        drifted=tuple(manifest["drifted"]),
        packages=tuple(Package(**package) for package in manifest["packages"]),
    )


def _build(
    home: Path,
    series: str,
    *,
    journal: Journal,
    locked: bool,
    offline: bool,
    market: Callable[[], Market] | None,
) -> Image:
    from lab import build
    from lab.image import fetch, lock, rootfs

    recipe = _recipe(series)
    pins = lock.load(lock_path(series), suites=set(recipe.suites))
    if pins.series != series:
        raise ImageError(f"the lock of {series} is one of {pins.series}")
    # First what fails soonest: our own sources, then the network.
    built = build.build_guest_programs(journal=journal)
    programs = {name: path for name, path in built.items() if name not in build.PUSHED}
    gathered = fetch.gather(
        pins,
        recipe=recipe,
        folder=paths.cache() / "packages",
        market=market or _market(recipe),
        journal=journal,
        locked=locked,
        offline=offline,
    )
    kernel_package = next(one for one in gathered.lock.packages if one.role == "kernel")
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Both are mostly decompression, which lets go of the interpreter's lock.
        pending = pool.submit(_headers, gathered, journal)
        with journal.step(f"build image {series}"):
            kernel = rootfs.read_kernel(gathered.files[kernel_package.name])
            archive = rootfs.initramfs(
                kernel, recipe=recipe, packages=gathered.files, programs=programs
            )
        headers = pending.result()
    with _replaced(home) as work:
        files = {"vmlinuz": kernel.image, "initramfs": archive}
        stamps = {name: _store(work / name, data) for name, data in files.items()}
        whole = "".join(stamps[name]["sha256"] for name in sorted(stamps))
        manifest = {
            "schema": _SCHEMA,
            "series": series,
            "digest": hashlib.sha256(whole.encode()).hexdigest(),
            "release": kernel.release,
            "headers": str(headers),
            "drifted": list(gathered.drifted),
            "packages": [asdict(package) for package in gathered.lock.packages],
            "files": stamps,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (work / _MANIFEST).write_text(text, encoding="utf-8")
    _prune(home.parent, f"{series}-*")
    return _image(home, manifest)


def _prune(folder: Path, pattern: str) -> None:
    # A guest that is restored reads its kernel's file again, so what was used lately stays.
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[_KEPT:]:
        if time.time() - path.stat().st_mtime > _IN_USE_S:
            shutil.rmtree(path, ignore_errors=True)


def used(image: Image) -> None:
    """Remember that an image is in use: the cache gives up those used longest ago."""
    with contextlib.suppress(OSError):
        os.utime(image.kernel.parent)


def _store(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    path.chmod(0o644)  # QEMU may run as nobody and gets it by an open descriptor
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _headers(gathered: Gathered, journal: Journal) -> Path:
    from lab.image import headers

    packages = [one for one in gathered.lock.packages if one.role == "headers"]
    release = packages[0].name.removeprefix("linux-headers-")
    # What the packages hold and what is done to it.
    code = hashlib.sha256(Path(headers.__file__).read_bytes()).hexdigest()
    key = hashlib.sha256(" ".join([code, *(one.sha256 for one in packages)]).encode()).hexdigest()
    root = paths.cache() / "headers" / f"{release}-{key[:16]}"
    found = headers.tree(root, release)
    if not (found / "Makefile").is_file():
        with journal.step(f"unpack headers {release}"), _replaced(root) as work:
            headers.unpack((gathered.files[one.name] for one in packages), work)
            headers.settle(work, release, final=root)
    return found


def _market(recipe: Recipe) -> Callable[[], Market]:
    def make() -> Market:
        from lab.image import apt, sources

        return apt.Apt(
            paths.cache() / "apt",
            mirrors=sources.mirrors(
                {name: suite.archive for name, suite in recipe.suites.items()},
                keyrings=recipe.keyrings,
                sources=sources.of_host(),
            ),
            components={name: suite.components for name, suite in recipe.suites.items()},
            architecture=recipe.architecture,
        )

    return make


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    # One build at a time on a host; the second finds the first one's result.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _replaced(home: Path) -> Iterator[Path]:
    # What is made inside appears as `home` whole, or not at all.
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
    try:
        yield work
        work.chmod(0o755)
        if home.exists():
            shutil.rmtree(home)
        work.rename(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
