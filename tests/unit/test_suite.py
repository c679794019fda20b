"""The parts of `invoke test`: two at a time, each told, none lost, none left behind."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import pytest

from lab.commands import Console, suite
from lab.journal import Journal

LOWEST = 19  # niceness, sched(7)


def part(name: str, code: str, *words: str, idle: bool = False) -> suite.Part:
    return suite.Part(name=name, argv=(sys.executable, "-c", code, *words), idle=idle)


def console() -> tuple[Console, io.StringIO]:
    said = io.StringIO()
    return Console(json=False, journal=Journal(stream=said)), said


def meeting(folder: Path, mine: str, other: str) -> str:
    """Return a program that ends well only while the other runs, too."""
    return f"""
import pathlib, sys, time
here = pathlib.Path({str(folder)!r})
(here / {mine!r}).touch()
for _ in range(1000):
    if (here / {other!r}).exists():
        sys.exit(0)
    time.sleep(0.01)
sys.exit(9)
"""


def test_two_lines_run_beside_each_other_and_each_in_its_order(tmp_path: Path) -> None:
    one = part("one", meeting(tmp_path, "one", "other"))
    other = part("other", meeting(tmp_path, "other", "one"))
    after = part("after", f"import os; os.stat({str(tmp_path / 'other')!r})")
    out, said = console()

    ended = suite.run(out, [[one], [other, after]])

    assert {("one", 0), ("other", 0), ("after", 0)} == {(e.part.name, e.code) for e in ended}
    assert "after" in said.getvalue()


def test_all_parts_run_and_what_failed_is_named() -> None:
    parts = [part("bad", "raise SystemExit(3)"), part("good", "pass")]
    out, said = console()

    ended = suite.run(out, [parts])

    assert [3, 0] == [one.code for one in ended]
    assert ["bad"] == suite.failures(ended, select="")
    assert "failed (3)" in said.getvalue()


def test_what_ran_beside_is_printed_whole_when_the_first_line_is_done(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = part("first", meeting(tmp_path, "first", "beside") + "\n")
    beside = part("beside", f"print('of it', flush=True)\n{meeting(tmp_path, 'beside', 'first')}")
    last = part("last", "print('at the end')")

    suite.run(console()[0], [[first, last], [beside]])

    assert ["at the end", "of it"] == capfd.readouterr().out.split("\n")[:2]


def test_what_is_idle_yields_to_all_else() -> None:
    code = "import os; raise SystemExit(os.nice(0))"

    (ended,) = suite.run(console()[0], [[part("idle", code, idle=True)]])

    assert ended.code == min(os.nice(0) + suite.GIVES_WAY, LOWEST)  # this may be idle itself
    assert suite.GIVES_WAY > 0


def test_a_run_that_is_stopped_stops_its_parts(tmp_path: Path) -> None:
    """As by Ctrl-C, which they clean up after."""
    mark, begun = tmp_path / "mark", tmp_path / "begun"
    code = f"""
import pathlib, time
try:
    pathlib.Path({str(begun)!r}).touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(mark)!r}).touch()
"""
    stop = part(
        "stop", f"import os, time\nwhile not os.path.exists({str(begun)!r}): time.sleep(0.01)"
    )
    out, _ = console()

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt(text)

    out.journal.say = interrupted  # type: ignore[method-assign]
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        suite.run(out, [[stop], [part("long", code)]])

    assert mark.exists()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("codes", "select", "failed"),
    [
        ((5, 0), "this", []),
        ((5, 5), "this", ["0", "1"]),  # none of them has it
        ((5, 0), "", ["0"]),
        ((5, 1), "this", ["1"]),
    ],
)
def test_a_part_may_have_none_of_what_was_selected_but_not_all(
    codes: tuple[int, ...], select: str, failed: list[str]
) -> None:
    ended = [
        suite.Ended(
            part=suite.Part(name=str(number), argv=("python", "-m", "pytest")), code=code, seconds=0
        )
        for number, code in enumerate(codes)
    ]

    assert failed == suite.failures(ended, select=select)


def test_the_parts_have_every_file_of_tests_once() -> None:
    """What no part names would never run."""
    top = Path(suite.__file__).parents[2]
    parts = [one for line in suite.lines(long=False, quick=False, select="") for one in line]
    taken: list[str] = []
    again = [one for one in parts if one.name == "compiled"]  # those of the walk, once more
    assert again
    for one in [one for one in parts if one not in again]:
        left_out = {word.removeprefix("--ignore=") for word in one.argv if "--ignore=" in word}
        for word in one.argv:
            if word.startswith("tests/"):
                path = top / word
                files = path.rglob("test_*.py") if path.is_dir() else [path]
                found = {str(file.relative_to(top)) for file in files}
                assert found
                taken += found - left_out
                assert ("--guests" in one.argv) is word.startswith(("tests/guest", "tests/crash"))

    assert sorted(str(path.relative_to(top)) for path in top.glob("tests/**/test_*.py")) == sorted(
        taken
    )


def test_what_is_asked_reaches_every_part_with_tests() -> None:
    for quick in (True, False):
        parts = [one for line in suite.lines(long=True, quick=quick, select="it") for one in line]
        for one in parts:
            if "pytest" in one.argv:
                assert "--long" in one.argv
                assert "it" == one.argv[one.argv.index("-k") + 1]
