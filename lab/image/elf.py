"""Find what programs and kernel modules need, from their own ELF sections."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from posixpath import basename
from typing import Any

from lab.errors import ImageError


def module_name(path: str) -> str:
    """Return a kernel module's name from its file's path: `x/virtio-rng.ko.xz` is `virtio_rng`."""
    return basename(path).split(".ko")[0].replace("-", "_")


def needed(data: bytes) -> tuple[list[str], str | None]:
    """Return the sonames a program needs and the path of its interpreter."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    names: list[str] = []
    interpreter = None
    try:
        for segment in ELFFile(io.BytesIO(data)).iter_segments():
            if isinstance(segment, DynamicSegment):
                tags: Iterable[Any] = segment.iter_tags("DT_NEEDED")  # its names come and go
                names += [str(tag.needed) for tag in tags]
            elif isinstance(segment, InterpSegment):
                interpreter = segment.get_interp_name()
    except ELFError as error:
        raise ImageError(f"not an ELF file: {error}") from error
    return names, interpreter


def libraries(programs: Mapping[str, bytes], shelf: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return by soname the libraries of `shelf` that `programs` need, and those these need.

    The interpreter counts as one, by its file's name.  A library that is not on the shelf is an
    `ImageError` that names it and who needs it.
    """
    taken: dict[str, bytes] = {}
    missing: list[str] = []
    queue = sorted(programs.items())
    while queue:
        owner, data = queue.pop(0)
        names, interpreter = needed(data)
        if interpreter is not None:
            names.append(basename(interpreter))
        for name in names:
            if name in taken:
                continue
            if name not in shelf:
                missing.append(f"{name} (needed by {owner})")
                continue
            taken[name] = shelf[name]
            queue.append((name, shelf[name]))
    if missing:
        raise ImageError(
            "no package listed under `libraries` has " + ", ".join(sorted(set(missing))),
            hint="add the package that has it to images/packages.yaml",
        )
    return taken


def modinfo(data: bytes) -> list[tuple[str, str]]:
    """Return the key=value pairs of a kernel module's .modinfo section."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise ImageError(f"not a kernel module: {error}") from error
    if section is None:
        raise ImageError("not a kernel module: it has no .modinfo section")
    texts = (text.decode("utf-8", "replace") for text in section.data().split(b"\0") if text)
    return [(key, value) for key, _, value in (text.partition("=") for text in texts)]


def in_order(
    wanted: Iterable[str], depends: Mapping[str, list[str]], built_in: set[str]
) -> list[str]:
    """Return `wanted` modules and all they depend on, each after what it needs.

    Modules the kernel has built in are left out; one that is nowhere is an `ImageError`.
    """
    order: list[str] = []

    def visit(name: str, owner: str, path: tuple[str, ...]) -> None:
        if name in order or name in built_in:
            return
        if name not in depends:
            raise ImageError(f"this kernel has no module {name} ({owner})")
        if name in path:
            raise ImageError(f"modules need each other in a circle: {' '.join((*path, name))}")
        for other in depends[name]:
            visit(other, f"needed by {name}", (*path, name))
        order.append(name)

    for name in wanted:
        visit(name, "named in images/packages.yaml", ())
    return order
