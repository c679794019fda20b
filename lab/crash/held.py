"""What a kernel holds of its memory, counted in guest RAM: slab objects and bare pages.

/proc/slabinfo takes every object of a CPU's own slab for used, so that a leak of one object
is lost in it.  Here the free lists are walked as the allocator (SLUB) left them: exact to
the object while the guest stands still.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lab import kernel
from lab.btf import Btf
from lab.errors import EvidenceError
from lab.kernel import PAGE, Kernel

SYMBOLS = ("slab_caches", "__per_cpu_offset", "vmemmap_base", *kernel.BTF)
PLACES = (
    "kmem_cache.cpu_slab", "kmem_cache.list", "kmem_cache.name", "kmem_cache.node",
    "kmem_cache.object_size", "kmem_cache.offset", "kmem_cache.random",
    "kmem_cache_cpu.freelist", "kmem_cache_cpu.partial", "kmem_cache_cpu.slab",
    "kmem_cache_node.partial", "kmem_cache_node.total_objects",
    "slab.inuse", "slab.next", "slab.slab_list",
    "page._refcount", "page.compound_head", "page.mapping", "page.page_type",
)  # fmt: skip
MOST = 1 << 16  # steps along a list before it is taken for damaged
MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where this kernel's allocator keeps its counts; from BTF, the same for every boot of it."""

    offsets: Mapping[str, int]
    page_size: int  # of struct page
    flags: Mapping[str, int]  # masks of page.flags
    types: Mapping[str, int]  # upper byte of page.page_type; empty where that is a bit mask


@dataclass(frozen=True, slots=True)
class Held:
    """Objects in use and the size of one, by cache; and pages that are nobody's."""

    objects: Mapping[str, int]
    sizes: Mapping[str, int]
    pages: int  # neither slab, file, program, page table nor free: alloc_page, vmalloc, stacks


def layout(types: Btf) -> Layout:
    """Return what of a kernel's types is needed; `EvidenceError` where it has no SLUB."""
    flags = types.enum("pageflags")
    return Layout(
        # A kernel without hardened free lists has no `random`.
        offsets={name: types.offset(name) if types.has(name) else -1 for name in PLACES},
        page_size=types.size("page"),
        flags={
            name: 1 << flags[f"PG_{name}"]
            for name in ("lru", "reserved", "slab")
            if f"PG_{name}" in flags
        },
        # Since 6.11 (46df8e73a4a3) the kind is a number in the upper byte.
        types=types.enum("pagetype") if _has_enum(types, "pagetype") else {},
    )


def _has_enum(types: Btf, name: str) -> bool:
    try:
        types.enum(name)
    except EvidenceError:
        return False
    return True


def count(core: Kernel, symbols: Mapping[str, int], known: Layout) -> Held:
    """Count what the kernel holds; its guest has one CPU, one node, and is stopped."""
    reader = _Reader(core)
    objects: dict[str, int] = {}
    sizes: dict[str, int] = {}
    try:
        for cache in _Caches(reader, symbols, known.offsets):
            objects[cache.name] = objects.get(cache.name, 0) + cache.used
            sizes[cache.name] = cache.size
        pages = _bare_pages(core, symbols["vmemmap_base"], known)
    except (KeyError, ValueError, struct.error) as error:
        raise EvidenceError(f"the kernel's memory could not be counted: {error}") from error
    return Held(objects, sizes, pages)


class _Reader:
    """Reads words of kernel memory, each page once."""

    def __init__(self, core: Kernel) -> None:
        self._core = core
        self._pages: dict[int, bytes] = {}

    def word(self, address: int) -> int:
        return int.from_bytes(self._bytes(address, 8), "little")

    def half(self, address: int) -> int:
        return int.from_bytes(self._bytes(address, 4), "little")

    def text(self, address: int) -> str:
        return self._bytes(address, 48).partition(b"\0")[0].decode("ascii", "replace")

    def _bytes(self, address: int, size: int) -> bytes:
        start = address % PAGE
        base = address - start
        page = self._pages.get(base)
        if page is None:
            page = self._pages[base] = self._core.read(base, PAGE)
        if start + size <= PAGE:
            return page[start : start + size]
        return page[start:] + self._bytes(base + PAGE, start + size - PAGE)


@dataclass(frozen=True, slots=True)
class _Cache:
    """One slab cache: its name, objects in use, bytes of one."""

    name: str
    used: int
    size: int


class _Caches:
    """Goes through the kernel's slab caches."""

    def __init__(self, read: _Reader, symbols: Mapping[str, int], at: Mapping[str, int]) -> None:
        self._read = read
        self._at = at
        self._head = symbols["slab_caches"]
        self._cpu = read.word(symbols["__per_cpu_offset"])

    def __iter__(self) -> Iterator[_Cache]:
        at, read = self._at, self._read
        for link in self._list(self._head):
            cache = link - at["kmem_cache.list"]
            yield _Cache(
                read.text(read.word(cache + at["kmem_cache.name"])),
                self._total(cache) - self._free(cache),
                read.half(cache + at["kmem_cache.object_size"]),
            )

    def _list(self, head: int) -> Iterator[int]:
        link = self._read.word(head)
        for _ in range(MOST):
            if link == head:
                return
            yield link
            link = self._read.word(link)
        raise ValueError(f"the list at {head:#x} has no end")

    def _node(self, cache: int) -> int:
        return self._read.word(cache + self._at["kmem_cache.node"])

    def _total(self, cache: int) -> int:
        return self._read.word(self._node(cache) + self._at["kmem_cache_node.total_objects"])

    def _unused(self, slab: int) -> int:
        """Return how many objects are on a slab's own free list."""
        counters = self._read.half(slab + self._at["slab.inuse"])  # inuse:16, objects:15, frozen
        return (counters >> 16 & 0x7FFF) - (counters & 0xFFFF)

    def _free(self, cache: int) -> int:
        at, read = self._at, self._read
        links = self._list(self._node(cache) + at["kmem_cache_node.partial"])
        free = sum(self._unused(link - at["slab.slab_list"]) for link in links)
        own = read.word(cache + at["kmem_cache.cpu_slab"]) + self._cpu & MASK
        slab = read.word(own + at["kmem_cache_cpu.slab"])
        if slab:
            free += self._unused(slab) + self._length(
                cache, read.word(own + at["kmem_cache_cpu.freelist"])
            )
        slab = read.word(own + at["kmem_cache_cpu.partial"])
        while slab:
            free += self._unused(slab)
            slab = read.word(slab + at["slab.next"])
        return free

    def _length(self, cache: int, free: int) -> int:
        """Return how long a list of free objects is; the hardened list is XORed."""
        at, read = self._at, self._read
        place = read.half(cache + at["kmem_cache.offset"])
        hardened = at["kmem_cache.random"] >= 0
        random = read.word(cache + at["kmem_cache.random"]) if hardened else 0
        for steps in range(MOST):
            if not free:
                return steps
            own = free + place
            stored = read.word(own)
            free = stored ^ random ^ _swapped(own) if hardened else stored
        raise ValueError(f"the free list of the cache at {cache:#x} has no end")


def _swapped(word: int) -> int:
    return int.from_bytes(word.to_bytes(8, "little"), "big")


def _bare_pages(core: Kernel, base: int, known: Layout) -> int:
    """Return how many pages are held by nothing that the kernel counts elsewhere."""
    step = known.page_size
    data = memoryview(core.read(core.word(base), core.memory.size // PAGE * step))

    def column(place: int, size: Literal["I", "Q"]) -> list[int]:
        width = struct.calcsize(size)
        return data.cast(size)[place // width :: step // width].tolist()

    at = known.offsets
    table = known.types.get("PGTY_table", 0) << 24 or 0xFFFFFDFF  # else: bit 9 taken out
    slab = known.types.get("PGTY_slab", 0) << 24
    not_ours = sum(known.flags.values())
    return sum(
        references != 0
        and not flags & not_ours
        and not head & 1  # the later pages of a larger one are its first's
        and not mapping
        and (kind & 0xFF000000 not in (table, slab) if slab else kind != table)
        for references, flags, head, mapping, kind in zip(
            column(at["page._refcount"], "I"),
            column(0, "Q"),
            column(at["page.compound_head"], "Q"),
            column(at["page.mapping"], "Q"),
            column(at["page.page_type"], "I"),
            strict=True,
        )
    )
