"""Compile the BPF programs against a kernel's types, and their static loader."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab import paths
from lab.build import Fresh, digest, intact, run, seal, tool, version
from lab.errors import ToolMissing
from lab.journal import Journal

OBJECT_FLAGS = (
    *("-g", "-O2", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86"),
    *("-Wall", "-Wextra", "-Werror"),
)
LOADER_FLAGS = (
    *("-std=gnu11", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none"),
)
# libelf and zlib are libbpf's own needs.
LIBRARIES = ("-lbpf", "-lelf", "-lz")
PACKAGES = "clang bpftool libbpf-dev libelf-dev zlib1g-dev"
_HEADERS = ("bpf/libbpf.h", "libelf.h", "zlib.h")


@dataclass(frozen=True, slots=True)
class Programs:
    """What is pushed to a guest."""

    loader: Path
    object: Path


def require_tools() -> None:
    """Raise `ToolMissing` unless all that `build` needs is installed; nothing is started."""
    missing = [name for name in ("clang", "bpftool") if _which(name) is None]
    missing += [name for name in _HEADERS if not (Path("/usr/include") / name).is_file()]
    if missing:
        raise ToolMissing(
            f"BPF probes need {', '.join(missing)}, not installed here",
            hint=f"apt-get install {PACKAGES}   (or --probes kmod)",
        )


def _which(name: str) -> str | None:
    # Debian keeps /usr/sbin, where bpftool is, out of the PATH of people.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def build(
    types: bytes, *, journal: Journal, source: Path | None = None, cache: Path | None = None
) -> Programs:
    """Return loader and programs for the kernel whose BTF is `types`, from the cache or anew.

    Raises `ToolMissing` and `ProbeBuildFailed`.
    """
    require_tools()
    source = source if source is not None else paths.data() / "bpf"
    event = source.parent / "kmod"
    texts = sorted([*source.glob("*.c"), *source.glob("*.h"), event / "lab_event.h"])
    clang, gcc, bpftool = tool("clang", package="clang"), tool("gcc", package="gcc"), _bpftool()
    key = digest(
        texts,
        extra=[
            *(hashlib.sha256(types).hexdigest(), version(clang), version(gcc), version(bpftool)),
            *(*OBJECT_FLAGS, *LOADER_FLAGS),
        ],
    )
    home = (cache if cache is not None else paths.cache()) / "bpf" / key[:16]
    if not intact(home):
        with journal.step("build BPF programs"), Fresh(home) as work:
            _compile(work, types, source, event, (clang, gcc, bpftool))
            seal(work)
    return Programs(loader=home / "lab_bpf", object=home / "probe.bpf.o")


def _bpftool() -> str:
    return _which("bpftool") or tool("bpftool", package="bpftool")


def _compile(
    work: Path, types: bytes, source: Path, event: Path, tools: tuple[str, str, str]
) -> None:
    clang, gcc, bpftool = tools
    blob = work / "btf"
    blob.write_bytes(types)
    header = run(
        [bpftool, "btf", "dump", "file", str(blob), "format", "c"], cwd=work, what="vmlinux.h"
    )
    (work / "vmlinux.h").write_text(header, encoding="utf-8")
    blob.unlink()
    include = (f"-I{work}", f"-I{source}", f"-I{event}")
    raw = work / "probe.raw.o"
    run(
        [clang, *OBJECT_FLAGS, *include, "-c", str(source / "probe.bpf.c"), "-o", str(raw)],
        cwd=work,
        what="bpf/probe.bpf.c",
    )
    # Leaves the debug information out, and the types in.
    run([bpftool, "gen", "object", str(work / "probe.bpf.o"), str(raw)], cwd=work, what="bpf/")
    raw.unlink()
    (work / "vmlinux.h").unlink()
    run(
        [
            *(gcc, *LOADER_FLAGS, *include, str(source / "loader.c")),
            *("-o", str(work / "lab_bpf"), *LIBRARIES),
        ],
        cwd=work,
        what="bpf/loader.c",
    )
