"""A kernel of the user's own: what its bzImage, its modules and its headers say of it."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ImageError
from lab.image import elf, needs
from lab.process import tool
from lab.spec import OwnKernel

HELP = "docs/kernels.md says what is needed"
# The x86 boot protocol's header: its magic, and where the kernel's version lies.
MAGIC, MAGIC_AT, VERSION_AT, SETUP = b"HdrS", 0x202, 0x20E, 0x200
LONGEST_VERSION = 300
UNPACK_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What was found; `config` is None where no configuration lies with the kernel."""

    release: str
    image: bytes
    modules: Mapping[str, bytes]  # by path below the modules' folder, read when asked for
    built_in: bytes
    headers: Path
    config: needs.Config | None
    digest: str  # of all of it that an image is made of


def look(asked: OwnKernel) -> Found:
    """Return the kernel that the user's files are; `ImageError` says what is wrong with them."""
    image = _image(Path(asked.image))
    release = release_of(image, name=asked.image)
    folder = _modules_folder(Path(asked.modules), release)
    headers = Path(asked.headers) if asked.headers else folder / "build"
    _check_headers(headers, release, asked=bool(asked.headers))
    modules = Folder(folder)
    config = _config(Path(asked.image), folder, headers, release)
    facts = [hashlib.sha256(image).hexdigest(), release, str(headers.resolve()), modules.listing()]
    facts.append(repr(sorted(config.items())) if config is not None else "")
    return Found(
        release=release,
        image=image,
        modules=modules,
        built_in=_bytes(folder / "modules.builtin"),
        headers=headers.resolve(),
        config=config,
        digest=hashlib.sha256("\0".join(facts).encode()).hexdigest(),
    )


def _image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", hint=HELP) from error


def release_of(image: bytes, *, name: str) -> str:
    """Return the release in a bzImage's header, as `uname -r` gives it."""
    if image[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        what = "an ELF file" if image.startswith(b"\x7fELF") else "something else"
        raise ImageError(
            f"{name} is no bzImage: it is {what}",
            hint="what `make` leaves as arch/x86/boot/bzImage, or a distribution's vmlinuz",
        )
    at = struct.unpack_from("<H", image, VERSION_AT)[0] + SETUP
    text = image[at : at + LONGEST_VERSION].partition(b"\0")[0].decode("ascii", "replace")
    release = text.partition(" ")[0]
    if not re.fullmatch(r"[0-9][\w.+~-]{0,63}", release):
        raise ImageError(f"{name} says no release in its header; found {text[:40]!r}", hint=HELP)
    return release


def _modules_folder(given: Path, release: str) -> Path:
    """Return the folder that `modules_install` filled: what was given, or below it."""
    places = [given, *(given / part / release for part in ("", "lib/modules", "usr/lib/modules"))]
    folder = next((one for one in places if (one / "modules.builtin").is_file()), None)
    if folder is None:
        below = sorted(path.name for path in given.glob("lib/modules/*"))
        found = f"; it has modules of {', '.join(below)}" if below else ""
        raise ImageError(
            f"{given} has no modules of {release} (modules.builtin){found}",
            hint="make modules_install INSTALL_MOD_PATH=FOLDER, then --modules FOLDER",
        )
    return folder


def _check_headers(headers: Path, release: str, *, asked: bool) -> None:
    """Refuse headers of another kernel; none at all matters only to who builds against them."""
    if not (headers / "Makefile").is_file():
        if asked:
            raise ImageError(f"{headers} has no Makefile: no headers or build tree", hint=HELP)
        return
    # Not include/config/kernel.release: Debian's headers of 6.1 have another word there.
    text = _bytes(headers / "include/generated/utsrelease.h").decode("ascii", "replace")
    said = re.search(r'UTS_RELEASE "([^"]*)"', text)
    if said is not None and said[1] != release:
        raise ImageError(
            f"{headers} is of {said[1]}, and the kernel is {release}",
            hint="--headers FOLDER: the tree this bzImage was built in",
        )
    _check_whole(headers.resolve())


def _check_whole(headers: Path) -> None:
    """Refuse a distribution's headers of which a part lies elsewhere, as after dpkg-deb -x."""
    for name in ("scripts", "tools"):
        if (headers / name).is_symlink() and not (headers / name).exists():
            raise ImageError(
                f"{headers}/{name} leads to {(headers / name).readlink()}, which is not there",
                hint="unpack linux-kbuild of the same version into the same folder",
            )
    text = _bytes(headers / "Makefile").decode("utf-8", "replace")
    for found in re.finditer(r"^include (/\S+)/([^/\s]+)/Makefile$", text, re.MULTILINE):
        folder, name = found.groups()
        if Path(folder, name, "Makefile").is_file():
            continue
        beside = headers.parent
        mend = f"sed -i 's|{folder}/|{beside}/|' {headers}/Makefile"
        raise ImageError(
            f"{headers}/Makefile includes {folder}/{name}/Makefile, which is not there",
            hint=mend
            if (beside / name / "Makefile").is_file()
            else f"unpack {name} of the same version beside it, then {mend}",
        )


class Folder(Mapping[str, bytes]):
    """The modules below a folder by path, each read and unpacked when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Not what `build` and `source` lead to: a link to a folder is not followed.
        self.paths = sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*.ko*")
            if re.search(r"\.ko(\.(xz|gz|zst))?$", path.name) and path.is_file()
        )

    def __getitem__(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def listing(self) -> str:
        """Return what changes when a module does, without reading thousands of them."""
        stats = [(path, (self.folder / path).stat()) for path in self.paths]
        return "\n".join(f"{path} {one.st_size} {one.st_mtime_ns}" for path, one in stats)


def _config(image: Path, modules: Path, headers: Path, release: str) -> needs.Config | None:
    """Return the kernel's configuration from wherever one lies: tree, modules, beside the image."""
    places = [
        headers / ".config",
        headers / "include/config/auto.conf",
        modules / "config",
        image.parent / f"config-{release}",
    ]
    text = next((data for data in map(_bytes, places) if data), b"")
    return needs.read(text.decode("utf-8", "replace")) if text else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def check_modules(found: Found, names: list[str]) -> None:
    """Raise `ImageError` where a module that will be loaded is one of another kernel."""
    paths = {elf.module_name(path): path for path in found.modules}
    for name in names:
        if name not in paths:
            continue
        data = unpacked(paths[name], found.modules[paths[name]])
        magic = dict(elf.modinfo(data)).get("vermagic", "")
        if magic and magic.partition(" ")[0] != found.release:
            raise ImageError(
                f"{paths[name]} is of {magic.partition(' ')[0]}, and the kernel is {found.release}",
                hint="make modules_install of the same tree",
            )


def unpacked(path: str, data: bytes) -> bytes:
    """Return a module as the kernel loads it."""
    if path.endswith(".ko"):
        return data
    if path.endswith(".ko.xz"):
        return lzma.decompress(data)
    if path.endswith(".ko.gz"):
        return gzip.decompress(data)
    if path.endswith(".ko.zst"):
        program = tool("zstd", package="zstd")
        argv = [program, "-dc"]
        done = subprocess.run(argv, input=data, capture_output=True, timeout=UNPACK_S, check=False)
        if done.returncode == 0:
            return done.stdout
        raise ImageError(f"{path}: {done.stderr.decode('utf-8', 'replace').strip()[-200:]}")
    raise ImageError(f"{path} is packed in a way that is not known here")
