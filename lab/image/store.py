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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import paths
from lab.errors import ImageError
from lab.journal import Journal
from lab.spec import AnyKernel, OwnKernel

if TYPE_CHECKING:
    from lab.image import own, rootfs
    from lab.image.apt import Market
    from lab.image.fetch import Gathered
    from lab.image.lock import Lock, Package
    from lab.image.needs import Part
    from lab.image.recipe import Recipe

DEFAULT_SERIES = "6.12"
PINNED = "a pinned package"  # where a kernel of a series is from
OWN = "own"  # in the place of a series, where the kernel is the user's
_SCHEMA = 2
_MANIFEST = "manifest.json"
_KEPT = 3  # images of a series, 35 MB each: a developer goes back and forth between two
_IN_USE_S = 3600.0  # used so lately, an image stays: a lab that is up may be restored from it


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A kernel, an initramfs and the header tree that modules for it are built against."""

    series: str  # or `OWN`
    digest: str
    kernel: Path
    kernel_sha256: str
    initramfs: Path
    release: str
    headers: Path
    drifted: tuple[str, ...]
    packages: tuple[Package, ...]
    lacks: tuple[str, ...] = ()  # of what the lab needs of a kernel (lab/image/needs.py)
    own: OwnKernel | None = None

    @property
    def asked(self) -> AnyKernel:
        """What `ensure` takes to return this image."""
        return self.own or self.series

    @property
    def origin(self) -> str:
        """Where the kernel is from."""
        return PINNED if self.own is None else f"the user's own, {self.own.image}"


def ensure(
    kernel: AnyKernel = DEFAULT_SERIES,
    *,
    journal: Journal,
    locked: bool = False,
    offline: bool = False,
    market: Callable[[], Market] | None = None,
) -> Image:
    """Return the image of a kernel series or of the user's own, building what is not in the cache.

    The user's own gets the userland of the default series.  `locked` refuses packages other
    than the pinned ones, `offline` asks no mirror; both raise `ImageError`.  A
    failure leaves the cache as it was, but for verified packages added.
    """
    mine = _looked_at(kernel) if isinstance(kernel, OwnKernel) else None
    series = DEFAULT_SERIES if isinstance(kernel, OwnKernel) else kernel
    name = f"{series}-{_key(series)[:16]}" if mine is None else f"{OWN}-{_own_key(mine)[:16]}"
    home = paths.cache() / "images" / name
    image = _known(home, journal)
    if image is None or (locked and image.drifted):
        with _held(paths.cache() / "images"):
            image = _known(home, journal)  # another command may have built it while we waited
            if image is None or (locked and image.drifted):
                image = _build(
                    home,
                    series,
                    mine,
                    journal=journal,
                    locked=locked,
                    offline=offline,
                    market=market,
                )
    return replace(image, own=kernel) if isinstance(kernel, OwnKernel) else image


def require(image: Image, *parts: Part) -> None:
    """Raise `ImageError` where a kernel lacks what these parts of the lab need, by name."""
    from lab.image import needs

    missing = {part: needs.missing(part, image.lacks) for part in parts}
    told = [f"{part}: {', '.join(names)}" for part, names in missing.items() if names]
    if told:
        raise ImageError(
            f"the kernel {image.release} lacks what is needed for {'; for '.join(told)}",
            hint="build it with them (docs/kernels.md)",
        )


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


def _looked_at(kernel: OwnKernel) -> own.Found:
    from lab.image import own

    return own.look(kernel)


def _own_key(found: own.Found) -> str:
    return hashlib.sha256(f"{_key(DEFAULT_SERIES)} {found.digest}".encode()).hexdigest()


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
    if manifest["series"] != OWN and not (headers / "Makefile").is_file():
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
        kernel_sha256=manifest["files"]["vmlinuz"]["sha256"],
        initramfs=home / "initramfs",
        release=manifest["release"],
        headers=Path(manifest["headers"]),
        drifted=tuple(manifest["drifted"]),
        packages=tuple(Package(**package) for package in manifest["packages"]),
        lacks=tuple(manifest["lacks"]),
    )


def _build(
    home: Path,
    series: str,
    mine: own.Found | None,
    *,
    journal: Journal,
    locked: bool,
    offline: bool,
    market: Callable[[], Market] | None,
) -> Image:
    from lab import build
    from lab.image import fetch, lock, needs, rootfs

    recipe = _recipe(series)
    pins = lock.load(lock_path(series), suites=set(recipe.suites))
    if pins.series != series:
        raise ImageError(f"the lock of {series} is one of {pins.series}")
    if mine is not None:
        _require_bootable(mine, recipe)
        pins = _userland(pins)
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
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Both are mostly decompression, which lets go of the interpreter's lock.
        pending = pool.submit(_headers if mine is None else _no_headers, gathered, journal)
        with journal.step(f"build image {series if mine is None else mine.release}"):
            kernel = _packaged(gathered) if mine is None else _kernel_of(mine)
            more = [name for name in recipe.more_modules if mine is None or _has(kernel, name)]
            archive = rootfs.initramfs(
                kernel,
                recipe=replace(recipe, more_modules=tuple(more)),
                packages=gathered.files,
                programs=programs,
            )
        headers = mine.headers if mine is not None else pending.result()
    config = mine.config if mine is not None else _config(headers)
    lacks = needs.lacks(config, modules=kernel.module_names, built_in=kernel.built_in_names)
    with _replaced(home) as work:
        files = {"vmlinuz": kernel.image, "initramfs": archive}
        stamps = {name: _store(work / name, data) for name, data in files.items()}
        whole = "".join(stamps[name]["sha256"] for name in sorted(stamps))
        manifest = {
            "schema": _SCHEMA,
            "series": series if mine is None else OWN,
            "digest": hashlib.sha256(whole.encode()).hexdigest(),
            "release": kernel.release,
            "headers": str(headers),
            "lacks": sorted(lacks),
            "drifted": list(gathered.drifted),
            "packages": [asdict(package) for package in gathered.lock.packages],
            "files": stamps,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (work / _MANIFEST).write_text(text, encoding="utf-8")
    _prune(home.parent, f"{series if mine is None else OWN}-*")
    return _image(home, manifest)


def _no_headers(_gathered: Gathered, _journal: Journal) -> Path:
    return Path()  # the user's own are where they are


def _packaged(gathered: Gathered) -> rootfs.Kernel:
    from lab.image import rootfs

    package = next(one for one in gathered.lock.packages if one.role == "kernel")
    return rootfs.read_kernel(gathered.files[package.name])


def _kernel_of(mine: own.Found) -> rootfs.Kernel:
    from lab.image import rootfs

    return rootfs.Kernel(
        release=mine.release, image=mine.image, modules=mine.modules, built_in=mine.built_in
    )


def _has(kernel: rootfs.Kernel, module: str) -> bool:
    return module in kernel.module_names or module in kernel.built_in_names


def _userland(pins: Lock) -> Lock:
    return replace(pins, packages=tuple(one for one in pins.packages if one.role == "userland"))


def _require_bootable(mine: own.Found, recipe: Recipe) -> None:
    """Refuse a kernel that no guest can be made of, before anything is built."""
    from lab.image import needs, own

    kernel = _kernel_of(mine)
    lacking = needs.lacks(mine.config, modules=kernel.module_names, built_in=kernel.built_in_names)
    if missing := needs.missing("a guest", lacking):
        raise ImageError(
            f"the kernel {mine.release} lacks what every guest needs: {', '.join(missing)}",
            hint="build it with them (docs/kernels.md)",
        )
    own.check_modules(mine, [*recipe.boot_modules, *recipe.more_modules])


def _config(headers: Path) -> dict[str, str] | None:
    from lab.image import needs

    try:
        return dict(needs.read((headers / ".config").read_text(encoding="utf-8")))
    except OSError:
        return None


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
