"""What a held guest's registers and memory mean, by the kernel's own description of its types."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from lab.btf import Btf, Kind, Parameter
from lab.calls import Value
from lab.debugger import Debugger, Registers
from lab.errors import EvidenceError
from lab.follow.code import Text

ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")  # System V AMD64 ABI, 3.2.3
KERNEL = 0x1FFFF  # the upper 17 bits of a kernel address, with four levels of page tables
# What is read of a struct when a pointer to it is an argument.
WATCHED: Mapping[str, tuple[str, ...]] = {
    "sk_buff": ("head", "data", "len", "data_len"),
    "iov_iter": ("iter_type", "count", "iov_offset", "ubuf", "iov"),
    "msghdr": ("msg_name", "msg_namelen", "msg_iter.count", "msg_iter.iov_offset", "msg_iter.ubuf"),
    "socket": ("state", "file", "sk"),
    "sock": ("__sk_common.skc_daddr", "__sk_common.skc_dport", "__sk_common.skc_num"),
    "pt_regs": ("orig_ax", "di", "si", "dx", "r10", "r8", "r9", "ip"),
}


class Reader:
    """Reads arguments, return values, structs and the current task of a held guest."""

    def __init__(self, debugger: Debugger, text: Text, types: Btf) -> None:
        self._debugger = debugger
        self._text = text
        self._types = types
        self._current_at = current_at(text, types)
        self._tasks: dict[int, tuple[int, str]] = {}  # address -> thread id, comm
        self._passed_as: dict[int, str] = {}  # address -> struct it was passed as before

    def current(self, at: Registers) -> int | None:
        """Return the address of the current task; None where gs is a user program's."""
        raw = self._debugger.read(at.gs_base + self._current_at & (1 << 64) - 1, 8)
        return None if raw is None else int.from_bytes(raw, "little")

    def task(self, task: int) -> tuple[int, str]:
        """Return a task's thread id and comm."""
        if task not in self._tasks:
            pid = self._debugger.read(task + self._types.offset("task_struct.pid"), 4) or b""
            comm = self._debugger.read(task + self._types.offset("task_struct.comm"), 16) or b""
            name = comm.partition(b"\0")[0].decode("ascii", "replace")
            self._tasks[task] = int.from_bytes(pid, "little"), name
        return self._tasks[task]

    def word(self, address: int) -> int | None:
        raw = self._debugger.read(address, 8)
        return None if raw is None else int.from_bytes(raw, "little")

    def arguments(self, function: str, at: Registers) -> tuple[bool, tuple[Value, ...]]:
        """Return what a function that is being entered was given, and whether BTF knows it.

        Where it does not, all six registers are returned.
        """
        prototype = self._types.prototype(function)
        registers = [at[register] for register in ARGUMENTS]
        if prototype is None:
            bare = zip(ARGUMENTS, registers, strict=True)
            return False, tuple(Value(name=name, type="?", value=value) for name, value in bare)
        beyond = len(prototype.parameters) - len(ARGUMENTS)
        stack: Sequence[int] = ()
        if beyond > 0:
            raw = self._debugger.read(at.rsp + 8, 8 * (beyond + 2)) or b""
            stack = struct.unpack(f"<{len(raw) // 8}Q", raw)
        given = assign(prototype.parameters, registers, stack, self._types)
        return True, tuple(self._value(parameter, value) for parameter, value in given)

    def returned(self, function: str, rax: int) -> Value | None:
        """Return a function's return value; None where it has none."""
        prototype = self._types.prototype(function)
        if prototype is None:
            return Value(name="", type="?", value=rax)
        if prototype.returns == 0:
            return None
        return self._value(Parameter("", prototype.returns), rax)

    def _value(self, parameter: Parameter, raw: int) -> Value:
        types = self._types
        size = types.size_of(parameter.type)
        value = raw & ((1 << 8 * size) - 1) if 0 < size < 8 else raw
        target = types.target(parameter.type)
        points_to = ""
        if target is not None and types.kind_of(target) is Kind.FUNC_PROTO:
            points_to = self._text.name(value)
        elif target is not None and value:
            named = types.struct_name(target)
            points_to = named or self._passed_as.get(value, "")
            if named:
                self._passed_as[value] = named
        return Value(
            name=parameter.name,
            type=types.describe(parameter.type),
            value=value,
            signed=types.is_signed(parameter.type),
            points_to=points_to,
        )

    def structs(self, values: Sequence[Value]) -> dict[str, dict[str, int]]:
        """Return what the structs behind pointers hold, as far as they are watched."""
        found = {}
        for one in values:
            members = WATCHED.get(one.points_to)
            if members is None or one.value >> 47 != KERNEL:
                continue
            held = self._members(one.points_to, members, one.value)
            if held:
                found[one.name or "return"] = held
        return found

    def _members(self, name: str, members: Sequence[str], at: int) -> dict[str, int]:
        types = self._types
        fields = {
            member: types.field(f"{name}.{member}")
            for member in members
            if types.has(f"{name}.{member}")
        }
        if not fields:
            return {}
        start = min(field.offset for field in fields.values())
        end = max(field.offset + field.size for field in fields.values())
        raw = self._debugger.read(at + start, end - start)
        if raw is None:
            return {}
        return {
            member: int.from_bytes(raw[f.offset - start : f.offset - start + f.size], "little")
            for member, f in fields.items()
        }


def assign(
    parameters: Sequence[Parameter], registers: Sequence[int], stack: Sequence[int], types: Btf
) -> Iterator[tuple[Parameter, int]]:
    """Yield parameters with the eight bytes each begins with (System V AMD64 ABI, 3.2.3).

    The kernel passes no floating point.  A struct of up to 16 bytes takes registers if all
    of it fits; else, and after the sixth register, values lie on the stack.
    """
    free, above = list(registers), list(stack)
    for parameter in parameters:
        words = max(1, -(-types.size_of(parameter.type) // 8))
        source = free if words <= min(2, len(free)) else above
        if len(source) < words:
            return
        yield parameter, source[0]
        del source[:words]


def current_at(text: Text, types: Btf) -> int:
    """Return where the current task's address lies, from the base of gs on."""
    # A variable of its own until v6.2 put the hot ones of a CPU together.
    if "pcpu_hot" in text.values:
        return text.values["pcpu_hot"] + types.offset("pcpu_hot.current_task")
    if "current_task" in text.values:
        return text.values["current_task"]
    raise EvidenceError("this kernel has neither pcpu_hot nor current_task")
