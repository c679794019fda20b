"""What a kernel has of the BPF hooks, from cooked symbols and text."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import pytest

from lab import bpf, paths, spec
from lab.bpf import hooks, plan
from lab.errors import ToolMissing
from lab.journal import Journal

BASE = 0xFFFF_FFFF_8100_0000
MODULE = 0xFFFF_FFFF_C000_0000
ENDBR = bytes.fromhex("f30f1efa")
SEALED = bytes.fromhex("660f1f00")  # an endbr64 that no pointer needs any more
NOP = bytes.fromhex("0f1f440000")


def call(at: int, target: int, opcode: int = 0xE8) -> bytes:
    return bytes([opcode]) + struct.pack("<i", target - (at + 5))


class Kernel:
    """A kernel of a few functions, each 64 bytes long."""

    def __init__(self) -> None:
        self.memory: dict[int, bytes] = {}
        self.lines: list[str] = []
        for name, value in (
            ("page_offset_base", 0xFFFF_8880_0000_0000),
            ("vmemmap_base", 0xFFFF_EA00_0000_0000),
            ("max_pfn", 0x20000),
        ):
            self.add(name, struct.pack("<Q", value))

    def add(self, name: str, text: bytes, module: str = "") -> int:
        at = (MODULE if module else BASE) + 64 * len(self.lines)
        self.memory[at] = text.ljust(64, b"\xcc")
        self.lines.append(f"{at:016x} t {name}" + (f"\t[{module}]" if module else ""))
        return at

    def calling(self, name: str, *targets: int, module: str = "", opcode: int = 0xE8) -> int:
        at = (MODULE if module else BASE) + 64 * len(self.lines)
        text = ENDBR + NOP
        for target in targets:
            text += b"\x90" + call(at + len(text) + 1, target, opcode)
        return self.add(name, text, module)

    def read(self, address: int, size: int) -> bytes:
        if address not in self.memory:
            raise ValueError(f"{address:#x} is not mapped")
        return self.memory[address][:size]

    def plan(self, sides: int = bpf.SEND | bpf.RECV, **options: object) -> dict[str, plan.Planned]:
        text = "\n".join([*self.lines, f"{MODULE + 64 * 100:016x} t end"]).encode()
        found = bpf.make(text, self.read, sides=sides, **options)  # type: ignore[arg-type]
        return {planned.hook.name: planned for planned in found.hooks}


def test_a_hook_is_absent_where_its_function_is() -> None:
    found = Kernel().plan()

    assert {-2} == {planned.error for planned in found.values()}
    assert sum(hook.sides in (1, 2, 3) for hook in bpf.HOOKS) == len(found)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (ENDBR + NOP, 0),
        (SEALED + NOP, 0),
        (NOP, 0),
        (ENDBR + call(4, 4096), 0),  # somebody traces it already
        (ENDBR + b"\x41\x57", -22),
        (b"\x55\x48", -22),
    ],
)
def test_bpf_attaches_only_to_what_begins_with_a_fentry_call(text: bytes, error: int) -> None:
    kernel = Kernel()
    kernel.add("ip_generic_getfrag", text)

    assert error == kernel.plan()["ip_generic_getfrag"].error


@pytest.mark.parametrize("opcode", [0xE8, 0xE9], ids=["call", "tail jump"])
def test_calls_are_found_in_the_text(opcode: int) -> None:
    kernel = Kernel()
    copy = kernel.add("_copy_to_iter", ENDBR)
    kernel.calling("udp_recvmsg", BASE, copy, copy, opcode=opcode)

    planned = kernel.plan()["udp_recvmsg>_copy_to_iter"]

    assert (16, 22) == planned.offsets
    assert ("call",) == planned.ways
    assert planned.line == (
        "hook recvmsg_copy udp_recvmsg>_copy_to_iter 1 0 call udp_recvmsg - 10,16"
    )


def test_a_function_that_never_calls_it_has_no_such_hook() -> None:
    kernel = Kernel()
    kernel.add("_copy_to_iter", ENDBR)
    kernel.calling("udp_recvmsg", BASE)

    assert -2 == kernel.plan()["udp_recvmsg>_copy_to_iter"].error


def test_memcpy_goes_by_either_of_its_names_and_modules_are_told_apart() -> None:
    kernel = Kernel()
    inner = kernel.add("__memcpy", ENDBR)
    kernel.add("page_to_skb", ENDBR + NOP, module="other_net")
    kernel.calling("page_to_skb", inner, module="virtio_net")

    planned = kernel.plan()["virtio_net:page_to_skb>memcpy"]

    assert ("virtio_net", (10,)) == (planned.module, planned.offsets)


def test_a_function_of_the_kernel_may_lie_in_a_module_instead() -> None:
    kernel = Kernel()
    kernel.add("virtqueue_add_outbuf", ENDBR + NOP, module="virtio_ring")

    assert "virtio_ring" == kernel.plan()["virtqueue_add_outbuf"].module


def test_what_is_left_out_takes_its_calls_with_it() -> None:
    kernel = Kernel()
    copy = kernel.add("_copy_to_iter", ENDBR)
    kernel.calling("udp_recvmsg", copy)

    planned = kernel.plan(without=("_copy_to_iter",))["udp_recvmsg>_copy_to_iter"]

    assert (True, -125) == (planned.left_out, planned.error)


def test_a_side_has_its_own_hooks_and_those_of_both() -> None:
    names = set(Kernel().plan(bpf.RECV))

    assert "skb_copy_bits" in names
    assert "ip_generic_getfrag" not in names


def test_only_the_ways_that_are_allowed_are_taken() -> None:
    kernel = Kernel()
    kernel.add("__dev_queue_xmit", ENDBR + NOP)

    assert ("fentry", "tp", "kprobe") == kernel.plan()["__dev_queue_xmit"].ways
    assert ("tp",) == kernel.plan(ways=("tp",))["__dev_queue_xmit"].ways
    assert -22 == kernel.plan(ways=("fexit",))["__dev_queue_xmit"].error


def test_the_plan_begins_with_the_kernels_memory() -> None:
    kernel = Kernel()
    text = "\n".join(kernel.lines).encode()

    first = bpf.make(text, kernel.read, sides=bpf.SEND).text.splitlines()[0]

    assert "memory ffff888000000000 ffffea0000000000 20000000" == first


def test_hooks_and_programs_are_called_alike() -> None:
    source = paths.data() / "bpf"
    header = (source / "hooks.h").read_text(encoding="utf-8")
    programs = (source / "probe.bpf.c").read_text(encoding="utf-8")

    assert [hook.id for hook in hooks.HOOKS] == re.findall(r"\tHOOK\((\w+)\)", header)
    macros = r"^(?:COPY_CALL|MEMCPY_CALL|COPY_FOUR|PACKET|WALK|CROSSED|ENTERED|RETURNED)\((\w+)[,)]"
    made_by_macro = set(re.findall(macros, programs, re.MULTILINE))
    for hook in hooks.HOOKS:
        for way in hook.ways:
            assert hook.id in made_by_macro or f"int {hook.id}__{way}(" in programs, hook


def test_names_fit_the_ring_and_the_playbook_knows_them() -> None:
    names = [hook.name for hook in hooks.HOOKS]

    assert max(map(len, names)) < 48
    for side in (bpf.SEND, bpf.RECV, bpf.SOCKET):
        ways = [(hook.name, hook.ways == ("fexit",)) for hook in bpf.HOOKS if hook.sides & side]
        assert len(ways) == len(set(ways)) <= 48
    assert {*names} <= {*spec.HOOKS, *spec.BPF_HOOKS}
    assert {*spec.BPF_HOOKS} <= {*names}


def test_lacking_tools_are_named_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(ToolMissing, match="BPF probes need clang, bpftool") as caught:
        bpf.build(b"", journal=Journal(), cache=tmp_path)
    assert "apt-get install clang bpftool libbpf-dev" in (caught.value.hint or "")
