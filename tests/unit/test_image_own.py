"""A kernel of the user's own: read from its files, refused by name, told from every other."""

from __future__ import annotations

import gzip
import lzma
import os
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab import image, qemu, ssh, topology
from lab.accelerator import Accelerator
from lab.errors import ImageError, ProbeBuildFailed
from lab.image import cpio, needs, own
from lab.journal import Journal
from lab.spec import OwnKernel
from tests.commands_in_docs import TOP
from tests.unit import test_image_store
from tests.unit.test_image_store import Shop, module

pytestmark = test_image_store.pytestmark
shop = test_image_store.shop
RELEASE = "6.13.0-mine"


def bzimage(release: str, *, body: bytes = b"") -> bytes:
    """Return as much of a bzImage as says what it is (Documentation/arch/x86/boot.rst)."""
    head = bytearray(0x600)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x300)
    text = f"{release} (me@here) #1 SMP\0".encode()
    head[0x500 : 0x500 + len(text)] = text
    return bytes(head) + body


def config(*without: str, **values: str) -> str:
    """Return a configuration with all that is needed, but for some."""
    options = {option: "y" for part in needs.PARTS for need in needs.NEEDS[part]
               for option in need.split("|")}  # fmt: skip
    options |= values
    lines = [f"CONFIG_{name}={value}" for name, value in options.items() if name not in without]
    return "".join(f"{line}\n" for line in [*lines, *(f"# CONFIG_{n} is not set" for n in without)])


Tree = Callable[..., OwnKernel]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return what makes a kernel's files as `make` and `make modules_install` leave them."""

    def make(
        *,
        modules: dict[str, str] | None = None,
        built_in: str = "one builtin_one three virtio_pci virtio_console virtio_net virtio_rng"
        " pvpanic_pci e1000e sch_netem",
        text: str | None = None,
        vermagic: str = f"{RELEASE} SMP",
    ) -> OwnKernel:
        root = tmp_path / "mine"
        shutil.rmtree(root, ignore_errors=True)
        build, folder = root / "build", root / "out/lib/modules" / RELEASE
        (build / "include/generated").mkdir(parents=True)
        (folder / "kernel").mkdir(parents=True)
        (build / "bzImage").write_bytes(bzimage(RELEASE))
        (build / "Makefile").write_text("all:\n")
        (build / ".config").write_text(config() if text is None else text)
        (build / "include/generated/utsrelease.h").write_text(f'#define UTS_RELEASE "{RELEASE}"\n')
        (folder / "modules.builtin").write_text(
            "".join(f"kernel/{name}.ko\n" for name in built_in.split())
        )
        for name, depends in (modules or {}).items():
            data = module(name, f"{depends}\\0vermagic={vermagic}")
            (folder / f"kernel/{name}.ko").write_bytes(data)
        (folder / "build").symlink_to(build)
        return OwnKernel(image=str(build / "bzImage"), modules=str(root / "out"))

    return make


def ensure(shop: Shop, asked: OwnKernel) -> image.Image:
    return image.ensure(asked, journal=Journal(), market=lambda: shop)


def changed(asked: OwnKernel, path: str, data: bytes) -> None:
    target = Path(asked.image).parent / path
    target.write_bytes(data)
    os.utime(target, ns=(1, 1))


def test_an_image_is_built_around_the_users_kernel(shop: Shop, tree: Tree) -> None:
    asked = tree(modules={"one": "two", "two": ""}, built_in="builtin_one virtio_pci"
                 " virtio_console virtio_net virtio_rng pvpanic_pci three")  # fmt: skip
    made = ensure(shop, asked)
    found = {entry.path: entry for entry in cpio.read(made.initramfs.read_bytes())}
    root = f"usr/lib/modules/{RELEASE}/kernel"
    assert made.kernel.read_bytes() == Path(asked.image).read_bytes()
    assert (made.release, made.asked, made.series) == (RELEASE, asked, "own")
    assert made.headers == Path(asked.image).parent
    assert found["etc/lab/modules"].data.decode().split() == [
        f"/{root}/two.ko",
        f"/{root}/one.ko",
    ], "what is built in needs no module"
    assert found["etc/lab/modules.d/three"].data == b""
    assert not [pool for pool in shop.asked if "linux-" in pool], "its userland is all it takes"
    assert made.origin == f"the user's own, {asked.image}"


def test_the_same_bytes_are_the_same_image_whoever_names_them(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "MODULES", {})  # the shop's kernel has none of the drivers
    shop_image = "linux-image-6.12.9-amd64"
    kernel = bzimage("6.12.9-amd64")
    deb = next(path for pool, path in shop.files.items() if shop_image in pool)
    unpacked = tmp_path / "unpacked"
    subprocess.run(["dpkg-deb", "-x", str(deb), str(unpacked)], check=True)
    vmlinuz = unpacked / "boot/vmlinuz-6.12.9-amd64"
    vmlinuz.write_bytes(kernel)
    whole = test_image_store.ensure(shop)
    mine = ensure(shop, OwnKernel(image=str(vmlinuz), modules=str(unpacked)))
    assert mine.initramfs.read_bytes() == whole.initramfs.read_bytes()
    assert mine.kernel_sha256 != whole.kernel_sha256
    assert mine.digest != whole.digest


@pytest.mark.parametrize("what", ["kernel", "configuration", "module"])
def test_another_build_in_the_same_place_is_another_kernel(
    shop: Shop, tree: Tree, what: str
) -> None:
    asked = tree(modules={"one": ""})
    before = own.look(asked).digest
    assert before == own.look(asked).digest
    if what == "kernel":
        changed(asked, "bzImage", bzimage(RELEASE, body=b"built anew"))
    elif what == "configuration":
        changed(asked, ".config", config("KFENCE").encode())
    else:
        changed(asked, f"../out/lib/modules/{RELEASE}/kernel/one.ko", b"\x7fELF")
    assert before != own.look(asked).digest


def test_the_snapshot_is_of_that_kernel_alone(
    shop: Shop, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "digest_of_binary", lambda: "a QEMU")
    monkeypatch.setattr(ssh, "public_key", lambda: "a key")
    there = qemu.Binary(path="q", version="7", machine="m")
    monkeypatch.setattr(qemu, "installed", lambda: there)
    pair = topology.Lab("x")
    made = ensure(shop, tree())

    def key(of: image.Image) -> str:
        speed = Accelerator(name="tcg", why="")
        return pair._key(topology.Setup(image=of, accelerator=speed))

    assert key(made) == key(made)
    assert key(made) != key(replace(made, kernel_sha256="another"))
    assert key(made) != key(replace(made, release="another"))


MISSING = [
    ("VIRTIO_NET", "CONFIG_VIRTIO_NET"),
    ("VIRTIO_CONSOLE", "CONFIG_VIRTIO_CONSOLE"),
    ("DEVTMPFS", "CONFIG_DEVTMPFS"),
    ("BLK_DEV_INITRD", "CONFIG_BLK_DEV_INITRD"),
]


@pytest.mark.parametrize(("option", "said"), MISSING, ids=[one for one, _ in MISSING])
def test_what_no_guest_can_do_without_is_named(
    shop: Shop, tree: Tree, option: str, said: str
) -> None:
    driver = needs.MODULES.get(option, "none")
    built_in = " ".join(
        name for name in ("one", "builtin_one", *needs.MODULES.values()) if name != driver
    )
    asked = tree(text=config(option), built_in=built_in)
    with pytest.raises(ImageError, match=f"lacks what every guest needs: {said}$"):
        ensure(shop, asked)


@pytest.mark.parametrize(
    ("without", "part", "said"),
    [
        (("KPROBES",), "probes", "CONFIG_KPROBES"),
        (("DEBUG_INFO_BTF",), "BPF probes", "CONFIG_DEBUG_INFO_BTF"),
        (("KALLSYMS_ALL",), "guest RAM", "CONFIG_KALLSYMS_ALL"),
        (("VMCORE_INFO", "CRASH_CORE"), "lab.try", "CONFIG_VMCORE_INFO or CONFIG_CRASH_CORE"),
    ],
)
def test_what_a_part_needs_is_asked_of_that_part_only(
    shop: Shop, tree: Tree, without: tuple[str, ...], part: needs.Part, said: str
) -> None:
    made = ensure(shop, tree(text=config(*without)))
    image.require(made, "e1000e")
    with pytest.raises(ImageError, match=f"for {part}: .*{said}"):
        image.require(made, part)


def test_of_two_names_of_an_option_one_will_do(shop: Shop, tree: Tree) -> None:
    image.require(ensure(shop, tree(text=config("CRASH_CORE"))), "guest RAM", "types", "lab.try")


def test_a_driver_that_is_a_module_has_to_be_there(shop: Shop, tree: Tree) -> None:
    """`=m` says nothing of a folder into which it was not installed."""
    made = ensure(shop, tree(text=config(E1000E="m"), built_in="one builtin_one "
                             + " ".join(set(needs.MODULES.values()) - {"e1000e"})))  # fmt: skip
    with pytest.raises(ImageError, match="for e1000e: CONFIG_E1000E"):
        image.require(made, "e1000e")


def test_without_a_configuration_only_drivers_are_looked_for() -> None:
    found = needs.lacks(None, modules={"virtio_net"}, built_in={"virtio_pci"})
    assert "VIRTIO_NET" not in found
    assert "VIRTIO_PCI" not in found
    assert "VIRTIO_CONSOLE" in found
    assert "KPROBES" not in found


def refused(asked: OwnKernel) -> str:
    with pytest.raises(ImageError) as caught:
        own.look(asked)
    return str(caught.value)


def test_what_is_no_bzimage_is_refused(tree: Tree) -> None:
    asked = tree()
    changed(asked, "bzImage", b"\x7fELF")
    assert "is no bzImage: it is an ELF file" in refused(asked)
    changed(asked, "bzImage", b"")
    assert "is no bzImage" in refused(asked)
    changed(asked, "bzImage", bzimage("\x01"))
    assert "says no release" in refused(asked)
    Path(asked.image).unlink()
    assert "cannot be read" in refused(asked)


def test_modules_and_headers_of_another_kernel_are_refused(shop: Shop, tree: Tree) -> None:
    asked = tree()
    changed(asked, "bzImage", bzimage("6.14.0"))
    assert f"no modules of 6.14.0 (modules.builtin); it has modules of {RELEASE}" in refused(asked)
    asked = tree()
    changed(asked, "include/generated/utsrelease.h", b'#define UTS_RELEASE "6.14.0"\n')
    assert f"is of 6.14.0, and the kernel is {RELEASE}" in refused(asked)
    with pytest.raises(ImageError, match=r"one\.ko is of 6.14.0, and the kernel is 6.13.0-mine"):
        ensure(shop, tree(modules={"one": ""}, vermagic="6.14.0 SMP"))


@pytest.mark.parametrize("given", ["out", f"out/lib/modules/{RELEASE}", "out/lib/modules"])
def test_the_modules_are_found_from_wherever_one_points(tree: Tree, given: str) -> None:
    asked = tree(modules={"one": ""})
    root = Path(asked.image).parents[1]
    found = own.look(replace(asked, modules=str(root / given)))
    assert list(found.modules) == ["kernel/one.ko"]


def test_without_headers_there_are_guests_and_no_probes(shop: Shop, tree: Tree) -> None:
    from lab import build

    asked = tree()
    (Path(asked.modules) / f"lib/modules/{RELEASE}/build").unlink()
    made = ensure(shop, asked)
    with pytest.raises(ProbeBuildFailed, match=f"no headers of {RELEASE}") as caught:
        build.kernel_compiler(made)
    assert "--headers" in str(caught.value.hint)
    assert own.look(replace(asked, headers=str(Path(asked.image).parent))).headers.is_dir()
    assert "has no Makefile" in refused(replace(asked, headers="/nowhere"))


def test_a_kernel_that_clang_built_is_told_so(tree: Tree, shop: Shop) -> None:
    from lab import build

    made = ensure(shop, tree(text=config(CC_IS_CLANG="y")))
    with pytest.raises(ProbeBuildFailed, match="CONFIG_CC_IS_CLANG"):
        build.kernel_compiler(made)


def test_modules_come_packed_in_many_ways() -> None:
    assert own.unpacked("a.ko", b"x") == b"x"
    assert own.unpacked("a.ko.gz", gzip.compress(b"x")) == b"x"
    assert own.unpacked("a.ko.xz", lzma.compress(b"x")) == b"x"
    with pytest.raises(ImageError, match="packed in a way"):
        own.unpacked("a.ko.br", b"x")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_zstd_unpacks_too() -> None:
    packed = subprocess.run(["zstd", "-c"], input=b"x", capture_output=True, check=True).stdout
    assert own.unpacked("a.ko.zst", packed) == b"x"
    with pytest.raises(ImageError, match=r"a\.ko\.zst"):
        own.unpacked("a.ko.zst", b"no frame")


def test_the_document_says_what_is_needed() -> None:
    text = (TOP / "docs/kernels.md").read_text(encoding="utf-8")
    for part in needs.PARTS:
        row = ", ".join(need.replace("|", " or ") for need in needs.NEEDS[part])
        assert f"| {part} | {row} |" in text


def test_the_drivers_are_those_that_every_image_has() -> None:
    recipe = (TOP / "images/packages.yaml").read_text(encoding="utf-8")
    assert all(name in recipe for name in needs.MODULES.values())


def test_headers_that_lead_to_where_they_would_be_installed_are_mended_as_told(tree: Tree) -> None:
    asked = tree()
    root = Path(asked.image).parent.parent
    headers, common = root / "usr/src/linux-headers-mine", root / "usr/src/linux-headers-common"
    headers.mkdir(parents=True)
    makefile = headers / "Makefile"
    makefile.write_text("include /nowhere/src/linux-headers-common/Makefile\n", encoding="utf-8")
    asked = replace(asked, headers=str(headers))
    gone = "/nowhere/src/linux-headers-common/Makefile, which is not there"

    with pytest.raises(ImageError, match=gone) as caught:
        own.look(asked)
    assert str(caught.value.hint).startswith("unpack linux-headers-common of the same version")
    common.mkdir()
    (common / "Makefile").write_text("all:\n", encoding="utf-8")
    with pytest.raises(ImageError, match=gone) as caught:
        own.look(asked)
    assert caught.value.hint is not None
    subprocess.run(shlex.split(caught.value.hint), check=True, timeout=20)
    assert makefile.read_text(encoding="utf-8") == f"include {common}/Makefile\n"
    assert headers == own.look(asked).headers

    (headers / "scripts").symlink_to("../../lib/linux-kbuild/scripts")
    with pytest.raises(ImageError, match="linux-kbuild/scripts, which is not there"):
        own.look(asked)
    (root / "usr/lib/linux-kbuild/scripts").mkdir(parents=True)
    assert headers == own.look(asked).headers
