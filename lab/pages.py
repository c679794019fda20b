"""What the kernel uses a page of guest RAM for, read from its `struct page` by the host.

Nothing in the guest is asked: where `struct page` lies and what is in it say the kernel's own
description of its types (BTF) and its symbols.  A page is named by what it is when it is
looked at; memory that was freed keeps its bytes, and is somebody else's by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lab.btf import Btf
from lab.kernel import BTF, PAGE, Kernel
from lab.threads import INIT, threads

POISON = 0xDEAD_0000_0000_0000  # CONFIG_ILLEGAL_POINTER_VALUE of x86-64
POOL_MARK = POISON | 0x40  # PP_SIGNATURE, in page.pp_magic
ANONYMOUS, MOVABLE = 1, 2  # low bits of page.mapping: PAGE_MAPPING_ANON, PAGE_MAPPING_MOVABLE
MOST_ORDER = 10  # pages of a free block, as a power of two
NEEDED = ("vmemmap_base", INIT, "_text", "_end", *BTF)  # symbols of the kernel
NAME_SIZE = 64  # bytes read of a name


@dataclass(frozen=True, slots=True)
class _Page:
    """A page's `struct page`, and that of the page it is a part of."""

    number: int
    raw: bytes
    head_at: int  # kernel address of the head's
    head: bytes
    order: int  # the head's, where this page is a part of another


class Pages:
    """Names pages of one guest's RAM."""

    def __init__(
        self, kernel: Kernel, symbols: Mapping[str, int], types: Btf | None = None
    ) -> None:
        """`symbols` are those of `NEEDED`; `types` are the kernel's own, read before."""
        self.kernel = kernel
        self.types = types or kernel.types(symbols)
        self._symbols = symbols
        self._start = kernel.word(symbols["vmemmap_base"])
        self._size = self.types.size("page")
        self._flags = self.types.enum("pageflags")
        self._sorts = _sorts(self.types)

    def name(self, physical: int) -> str:
        """Return what the page at a physical address is, such as "slab kmalloc-512"."""
        try:
            return self._name(self._page(physical // PAGE))
        except ValueError as error:  # a pointer that leads nowhere: it was changing
            return f"not known ({error})"

    def _name(self, page: _Page) -> str:
        sort = self._sort(page.head)
        if sort == "slab":
            return f"slab {self._cache(page)}"
        if sort == "buddy" or self._in_free_block(page.number):
            return "free"
        if page.number in self._stacks:
            return f"kernel stack of {self._stacks[page.number]}"
        if not sort and self._flag(page.head, "PG_reserved"):
            return self._reserved(page.number)
        return sort or self._mapped(page) or self._untyped(page)

    def _mapped(self, page: _Page) -> str:
        """Return what a page of a file or of a program is; empty for one of neither."""
        mapping = self._word(page.head, "page.mapping")
        if mapping & (ANONYMOUS | MOVABLE) == ANONYMOUS:
            return "anonymous"
        if mapping and not mapping & (ANONYMOUS | MOVABLE):
            return f"page cache of {self._file(mapping)}"
        return ""

    def _untyped(self, page: _Page) -> str:
        if self.types.has("page.pp_magic"):
            mark = self._word(page.head, "page.pp_magic")
            if mark & ~3 == POOL_MARK:
                return "page pool of a network device"
        if self._word(page.head, "page._refcount") == 0:
            return "free"
        return "kernel pages" + (f", {1 << page.order} together" if page.order else "")

    # --- struct page ----------------------------------------------------------------------------

    def _page(self, number: int) -> _Page:
        at = self._start + number * self._size
        raw = self.kernel.read(at, self._size)
        link = self._word(raw, "page.compound_head")
        head_at = link - 1 if link & 1 else at
        head = self.kernel.read(head_at, self._size) if link & 1 else raw
        order = 0
        if self._flag(head, "PG_head"):
            # A head's order lies in its second page, in the low byte of the flags since v6.6.
            second = self.kernel.read(head_at + self._size, self._size)
            order = self._order(second)
        return _Page(number, raw, head_at, head, order)

    def _order(self, second: bytes) -> int:
        if self.types.has("folio._folio_order"):
            at = self.types.offset("folio._folio_order") - self._size
            return second[at] if 0 <= at < self._size else 0
        if self.types.has("page.compound_order"):
            return second[self.types.offset("page.compound_order")]
        return self._word(second, "page.flags") & 0xFF

    def _word(self, raw: bytes, path: str) -> int:
        found = self.types.field(path)
        return int.from_bytes(raw[found.offset : found.offset + found.size], "little")

    def _flag(self, raw: bytes, name: str) -> bool:
        bit = self._flags.get(name)
        return bit is not None and bool(self._word(raw, "page.flags") >> bit & 1)

    def _sort(self, raw: bytes) -> str:
        """Return what the page's type says: "slab", "buddy", "page table"; empty for none."""
        if self._flag(raw, "PG_slab"):  # a flag until v6.9
            return "slab"
        kind = self._word(raw, "page.page_type")
        for sort, matches in self._sorts.items():
            if kind in matches if isinstance(matches, frozenset) else kind >> 24 == matches:
                return sort
        return ""

    def _in_free_block(self, number: int) -> bool:
        # Of a free block only the first page is marked, and says the block's order.
        for order in range(MOST_ORDER + 1):
            first = number & -(1 << order)
            raw = self.kernel.read(self._start + first * self._size, self._size)
            if self._sort(raw) == "buddy":
                return self._word(raw, "page.private") >= order or first == number
        return False

    # --- What a page belongs to -----------------------------------------------------------------

    def _cache(self, page: _Page) -> str:
        cache = self._word(page.head, "slab.slab_cache")
        at = self.kernel.word(cache + self.types.offset("kmem_cache.name"))
        return self._text(at)

    def _file(self, mapping: int) -> str:
        offset = self.types.offset
        inode = self.kernel.word(mapping + offset("address_space.host"))
        if not inode:
            return "no file"
        block = self.kernel.word(inode + offset("inode.i_sb"))
        kind = self.kernel.word(block + offset("super_block.s_type"))
        name = self._text(self.kernel.word(kind + offset("file_system_type.name")))
        return f"{name} file, inode {self.kernel.word(inode + offset('inode.i_ino'))}"

    def _text(self, at: int) -> str:
        room = min(NAME_SIZE, PAGE - at % PAGE)
        raw = self.kernel.read(at, room)
        if b"\0" not in raw and room < NAME_SIZE:
            raw += self.kernel.read(at + room, NAME_SIZE - room)
        return raw.partition(b"\0")[0].decode("ascii", "replace")

    def _reserved(self, number: int) -> str:
        start = self.kernel.physical(self._symbols["_text"])
        end = self.kernel.physical(self._symbols["_end"] - 1)
        return "kernel image" if start <= number * PAGE <= end else "reserved at boot"

    @cached_property
    def _stacks(self) -> dict[int, str]:
        """The pages of all threads' kernel stacks, with whose they are."""
        found: dict[int, str] = {}
        for thread in threads(self.kernel, self.types, self._symbols[INIT]):
            for at in range(thread.stack, thread.top, PAGE):
                with contextlib.suppress(ValueError):
                    page = self.kernel.physical(at) // PAGE
                    found[page] = f"{thread.comm} (pid {thread.pid})"
        return found


def _sorts(types: Btf) -> dict[str, int | frozenset[int]]:
    # Since v6.12 the type is the uppermost byte; before, a bit that is cleared in a word of ones.
    if types.has_enum("pagetype"):
        kinds = types.enum("pagetype")
        return {
            "slab": kinds["PGTY_slab"],
            "buddy": kinds["PGTY_buddy"],
            "page table": kinds["PGTY_table"],
        }
    ones = 0xFFFF_FFFF
    return {"buddy": frozenset({ones ^ 0x80}), "page table": frozenset({ones ^ 0x200})}
