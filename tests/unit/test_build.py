"""Guest programs are the same bytes anywhere; a compiler's refusal comes with its words."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import build
from lab.errors import Interrupted, ProbeBuildFailed, ToolMissing
from lab.image import elf
from lab.journal import Journal

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

TOOL = """\
#include <stdio.h>
#include "tool.h"
int main(void) { return puts(__FILE__ GREETING) < 0; }
"""


def sources(folder: Path, **files: str) -> Path:
    """Make a guest/ folder with a header and C files by name."""
    guest = folder / "guest"
    guest.mkdir(parents=True)
    (guest / "tool.h").write_text('#define GREETING " hello"\n')
    for name, text in files.items():
        (guest / f"{name}.c").write_text(text)
    return guest


def programs(source: Path, cache: Path) -> dict[str, Path]:
    return build.build_guest_programs(journal=Journal(), source=source, cache=cache)


def test_two_folders_give_the_same_bytes(tmp_path: Path) -> None:
    one = programs(sources(tmp_path / "here", tool=TOOL), tmp_path / "cache-one")
    two = programs(
        sources(tmp_path / "a/much/longer/way/down", tool=TOOL), tmp_path / "cache-number-two"
    )
    assert one["tool"].read_bytes() == two["tool"].read_bytes()
    assert str(tmp_path).encode() not in one["tool"].read_bytes()


def test_programs_run_and_need_no_library(tmp_path: Path) -> None:
    built = programs(sources(tmp_path, tool=TOOL), tmp_path / "cache")["tool"]
    done = subprocess.run([built], capture_output=True, text=True, check=True)
    assert done.stdout == "tool.c hello\n"
    assert elf.needed(built.read_bytes()) == ([], None)


def test_a_change_in_a_header_is_seen(tmp_path: Path) -> None:
    guest = sources(tmp_path, tool=TOOL)
    before = programs(guest, tmp_path / "cache")
    assert before == programs(guest, tmp_path / "cache")
    (guest / "tool.h").write_text('#define GREETING " again"\n')
    assert before != programs(guest, tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int main(void) { int unused; return 0; }\n", "unused"),
        ("int main(int argc, char **argv) { return argc; }\n", "argv"),
        ("double half(double x) { return x / 2; }\nint main(void) { return 0; }\n", "SSE"),
    ],
)
def test_what_the_compiler_minds_is_an_error_with_its_words(
    tmp_path: Path, text: str, said: str
) -> None:
    guest = sources(tmp_path, tool=TOOL, wrong=text)
    with pytest.raises(ProbeBuildFailed, match=r"guest/wrong\.c") as caught:
        programs(guest, tmp_path / "cache")
    assert said in str(caught.value.log)
    assert list((tmp_path / "cache/guest").iterdir()) == []


def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing) as caught:
        programs(sources(tmp_path, tool=TOOL), tmp_path / "cache")
    assert "apt-get install gcc" in (caught.value.hint or "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Stands for an image: a release and a header tree."""

    release: str
    headers: Path
    kernel_sha256: str = ""


# A kernel's Makefile as far as modules go: compile each object of M and call it a module.
KBUILD = """\
include $(M)/Makefile
modules:
\tcd $(M) && $(CC) -g $(KCFLAGS) -c -o $(obj-m:.o=.ko) $(obj-m:.o=.c)
"""


def modules(folder: Path, text: str, *, release: str = "6.12.9") -> dict[str, Path]:
    kernel, kmod = folder / "headers", folder / "kmod"
    kernel.mkdir(parents=True, exist_ok=True)
    kmod.mkdir(exist_ok=True)
    (kernel / "Makefile").write_text(KBUILD)
    (kmod / "Makefile").write_text("obj-m := probe.o\n")
    (kmod / "probe.c").write_text(text)
    return build.build_modules(
        Target(release=release, headers=kernel),
        journal=Journal(),
        source=kmod,
        cache=folder / "cache",
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_modules_are_pushed_without_debug_information_and_kept_with_it(tmp_path: Path) -> None:
    found = modules(tmp_path, "int probe(void) { return 1; }\n")
    assert list(found) == ["probe"]
    beside = found["probe"].with_name("probe.ko.debug")
    assert b".debug_info" in beside.read_bytes()
    assert b".debug_info" not in found["probe"].read_bytes()
    assert str(tmp_path).encode() not in found["probe"].read_bytes()
    assert {"Makefile", "probe.c"} == {path.name for path in (tmp_path / "kmod").iterdir()}


@needs_make
@pytest.mark.parametrize("fault", ["flipped", "empty", "gone", "unsealed"])
def test_a_module_that_changed_in_the_cache_is_built_anew(tmp_path: Path, fault: str) -> None:
    text = "int probe(void) { return 1; }\n"
    path = modules(tmp_path, text)["probe"]
    whole = path.read_bytes()
    match fault:
        case "flipped":
            path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case _:
            (path.parent / build.SEAL).unlink()
    assert whole == modules(tmp_path, text)["probe"].read_bytes()


@needs_make
def test_modules_are_built_anew_for_another_source_or_kernel(tmp_path: Path) -> None:
    first = modules(tmp_path, "int probe(void) { return 1; }\n")
    assert first == modules(tmp_path, "int probe(void) { return 1; }\n")
    assert first != modules(tmp_path, "int probe(void) { return 2; }\n")
    assert first != modules(tmp_path, "int probe(void) { return 1; }\n", release="6.12.10")


@needs_make
def test_a_module_that_does_not_compile_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(ProbeBuildFailed) as caught:
        modules(tmp_path, "int probe(void) { return nothing; }\n")
    assert "nothing" in str(caught.value.log)
    assert caught.value.exit_code == 5
    assert list((tmp_path / "cache/kmod").iterdir()) == []


def test_no_makefile_is_said(tmp_path: Path) -> None:
    (tmp_path / "kmod").mkdir()
    with pytest.raises(ProbeBuildFailed, match="no Makefile"):
        build.build_modules(
            Target(release="6.12.9", headers=tmp_path),
            journal=Journal(),
            source=tmp_path / "kmod",
            cache=tmp_path,
        )


@pytest.mark.parametrize("ended", ["deadline", "interrupted"])
def test_what_a_compiler_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """A make or setup.py starts compilers, which would go on in a folder that is gone."""
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    argv = ["sh", "-c", "exec 9> held; sleep 300 & wait"]
    if ended == "deadline":
        with pytest.raises(ProbeBuildFailed, match="slow: not built after 1 s") as refused:
            build.run(argv, cwd=tmp_path, what="slow", deadline_s=1)
        assert "less busy" in str(refused.value.hint)
    else:
        communicate = subprocess.Popen.communicate

        def interrupted(making: subprocess.Popen[bytes], **_: object) -> tuple[bytes, bytes]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                communicate(making, timeout=1)
            raise Interrupted

        monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
        with pytest.raises(Interrupted):
            build.run(argv, cwd=tmp_path, what="slow")

    # Its end is read when nobody is left who could write.
    assert select.select([held], [], [], 20.0)[0]
    assert b"" == os.read(held, 1)
    os.close(held)
