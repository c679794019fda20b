"""From a .c file, a folder with a Makefile or a .ko to a module that a guest can be given.

The host compiles; it never loads.  The debug information stays on the host, what is
pushed is stripped of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from lab import build, paths, process
from lab.errors import PlaybookError, ProbeBuildFailed, did_you_mean
from lab.journal import Journal

SOURCES = frozenset({".c", ".h", ".S"})
SUFFIXES = (".c", ".ko")
KBUILD_FILES = frozenset({"Makefile", "Kbuild"})
MOST_SOURCES = 2000
MOST_BYTES = 64 << 20
MOST_DISASSEMBLY = 4 << 20
DISASSEMBLY_S = 120
NAME = re.compile(r"[A-Za-z0-9_-]{1,55}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """A built module: `ko` is pushed, `debug` has its DWARF, `sources` what it was made of."""

    name: str  # as the kernel calls it: with _ for -
    ko: Path
    debug: Path
    sources: Path | None
    disassembly: str = field(repr=False)  # one instruction a line: `<function+0x1f> mov …`
    log: str = field(repr=False)  # what the compiler said, warnings included


def require(path: Path) -> None:
    """Raise `PlaybookError` unless `path` can be a module: before anything is started for it."""
    hint = "a .c file, a folder with a Makefile, or a .ko"
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = did_you_mean(path.name, [one.name for one in beside if one.suffix in SUFFIXES])
        raise PlaybookError(f"{path}: no such file{near}", hint=hint)
    if not (path.is_dir() or (path.is_file() and path.suffix in SUFFIXES)):
        raise PlaybookError(f"{path} is no module", hint=hint)


def prepare(
    path: Path, target: build.Target, *, journal: Journal, name: str | None = None
) -> Module:
    """Return the module at `path`, built for `target` if it has to be.

    `name` picks one where a folder makes several.  Raises `ProbeBuildFailed` with the
    compiler's own words in `.log`.
    """
    require(path)
    if path.is_file() and path.suffix == ".ko":
        return Module(
            name=module_name(path),
            ko=path,
            debug=path,
            sources=None,
            disassembly=disassemble(path),
            log="",
        )
    if path.is_dir():
        files = _sources(path)
        if not any(file.name in KBUILD_FILES for file in files):
            raise PlaybookError(f"there is no Makefile in {path}")
        texts = {str(file.relative_to(path)): file.read_bytes() for file in files}
    else:
        texts = _one(path)
    home = _built(texts, target, journal=journal, what=path.name)
    found = {module_name(ko): ko for ko in sorted(home.glob("*.ko"))}
    if name is None and len(found) > 1:
        raise PlaybookError(
            f"{path} makes {len(found)} modules: {', '.join(found)}", hint="--module NAME"
        )
    wanted = name.replace("-", "_") if name else next(iter(found))
    if wanted not in found:
        raise PlaybookError(f"{path} makes no module '{wanted}'", hint=", ".join(found))
    ko = found[wanted]
    return Module(
        name=wanted,
        ko=ko,
        debug=ko.with_suffix(".ko.debug"),
        sources=home / "src",
        disassembly=disassemble(ko),
        log=(home / "build.log").read_text(encoding="utf-8", errors="replace"),
    )


def _sources(folder: Path) -> list[Path]:
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith(".mod.c")
        and (file.suffix in SOURCES or file.name in KBUILD_FILES)
    )
    size = sum(file.stat().st_size for file in found)
    if len(found) > MOST_SOURCES or size > MOST_BYTES:
        raise PlaybookError(
            f"{folder} holds {len(found)} sources of {size >> 20} MiB: expected one module's"
        )
    return found


def prepare_all(files: Sequence[Path], target: build.Target, *, journal: Journal) -> None:
    """Build these .c files of one folder in one go, so that `prepare` finds them built.

    One that does not compile spoils the whole: then each is left to `prepare`.
    """
    todo = {path: texts for path in files if not (_home(texts := _one(path), target)).is_dir()}
    if len(todo) < 2:
        return
    together = {name: text for texts in todo.values() for name, text in texts.items()}
    names = " ".join(f"{path.stem}.o" for path in todo)
    together["Kbuild"] = f"obj-m := {names}\n".encode()
    with contextlib.suppress(ProbeBuildFailed):
        home = _built(together, target, journal=journal, what=f"{len(todo)} modules")
        for path, texts in todo.items():
            work = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
            for name in (f"{path.stem}.ko", f"{path.stem}.ko.debug"):
                shutil.copyfile(home / name, work / name)
            _write(texts, work / "src")
            (work / "build.log").write_text("", encoding="utf-8")
            with contextlib.suppress(OSError):
                work.rename(_home(texts, target))
        shutil.rmtree(home, ignore_errors=True)


def _one(path: Path) -> dict[str, bytes]:
    """Return what a single .c file is built from: itself and the headers beside it."""
    if not NAME.fullmatch(path.stem):
        raise PlaybookError(f"'{path.stem}' is no name for a module")
    texts = {path.name: path.read_bytes()}
    headers = [one for one in sorted(path.parent.glob("*.h")) if one.name[0] != "."]
    texts |= {one.name: one.read_bytes() for one in headers if one.is_file()}
    return {**texts, "Kbuild": f"obj-m := {path.stem}.o\n".encode()}


def _home(texts: dict[str, bytes], target: build.Target) -> Path:
    compiler = build.kernel_compiler(target)
    digest = hashlib.sha256(f"{build.identity(target)}|{compiler}".encode())
    for name, text in sorted(texts.items()):
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return paths.cache() / "crash" / digest.hexdigest()[:20]


def _write(texts: dict[str, bytes], tree: Path) -> None:
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(text)


def _built(texts: dict[str, bytes], target: build.Target, *, journal: Journal, what: str) -> Path:
    """Return the folder that holds what `texts` are built to, from the cache if they were."""
    make = process.tool("make", package="make")
    strip = process.tool("strip", package="binutils")
    compiler = build.kernel_compiler(target)
    home = _home(texts, target)
    if home.is_dir():
        os.utime(home)
        return home
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
    try:
        tree = work / "src"
        _write(texts, tree)
        argv = [make, "-C", str(target.headers), f"M={tree}", f"CC={compiler}"]
        # Paths in debug information are those of the copy, which moves.
        flags = f"-fdebug-prefix-map={tree}=. -fmacro-prefix-map={tree}/="
        if not build.configured(target, "DEBUG_INFO"):
            flags += " -g"  # a post-mortem names lines of the module, whatever the kernel has
        argv += [f"KCFLAGS={flags}"]
        # BTF of our own modules is of no use to anybody and would need pahole.
        argv += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
        with journal.step(f"build {what} for {target.release}"):
            log = _run(argv, cwd=tree, what=what).replace(f"{tree}/", "")
        (work / "build.log").write_text(log, encoding="utf-8")
        made = sorted(tree.rglob("*.ko"))
        if not made:
            raise ProbeBuildFailed(f"{what}: its Makefile made no module (.ko)", log=log)
        for ko in made:
            shutil.copyfile(ko, work / f"{ko.stem}.ko.debug")
            _run([strip, "--strip-debug", "-o", str(work / ko.name), str(ko)], cwd=tree, what=what)
        for leftover in tree.rglob("*"):
            if leftover.is_file() and str(leftover.relative_to(tree)) not in texts:
                leftover.unlink()
        with contextlib.suppress(OSError):  # another command was quicker
            work.rename(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _evict(home.parent)
    return home


def _evict(folder: Path, *, keep: int = 400) -> None:
    """Remove the builds used longest ago beyond `keep`."""
    known = [path for path in folder.iterdir() if not path.name.startswith(".new-")]
    known.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in known[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def _run(argv: Sequence[str], *, cwd: Path, what: str) -> str:
    try:
        return _quiet(build.run(argv, cwd=cwd, what=what, jobs=True))
    except ProbeBuildFailed as error:
        # Paths as the user knows them: relative to what was given.
        error.log = _quiet(str(error.log)).replace(f"{cwd}/", "").strip()
        raise


def _quiet(text: str) -> str:
    """Leave out what make says of itself; the compiler's words stay as they are."""
    noise = re.compile(
        r"make(\[\d+\])?: (Entering|Leaving) directory"
        r"|warning: the compiler differs|  The kernel was built by:|  You are using:"
    )
    return "".join(line for line in text.splitlines(keepends=True) if not noise.match(line))


def disassemble(ko: Path) -> str:
    """Return a module's instructions, each with its place as an oops would give it."""
    objdump = process.tool("objdump", package="binutils")
    done = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(ko)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=DISASSEMBLY_S,
        check=False,
    )
    # The linker's names for a module's entries; an oops has the author's.
    author = _entries(ko)
    lines, function, start, size = [], "", 0, 0
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r"([0-9a-f]+) <(.+)>:", line):
            function, start = author.get(match[2], match[2]), int(match[1], 16)
        elif match := re.fullmatch(r"\s*([0-9a-f]+):\t(.+)", line):
            lines.append(f"<{function}+0x{int(match[1], 16) - start:x}> {match[2].strip()}\n")
            size += len(lines[-1])
            if size > MOST_DISASSEMBLY:
                break
    return "".join(lines)


def _entries(ko: Path) -> dict[str, str]:
    with ko.open("rb") as file:
        table = ELFFile(BytesIO(file.read())).get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return {}
    at: dict[tuple[object, int], list[str]] = {}
    for symbol in table.iter_symbols():
        if symbol["st_info"]["type"] == "STT_FUNC":
            at.setdefault((symbol["st_shndx"], symbol["st_value"]), []).append(symbol.name)
    found: dict[str, str] = {}
    for entry in ("init_module", "cleanup_module"):
        for names in at.values():
            if entry in names and (others := [name for name in names if name != entry]):
                found[entry] = others[0]
    return found


def module_name(path: Path) -> str:
    """Return what the kernel will call the module in a .ko."""
    try:
        with path.open("rb") as file:
            section = ELFFile(BytesIO(file.read())).get_section_by_name(".modinfo")
            data = section.data() if section is not None else b""
    except (OSError, ELFError) as error:
        raise PlaybookError(f"{path} is no kernel module: {error}") from error
    for entry in data.split(b"\0"):
        if entry.startswith(b"name="):
            return str(entry[5:].decode("ascii", "replace"))
    raise PlaybookError(f"{path} is no kernel module: it has no name in .modinfo")
