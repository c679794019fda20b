"""BPF programs in real kernels, alone and beside the modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import Invoke


def manifest(run: str) -> Any:
    return json.loads((Path(run) / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kernel", "task"), [("6.12", "lab.run-nic"), ("6.1", "lab.run-loopback")])
def test_modules_and_programs_see_the_same(invoke: Invoke, kernel: str, task: str) -> None:
    done = invoke(task, "--probes", "both", "--kernel", kernel, "--json")

    assert 0 == done.code, done.err
    found = done.value
    assert found["complete"]
    assert [] == found["disagreements"]
    assert not any(found["lost"].values())
    (message,) = found["messages"]
    for movement in message["movements"]:
        assert {"probe:kmod", "probe:bpf"} <= set(movement["confirmed_by"]), movement
    hooks = manifest(found["run"])["probes"]["hooks"]["sender"]["bpf"]
    # Not in this kernel, or (-22) without a way for BPF; what is there is attached.
    gone = {name for name, how in hooks.items() if isinstance(how, int)}
    assert gone <= {
        "csum_and_copy_from_iter_full",
        "ip_generic_getfrag>csum_and_copy_from_iter",
        "csum_and_copy_to_iter",
    }
    assert {"fentry", "fexit", "kprobe"} <= {how for how in hooks.values() if isinstance(how, str)}


def test_programs_alone_account_for_everything(invoke: Invoke) -> None:
    done = invoke("lab.run-nic", "--probes", "bpf", "--kernel", "6.1", "--json")

    assert 0 == done.code, done.err
    found = done.value
    assert "present" == found["witnesses"]["probe:bpf"]
    assert "absent: not asked for" == found["witnesses"]["probe:kmod"]
    called = [m["function"] for m in found["messages"][0]["movements"] if m["kind"] == "copy"]
    assert "virtio_net:page_to_skb>memcpy" in called
    hooks = manifest(found["run"])["probes"]["hooks"]["receiver"]["bpf"]
    # Seven arguments: 6.1 refuses fentry, and the kprobe takes its place.
    assert "kprobe" == hooks["virtio_net:receive_buf"]
