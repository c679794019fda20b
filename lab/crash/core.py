"""Make an ELF core of a guest's RAM that drgn and crash open."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from lab import kernel
from lab.memory import GuestMemory, extents

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
CORE, X86_64, LOAD, NOTES, RWX = 4, 62, 1, 4, 7
PAGE = 4096


def write_core(ram: Path, target: Path) -> int:
    """Write a sparse core of the RAM file `ram`; return the bytes it takes on disk.

    It holds all the guest's memory, and with it every key and message that was in there.
    """
    with GuestMemory(ram) as memory:
        core = kernel.find(memory)
        notes = _note(b"VMCOREINFO", 0, core.info.encode())
        # One segment by physical address, and the same bytes where the kernel sees its text.
        start = HEADER.size + 3 * SEGMENT.size
        data_at = -(-(start + len(notes)) // PAGE) * PAGE
        base = core.number("phys_base")  # negative where KASLR moved the kernel's address most
        text_pa = max(base, 0)
        text_va = kernel.KERNEL_MAP + text_pa - base
        window = memory.size - text_pa
        head = HEADER.pack(
            IDENT, CORE, X86_64, 1, 0, HEADER.size, 0, 0, HEADER.size, SEGMENT.size, 3, 0, 0, 0
        )
        head += SEGMENT.pack(NOTES, 0, start, 0, 0, len(notes), len(notes), 4)
        head += SEGMENT.pack(
            LOAD, RWX, data_at, direct_map(core), 0, memory.size, memory.size, PAGE
        )
        head += SEGMENT.pack(LOAD, RWX, data_at + text_pa, text_va, text_pa, window, window, PAGE)
        with ram.open("rb", buffering=0) as source:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as out:
                out.truncate(data_at + memory.size)
                os.pwrite(out.fileno(), head + notes, 0)
                for first, last in extents(source.fileno(), memory.size):
                    for at in range(first, last, 1 << 20):
                        piece = os.pread(source.fileno(), min(1 << 20, last - at), at)
                        os.pwrite(out.fileno(), piece, data_at + at)
    return target.stat().st_blocks * 512


def direct_map(core: kernel.Kernel) -> int:
    """Return the kernel address of physical 0: where its map of all memory begins."""
    known = core.symbol("mem_section")  # allocated early, from that map
    return known - core.physical(known)


def _note(name: bytes, kind: int, text: bytes) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return NOTE.pack(len(name) + 1, len(text), kind) + padded(name + b"\0") + padded(text)
