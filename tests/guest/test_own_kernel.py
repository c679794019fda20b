"""A kernel given as files, as `make` and `make modules_install` leave it: every way leads there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import drivers, experiment, image, paths, playbook, rundir, spec
from lab.experiment import message
from lab.experiment.stand import keep_symbols
from lab.guest import Guest
from lab.image import cpio
from lab.journal import Journal
from lab.spec import OwnKernel
from tests.guest.conftest import LAB, TOP, Invoke


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


def as_if_built_in(text: bytes) -> bytes:
    """Return a guest's symbols as those of a kernel that has virtio_net and more of its names."""
    lines = [line for line in text.split(b"\n") if not line.endswith(b" _etext")]
    lines += [b"ffffffffffffffff T _etext"]
    udp = next(line for line in lines if line.endswith(b" udp_sendmsg")).split()[0]
    lines += [udp + b" t " + name for name in (b"receive_buf", b"start_xmit", b"page_to_skb")]
    return b"\n".join(lines).replace(b"\t[virtio_net]", b"")


def test_a_driver_s_functions_are_found_though_others_have_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a module, whose symbols say no more that they are one's: all goes by address."""
    monkeypatch.setattr(message, "keep_symbols", _built_in)
    asked = playbook.override(playbook.load("nic"), probes="both")
    setup, modules = experiment.setup_for(asked, journal=Journal())
    with experiment.stand(setup, modules, lab_name=f"{LAB}-none", journal=Journal()) as ready:
        run, found = _measured(asked, ready)
        # And where the places are others: nobody looks the names up.
        text = run.guest("receiver").symbols.read_bytes()
        other = drivers.built_in(text, ["virtio_net:start_xmit"])["virtio_net:start_xmit"]
        monkeypatch.setattr(drivers, "built_in", lambda *_: {"virtio_net:receive_buf": other})
        _, wrong = _measured(playbook.override(asked, probes="kmod"), ready)

    assert any("receive_buf saw no buffer" in one.why for one in wrong.ledger.incomplete)
    assert found.ledger.complete, found.trouble
    assert not found.ledger.disagreements
    told = json.loads((run.path / "manifest.json").read_text())["probes"]["hooks"]
    for guest, side, hook in (
        ("sender", "send_trace", "virtio_net:start_xmit"),
        ("receiver", "recv_trace", "virtio_net:receive_buf"),
        ("receiver", "recv_trace", "virtio_net:page_to_skb"),
        ("receiver", "recv_trace", "virtio_net:page_to_skb>memcpy"),
    ):
        assert 0 == told[guest][side][hook]
        assert "kprobe" in told[guest]["bpf"][hook]


def _measured(
    asked: spec.Playbook, ready: experiment.Stand
) -> tuple[rundir.RunDir, message.Answer]:
    run = experiment.new_run(asked, ready.setup, paths.runs(), guests=message.guests(asked))
    message.take(ready, asked, run, journal=Journal(), command="test")
    return run, message.answer(run, asked.expect, journal=Journal())


def _built_in(ready: experiment.Stand, guest: Guest, target: Path, **options: Any) -> None:
    keep_symbols(ready, guest, target, **options)
    text = target.read_bytes()
    target.unlink()  # it is the snapshot's, too
    target.write_bytes(as_if_built_in(text))
    ready.symbols.pop(guest.name)
