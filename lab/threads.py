"""The threads of a guest's kernel, read from its RAM by the kernel's own types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.btf import Btf
from lab.kernel import PAGE, Kernel

INIT = "init_task"  # the symbol of the first thread
MOST = 4096  # processes, and threads of one
COMM_SIZE = 16


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread, and where its kernel stack lies."""

    at: int  # kernel address of its task_struct
    pid: int
    comm: str
    stack: int  # lowest kernel address of its stack
    stack_size: int
    pointer: int  # of its stack, when it last gave up the CPU

    @property
    def top(self) -> int:
        """The address behind its stack."""
        return self.stack + self.stack_size


def threads(kernel: Kernel, types: Btf, first: int) -> Iterator[Thread]:
    """Yield every thread; `first` is the address of `INIT`.

    Raises `ValueError` where the lists are changing under the reader.
    """
    size = types.size("task_struct")
    fields = {
        name: types.field(f"task_struct.{name}") for name in ("pid", "comm", "stack", "thread.sp")
    }
    # Without CONFIG_THREAD_INFO_IN_TASK the union would hold more; on x86-64 it is the stack.
    stack_size = types.size("thread_union") if types.has("thread_union") else 4 * PAGE
    for task in _tasks(kernel, types, first):
        raw = kernel.read(task, size)
        values = {
            name: int.from_bytes(raw[field.offset : field.offset + field.size], "little")
            for name, field in fields.items()
        }
        comm = raw[fields["comm"].offset :][:COMM_SIZE].partition(b"\0")[0]
        yield Thread(
            at=task,
            pid=values["pid"],
            comm=comm.decode("ascii", "replace"),
            stack=values["stack"],
            stack_size=stack_size,
            pointer=values["thread.sp"],
        )


def _tasks(kernel: Kernel, types: Btf, first: int) -> Iterator[int]:
    """Yield the kernel address of every task: each process's first, then its others."""
    offset = types.offset
    next_task, node = offset("task_struct.tasks"), offset("task_struct.thread_node")
    signal, head = offset("task_struct.signal"), offset("signal_struct.thread_head")
    task = first
    for _ in range(MOST):
        yield task
        start = kernel.word(task + signal) + head
        thread = kernel.word(start)
        for _ in range(MOST):
            if thread == start:
                break
            if thread - node != task:
                yield thread - node
            thread = kernel.word(thread)
        task = kernel.word(task + next_task) - next_task
        if task == first:
            return
