"""Guest RAM as the host sees it: one sparse file.

Read with SEEK_DATA and pread, never by mmap: touching a hole of a tmpfs file through a
mapping allocates it (measured: 0 to 256 MiB by one read-through).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.errors import BadAddress

PIECE = 4 * 1024 * 1024


class GuestMemory:
    """The RAM of one guest, addressed by guest-physical address.

    The address is the offset in the file for a guest of at most 2 GiB on q35, where all
    RAM lies below the PCI hole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at physical `address`; `BadAddress` outside RAM."""
        if address < 0 or size < 0 or address + size > self.size:
            raise BadAddress(f"{address:#x}+{size:#x} is outside the guest's {self.size:#x} bytes")
        data = os.pread(self._fd, size, address)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), address + len(data))
            if not more:
                raise BadAddress(f"{self.path} ends at {address + len(data):#x}")
            data += more
        return data

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the parts that hold data, in order."""
        return extents(self._fd, self.size)

    def find(self, needle: bytes) -> Iterator[int]:
        """Yield the address of every occurrence of `needle`, lowest first."""
        keep = len(needle) - 1
        for start, end in self.extents():
            at, tail = start, b""
            while at < end:
                piece = tail + os.pread(self._fd, min(PIECE, end - at), at)
                base = at - len(tail)
                if len(piece) == len(tail):
                    break
                hit = piece.find(needle)
                while hit >= 0:
                    yield base + hit
                    hit = piece.find(needle, hit + 1)
                at = base + len(piece)
                tail = piece[-keep:] if keep else b""


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the data in the sparse file `fd`."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after `at`
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at
