"""What stands in kernel text and on a stack, told from bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lab.symbols import Symbols
from lab.trap import AFTER, ARMED, AS_BUILT, BEFORE, Slot, Text, Trap, what

BUILT = bytes.fromhex("f30f1efa0f1f4400005589fd53")
AT = 0xFFFF_FFFF_8100_1000
SYMBOLS = "ffffffff81002000 T ftrace_caller\n"


@pytest.mark.parametrize(
    ("at", "put", "kind", "target"),
    [
        (0, "", AS_BUILT, ""),
        (4, "e8f70f0000", "fentry call", "ftrace_caller+0x0"),
        (9, "cc", "breakpoint (int3)", ""),
        (4, "e9f7ffff0f", "optimised jump", "code made for it at 0xffffffff91001000"),
        (4, "90", "other", ""),
    ],
)
def test_each_trap_is_told_from_its_first_byte(
    tmp_path: Path, at: int, put: str, kind: str, target: str
) -> None:
    (tmp_path / "symbols").write_text(SYMBOLS)
    found = bytearray(BUILT)
    found[at : at + len(put) // 2] = bytes.fromhex(put)
    told = what(AT, bytes(found), BUILT, Symbols(tmp_path / "symbols"))
    assert (kind, target) == told


def text(moment: str, kind: str) -> Text:
    return Text(moment=moment, place="f", address=AT, physical=1, found="cc", kind=kind, target="")


def slot(moment: str, symbol: str) -> Slot:
    return Slot(
        moment=moment, program="sleep (pid 1)", address=1, physical=1, value=1, symbol=symbol
    )


GOOD = Trap(
    text=(text(BEFORE, AS_BUILT), text(ARMED, "fentry call"), text(AFTER, AS_BUILT)),
    stack=(slot(BEFORE, "g+0x5"), slot(ARMED, "arch_rethook_trampoline+0x0")),
    function="f",
)


def test_traps_that_come_and_go_are_no_trouble() -> None:
    assert () == GOOD.trouble


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (replace(GOOD, text=(*GOOD.text[:1], text(ARMED, AS_BUILT), *GOOD.text[2:])), "as built"),
        (replace(GOOD, text=(*GOOD.text[:2], text(AFTER, "other"))), "not what they were"),
        (replace(GOOD, stack=()), "no return address"),
        (replace(GOOD, stack=(GOOD.stack[0], slot(ARMED, "g+0x5"))), "holds no return address"),
        (replace(GOOD, stack=(slot(BEFORE, "x_rethook_trampoline+0x0"), GOOD.stack[1])), "before"),
    ],
)
def test_a_trap_that_is_not_there_or_stays_is_told(bad: Trap, said: str) -> None:
    assert any(said in line for line in bad.trouble), bad.trouble


def test_files_that_are_not_those_of_the_run_are_trouble() -> None:
    assert ("x was changed",) == replace(GOOD, changes=("x was changed",)).trouble
