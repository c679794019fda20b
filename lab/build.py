"""Compile what runs in guests: static programs, and modules against a kernel's headers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from lab import paths
from lab.errors import ProbeBuildFailed, ToolMissing
from lab.journal import Journal

COMPILE_DEADLINE_S = 300  # one module takes 2 to 3 s on two slow cores, all of them under 60

# As in guest/Makefile.  General registers only: an XMM register that held 16 bytes of a message
# would be saved with the task's FPU state and be one more copy.  No build id: it would be the one
# thing that differs.
GUEST_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-static-pie",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-mgeneral-regs-only",
    "-Wl,--build-id=none",
)


# For programs that hold message bytes: no loop of theirs becomes a call of memcpy, which uses
# those registers.
MESSAGE_FLAGS = ("-fno-builtin", "-fno-tree-loop-distribute-patterns")
_WITHOUT_MESSAGE = frozenset({"init", "agent", "chain", "xdp"})
# The worksheet's own programs, as its author built them: what ld.so reads is part of what he saw.
# They hold his message, so no image has them: every guest's page cache would hold it too.
PUSHED = frozenset({"as_written_sender", "as_written_receiver"})


class Target(Protocol):
    """What a module is built for: a kernel, by release and digest, and its header tree."""

    @property
    def release(self) -> str: ...

    @property
    def kernel_sha256(self) -> str: ...

    @property
    def headers(self) -> Path: ...


def build_guest_programs(
    *, journal: Journal, source: Path | None = None, cache: Path | None = None
) -> dict[str, Path]:
    """Compile each C file of guest/ into a static program; return them by name.

    The bytes depend on the sources and the compiler alone, not on any folder's name.
    """
    source = source if source is not None else paths.data() / "guest"
    compiler = tool(os.environ.get("CC") or "gcc", package="gcc")
    texts = sorted([*source.glob("*.c"), *source.glob("*.h")])
    # The record's layout lies with the modules and is shared by guest programs.
    shared = sorted((source.parent / "kmod").glob("*.h"))
    key = digest([*texts, *shared], extra=[version(compiler), *GUEST_FLAGS, *MESSAGE_FLAGS])
    home = (cache if cache is not None else paths.cache()) / "guest" / key[:16]
    names = [path.stem for path in texts if path.suffix == ".c"]
    built = {name: home / name for name in names}
    if all(path.is_file() for path in built.values()):
        return built
    with journal.step("compile guest programs"), Fresh(home) as work:
        for name in names:
            _compile(compiler, source, name, work / name)
    return built


def _compile(compiler: str, source: Path, name: str, output: Path) -> None:
    argv = [
        compiler,
        *("-pie" if flag == "-static-pie" and name in PUSHED else flag for flag in GUEST_FLAGS),
        *(() if name in _WITHOUT_MESSAGE else MESSAGE_FLAGS),
        f"-ffile-prefix-map={source}=.",
        "-I../kmod",
        "-o",
        str(output),
        f"{name}.c",
    ]
    run(argv, cwd=source, what=f"guest/{name}.c")
    output.chmod(0o755)


def build_modules(
    target: Target, *, journal: Journal, source: Path | None = None, cache: Path | None = None
) -> dict[str, Path]:
    """Build the modules of kmod/ for `target`; return the files to push, by module name.

    They are without debug information; the ones with it lie beside them as NAME.ko.debug.
    """
    source = source if source is not None else paths.data() / "kmod"
    texts = sorted(
        path
        for path in source.rglob("*")
        if path.is_file()
        and (path.suffix in {".c", ".h", ".S"} or path.name in _KBUILD_FILES)
        and path.relative_to(source).parts[0] != "crash"  # built one by one, by lab.crash
    )
    if not any(path.name in _KBUILD_FILES for path in texts):
        raise ProbeBuildFailed(f"there is no Makefile in {source}")
    make = tool("make", package="make")
    strip = tool("strip", package="binutils")
    compiler = kernel_compiler(target)
    relative = [str(path.relative_to(source)) for path in texts]
    key = digest(texts, extra=[*relative, identity(target), version(compiler)])
    home = (cache if cache is not None else paths.cache()) / "kmod" / key[:16]
    if not intact(home):
        with journal.step(f"build modules for {target.release}"), Fresh(home) as work:
            # In a copy, so that a checkout stays clean and two builds do not meet.
            tree = work / "src"
            for path, name in zip(texts, relative, strict=True):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, tree / name)
            argv = [make, "-C", str(target.headers), f"M={tree}", f"CC={compiler}"]
            # Paths in debug information are those of the copy, which is gone afterwards.
            argv += [f"KCFLAGS=-fdebug-prefix-map={tree}=. -Werror"]
            # BTF of our own modules is of no use to anybody and would need pahole.
            argv += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
            run(argv, cwd=tree, what="kmod/", jobs=True)
            objects = sorted(tree.rglob("*.ko"))
            if not objects:
                raise ProbeBuildFailed("kmod/Makefile made no module (.ko)")
            for path in objects:
                shutil.copyfile(path, work / f"{path.stem}.ko.debug")
                run(
                    [strip, "--strip-debug", "-o", str(work / path.name), str(path)],
                    cwd=tree,
                    what=path.name,
                )
            shutil.rmtree(tree)
            seal(work)
    return {path.stem: path for path in sorted(home.glob("*.ko"))}


def identity(target: Target) -> str:
    """Return what tells a kernel from others: it may be built anew in the same tree."""
    return f"{target.release}|{target.kernel_sha256}|{target.headers}"


def build_witness(api: int, *, journal: Journal) -> Path:
    """Build the QEMU plugin that logs accesses, for the plugin interface `api`."""
    source = paths.data() / "witness"
    texts = sorted([*source.glob("*.c"), *source.glob("*.h")])
    compiler = tool("gcc", package="gcc")
    key = digest(texts, extra=[str(api), version(compiler), *WITNESS_FLAGS])
    home = paths.cache() / "witness" / key[:16]
    plugin = home / "access.so"
    if not intact(home):
        with journal.step("build the witness"), Fresh(home) as work:
            run(
                [
                    *(compiler, *WITNESS_FLAGS, f"-DLAB_PLUGIN_API={api}"),
                    *("-o", str(work / plugin.name), str(source / "access.c")),
                ],
                cwd=work,
                what="witness/",
            )
            seal(work)
    return plugin


SEAL = "sha256.json"


def seal(folder: Path) -> None:
    """Write down what was built, so that a bit that flips later is noticed."""
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / SEAL).write_text(json.dumps(digests), encoding="utf-8")


def intact(folder: Path) -> bool:
    """Say whether a folder still holds what was built into it."""
    try:
        digests = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(digests) and all(
            _sha256(folder / name) == written for name, written in digests.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


WITNESS_FLAGS = (
    *("-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none"),
)
_KBUILD_FILES = frozenset({"Makefile", "Kbuild"})


def kernel_compiler(target: Target) -> str:
    """Return the compiler for a kernel's modules; its headers must be there."""
    if not (target.headers / "Makefile").is_file():
        raise ProbeBuildFailed(
            f"{target.headers} holds no headers of {target.release} to build modules with",
            hint="--headers FOLDER: the kernel's build tree, or its unpacked headers",
        )
    # A kernel says in its configuration which gcc built it; another version can work, and warns.
    wanted = "gcc"
    config = target.headers / ".config"
    if config.is_file():
        for line in config.read_text(encoding="utf-8", errors="replace").splitlines():
            if line == "CONFIG_CC_IS_CLANG=y":
                raise ProbeBuildFailed(
                    f"{target.release} was built by clang (CONFIG_CC_IS_CLANG), and modules for it"
                    " are built by gcc here"
                )
            if line.startswith("CONFIG_GCC_VERSION="):
                wanted = f"gcc-{int(line.partition('=')[2]) // 10000}"
                break
    return shutil.which(wanted) or tool("gcc", package="gcc")


def configured(target: Target, option: str) -> bool:
    """Say whether a kernel's configuration, as far as its headers have it, sets an option."""
    try:
        text = (target.headers / ".config").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return f"CONFIG_{option}=y\n" in text


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    what: str,
    jobs: bool = False,
    deadline_s: float = COMPILE_DEADLINE_S,
) -> str:
    """Run a compiler or make and return what it said; `ProbeBuildFailed` has it in `.log`."""
    environ = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    environ |= {"LC_ALL": "C", "SOURCE_DATE_EPOCH": "0", "KBUILD_BUILD_TIMESTAMP": "1970-01-01"}
    if jobs:
        environ["MAKEFLAGS"] = f"-j{os.cpu_count() or 1}"
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as making:
        try:
            said, _ = making.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired as error:
            raise ProbeBuildFailed(
                f"{what}: not built after {deadline_s:.0f} s", hint="when the host is less busy"
            ) from error
        finally:
            # Those it has started, too: they would go on in a folder that is gone.
            if making.returncode is None:
                os.killpg(making.pid, signal.SIGKILL)
    output = said.decode("utf-8", "replace")
    if making.returncode != 0:
        raise ProbeBuildFailed(
            f"{what}: the compiler refused, exit code {making.returncode}", log=output.strip()
        )
    return output


# A make above us would hand its own flags and variables down.
_UNWANTED = frozenset({"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARCH", "KBUILD_OUTPUT", "CFLAGS"})


def tool(name: str, *, package: str) -> str:
    """Return where a program is; `ToolMissing` names the package that has it."""
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(
            f"{name} is not installed", hint=f"apt-get install {package}   (or ./bootstrap)"
        )
    return found


def version(compiler: str) -> str:
    """Return the first line of what a compiler says of itself."""
    done = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout.partition("\n")[0]


def digest(files: Iterable[Path], *, extra: Iterable[str]) -> str:
    """Return one digest of files, by name and content, and of further texts."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    for text in extra:
        whole.update(f"{text}\0".encode())
    return whole.hexdigest()


class Fresh:
    """A folder that appears under its name whole, or not at all."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __enter__(self) -> Path:
        self.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix=".new-", dir=self.home.parent))
        return self.work

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.work.chmod(0o755)
                with paths.exclusive(self.home.parent / ".lock"):
                    if not intact(self.home):  # else another command was quicker: it is in use
                        shutil.rmtree(self.home, ignore_errors=True)
                        self.work.rename(self.home)
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
