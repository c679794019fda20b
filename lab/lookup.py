"""From a task to the address its socket is connected to, read out of guest RAM.

Nothing in the guest is asked: tasks, descriptors and sockets are found by the kernel's own
symbols, its page tables and its description of its types.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from lab.btf import Btf
from lab.errors import EvidenceError
from lab.kernel import Kernel

MOST_TASKS = 4096


class Lookup:
    """Reads tasks and what hangs on their descriptors in one kernel."""

    def __init__(self, kernel: Kernel, types: Btf, symbols: Mapping[str, int]) -> None:
        self._kernel = kernel
        self._types = types
        self._symbols = symbols

    def chain(self, pid: int, fd: int) -> dict[str, object]:
        """Return every link from the task to the peer's address; `EvidenceError` if one is cut.

        Addresses and numbers are integers, `bytes` the first of the sock in hexadecimal.
        """
        task = self._task(pid)
        files = self._follow(task, "task_struct.files")
        fdt = self._follow(files, "files_struct.fdt")
        slots = self._follow(fdt, "fdtable.fd")
        if fd >= self._number(fdt, "fdtable.max_fds"):
            raise EvidenceError(f"task {pid} has no descriptor {fd}")
        slot = slots + 8 * fd
        file = self._word(slot)
        socket = self._follow(file, "file.private_data")
        sock = self._follow(socket, "socket.sk")
        common = "sock.__sk_common"
        size = self._types.size("sock_common")
        return {
            "task": task,
            "files": files,
            "fdt": fdt,
            "slot": slot,
            "slot_physical": self._kernel.physical(slot),
            "fd_array": files + self._types.offset("files_struct.fd_array") + 8 * fd,
            "file": file,
            "f_op_is_socket": self._follow(file, "file.f_op") == self._symbols["socket_file_ops"],
            "socket": socket,
            "state": self._number(socket, "socket.state"),
            "socket_file": self._follow(socket, "socket.file"),
            "sock": sock,
            "sk_socket": self._follow(sock, "sock.sk_socket"),
            "skc_daddr": self._number(sock, f"{common}.skc_daddr"),
            "skc_dport": self._number(sock, f"{common}.skc_dport"),
            "skc_num": self._number(sock, f"{common}.skc_num"),
            "skc_family": self._number(sock, f"{common}.skc_family"),
            "bytes": self._read(sock, min(size, 64)).hex(),
            "daddr_offset": self._types.offset(f"{common}.skc_daddr"),
            "dport_offset": self._types.offset(f"{common}.skc_dport"),
        }

    def name(self, message: int) -> dict[str, object]:
        """Return the address a `struct msghdr` holds: where sendto() was told to send."""
        at = self._follow(message, "msghdr.msg_name")
        size = self._number(message, "msghdr.msg_namelen")
        raw = self._read(at, size) if at and 0 < size <= 128 else b""
        return {
            "msg": message,
            "msg_name": at,
            "msg_namelen": size,
            "msg_name_physical": self._kernel.physical(at) if at else 0,
            "bytes": raw.hex(),
        }

    def _task(self, pid: int) -> int:
        for task in self._tasks():
            if self._number(task, "task_struct.pid") == pid:
                return task
        raise EvidenceError(f"there is no task {pid} in guest RAM")

    def _tasks(self) -> Iterator[int]:
        link = self._types.offset("task_struct.tasks")
        first = self._symbols["init_task"]
        task = first
        for _ in range(MOST_TASKS):
            yield task
            task = self._word(task + link) - link
            if task == first:
                return
        raise EvidenceError(f"the list of tasks does not end after {MOST_TASKS}")

    def _follow(self, at: int, path: str) -> int:
        return self._word(at + self._types.offset(path))

    def _number(self, at: int, path: str) -> int:
        where = self._types.field(path)
        return int.from_bytes(self._read(at + where.offset, where.size), "little")

    def _word(self, at: int) -> int:
        return int(struct.unpack("<Q", self._read(at, 8))[0])

    def _read(self, at: int, size: int) -> bytes:
        try:
            return self._kernel.read(at, size)
        except ValueError as error:
            raise EvidenceError(f"a link of the chain is cut: {error}") from error
