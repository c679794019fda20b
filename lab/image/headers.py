"""Unpack a kernel's header packages into a tree that modules can be built against in place."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from lab.errors import ImageError
from lab.image import deb

# Empty stamps of every option, 6,900 of them: only a build of the kernel itself reads them.
_STAMP = re.compile(r"usr/src/[^/]+/include/config/")
_WANTED = re.compile(r"usr/(src|lib)/linux-")


def unpack(packages: Iterable[Path], target: Path) -> None:
    """Unpack header packages below `target`, which may later be anywhere but must not move."""
    for package in packages:
        with deb.opened(package) as archive:
            for info in archive:
                path = info.name.removeprefix("./").rstrip("/")
                if not _WANTED.match(path) or (
                    info.isfile() and info.size == 0 and _STAMP.match(path)
                ):
                    continue
                _place(archive, info, target, path)


def _place(archive: tarfile.TarFile, info: tarfile.TarInfo, target: Path, path: str) -> None:
    if ".." in path.split("/"):
        raise ImageError(f"a header package holds the path {path}")
    place = target / path
    if info.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if info.issym():
        if info.linkname.startswith("/"):
            raise ImageError(f"a header package holds an absolute link: {path}")
        place.symlink_to(info.linkname)
    elif info.isfile():
        source = archive.extractfile(info)
        assert source is not None  # isfile() says so
        with place.open("wb") as out:
            shutil.copyfileobj(source, out)
        if info.mode & 0o111:
            place.chmod(0o755)
    else:
        raise ImageError(f"a header package holds {path}, which is neither file nor link")


def tree(root: Path, release: str) -> Path:
    """Return the folder to hand to `make -C`, below where the packages were unpacked."""
    return root / "usr/src" / f"linux-headers-{release}"


def settle(root: Path, release: str, *, final: Path) -> None:
    """Rewrite the paths that lead to /usr/src and the compiler's name, which is the caller's.

    `final` is the folder the tree will be used in.
    """
    folder = tree(root, release)
    makefile = folder / "Makefile"
    if not makefile.is_file():
        raise ImageError(f"the header packages hold no {makefile.relative_to(root)}")
    text = makefile.read_text(encoding="utf-8")
    makefile.write_text(re.sub(r"(?<=\s)/usr/src/", f"{final}/usr/src/", text), encoding="utf-8")
    variables = folder / ".kernelvariables"
    if variables.is_file():
        # The rest names Debian's own cross gcc-12 and asks dpkg, which may be absent altogether.
        kept = [
            line
            for line in variables.read_text(encoding="utf-8").splitlines()
            if re.match(r"override (ARCH|KERNELRELEASE) ", line)
        ]
        variables.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            raise ImageError(f"{path.name} of the header packages leads nowhere")
