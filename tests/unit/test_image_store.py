"""Images: the same bytes from the same inputs, handed out at once, mended when they changed."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from lab import image, paths
from lab.errors import ImageError
from lab.image import cpio, rootfs, store
from lab.image.apt import Offer, Wanted
from lab.image.lock import Lock, Package
from lab.journal import Journal
from tests.unit.test_image_deb import package

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None
    or shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None,
    reason="needs gcc and depmod",
)
RELEASE = "6.12.9-amd64"
HEADERS = f"usr/src/linux-headers-{RELEASE}"
RECIPE = """\
schema: 1
architecture: amd64
keyrings: []
suites:
  stable: {archive: main, components: [main]}
series:
  "6.12": {image: linux-image-6.12-amd64, headers: linux-headers-6.12-amd64}
modules:
  boot: [one, builtin_one]
  more: [three]
userland:
  tool: {usr/bin/tool: bin/tool}
libraries: [libfoo]
links:
  usr/bin/tool: [usr/sbin/alias]
files:
  etc/passwd: {mode: "0644", text: "root"}
folders:
  tmp: "1777"
"""


@cache
def built(text: str, flag: str) -> bytes:
    """Compile C once for all tests."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "it.c").write_text(text)
        subprocess.run(["gcc", flag, "-o", "it", "it.c"], cwd=name, check=True)
        return (Path(name) / "it").read_bytes()


def module(name: str, depends: str) -> bytes:
    """Compile something that depmod and modinfo take for a kernel module."""
    text = f"depends={depends}\\0name={name}"
    return built(f'__attribute__((section(".modinfo"))) char text[] = "{text}";\n', "-c")


class Shop:
    """A mirror that has a few packages made here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        program = built("int main(void) { return 0; }\n", "-static")
        root = f"lib/modules/{RELEASE}"
        modules = {"one": "two-x", "two_x": "", "three": ""}
        kernel = {
            f"{root}/kernel/{name.replace('_', '-')}.ko.xz": lzma.compress(
                module(name, depends), preset=0
            )
            for name, depends in modules.items()
        }
        contents: dict[str, tuple[str, dict[str, str | bytes]]] = {
            f"linux-image-{RELEASE}": (
                "kernel",
                {
                    f"boot/vmlinuz-{RELEASE}": "a kernel",
                    f"{root}/modules.builtin": "kernel/builtin-one.ko\n",
                    **kernel,
                },
            ),
            f"linux-headers-{RELEASE}": ("headers", {f"{HEADERS}/Makefile": "all:\n"}),
            "tool": ("userland", {"bin/tool": program}),
            "libfoo": ("userland", {}),
        }
        self.asked: list[str] = []
        self.files: dict[str, Path] = {}
        self.packages: list[Package] = []
        for name, (role, files) in contents.items():
            path = package(folder / f"{name}_1_amd64.deb", files)
            data = path.read_bytes()
            one = Package(
                name=name,
                role=role,
                suite="stable",
                version="1",
                pool=f"pool/{path.name}",
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
            )
            self.packages.append(one)
            self.files[one.pool] = path

    def download(self, wanted: Sequence[Wanted]) -> set[str]:
        for one in wanted:
            self.asked.append(one.pool)
            shutil.copyfile(self.files[one.pool], one.target)
        return set()

    def offers(self) -> list[Offer]:
        raise AssertionError


Make = Callable[..., image.Image]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Return a shop, with a project of its own that pins what it has."""
    shop = Shop(tmp_path / "shop")
    data = tmp_path / "project"
    (data / "images").mkdir(parents=True)
    (data / "guest").mkdir()
    (data / "guest/init.c").write_text("int main(void) { return 0; }\n")
    (data / "images/packages.yaml").write_text(RECIPE)
    text = Lock(series="6.12", packages=tuple(shop.packages)).dump()
    (data / "images/6.12.lock.yaml").write_text(text)
    monkeypatch.setattr(paths, "data", lambda: data)
    return shop


def ensure(shop: Shop, *, locked: bool = False, offline: bool = False) -> image.Image:
    return image.ensure(journal=Journal(), locked=locked, offline=offline, market=lambda: shop)


def test_an_image_holds_what_the_recipe_says(shop: Shop) -> None:
    made = ensure(shop)
    found = {entry.path: entry for entry in cpio.read(made.initramfs.read_bytes())}
    root = f"usr/lib/modules/{RELEASE}/kernel"
    assert made.kernel.read_bytes() == b"a kernel"
    assert made.release == RELEASE
    assert (made.headers / "Makefile").is_file()
    assert found["etc/passwd"].data == b"root"
    assert found["usr/sbin/alias"].data == b"../bin/tool"
    assert found["init"].mode & 0o111
    assert found["etc/lab/modules"].data.decode().split() == [
        f"/{root}/two-x.ko",
        f"/{root}/one.ko",
    ]
    assert found["etc/lab/modules.d/three"].data.decode() == f"/{root}/three.ko\n"
    assert b"kernel/two-x.ko" in found[f"usr/lib/modules/{RELEASE}/modules.dep"].data


def test_two_folders_give_the_same_bytes(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ensure(shop)
    elsewhere = tmp_path / "another/and/a/longer/one"
    shutil.copytree(tmp_path / "project", elsewhere)
    monkeypatch.setattr(paths, "data", lambda: elsewhere)
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache-2"))
    two = ensure(shop)
    assert one.initramfs != two.initramfs
    assert one.initramfs.read_bytes() == two.initramfs.read_bytes()
    assert one.digest == two.digest
    assert str(tmp_path).encode() not in one.initramfs.read_bytes()


def test_the_second_time_nothing_is_built_or_asked(shop: Shop) -> None:
    first = ensure(shop)
    shop.asked.clear()
    assert first == ensure(shop, locked=True, offline=True)
    assert shop.asked == []


def test_another_guest_program_gives_another_image(shop: Shop) -> None:
    first = ensure(shop)
    (paths.data() / "guest/init.c").write_text("int main(void) { return 1; }\n")
    second = ensure(shop)
    assert first.digest != second.digest
    assert second.kernel.is_file()


def test_a_changed_image_is_found_said_and_built_anew(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ensure(shop)
    good = first.initramfs.read_bytes()
    first.initramfs.write_bytes(b"Z" + good[1:])
    assert first == ensure(shop, offline=True)
    assert good == first.initramfs.read_bytes()
    said = capsys.readouterr().err
    assert hashlib.sha256(good).hexdigest() in said
    assert hashlib.sha256(b"Z" + good[1:]).hexdigest() in said


def test_an_image_only_touched_is_kept(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    first = ensure(shop)
    os.utime(first.initramfs, (1, 1))
    assert first == ensure(shop)
    assert capsys.readouterr().err == ""


def test_verify_finds_a_change_that_left_size_and_time(shop: Shop) -> None:
    made = ensure(shop)
    image.verify(made)
    before = made.initramfs.stat()
    good = made.initramfs.read_bytes()
    made.initramfs.write_bytes(b"Z" + good[1:])
    os.utime(made.initramfs, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made == ensure(shop)
    with pytest.raises(ImageError) as caught:
        image.verify(made)
    assert hashlib.sha256(good).hexdigest() in str(caught.value)
    assert hashlib.sha256(b"Z" + good[1:]).hexdigest() in str(caught.value)


def test_verify_says_that_a_file_is_gone(shop: Shop) -> None:
    made = ensure(shop)
    made.kernel.unlink()
    with pytest.raises(ImageError, match="no file"):
        image.verify(made)
    assert ensure(shop, offline=True).kernel.is_file()


def test_a_series_nobody_knows_names_those_there_are(shop: Shop) -> None:
    with pytest.raises(ImageError, match=r"no kernel series '5\.4'") as caught:
        image.ensure("5.4", journal=Journal(), market=lambda: shop)
    assert "6.12" in (caught.value.hint or "")


def test_a_failed_build_leaves_no_image(shop: Shop) -> None:
    path = paths.data() / "images/packages.yaml"
    path.write_text(RECIPE.replace("more: [three]", "more: [four]"))
    with pytest.raises(ImageError, match="no module four"):
        ensure(shop)
    left = [one.name for one in (paths.cache() / "images").iterdir()]
    assert left == [".lock"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("usr/bin/tool: bin/tool", "usr/bin/tool: bin/other", "tool has no file bin/other"),
        ("libraries: [libfoo]", "libraries: [libbar]", "libbar is in the recipe and not"),
        ("usr/sbin/alias", "etc/passwd", "two entries for etc/passwd"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(shop: Shop, old: str, new: str, said: str) -> None:
    path = paths.data() / "images/packages.yaml"
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(ImageError, match=said):
        ensure(shop)


def test_a_drifted_image_is_handed_out_unless_locked(shop: Shop) -> None:
    made = ensure(shop)
    manifest = made.kernel.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"drifted": []', '"drifted": ["tool: x"]'))
    assert ensure(shop).drifted == ("tool: x",)
    assert ensure(shop, locked=True).drifted == ()


def test_a_kernel_package_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="expected one boot/vmlinuz"):
        rootfs.read_kernel(package(tmp_path / "k.deb", {"boot/config": "x"}))


def test_old_images_go_and_new_ones_stay(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for age in range(5):
        folder = images / f"6.12-{age}"
        folder.mkdir()
        os.utime(folder, (1000 - age, 1000 - age))
    (images / "6.1-0").mkdir()
    store._prune(images, "6.12-*")
    assert {"6.12-0", "6.12-1", "6.12-2", "6.1-0"} == {path.name for path in images.iterdir()}


def test_an_image_that_a_lab_was_started_from_lately_stays(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for age in range(5):
        folder = images / f"6.12-{age}"
        folder.mkdir()
        os.utime(folder, (1000 - age, 1000 - age))
    home = images / "6.12-4"
    store.used(
        store.Image(
            series="6.12", digest="", kernel=home / "vmlinuz", kernel_sha256="",
            initramfs=home / "initramfs", release="", headers=home, drifted=(), packages=(),
        )
    )  # fmt: skip
    store._prune(images, "6.12-*")
    assert {"6.12-4", "6.12-0", "6.12-1"} == {path.name for path in images.iterdir()}
    for number in range(4):
        (images / f"6.12-new{number}").mkdir()
    store._prune(images, "6.12-*")
    assert (images / "6.12-4").is_dir(), "the newest are four, and this one is in use"
