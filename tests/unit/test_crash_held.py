"""What a kernel holds, counted in a RAM made by hand: a cache on all its lists, and pages."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from lab.crash import held
from lab.errors import EvidenceError

RANDOM = 0x1122334455667788
PLACES = {
    "kmem_cache.cpu_slab": 0, "kmem_cache.list": 8, "kmem_cache.name": 24,
    "kmem_cache.node": 32, "kmem_cache.object_size": 40, "kmem_cache.offset": 44,
    "kmem_cache.random": 48,
    "kmem_cache_cpu.freelist": 0, "kmem_cache_cpu.partial": 8, "kmem_cache_cpu.slab": 16,
    "kmem_cache_node.partial": 0, "kmem_cache_node.total_objects": 16,
    "slab.inuse": 0, "slab.next": 8, "slab.slab_list": 8,
    "page._refcount": 52, "page.compound_head": 8, "page.mapping": 24, "page.page_type": 48,
}  # fmt: skip
HEAD, CACHE, NODE, CPU, NAME, VMEMMAP = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
FULL, PARTIAL, OWN, NEXT = 0x7000, 0x7100, 0x7200, 0x7300  # slabs
OBJECTS = 0x8000
SYMBOLS = {"slab_caches": HEAD, "__per_cpu_offset": 0x5800, "vmemmap_base": 0x5900}
PAGES = 12
PER_CPU = 0x100


class Ram:
    """A kernel's memory that is nothing but bytes; stands for `kernel.Kernel`."""

    def __init__(self) -> None:
        self.bytes = bytearray(0x10000)
        self.memory = SimpleNamespace(size=PAGES * 4096)

    def read(self, address: int, size: int) -> bytes:
        if address + size > len(self.bytes):
            raise ValueError(f"{address:#x} is not mapped")
        return bytes(self.bytes[address : address + size])

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.bytes, address, *words)

    def half(self, address: int, value: int) -> None:
        struct.pack_into("<I", self.bytes, address, value)

    def slab(self, at: int, *, used: int, of: int) -> None:
        self.half(at, of << 16 | used | 1 << 31)

    def page(self, number: int, **fields: int) -> None:
        at = VMEMMAP + 64 * number
        self.put(at, fields.get("flags", 0), fields.get("head", 0))
        self.put(at + 24, fields.get("mapping", 0))
        self.half(at + 48, fields.get("kind", 0xFFFFFFFF))
        self.half(at + 52, fields.get("references", 1))


@pytest.fixture
def ram() -> Ram:
    """Return a kernel with one cache: 8 objects in use on four slabs of 4."""
    made = Ram()
    made.put(SYMBOLS["__per_cpu_offset"], PER_CPU)
    made.put(SYMBOLS["vmemmap_base"], VMEMMAP)
    made.put(HEAD, CACHE + 8)
    made.put(CACHE, CPU - PER_CPU, HEAD, 0, NAME, NODE)
    made.half(CACHE + 40, 96)
    made.half(CACHE + 44, 16)
    made.put(CACHE + 48, RANDOM)
    made.bytes[NAME : NAME + 10] = b"kmalloc-96"
    made.put(NODE, PARTIAL + 8, 0, 16)  # its list, and 16 objects in all; FULL is on no list
    made.slab(FULL, used=4, of=4)
    made.slab(PARTIAL, used=1, of=4)
    made.put(PARTIAL + 8, NODE)
    made.put(CPU, OBJECTS, NEXT, OWN)
    made.slab(OWN, used=4, of=4)  # as the slab says; two of them lie on the CPU's own list
    made.slab(NEXT, used=1, of=4)
    made.put(NEXT + 8, 0)
    for at, after in ((OBJECTS, OBJECTS + 96), (OBJECTS + 96, 0)):
        place = at + 16
        swapped = int.from_bytes(place.to_bytes(8, "little"), "big")
        made.put(place, after ^ RANDOM ^ swapped)
    return made


def layout(**types: int) -> held.Layout:
    flags = {"lru": 1 << 5, "reserved": 1 << 13}
    return held.Layout(
        offsets=PLACES, page_size=64, flags=flags if types else {**flags, "slab": 1 << 9},
        types=types,
    )  # fmt: skip


NEW = {"PGTY_table": 0xF2, "PGTY_slab": 0xF5}


def count(ram: Ram, known: held.Layout | None = None) -> held.Held:
    core: Any = ram
    return held.count(core, SYMBOLS, known or layout(**NEW))


def test_objects_on_every_kind_of_free_list_are_not_in_use(ram: Ram) -> None:
    found = count(ram)

    # 16 less 3 of the node's slab, 3 of the CPU's next, 2 on its own list.
    assert {"kmalloc-96": 8} == found.objects
    assert {"kmalloc-96": 96} == found.sizes


def test_a_cache_without_a_slab_of_its_own(ram: Ram) -> None:
    ram.put(CPU, 0, 0, 0)

    assert 16 - 3 == count(ram).objects["kmalloc-96"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ram: ram.put(OBJECTS + 16, 0),  # decodes to somewhere that is not mapped
        lambda ram: ram.put(PARTIAL + 8, PARTIAL + 8),  # a list that bites its tail
        lambda ram: ram.put(CACHE + 32, 1 << 60),
    ],
)
def test_an_allocator_that_a_module_wrecked_is_an_error_and_no_number(ram: Ram, spoil: Any) -> None:
    spoil(ram)

    with pytest.raises(EvidenceError, match="could not be counted"):
        count(ram)


@pytest.mark.parametrize(
    ("known", "table", "slab"),
    [
        (layout(**NEW), {"kind": 0xF2000000}, {"kind": 0xF5000000}),
        (layout(), {"kind": 0xFFFFFDFF}, {"flags": 1 << 9}),
    ],
)
def test_only_pages_that_nobody_else_counts_are_bare(
    ram: Ram, known: held.Layout, table: dict[str, int], slab: dict[str, int]
) -> None:
    for number in range(PAGES):
        ram.page(number, references=0)
    assert 0 == count(ram, known).pages
    ram.page(0, **table)
    ram.page(1, **slab)
    ram.page(2, flags=1 << 5)  # of a file or a program
    ram.page(3, flags=1 << 13)  # of the firmware
    ram.page(4, head=1)  # the rest of a larger one
    ram.page(5, mapping=1)
    assert 0 == count(ram, known).pages
    ram.page(6)
    ram.page(7)
    assert 2 == count(ram, known).pages
