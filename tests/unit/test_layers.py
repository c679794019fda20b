"""A module imports only from rows below its own; the table is the one in docs/internals.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FOUNDATION_ROWS = range(4)  # errors to playbook: they belong to neither side
BOTH_SIDES_FROM = 10  # experiment and what calls it


@dataclass(frozen=True)
class Place:
    """Where a module stands in the table."""

    row: int
    side: str  # machine, evidence, or empty for what both may use


def read_table(text: str) -> dict[str, Place]:
    """Return the place of each module from the drawing; the side is told by the column."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["row", "module"])
    column = next(line.index("EVIDENCE") for line in lines[head:] if "EVIDENCE" in line)
    table = {}
    for line in lines[head + 1 :]:
        if found := re.fullmatch(r" +\(\* (\w+) sits at row (\d+), (\w+) side.*", line):
            table[found[1]] = Place(int(found[2]), found[3])
        number = re.match(r" +(\d+) ", line)
        if not number:
            if not line.strip():
                break
            continue
        row = int(number[1])
        for word in re.finditer(r"[a-z_]+", line):
            side = "evidence" if word.start() >= column - 2 else "machine"
            both = row in FOUNDATION_ROWS or row >= BOTH_SIDES_FROM
            table.setdefault(word[0], Place(row, "" if both else side))
    return table


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def module_of(path: str) -> str:
    """Return the dotted name of a file, with `__init__` as a last part."""
    return path.removesuffix(".py").replace("/", ".")


def layer_faults(path: str, source: str, table: dict[str, Place]) -> list[str]:
    module = module_of(path)
    name = module.split(".")[1]
    if name == "__init__":
        return []
    if name not in table:
        return [f"{path}: {name} has no row in docs/internals.md"]
    own, faults = table[name], []
    for line, target in imported(ast.parse(source), module):
        parts = target.split(".")
        if parts[0] != "lab" or len(parts) == 1 or parts[1] == name:
            continue
        other = table.get(parts[1])
        if other is None:
            continue  # a name of lab/__init__.py, or a module that the check above names itself
        if other.row >= own.row or (own.side and other.side not in ("", own.side)):
            faults.append(f"{path}:{line}: {name} may not import {parts[1]}")
    return faults


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def rule_faults(path: str, source: str) -> list[str]:
    """Return what only one module may do, done elsewhere, and what none may."""
    tree, faults = ast.parse(source), []
    for line, target in imported(tree, module_of(path)):
        if target.split(".")[0] in ("fabric", "paramiko") and not path.startswith("lab/ssh"):
            faults.append(f"{path}:{line}: only lab/ssh.py knows {target.split('.')[0]}")
        if target == "time.sleep" and path != "lab/deadline.py":
            faults.append(f"{path}:{line}: only lab/deadline.py sleeps")
    for call, function in _calls(tree):
        if function == "time.sleep" and path != "lab/deadline.py":
            faults.append(f"{path}:{call.lineno}: only lab/deadline.py sleeps")
        if function in ("os.system", "os.popen", "subprocess.getoutput", "atexit.register"):
            faults.append(f"{path}:{call.lineno}: {function} is not used here")
        for keyword in call.keywords:
            off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg == "shell" and not off:
                faults.append(f"{path}:{call.lineno}: a command is an argv, never a shell's line")
    return faults


TABLE = read_table((TOP / "docs" / "internals.md").read_text(encoding="utf-8"))
FILES = {
    str(path.relative_to(TOP)): path.read_text(encoding="utf-8")
    for path in sorted((TOP / "lab").rglob("*.py"))
    if "_data" not in path.parts
}


def test_the_table_is_read_as_drawn() -> None:
    assert Place(0, "") == TABLE["errors"]
    assert Place(10, "") == TABLE["experiment"]
    assert Place(9, "machine") == TABLE["topology"]
    assert Place(8, "evidence") == TABLE["report"]
    assert Place(9, "machine") == TABLE["doctor"]


@pytest.mark.parametrize("path", FILES)
def test_a_module_imports_only_from_below(path: str) -> None:
    assert [] == layer_faults(path, FILES[path], TABLE)


@pytest.mark.parametrize("path", FILES)
def test_what_one_module_may_do_no_other_does(path: str) -> None:
    assert [] == rule_faults(path, FILES[path])


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("lab/spec.py", "from lab import playbook", "lab/spec.py:1: spec may not import playbook"),
        ("lab/ledger.py", "import lab.guest", "lab/ledger.py:1: ledger may not import guest"),
        (
            "lab/guest.py",
            "from lab.symbols import x",
            "lab/guest.py:1: guest may not import symbols",
        ),
        ("lab/report.py", "from lab.ssh import x", "lab/report.py:1: report may not import ssh"),
        ("lab/qmp.py", "from lab.qemu import x", "lab/qmp.py:1: qmp may not import qemu"),
        (
            "lab/image/deb.py",
            "from ..guest import x",
            "lab/image/deb.py:1: image may not import guest",
        ),
        ("lab/spec.py", "def f():\n    import lab.qmp", "lab/spec.py:2: spec may not import qmp"),
        ("lab/novel.py", "", "lab/novel.py: novel has no row in docs/internals.md"),
    ],
)
def test_a_planted_import_is_seen(path: str, source: str, fault: str) -> None:
    assert [fault] == layer_faults(path, source, TABLE)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lab/playbook/reading.py", "from lab.playbook.values import x"),
        ("lab/image/deb.py", "from . import cpio"),
        ("lab/experiment/message.py", "from lab import topology, report"),
        ("lab/ledger.py", "from lab.errors import LabError"),
    ],
)
def test_an_allowed_import_is_left_alone(path: str, source: str) -> None:
    assert [] == layer_faults(path, source, TABLE)


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("lab/guest.py", "import fabric", "lab/guest.py:1: only lab/ssh.py knows fabric"),
        ("lab/qmp.py", "from paramiko.x import y", "lab/qmp.py:1: only lab/ssh.py knows paramiko"),
        ("lab/qmp.py", "import time\ntime.sleep(1)", "lab/qmp.py:2: only lab/deadline.py sleeps"),
        ("lab/qmp.py", "from time import sleep", "lab/qmp.py:1: only lab/deadline.py sleeps"),
        ("lab/x.py", "os.system('x')", "lab/x.py:1: os.system is not used here"),
        (
            "lab/x.py",
            "subprocess.run('x', shell=True)",
            "lab/x.py:1: a command is an argv, never a shell's line",
        ),
    ],
)
def test_a_planted_act_is_seen(path: str, source: str, fault: str) -> None:
    assert [fault] == rule_faults(path, source)


def test_the_modules_that_may_do_it_may() -> None:
    assert [] == rule_faults("lab/ssh.py", "import fabric, paramiko")
    assert [] == rule_faults("lab/deadline.py", "import time\ntime.sleep(1)")
    assert [] == rule_faults("lab/x.py", "subprocess.run(['x'], shell=False)")
