"""One lie at a time: what a default run states, and whether its own records give the lie away.

What no record carries is in the second table, so that nobody takes it for proven:
docs/internals.md, "What cannot be caught".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import ledger, record
from lab.rundir import RunDir
from tests.unit import cooked

ETHTOOL = """\
kernel: 6.12.117+deb12-amd64
tx-checksumming: off
scatter-gather: off
generic-receive-offload: on
driver: virtio_net
mtu: 1500
"""
ARGV = """\
/usr/bin/qemu-system-x86_64
-accel
tcg,thread=multi,tb-size=64
-append
console=ttyS0 quiet lab.name=sender
-netdev
dgram,id=link,local.type=unix
-device
virtio-net-pci,id=lab0,netdev=link,mac=52:54:00:29:00:64
"""
PLAYBOOK = b"playbook: nic\n"
Tree = dict[str, Any]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    cook = cooked.nic(tmp_path)
    made = cook.serve()
    for guest in made.guests():
        guest.file("ethtool.txt").write_text(ETHTOOL)
        guest.file("argv").write_text(ARGV)
    made.file("playbook.yaml").write_bytes(PLAYBOOK)

    def whole(manifest: Tree) -> None:
        manifest["link"]["mtu"] = "1500"
        manifest["digests"] = {"playbook": hashlib.sha256(PLAYBOOK).hexdigest()}
        manifest["probes"]["hooks"] = {
            guest.name: {
                section.name: {hook.name: hook.error for hook in section.header.hooks}
                for section in record.read(guest.trace, guest=guest.name).sections
            }
            for guest in made.guests()
        }

    cooked.edit(made, "manifest.json", whole)
    seal(made)
    return made


def seal(run: RunDir) -> None:
    """Make the digests of all files anew, as a liar would."""

    def digests(manifest: Tree) -> None:
        manifest["files"] = {
            f"{guest.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for guest in run.guests()
            for path in sorted(guest.path.iterdir())
        }

    cooked.edit(run, "manifest.json", digests)


def put(*way: str | int, to: Any) -> Callable[[Tree], None]:
    def change(tree: Any) -> None:
        for step in way[:-1]:
            tree = tree[step]
        tree[way[-1]] = to

    return change


def words(old: str, new: str) -> tuple[str, str]:
    return old, new


MANIFEST, WORK = "manifest.json", "sender/workload.json"
CAUGHT: list[tuple[str, Callable[[Tree], None] | tuple[str, str], str]] = [
    (MANIFEST, put("link", "offloads", "tx-checksum", to="on"), "offload tx-checksum on"),
    (MANIFEST, put("link", "offloads", to={}), "offload gro not at all"),
    (MANIFEST, put("link", "mtu", to="9000"), "mtu 9000"),
    (MANIFEST, put("link", "copybreak", to="0"), "copybreak 0"),
    (MANIFEST, put("link", "qdisc", to="netem delay 20ms"), "qdisc netem"),
    (MANIFEST, put("link", "device", to="e1000e"), "device e1000e"),
    (MANIFEST, put("link", "backend", to="tap"), "backend tap"),
    (MANIFEST, put("link", "options", to={"iommu": "on"}), "iommu on"),
    (MANIFEST, put("link", "options", to={"swiotlb": "force"}), "swiotlb force"),
    (MANIFEST, put("link", "options", to={"mrg_rxbuf": "off"}), "mrg_rxbuf off"),
    (MANIFEST, put("link", "options", to={"xdp": "pass"}), "xdp pass"),
    (MANIFEST, put("accelerator", "name", to="kvm"), "accelerator kvm"),
    (MANIFEST, put("connect", to=True), "connect True"),
    (MANIFEST, put("over", to="loopback"), "over loopback"),
    (MANIFEST, put("family", to="ipv6"), "family ipv6"),
    (MANIFEST, put("protocol", to="tcp"), "protocol tcp"),
    (MANIFEST, put("kernel", to="6.1.0"), "kernel 6.1.0"),
    (MANIFEST, put("probes", "kind", to="none"), "probes none"),
    (MANIFEST, put("probes", "kind", to="bpf"), "probes bpf"),
    (
        MANIFEST,
        put("probes", "hooks", "sender", "send_trace", "_copy_from_iter", to=-2),
        "hook _copy_from_iter -2",
    ),
    (MANIFEST, put("digests", "playbook", to="00"), "playbook.yaml was changed"),
    ("playbook.yaml", words("nic", "nik"), "playbook.yaml was changed"),
    ("sender/ethtool.txt", words("scatter-gather: off", "scatter-gather: on"), "scatter-gather"),
    ("sender/ethtool.txt", words("mtu: 1500", "mtu: 1400"), "mtu 1500"),
    ("receiver/ethtool.txt", words("virtio_net", "e1000e"), "of driver virtio_net"),
    ("receiver/argv", words("dgram", "tap"), "backend dgram"),
    ("receiver/argv", words("tcg", "kvm"), "accelerator tcg"),
    ("sender/argv", words("quiet", "quiet swiotlb=force"), "swiotlb not at all"),
    (WORK, put(0, "ready", "local", to="192.168.29.100:40000"), "connect False"),
    (WORK, put(0, "ready", "peer", to="127.0.0.1:9999"), "over link"),
    (WORK, put(0, "ready", "pid", to=77), "no hook that is attached saw"),
    (WORK, put(0, "sent", "messages", 0, "returned", to=15), "send returned 15"),
    (WORK, put(0, "ready", "buffer", "pages", 0, "physical", to="0x1000"), "the census does not"),
]
AS_STATED: list[tuple[str, Callable[[Tree], None]]] = [
    (MANIFEST, put("accelerator", "why", to="because")),
    (MANIFEST, put("playbook", to="another")),
    (MANIFEST, put("command", to="invoke lab.run another")),
    (MANIFEST, put("versions", to={"qemu": "9.0"})),
    (MANIFEST, put("reset", to={"how": "by hand", "proven": "nonce"})),
    (MANIFEST, put("drifted", to=["iproute2"])),
    (MANIFEST, put("kernel_from", to="the user's own, /vmlinuz")),
    (MANIFEST, put("digests", "kernel", to="00")),
    (WORK, put(0, "ready", "fd", to=9)),
    (WORK, put(0, "ready", "buffer", "mapping", to="[heap]")),
    (WORK, put(0, "ready", "buffer", "region", to="data")),
]


def told(run: RunDir) -> list[str]:
    found = ledger.build(run)
    return [one.why for one in found.incomplete] + [one.text for one in found.disagreements]


def lie(run: RunDir, name: str, how: Callable[[Tree], None] | tuple[str, str]) -> None:
    path = run.file(name)
    if isinstance(how, tuple):
        text = path.read_text()
        assert how[0] in text
        path.write_text(text.replace(*how))
    else:
        tree = json.loads(path.read_text())
        before = json.dumps(tree)
        how(tree)
        assert json.dumps(tree) != before
        path.write_text(json.dumps(tree))
    seal(run)


def test_a_run_that_is_true_says_nothing(run: RunDir) -> None:
    assert [] == told(run)


def test_the_way_a_bpf_program_is_attached_is_no_error_of_its_hook(run: RunDir) -> None:
    lie(run, MANIFEST, put("probes", "hooks", "sender", "send_trace", "loopback_xmit", to="fentry"))

    assert [] == told(run)


@pytest.mark.parametrize(("name", "how", "says"), CAUGHT, ids=[one[2] for one in CAUGHT])
def test_a_lie_that_a_record_gives_away(
    run: RunDir, name: str, how: Callable[[Tree], None] | tuple[str, str], says: str
) -> None:
    lie(run, name, how)

    assert any(says in text for text in told(run))
    assert not ledger.build(run).proven


@pytest.mark.parametrize(("name", "how"), AS_STATED)
def test_what_no_record_carries_is_as_stated(
    run: RunDir, name: str, how: Callable[[Tree], None]
) -> None:
    """A list of limits: a lie that is caught one day leaves it, and docs/internals.md."""
    lie(run, name, how)

    assert [] == told(run)
