"""Following calls, on a machine that is a list of what it executes."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import cast

import pytest

from lab.btf import Btf, Kind, Parameter
from lab.calls import Call, Calls, How
from lab.deadline import Deadline
from lab.debugger import GENERAL, Debugger, Registers
from lab.errors import DeadlineExceeded, EvidenceError
from lab.follow import Follower, Text, Trigger
from lab.follow.code import direct_targets, indirect_sites
from lab.follow.reading import assign
from lab.kernel import Kernel

BASE = 0xFFFF_FFFF_8100_0000
STACK = 0xFFFF_C900_0000_3F00
GS = 0xFFFF_8880_0000_0000
TASK, OTHER = 0xFFFF_8881_0000_0000, 0xFFFF_8882_0000_0000
ENTRY, INNER, LEAF, TAIL, DRIVER, THUNK, TIMER, OUTER = (
    BASE + 0x1000 * place for place in range(1, 9)
)
NAMES = {
    ENTRY: "__x64_sys_sendto",
    INNER: "inner",
    LEAF: "leaf",
    TAIL: "tail",
    DRIVER: "driver",
    THUNK: "__x86_indirect_thunk_rax",
    TIMER: "asm_sysvec_apic_timer_interrupt",
    OUTER: "do_syscall_64",
}
KALLSYMS = (
    "\n".join(
        [
            "0000000000000100 A pcpu_hot",
            f"{THUNK:016x} T __softirqentry_text_end",
            *(f"{address:016x} T {name}" for address, name in NAMES.items()),
            f"{OUTER + 0x1000:016x} T _etext",
        ]
    )
    + "\n"
)


def call(at: int, target: int, code: bytes = b"\xe8") -> bytes:
    """Return an instruction at `at` that goes to `target`."""
    return code + struct.pack("<i", target - at - len(code) - 4)


CODE = {
    ENTRY: b"\x90" * 0x10 + call(ENTRY + 0x10, INNER),
    # an indirect call through the thunk, and one through r8
    INNER: call(INNER, LEAF) + call(INNER + 5, THUNK) + b"\x41\xff\xd0",
    LEAF: b"\xc3",
    TAIL: b"\xc3",
    DRIVER: call(DRIVER, TAIL, b"\xe9"),
}


class Machine:
    """Executes a list of (rip, rsp, registers); stops where a breakpoint is set."""

    guest = SimpleNamespace(name="sender")

    def __init__(self, path: list[tuple[int, int, dict[str, int]]], *, missing: int = 0) -> None:
        self.path = path
        self.at = -1
        self.points: set[int] = set()
        self.memory: dict[int, int] = {GS + 0x100: TASK}
        self.over = False
        self.unmapped = missing

    def set(self, address: int) -> None:
        self.points.add(address)

    def clear(self, address: int) -> None:
        self.points.discard(address)

    def is_set(self, address: int) -> bool:
        return address in self.points

    def registers(self) -> Registers:
        if self.at >= len(self.path):
            return Registers((0,) * 16, 0, GS)
        rip, rsp, named = self.path[self.at]
        values = {"rsp": rsp} | named
        self.memory[GS + 0x100] = named.get("task", TASK)
        return Registers(tuple(values.get(name, 0) for name in GENERAL), rip, GS)

    def read(self, address: int, size: int) -> bytes | None:
        if address == self.unmapped:
            return None
        if address in (TASK + 8, OTHER + 8):  # comm
            return b"sender\0\0\0\0\0\0\0\0\0\0" if address < OTHER else b"other" + bytes(11)
        return self.memory.get(address, 0).to_bytes(8, "little")[:size].ljust(size, b"\0")

    def step(self) -> None:
        self.at += 1

    def resume(self) -> None:
        self.at += 1
        while self.at < len(self.path) and self.path[self.at][0] not in self.points:
            self.at += 1

    def stopped(self, deadline: Deadline) -> None:
        if self.at >= len(self.path) and not self.over:
            raise DeadlineExceeded("nothing more")

    def interrupt(self) -> None:
        self.over = True

    def close(self) -> None:
        self.points.clear()


def types() -> Btf:
    """Return types that know a task and no prototype."""
    offsets = {"pcpu_hot.current_task": 0, "task_struct.pid": 16, "task_struct.comm": 8}
    return cast("Btf", SimpleNamespace(offset=offsets.__getitem__, prototype=lambda _: None))


def followed(machine: Machine) -> Calls:
    def read(address: int, size: int) -> bytes:
        return CODE.get(address, b"").ljust(size, b"\x90")

    follower = Follower(
        cast("Debugger", machine),
        cast("Kernel", SimpleNamespace(release="6.12-cooked", read=read)),
        Text(KALLSYMS.encode()),
        types(),
        [Trigger(symbol="__x64_sys_sendto", comm="sender")],
    )
    follower.start()
    return follower.finish(deadline=Deadline(5.0))


def way() -> list[tuple[int, int, dict[str, int]]]:
    """Return a system call: inner calls leaf, then driver by the thunk, which jumps to tail."""
    return [
        (ENTRY, STACK, {"rdi": 7}),
        (ENTRY + 0x10, STACK, {}),
        (INNER, STACK - 8, {"rsi": 5}),
        (LEAF, STACK - 16, {}),
        (INNER + 5, STACK - 8, {"rax": 1}),
        (THUNK, STACK - 16, {"rax": DRIVER}),
        (DRIVER, STACK - 16, {}),
        (TAIL, STACK - 16, {}),
        (INNER + 10, STACK - 8, {"rax": 2}),
        (ENTRY + 0x15, STACK, {"rax": 3}),
        (OUTER + 0x20, STACK + 8, {"rax": 16}),
        (LEAF, STACK - 16, {}),  # after the window: nobody's business
    ]


def stack_of(machine: Machine) -> Machine:
    machine.memory |= {STACK: OUTER + 0x20, STACK - 8: ENTRY + 0x15}
    return machine


class Stacked(Machine):
    """Has the return address on the stack that the step before would have pushed."""

    def registers(self) -> Registers:
        returns = {LEAF: INNER + 5, DRIVER: INNER + 10, TAIL: INNER + 10, THUNK: INNER + 10}
        if 0 <= self.at < len(self.path) and self.path[self.at][0] in returns:
            self.memory[self.path[self.at][1]] = returns[self.path[self.at][0]]
        return super().registers()


def machine(path: list[tuple[int, int, dict[str, int]]]) -> Machine:
    return stack_of(Stacked(path))


def tree(found: Calls) -> list[tuple[str, str, str, int]]:
    """Return name, parent's name, how and value of each call."""

    def parent(one: Call) -> str:
        return found.calls[one.parent].function if one.parent >= 0 else ""

    return [
        (c.function, parent(c), c.how.value, c.returned.value if c.returned else -1)
        for c in found.calls
    ]


def test_calls_jumps_indirect_calls_and_returns() -> None:
    found = followed(machine(way()))
    assert tree(found) == [
        ("__x64_sys_sendto", "", "call", 16),
        ("inner", "__x64_sys_sendto", "call", 3),
        ("leaf", "inner", "call", 1),
        ("driver", "inner", "call", 2),
        ("tail", "driver", "jump", 2),
    ]
    assert found.calls[0].argument("rdi") == 7
    assert found.calls[1].argument("rsi") == 5
    assert [c.entered for c in found.calls] == sorted(c.entered for c in found.calls)
    leaf, driver = found.calls[2], found.calls[3]
    assert leaf.entered < leaf.left < driver.entered < driver.left < found.calls[1].left
    assert (found.calls[0].comm, found.foreign, found.dropped) == ("sender", 0, 0)


def test_a_guest_that_is_not_watched_yet_is_not_followed() -> None:
    one = machine(way())
    follower = Follower(
        cast("Debugger", one),
        cast("Kernel", SimpleNamespace(release="6.12-cooked")),
        Text(KALLSYMS.encode()),
        types(),
        [Trigger(symbol="__x64_sys_sendto")],
    )
    follower.start(watch=False)
    assert follower.finish(deadline=Deadline(5.0)).calls == ()


def test_another_program_opens_no_window() -> None:
    path = way()
    path[0] = (ENTRY, STACK, {"task": OTHER})
    assert followed(machine(path)).calls == ()


def test_another_tasks_calls_are_not_ours() -> None:
    path = way()
    path.insert(4, (INNER, STACK - 0x8000, {"task": OTHER}))
    found = followed(machine(path))
    assert found.foreign == 1
    assert [c.function for c in found.calls].count("inner") == 1
    assert found.calls[0].left >= 0


def test_an_interrupt_is_neither_followed_nor_lost_in() -> None:
    path = way()
    frame = STACK - 0x80
    path[4:4] = [(TIMER, frame, {}), (LEAF, frame - 64, {}), (INNER + 2, STACK - 8, {})]
    one = machine(path)
    one.memory |= {frame: INNER + 2, frame + 24: STACK - 8}
    # leaf had not returned: the interrupt came right after its return, before inner went on
    found = followed(one)
    timer = next(c for c in found.calls if c.how is How.INTERRUPT)
    assert timer.left > timer.entered
    assert [c.function for c in found.calls].count("leaf") == 1
    assert tree(found)[-1] == ("tail", "driver", "jump", 2)


def test_a_call_that_never_returns_is_told_so() -> None:
    found = followed(machine(way()[:4]))
    assert [c.left for c in found.calls] == [-1, -1, -1]


def test_a_stack_that_cannot_be_read_gives_no_call() -> None:
    one = machine(way())
    one.unmapped = STACK - 8
    assert "inner" not in [c.function for c in followed(one).calls]


def test_a_trigger_the_kernel_has_not() -> None:
    with pytest.raises(EvidenceError, match="no function nowhere"):
        Follower(
            cast("Debugger", machine([])),
            cast("Kernel", SimpleNamespace(release="6.12")),
            Text(KALLSYMS.encode()),
            types(),
            [Trigger(symbol="nowhere")],
        )


def test_a_fault_in_the_thread_is_raised_by_finish() -> None:
    class Broken(Stacked):
        def step(self) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        followed(stack_of(Broken(way())))


def test_what_code_can_call() -> None:
    code = b"\x90" + call(BASE + 1, LEAF) + b"\x0f\x84" + struct.pack("<i", 16) + b"\xeb\x02\x90"
    targets = list(direct_targets(code, BASE))
    assert LEAF in targets
    assert BASE + 12 + 16 in targets
    assert BASE + 14 + 2 in targets
    sites = dict(indirect_sites(b"\x90\xff\xd0\x41\xff\xe3", BASE))
    assert sites == {BASE + 1: "rax", BASE + 3: "r11", BASE + 4: "rbx"}
    assert not list(direct_targets(b"\xe8\x00\x00", BASE))  # cut short


def test_the_name_that_says_most_wins() -> None:
    text = Text(KALLSYMS.encode())
    found = text.starting(THUNK)
    assert found is not None
    assert found.name == "__x86_indirect_thunk_rax"
    assert text.name(LEAF + 3) == "leaf+0x3"
    assert text.starting(LEAF + 1) is None
    assert text.name(0x1000) == ""


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([8, 4, 1], [0, 1, 2]),
        ([8] * 8, [0, 1, 2, 3, 4, 5, 100, 101]),
        ([16, 8], [0, 2]),  # a struct in two registers
        ([8, 24, 8], [0, 100, 1]),  # a struct too large for registers
        ([8] * 5 + [16, 8], [0, 1, 2, 3, 4, 100, 5]),  # one that does not fit the last register
    ],
)
def test_where_arguments_are(sizes: list[int], expected: list[int]) -> None:
    sized = cast(
        "Btf", SimpleNamespace(size_of=lambda kind: sizes[kind], kind_of=lambda _: Kind.INT)
    )
    given = [Parameter(str(place), place) for place in range(len(sizes))]
    found = assign(given, range(6), range(100, 110), sized)
    assert [value for _, value in found] == expected
