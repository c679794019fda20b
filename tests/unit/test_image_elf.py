"""What programs and modules need is found in them, and what is nowhere is named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.errors import ImageError
from lab.image import elf

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Build a program that needs libone, which needs libtwo."""
    home = tmp_path_factory.mktemp("elf")
    (home / "two.c").write_text("int two(void) { return 2; }\n")
    (home / "one.c").write_text("int two(void); int one(void) { return two(); }\n")
    (home / "main.c").write_text("int one(void); int main(void) { return one(); }\n")
    shared = ["gcc", "-shared", "-fPIC", "-nostdlib"]
    two = [*shared, "-Wl,-soname,libtwo.so.2", "-o", "libtwo.so.2", "two.c"]
    one = [*shared, "-Wl,-soname,libone.so.1", "-o", "libone.so.1", "one.c", "libtwo.so.2"]
    main = ["gcc", "-o", "main", "main.c", "libone.so.1", "-Wl,-rpath-link,."]
    for argv in (two, one, main):
        subprocess.run(argv, cwd=home, check=True)
    return {name: (home / name).read_bytes() for name in ("main", "libone.so.1", "libtwo.so.2")}


@needs_compiler
def test_libraries_of_libraries_are_found(built: dict[str, bytes]) -> None:
    shelf = {
        "libone.so.1": built["libone.so.1"],
        "libtwo.so.2": built["libtwo.so.2"],
        "libunused.so.1": b"never looked at",
        "libc.so.6": built["libtwo.so.2"],
        "ld-linux-x86-64.so.2": built["libtwo.so.2"],
    }
    found = elf.libraries({"main": built["main"]}, shelf)
    assert {"libone.so.1", "libtwo.so.2", "libc.so.6", "ld-linux-x86-64.so.2"} == set(found)


@needs_compiler
def test_a_missing_library_is_named_with_who_needs_it(built: dict[str, bytes]) -> None:
    shelf = {"libone.so.1": built["libone.so.1"], "ld-linux-x86-64.so.2": built["libtwo.so.2"]}
    with pytest.raises(ImageError) as caught:
        elf.libraries({"main": built["main"]}, shelf)
    assert "libtwo.so.2 (needed by libone.so.1)" in str(caught.value)
    assert "libc.so.6 (needed by main)" in str(caught.value)


def test_a_script_is_no_program() -> None:
    with pytest.raises(ImageError, match="not an ELF file"):
        elf.libraries({"tool": b"#!/bin/sh\n"}, {})


@needs_compiler
def test_modinfo_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.c").write_text(
        '__attribute__((section(".modinfo"))) char text[] = "depends=a,b-c\\0alias=x=y";\n'
    )
    subprocess.run(["gcc", "-c", "-o", "m.ko", "m.c"], cwd=tmp_path, check=True)
    expected = [("depends", "a,b-c"), ("alias", "x=y")]
    assert expected == elf.modinfo((tmp_path / "m.ko").read_bytes())


@pytest.mark.parametrize("data", [b"", b"no module", b"\x7fELF"])
def test_what_is_no_module_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a kernel module"):
        elf.modinfo(data)


@needs_compiler
def test_a_program_is_no_module(built: dict[str, bytes]) -> None:
    with pytest.raises(ImageError, match=r"no \.modinfo"):
        elf.modinfo(built["main"])


def test_module_names_come_from_paths() -> None:
    assert elf.module_name("kernel/drivers/char/virtio-rng.ko.xz") == "virtio_rng"
    assert elf.module_name("net/af_packet.ko") == "af_packet"


DEPENDS = {"top": ["left", "right"], "left": ["base"], "right": ["base"], "base": []}


def test_modules_come_after_what_they_need() -> None:
    assert elf.in_order(["right", "top"], DEPENDS, set()) == ["base", "right", "left", "top"]


def test_built_in_modules_are_left_out() -> None:
    assert elf.in_order(["top", "virtio"], DEPENDS, {"base", "virtio"}) == ["left", "right", "top"]


def test_a_module_that_is_nowhere_is_named() -> None:
    with pytest.raises(ImageError, match=r"no module base \(needed by left\)"):
        elf.in_order(["top"], {"top": ["left"], "left": ["base"]}, set())


def test_modules_in_a_circle_are_refused() -> None:
    with pytest.raises(ImageError, match="circle"):
        elf.in_order(["a"], {"a": ["b"], "b": ["a"]}, set())
