"""BPF programs in real kernels, alone and beside the modules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import build, image
from lab.journal import Journal
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
    gone -= {name for name in gone if name.startswith("e1000e:")}  # a driver that is not there
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


PROGRAM = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1);
         __type(key, int); __type(value, long); } calls SEC(".maps");
SEC("kprobe/udp_sendmsg") int sending(void *ctx)
{
    int key = 0; long *seen = bpf_map_lookup_elem(&calls, &key);
    if (seen) __sync_fetch_and_add(seen, 1);
    bpf_printk("a stranger saw udp_sendmsg");
    return 0;
}
"""
MODULE = """
#include <linux/module.h>
static int __init hello_init(void) { pr_info("a stranger was loaded\\n"); return 0; }
static void __exit hello_exit(void) { }
module_init(hello_init); module_exit(hello_exit); MODULE_LICENSE("GPL");
"""
PLAYBOOK = """
playbook: strangers
question: What do probes of the user's own say?
probes: {kind: kmod, foreign: [stranger.bpf.o, hello.ko, other/hello.ko, third.c, stranger.bt]}
workload: {over: loopback}
"""


def test_what_foreign_probes_say_is_kept_with_the_run(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "stranger.c").write_text(PROGRAM, encoding="utf-8")
    flags = ["-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu"]
    build.run(
        ["clang", *flags, "-c", "stranger.c", "-o", "stranger.bpf.o"], cwd=tmp_path, what="test"
    )
    source = tmp_path / "module"
    source.mkdir()
    (source / "hello.c").write_text(MODULE, encoding="utf-8")
    (source / "again.c").write_text(MODULE.replace("a str", "another str"), encoding="utf-8")
    (source / "Makefile").write_text("obj-m := hello.o again.o\n", encoding="utf-8")
    kernel = image.ensure("6.12", journal=Journal())
    built = build.build_modules(kernel, journal=Journal(), source=source, cache=tmp_path / "cache")
    shutil.copyfile(built["hello"], tmp_path / "hello.ko")
    (tmp_path / "other").mkdir()
    shutil.copyfile(built["again"], tmp_path / "other" / "hello.ko")
    (tmp_path / "third.c").write_text(MODULE.replace("a str", "a third str"), encoding="utf-8")
    (tmp_path / "stranger.bt").write_text("BEGIN { exit() }\n", encoding="utf-8")
    (tmp_path / "strangers.yaml").write_text(PLAYBOOK, encoding="utf-8")

    done = invoke("lab.run", str(tmp_path / "strangers.yaml"), "--json")

    assert 0 == done.code, done.err
    folder = Path(done.value["run"]) / "sender"
    program = (folder / "foreign-stranger.bpf.o.txt").read_text(encoding="utf-8")
    assert "a stranger saw udp_sendmsg" in program
    assert "# calls" in program
    assert '"value": 1' in program
    said = [
        (folder / f"foreign-{name}.txt").read_text(encoding="utf-8")
        for name in ("hello.ko", "other,hello.ko", "third.c")
    ]
    assert "a stranger was loaded" in said[0]
    assert "another stranger was loaded" in said[1]
    assert "a stranger was loaded" not in said[1]
    assert "a third stranger was loaded" in said[2]
    told = manifest(done.value["run"])["probes"]["foreign"]["sender"]
    assert told.pop("stranger.bt").startswith("absent: there is no bpftrace")
    assert (4, {"present"}) == (len(told), set(told.values()))
    text = (folder.parent / "report.txt").read_text(encoding="utf-8")
    assert "third.c loaded, sender/foreign-third.c.txt" in " ".join(text.split())

    (tmp_path / "third.c").write_text("no C\n", encoding="utf-8")
    done = invoke("lab.run", str(tmp_path / "strangers.yaml"))

    assert 5 == done.code
    assert "third.c: the compiler refused" in done.err
    assert "run: " not in done.err  # nothing was booted for it
