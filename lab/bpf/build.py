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
    texts, include = _texts(source), _include(source)
    clang, bpftool = tool("clang", package="clang"), _bpftool()
    told = [hashlib.sha256(types).hexdigest(), version(clang), version(bpftool), *OBJECT_FLAGS]
    home = _home(cache, digest(texts, extra=told))
    if not intact(home):
        with journal.step("build BPF programs"), Fresh(home) as work:
            blob, raw = work / "btf", work / "probe.raw.o"
            blob.write_bytes(types)
            dump = [bpftool, "btf", "dump", "file", str(blob), "format", "c"]
            header = work / "vmlinux.h"
            header.write_text(run(dump, cwd=work, what="vmlinux.h"), encoding="utf-8")
            where = [f"-I{work}", *include, "-c", str(source / "probe.bpf.c"), "-o", str(raw)]
            run([clang, *OBJECT_FLAGS, *where], cwd=work, what="bpf/probe.bpf.c")
            # Leaves the debug information out, and the types in.
            made = str(work / "probe.bpf.o")
            run([bpftool, "gen", "object", made, str(raw)], cwd=work, what="bpf/")
            for path in (blob, raw, header):
                path.unlink()
            seal(work)
    loader = build_loader(journal=journal, source=source, cache=cache)
    return Programs(loader=loader, object=home / "probe.bpf.o")


def build_loader(
    *, journal: Journal, source: Path | None = None, cache: Path | None = None
) -> Path:
    """Return the static loader, from the cache or anew; it fits every kernel."""
    require_tools()
    source = source if source is not None else paths.data() / "bpf"
    gcc = tool("gcc", package="gcc")
    home = _home(cache, digest(_texts(source), extra=[version(gcc), *LOADER_FLAGS]))
    if not intact(home):
        with journal.step("build the BPF loader"), Fresh(home) as work:
            argv = [gcc, *LOADER_FLAGS, *_include(source), str(source / "loader.c")]
            run([*argv, "-o", str(work / "lab_bpf"), *LIBRARIES], cwd=work, what="bpf/loader.c")
            seal(work)
    return home / "lab_bpf"


def _home(cache: Path | None, key: str) -> Path:
    return (cache if cache is not None else paths.cache()) / "bpf" / key[:16]


def _texts(source: Path) -> list[Path]:
    shared = source.parent / "kmod" / "lab_event.h"
    return sorted([*source.glob("*.c"), *source.glob("*.h"), shared])


def _include(source: Path) -> tuple[str, str]:
    return f"-I{source}", f"-I{source.parent / 'kmod'}"


def _bpftool() -> str:
    return _which("bpftool") or tool("bpftool", package="bpftool")
