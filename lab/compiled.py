"""The walk compiled to C, for reports of large runs: they take half as long.

`invoke lab.compile` hands the modules below to mypyc, and what comes out is kept in the cache
under a digest of their text. From then on every task takes them in the place of the same
modules of Python, until one of these is changed: then its build is another's, and Python runs
what stands there. Nothing is compiled that nobody asked for. Both write the same ledger.json,
byte for byte (tests/unit/test_compiled.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lab import paths
from lab.errors import ToolMissing

if TYPE_CHECKING:
    from lab.journal import Journal

# Two halves, which two compilers make at a time.
HALVES = {
    "skblab_moves": (
        *("lab.correlate.board", "lab.correlate.copies", "lab.correlate.holdings"),
        *("lab.correlate.hooks", "lab.correlate.identity", "lab.correlate.memory_map"),
        *("lab.correlate.skbs", "lab.correlate.slots", "lab.correlate.spans"),
        *("lab.correlate.types", "lab.correlate.walk", "lab.record.decode"),
        "lab.fnv",
    ),
    "skblab_rest": (
        *("lab.correlate.audit", "lab.correlate.devices", "lab.correlate.naming"),
        *("lab.correlate.passage", "lab.correlate.receive", "lab.correlate.rings"),
        *("lab.correlate.skb_rules", "lab.correlate.transmit"),
        *("lab.ledger.messages", "lab.ledger.text"),
    ),
}
MODULES = tuple(name for half in HALVES.values() for name in half)
SWITCH = "LAB_COMPILED"  # "no": Python, whatever was compiled
SUFFIX = EXTENSION_SUFFIXES[0]  # of this Python alone
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
    if (
        os.environ.get(SWITCH) == "no"
        or any(name in sys.modules for name in MODULES)
        or not built()
    ):
        return False
    sys.meta_path.insert(0, _Finder(home()))
    return True


def built() -> bool:
    """Tell whether the modules, as they stand, were compiled for this Python, and are whole."""
    if not (paths.cache() / "compiled").is_dir() or not home().is_dir():
        return False
    from lab import build

    return build.intact(home())


def home() -> Path:
    """Return where the modules are when they were compiled, as they stand."""
    whole = hashlib.sha256(f"{SUFFIX}\0{SETUP}".encode())
    for name in MODULES:
        whole.update(f"{name}\0".encode() + source(name).read_bytes())
    return paths.cache() / "compiled" / whole.hexdigest()[:16]


def source(name: str) -> Path:
    """Return the file of a module."""
    return Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")


def compile_all(*, journal: Journal) -> Path:
    """Compile the modules, unless they are, and return the folder."""
    from lab import build

    if built():
        return home()
    refuse_without_tools()
    with journal.step("compile the walk"), build.Fresh(home()) as work:
        # In a copy: mypy reads all that they import, and what it makes is not the checkout's.
        tree, made = work / "src", work / "made"
        top = Path(__file__).parent
        shutil.copytree(top, tree / "lab", ignore=shutil.ignore_patterns("__pycache__", "_data"))
        (tree / "setup.py").write_text(SETUP, encoding="utf-8")
        (tree / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n", encoding="utf-8")
        halves = {
            half: [str(source(name).relative_to(top.parent)) for name in names]
            for half, names in HALVES.items()
        }
        argv = [sys.executable, "setup.py", json.dumps(halves), "-q", "build_ext"]
        argv += ["--build-lib", str(made), "--parallel", str(len(HALVES))]
        build.run(argv, cwd=tree, what="the walk")
        for path in made.rglob(f"*{SUFFIX}"):
            path.rename(work / ".".join(path.relative_to(made).parts))
        shutil.rmtree(tree)
        shutil.rmtree(made)
        build.seal(work)
    return home()


def refuse_without_tools() -> None:
    """Raise `ToolMissing`, with its package, where something to compile with is not there."""
    from lab import build

    build.tool("gcc", package="gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ToolMissing(
            "Python.h is not installed", hint="apt-get install libpython3-dev   (or ./bootstrap)"
        )
    for name, package in (("mypyc", "mypy"), ("setuptools", "setuptools")):
        if find_spec(name) is None:
            raise ToolMissing(f"{name} is not installed", hint=f"pip install {package}")


class _Finder(MetaPathFinder):
    """Finds the modules that were compiled, and what they share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        file = self._folder / f"{fullname}{SUFFIX}"
        if fullname not in MODULES and fullname.removesuffix("__mypyc") not in HALVES:
            return None
        return spec_from_file_location(fullname, file)
