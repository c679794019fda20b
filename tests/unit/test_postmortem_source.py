"""Lines and members out of the debug information of an object compiled here and now."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab import postmortem, report
from lab.postmortem.source import Debug, Place
from tests.unit import reader
from tests.unit.test_postmortem import cook, finish

SOURCE = """\
struct thing {
	long first;
	long second;
	int count;
};
struct other {
	int lead[4];
	int weight;
};
__attribute__((noinline, section(".other")))
int in_other(struct thing *thing)
{
	thing->count = 7;
	return 1;
}
int in_text(struct other *other, struct thing *thing)
{
	other->weight = 3;
	return in_other(thing);
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("object")
    (folder / "it.c").write_text(SOURCE, encoding="utf-8")
    subprocess.run(
        [compiler, "-g", "-O1", "-c", f"-fdebug-prefix-map={folder}=.", "it.c"],
        cwd=folder,
        check=True,
    )
    return folder / "it.o"


def test_a_place_in_each_section_though_both_begin_at_zero(built: Path) -> None:
    debug = Debug(built)

    assert Place("it.c", 13) == debug.place("in_other", 0)
    assert Place("it.c", 17) == debug.place("in_text", 0)


def test_a_return_address_is_the_line_of_its_call(built: Path) -> None:
    """The instruction after a call may belong to the next line: one byte back is the call."""
    debug = Debug(built)
    size = debug._functions["in_text"][1]
    lines = {debug.place("in_text", offset, after_call=True) for offset in range(1, size + 1)}

    assert Place("it.c", 19) in lines


def test_a_member_is_named_by_its_offset_and_the_line(built: Path) -> None:
    debug = Debug(built)

    assert "struct thing.count" == debug.member(16, "thing->count = 7;")
    assert "struct other.weight" == debug.member(16, "other->weight = 3;")


@pytest.mark.parametrize(
    ("offset", "line"),
    [
        (8, "thing->count = 7;"),  # that member lies elsewhere
        (16, "thing->counter = 7;"),  # no such member
        (16, "*pointer = 7;"),  # no member named
        (16, "a->count = b->weight;"),  # two candidates: better none than a guess
        (1 << 20, "thing->count = 7;"),  # too far for a struct that is not there
    ],
)
def test_no_member_is_guessed(built: Path, offset: int, line: str) -> None:
    assert Debug(built).member(offset, line) is None


def test_an_unknown_function_has_no_place(built: Path) -> None:
    assert Debug(built).place("nobody", 0) is None
    assert Debug(built).own_place("nobody", 0) is None


def test_without_debug_information_there_are_no_answers(built: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.o"
    subprocess.run(["strip", "--strip-debug", "-o", str(bare), str(built)], check=True)
    debug = Debug(bare)

    assert not debug.present
    assert debug.place("in_text", 0) is None
    assert debug.member(16, "thing->count = 7;") is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(100), b"x" * 500])
def test_what_is_no_object_is_no_crash_of_ours(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.ko"
    path.write_bytes(data)

    assert not Debug(path).present


def test_a_truncated_object_is_no_crash_of_ours(built: Path, tmp_path: Path) -> None:
    whole = built.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 50)):
        path = tmp_path / f"{size}.o"
        path.write_bytes(whole[:size])
        Debug(path)


@pytest.mark.parametrize("how", ["--strip-debug", "--strip-dwo"])
def test_a_module_without_debug_information_is_said_to_have_none(
    tmp_path: Path, built: Path, how: str
) -> None:
    run = cook(tmp_path, "a", "null_write")
    run.file("module").mkdir()
    kept = run.file("module/null_write.ko.debug")
    shutil.copyfile(built, kept)
    subprocess.run(["strip", how, str(kept)], check=True)
    stripped = how == "--strip-debug"
    told = "no debug information in null_write.ko: build with -g"
    found = postmortem.analyse(run)

    assert stripped == (told in postmortem.render(found))
    assert stripped == (found.as_json()["lacks"] == told)
    finish(run)
    assert stripped == (told in report.crash_page(run))
    assert reader.dead(report.crash_page(run)) == set()


@pytest.mark.parametrize(
    "file",
    [
        "/usr/src/linux-headers/include/linux/slab.h",
        "include/linux/slab.h",  # of a kernel's build tree
        "arch/x86/include/asm/current.h",
    ],
)
def test_a_header_of_the_kernel_is_no_place_of_the_module(file: str) -> None:
    assert Place(file, 1).of_kernel
    assert not Place(f"mine/{file.rpartition('/')[2]}", 1).of_kernel
