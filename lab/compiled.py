"""The walk compiled to C, for reports of large runs: they take half as long.

`invoke lab.compile` hands the modules below to mypyc, and what comes out is kept in the cache
under a digest of all of lab's text. From then on every task takes them in the place of the same
modules of Python, until something is changed: then the build is another's, and Python runs what
stands there. Nothing is compiled that nobody asked for. Both write the same ledger.json,
byte for byte (tests/unit/test_compiled.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lab import paths
from lab.errors import HostError, ToolMissing

if TYPE_CHECKING:
    from lab.journal import Journal

# Two halves, which two compilers make at a time.
HALVES = {
    "skblab_moves": (
        *("lab.correlate.board", "lab.correlate.copies", "lab.correlate.holdings"),
        *("lab.correlate.hooks", "lab.correlate.identity", "lab.correlate.memory_map"),
        *("lab.correlate.skbs", "lab.correlate.slots", "lab.correlate.spans"),
        *("lab.correlate.types", "lab.correlate.walk", "lab.record.decode"),
        *("lab.record.entry", "lab.fnv"),
    ),
    "skblab_rest": (
        *("lab.correlate.audit", "lab.correlate.devices", "lab.correlate.naming"),
        *("lab.correlate.passage", "lab.correlate.receive", "lab.correlate.rings"),
        *("lab.correlate.skb_rules", "lab.correlate.transmit"),
        *("lab.ledger.messages", "lab.ledger.text"),
    ),
}
MODULES = tuple(name for half in HALVES.values() for name in half)
SHARED = tuple(f"{half}__mypyc" for half in HALVES)  # what the modules of a half have in common
SWITCH = "LAB_COMPILED"  # one of OFF: Python, whatever was compiled
OFF = ("no", "off", "false", "0")
SUFFIX = EXTENSION_SUFFIXES[0]  # of this Python alone
KEPT = 8  # builds, those used last: of other checkouts too, which share a cache
FILES = tuple(f"{name}{SUFFIX}" for name in (*MODULES, *SHARED))
DEADLINE_S = 1800  # a minute on two idle cores, more than five beside others' work
SETUP = """\
import json, sys
from mypyc.build import mypycify
from setuptools import setup

halves = json.loads(sys.argv.pop(1))
files = [file for half in halves.values() for file in half]
setup(
    name="skblab-compiled",
    packages=[],
    ext_modules=mypycify(
        files, opt_level="2", debug_level="0", separate=[(v, k) for k, v in halves.items()]
    ),
)
"""


def use() -> bool:
    """Take what was compiled of the modules as they stand; tell whether there was any.

    To be called before one of them is imported: what is there stays as it is.
    """
    off = os.environ.get(SWITCH, "").strip().lower() in OFF
    if off or any(name in sys.modules for name in MODULES):
        return False
    try:
        held = _hold()
    except (OSError, RuntimeError):  # a cache that cannot be looked into
        return False
    if held is None:
        return False
    sys.meta_path.insert(0, _Finder(*held))
    return True


def use_late() -> None:
    """Call `use` when the first of the modules is imported: few tasks import any of them."""
    sys.meta_path.insert(0, _Late())


def _hold() -> tuple[Path, int] | None:
    """Return what was compiled, and the lock that keeps it there until this process ends."""
    if not (paths.cache() / "compiled").is_dir():
        return None
    made = home()
    try:
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        folder = _whole(made)  # looked at once it can no longer go
        if folder is not None:
            with contextlib.suppress(OSError):
                os.utime(lock)  # of those that are not in use, what was used longest ago goes
            return folder, lock
    except BlockingIOError:  # somebody is removing it
        pass
    os.close(lock)
    return None


def evict(*, keep: int = KEPT) -> list[str]:
    """Remove the builds used longest ago beyond `keep`, but none that a process runs from.

    Who has it loaded, or is about to load it, holds a lock on its folder.
    """
    gone: list[str] = []
    found = [path for path in (paths.cache() / "compiled").iterdir() if path.name[0] != "."]
    found.sort(key=_used, reverse=True)
    for path in found[keep:]:
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
                gone.append(path.name)
            finally:
                os.close(lock)
    return gone


def built() -> bool:
    """Tell whether the modules, as they stand, were compiled for this Python, and are whole."""
    return (paths.cache() / "compiled").is_dir() and _whole(home()) is not None


def _whole(made: Path) -> Path | None:
    # Only in folders that are ours alone to write to: what lies there is run.
    if not all(map(_ours, (paths.cache(), made.parent, made))) or made.is_symlink():
        return None
    from lab import build

    whole = all((made / name).is_file() for name in FILES) and build.intact(made)
    return made if whole else None


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # another command removed it meanwhile
        return 0.0


def _ours(folder: Path) -> bool:
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def home() -> Path:
    """Return where the modules are when they were compiled, as all of `lab` stands.

    All of it: of other modules mypy takes the types, and what is Final.
    """
    top = Path(__file__).parent
    whole = hashlib.sha256(f"{SUFFIX}\0".encode())
    for path in sorted(top.rglob("*.py")):
        name = path.relative_to(top)
        if name.parts[0] != "_data":
            whole.update(f"{name}\0".encode() + path.read_bytes())
    return paths.cache() / "compiled" / whole.hexdigest()[:16]


def source(name: str) -> Path:
    """Return the file of a module."""
    return Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")


def compile_all(*, journal: Journal) -> Path:
    """Compile the modules, unless they are, and return the folder.

    Raises where that would be for nothing: what lies there would not be run.
    """
    from lab import build

    target = home()
    for folder in (paths.cache(), target.parent):
        if not _ours(paths.private(folder)):
            raise HostError(
                f"others may write to {folder}: what was compiled there is not run",
                hint=f"chmod go-w {folder}, or LAB_CACHE=/another/folder",
            )
    if built():
        _refuse_unloadable(target)
        return target
    refuse_without_tools()
    with journal.step("compile the walk"), build.Fresh(target) as work:
        # In a copy: mypy reads all that they import, and what it makes is not the checkout's.
        tree, made = work / "src", work / "made"
        top = Path(__file__).parent
        try:
            left_out = shutil.ignore_patterns("__pycache__", "_data")
            shutil.copytree(top, tree / "lab", ignore=left_out)
        except shutil.Error as error:  # one of many files, each with why
            raise HostError(f"the sources cannot be copied: {error.args[0][0][2]}") from error
        if home() != target:
            raise HostError("the sources were changed as they were copied", hint="once more")
        (tree / "setup.py").write_text(SETUP, encoding="utf-8")
        (tree / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n", encoding="utf-8")
        halves = {
            half: [str(source(name).relative_to(top.parent)) for name in names]
            for half, names in HALVES.items()
        }
        argv = [sys.executable, "setup.py", json.dumps(halves), "-q", "build_ext"]
        argv += ["--build-lib", str(made), "--parallel", str(len(HALVES))]
        build.run(argv, cwd=tree, what="the walk", deadline_s=DEADLINE_S)
        for path in made.rglob(f"*{SUFFIX}"):
            path.rename(work / ".".join(path.relative_to(made).parts))
        shutil.rmtree(tree)
        shutil.rmtree(made)
        build.seal(work)
    _refuse_unloadable(target)
    evict()
    return target


def _refuse_unloadable(made: Path) -> None:
    """Raise where nothing may be run from, as on a file system that is mounted noexec."""
    for name in SHARED:
        spec = spec_from_file_location(name, made / f"{name}{SUFFIX}")
        assert spec is not None
        try:
            module_from_spec(spec)
        except ImportError as error:
            raise HostError(
                f"what was compiled cannot be loaded: {error}", hint="LAB_CACHE=/another/folder"
            ) from error


def refuse_without_tools() -> None:
    """Raise `ToolMissing`, with its package, where something to compile with is not there."""
    from lab import build

    build.tool("gcc", package="gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ToolMissing("Python.h is not installed", hint="apt-get install libpython3-dev")
    for name, package in (("mypyc", "mypy"), ("setuptools", "setuptools")):
        if find_spec(name) is None:
            raise ToolMissing(f"{name} is not installed", hint=f"pip install {package}")


class _Late(MetaPathFinder):
    """Looks for what was compiled once it is wanted, and is gone then."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        sys.meta_path.remove(self)
        finder = sys.meta_path[0] if use() else None
        return finder.find_spec(fullname, path, target) if finder is not None else None


class _Finder(MetaPathFinder):
    """Finds the modules that were compiled, and what they share."""

    def __init__(self, folder: Path, lock: int) -> None:
        self._folder = folder
        self.lock = lock  # closed when the process ends
        self._loads: bool | None = None  # None: not tried

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname not in MODULES and fullname not in SHARED:
            return None
        if self._loads is None:
            self._loads = True
            try:  # not so on a file system that nothing may be run from
                for name in SHARED:
                    import_module(name)
            except ImportError:
                self._loads = False
        if not self._loads:
            return None
        return spec_from_file_location(fullname, self._folder / f"{fullname}{SUFFIX}")
