"""A kernel given as files, as `make` and `make modules_install` leave it: every way leads there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import image
from lab.image import cpio
from lab.journal import Journal
from lab.spec import OwnKernel
from tests.guest.conftest import TOP, Invoke


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> OwnKernel:
    """Write the packaged kernel's bzImage and modules to where a user's own might lie."""
    packaged = image.ensure(journal=Journal())
    root = tmp_path_factory.mktemp("mine")
    folder = root / "out/lib/modules" / packaged.release
    inside = f"usr/lib/modules/{packaged.release}/"
    for entry in cpio.read(packaged.initramfs.read_bytes()):
        path = entry.path.removeprefix(inside)
        if path != entry.path and (path.endswith(".ko") or path == "modules.builtin"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(entry.data)
    (folder / "build").symlink_to(packaged.headers)
    (root / "bzImage").write_bytes(packaged.kernel.read_bytes())
    return OwnKernel(image=str(root / "bzImage"), modules=str(root / "out"))


def test_the_same_kernel_as_files_makes_the_same_image(mine: OwnKernel) -> None:
    packaged, own = (image.ensure(one, journal=Journal()) for one in ("6.12", mine))

    assert own.digest == packaged.digest
    assert own.lacks == packaged.lacks
    assert own.origin == f"the user's own, {mine.image}"
    image.require(own, "probes", "BPF probes", "guest RAM", "types", "lab.try", "e1000e", "netem")


def test_a_playbook_names_it_from_where_it_lies(up: Invoke, mine: OwnKernel) -> None:
    playbook = Path(mine.image).parent / "mine.yaml"
    text = (TOP / "playbooks/loopback.yaml").read_text(encoding="utf-8")
    where = "kernel: {image: bzImage, modules: out}\n"
    playbook.write_text(text.replace("playbook: loopback\n", f"playbook: mine\n{where}"))
    done = up("lab.run", str(playbook))

    assert 0 == done.code, done.err
    manifest = json.loads((done.run / "manifest.json").read_text())
    assert f"the user's own, {playbook.parent}/bzImage" == manifest["kernel_from"]
    assert image.ensure(mine, journal=Journal()).kernel_sha256 == manifest["digests"]["kernel"]


def test_a_module_is_tried_on_it(up: Invoke, mine: OwnKernel) -> None:
    words = ("--kernel", mine.image, "--modules", mine.modules)
    done = up("lab.try", "kmod/crash/null_write.c", *words, "--expect", "oops", "--no-leaks")

    assert 0 == done.code, done.err
    assert "null_write.c:20" in done.out
    assert "user's own" in (done.run / "manifest.json").read_text()


def test_one_that_no_guest_can_be_made_of_says_what_it_lacks(
    invoke: Invoke, mine: OwnKernel
) -> None:
    (driver,) = Path(mine.modules).rglob("virtio_net.ko")
    hidden = driver.rename(driver.with_suffix(".hidden"))
    try:
        done = invoke("lab.up", "--kernel", mine.image, "--modules", mine.modules, lab="none")
    finally:
        hidden.rename(driver)

    assert 3 == done.code
    assert "lacks what every guest needs: CONFIG_VIRTIO_NET" in done.err
