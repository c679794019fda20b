"""Assemble a guest's kernel and initramfs from packages, a recipe and our own programs."""

from __future__ import annotations

import io
import posixpath
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ImageError
from lab.image import cpio, deb, elf, own
from lab.image.recipe import Recipe
from lab.process import tool

_TRIPLETS = {"amd64": "x86_64-linux-gnu"}
DEPMOD_DEADLINE_S = 60

# Where our own programs go; any other of guest/ goes to usr/bin under its own name.
_PLACES = {"init": "init", "agent": "usr/sbin/lab-agent"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A kernel and its modules: by path below lib/modules/RELEASE, packed as they came."""

    release: str
    image: bytes
    modules: Mapping[str, bytes]
    built_in: bytes

    @property
    def module_names(self) -> set[str]:
        return {elf.module_name(path) for path in self.modules}

    @property
    def built_in_names(self) -> set[str]:
        return {elf.module_name(line) for line in self.built_in.decode().split()}


def read_kernel(package: Path) -> Kernel:
    """Return the kernel of a Debian kernel package."""

    def wanted(path: str) -> bool:
        return bool(re.match(r"boot/vmlinuz-|(usr/)?lib/modules/[^/]+/", path))

    found = deb.members(package, wanted)
    images = [path for path in found if path.startswith("boot/vmlinuz-")]
    if len(images) != 1:
        raise ImageError(f"{package.name}: expected one boot/vmlinuz-*, found {len(images)}")
    release = images[0].removeprefix("boot/vmlinuz-")
    modules: dict[str, bytes] = {}
    built_in = b""
    for path, member in found.items():
        inner = re.sub(r"^(usr/)?lib/modules/[^/]+/", "", path)
        if re.search(r"\.ko(\.\w+)?$", inner):
            modules[inner] = member.data
        elif inner == "modules.builtin":
            built_in = member.data
    return Kernel(release=release, image=found[images[0]].data, modules=modules, built_in=built_in)


def initramfs(
    kernel: Kernel,
    *,
    recipe: Recipe,
    packages: Mapping[str, Path],
    programs: Mapping[str, Path],
) -> bytes:
    """Return the archive of the guest's root file system; the same bytes for the same inputs."""
    entries = [cpio.folder(path, mode) for path, mode in recipe.folders.items()]
    # One tree under usr/, the old names as links, as Debian itself has it.
    entries += [cpio.link(name, f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")]
    entries.append(cpio.link("var/run", "../run"))
    entries.append(cpio.folder("usr/lib64"))
    # The kernel opens it before /init can mount devtmpfs.
    entries.append(cpio.node("dev/console", 0o600, 5, 1))
    entries += [cpio.file(path, one.text.encode(), one.mode) for path, one in recipe.files.items()]
    for target, paths in recipe.links.items():
        entries += [
            cpio.link(path, posixpath.relpath(target, posixpath.dirname(path))) for path in paths
        ]
    entries += _userland(recipe, packages)
    entries += [
        cpio.file(_PLACES.get(name, f"usr/bin/{name}"), path.read_bytes(), 0o755)
        for name, path in programs.items()
    ]
    entries += _modules(kernel, recipe)
    out = io.BytesIO()
    cpio.write(entries, out)
    return out.getvalue()


def _userland(recipe: Recipe, packages: Mapping[str, Path]) -> list[cpio.Entry]:
    programs: dict[str, bytes] = {}
    for name, files in recipe.userland.items():
        sources = set(files.values())
        found = deb.members(_package(packages, name), sources.__contains__)
        for place, path in files.items():
            if path not in found or found[path].target is not None:
                raise ImageError(f"{name} has no file {path}")
            programs[place] = found[path].data
    triplet = _TRIPLETS[recipe.architecture]
    shelf: dict[str, bytes] = {}
    for name in recipe.libraries:
        shelf |= _shelf(_package(packages, name), triplet)
    entries = [cpio.file(place, data, 0o755) for place, data in programs.items()]
    for soname, data in elf.libraries(programs, shelf).items():
        entries.append(cpio.file(f"usr/lib/{triplet}/{soname}", data, 0o755))
        if soname.startswith("ld-linux"):
            entries.append(cpio.link(f"usr/lib64/{soname}", f"../lib/{triplet}/{soname}"))
    return entries


def _package(packages: Mapping[str, Path], name: str) -> Path:
    if name not in packages:
        raise ImageError(f"{name} is in the recipe and not in the lock", hint="lab.image --lock")
    return packages[name]


def _shelf(package: Path, triplet: str) -> dict[str, bytes]:
    # Every shared library right in the library folder, by each name that leads to it.
    pattern = re.compile(rf"(usr/)?lib/{triplet}/[^/]+\.so(\.[^/]*)?")
    found = deb.members(package, lambda path: pattern.fullmatch(path) is not None)
    files = {posixpath.basename(path): member for path, member in found.items()}
    shelf: dict[str, bytes] = {}
    for name in files:
        # libx.so.1 -> libx.so.1.2, at most a few links long.
        found_as = name
        for _ in range(4):
            target = files[found_as].target if found_as in files else None
            if target is None:
                break
            found_as = posixpath.basename(target)
        if found_as in files and files[found_as].target is None:
            shelf[name] = files[found_as].data
    return shelf


def _modules(kernel: Kernel, recipe: Recipe) -> list[cpio.Entry]:
    paths = {elf.module_name(path): path for path in kernel.modules}
    built_in = kernel.built_in_names
    unpacked: dict[str, bytes] = {}

    class Depends(dict[str, list[str]]):
        # Looked into on demand: unpacking four thousand modules to use fifteen takes a minute.
        def __contains__(self, name: object) -> bool:
            return name in paths

        def __missing__(self, name: str) -> list[str]:
            unpacked[name] = own.unpacked(paths[name], kernel.modules[paths[name]])
            info = dict(reversed(elf.modinfo(unpacked[name])))
            listed = [one for one in info.get("depends", "").split(",") if one]
            self[name] = [one.replace("-", "_") for one in listed]
            return self[name]

    depends = Depends()
    boot = elf.in_order(recipe.boot_modules, depends, built_in)
    more = {name: elf.in_order([name], depends, built_in) for name in recipe.more_modules}
    taken = {*boot, *(name for names in more.values() for name in names)}
    root = f"usr/lib/modules/{kernel.release}"
    files = {paths[name].split(".ko")[0] + ".ko": unpacked[name] for name in sorted(taken)}

    def listing(names: list[str]) -> bytes:
        return "".join(f"/{root}/{paths[name].split('.ko')[0]}.ko\n" for name in names).encode()

    entries = [cpio.file(f"{root}/{path}", data) for path, data in files.items()]
    entries += [cpio.file(f"{root}/{name}", data) for name, data in _depmod(kernel, files).items()]
    entries.append(cpio.file("etc/lab/modules", listing(boot)))
    entries += [
        cpio.file(f"etc/lab/modules.d/{name}", listing(names)) for name, names in more.items()
    ]
    return entries


def _depmod(kernel: Kernel, files: Mapping[str, bytes]) -> dict[str, bytes]:
    # The host's own depmod: the binary indexes are kmod's and have no other writer.
    program = tool("depmod", package="kmod")
    with tempfile.TemporaryDirectory(prefix="skblab-depmod-") as scratch:
        folder = Path(scratch) / "lib/modules" / kernel.release
        folder.mkdir(parents=True)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        (folder / "modules.builtin").write_bytes(kernel.built_in)
        order = "".join(f"{path}\n" for path in sorted(files))
        (folder / "modules.order").write_text(order, encoding="ascii")
        done = subprocess.run(
            [program, "-b", scratch, kernel.release],
            capture_output=True,
            text=True,
            timeout=DEPMOD_DEADLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise ImageError(f"depmod failed: {done.stderr.strip()[-600:]}")
        return {path.name: path.read_bytes() for path in sorted(folder.glob("modules.*"))}
