"""A kernel's log, symbols and page tables read out of cooked guest RAM."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import kernel
from lab.crash import core
from lab.errors import EvidenceError
from lab.memory import GuestMemory

SIZE = 4 << 20
DIRECT = 0xFFFF_8880_0000_0000
MODULE = 0xFFFF_FFFF_E000_0000  # mapped by 4 KiB pages, beyond the kernel's own image
INFO_AT, PRB, RING, DESCS, INFOS, TEXT = 0x2010, 0x3000, 0x4000, 0x5000, 0x8000, 0xC000
PGD, PUD, PMD, PTE, MODULE_PAGE = 0x10000, 0x11000, 0x12000, 0x13000, 0x15000
NAMES, COUNT_AT, TOKENS, INDEX, OFFSETS, BASE_AT = (
    0x20000, 0x20F00, 0x21000, 0x22000, 0x23000, 0x23F00,
)  # fmt: skip
COUNT_BITS, SIZE_BITS = 4, 10  # 16 records, 1 KiB of text


def text_address(physical: int) -> int:
    return kernel.KERNEL_MAP + physical


INFO = f"""OSRELEASE=6.12.0-cooked
SYMBOL(prb)={text_address(PRB):x}
SYMBOL(_stext)={text_address(0):x}
SYMBOL(init_top_pgt)={text_address(PGD):x}
SYMBOL(mem_section)={DIRECT + 0x1000:x}
SYMBOL(kallsyms_names)={text_address(NAMES):x}
SYMBOL(kallsyms_num_syms)={text_address(COUNT_AT):x}
SYMBOL(kallsyms_token_table)={text_address(TOKENS):x}
SYMBOL(kallsyms_token_index)={text_address(INDEX):x}
SYMBOL(kallsyms_offsets)={text_address(OFFSETS):x}
SYMBOL(kallsyms_relative_base)={text_address(BASE_AT):x}
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
NUMBER(KERNEL_IMAGE_SIZE)=536870912
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
"""


class Ram:
    """A guest's RAM file with just enough of a kernel in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(SIZE)
        self.head = self.tail = 0
        self.end = 0  # position in the ring of text
        self.put(INFO_AT, INFO.encode())
        self.word(PRB, DIRECT + RING)
        self.put(RING, struct.pack("<IIQQQQ", COUNT_BITS, 0, DIRECT + DESCS, DIRECT + INFOS, 0, 0))
        self.put(RING + 48, struct.pack("<IIQQQ", SIZE_BITS, 0, DIRECT + TEXT, 0, 0))
        flags = 0x63
        self.word(PGD + 8 * (DIRECT >> 39 & 511), PUD | flags)
        self.word(PUD + 8 * (DIRECT >> 30 & 511), flags | kernel.LARGE)
        self.word(PGD + 8 * (MODULE >> 39 & 511), PUD + 0x4000 | flags)
        self.word(PUD + 0x4000 + 8 * (MODULE >> 30 & 511), PMD | flags)
        self.word(PMD + 8 * (MODULE >> 21 & 511), PTE | flags)
        self.word(PTE + 8 * (MODULE >> 12 & 511), MODULE_PAGE | flags)
        self.put(MODULE_PAGE, b"module text")

    def put(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def word(self, at: int, value: int) -> None:
        self.put(at, struct.pack("<Q", value))

    def say(self, text: bytes, *, state: int = kernel.FINALIZED, level: int = 6) -> int:
        """Add a record as printk does; return its number."""
        number = self.head + 1 if self.end else 0
        index = number % (1 << COUNT_BITS)
        room = -(-(8 + len(text)) // 8) * 8
        begin = self.end or 8
        size = 1 << SIZE_BITS
        place = begin % size
        end = begin + room
        if place + room > size:  # does not fit before the end: goes to the start
            place = 0
            end = (begin // size + 1) * size + room
        self.put(TEXT + place, struct.pack("<Q", number) + text)
        self.put(DESCS + 24 * index, struct.pack("<QQQ", state << 62 | number, begin, end))
        info = struct.pack("<QQHBBI", number, number * 10**9, len(text), 0, level << 5, 0)
        self.put(INFOS + 88 * index, info)
        self.end, self.head = end, number
        self.tail = max(self.tail, number - (1 << COUNT_BITS) + 1)
        self.word(RING + 24, self.head)
        self.word(RING + 32, self.tail)
        return number


@pytest.fixture
def ram(tmp_path: Path) -> Ram:
    return Ram(tmp_path / "ram")


@pytest.fixture
def found(ram: Ram) -> Iterator[kernel.Kernel]:
    with GuestMemory(ram.path) as memory:
        yield kernel.find(memory)


def test_the_kernel_is_found_by_its_own_words(found: kernel.Kernel) -> None:
    assert "6.12.0-cooked" == found.release
    assert INFO_AT == found.at


def test_a_half_vmcoreinfo_is_passed_over(ram: Ram) -> None:
    ram.put(0x100, b"OSRELEASE=half\n")
    with GuestMemory(ram.path) as memory:
        assert "6.12.0-cooked" == kernel.find(memory).release
        assert INFO_AT == kernel.find(memory, near=0x100).at


def test_ram_without_a_kernel_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(bytes(1 << 16))
    with GuestMemory(tmp_path / "empty") as memory, pytest.raises(EvidenceError, match="VMCORE"):
        kernel.find(memory)


def test_addresses_are_walked(found: kernel.Kernel) -> None:
    assert 0x1234 == found.physical(text_address(0x1234))
    assert 0x1234 == found.physical(DIRECT + 0x1234)
    assert b"module text" == found.read(MODULE, 11)
    with pytest.raises(ValueError, match="not mapped"):
        found.read(MODULE + 4096, 1)


def test_the_log_is_read_from_its_oldest_record_on(ram: Ram, found: kernel.Kernel) -> None:
    ram.say(b"first", level=3)
    log = found.log()
    assert [(0, 3, "first")] == [(one.seq, one.level, one.text) for one in log.new()]
    assert [] == log.new()
    ram.say(b"second")
    ram.say(b"third\nline")
    lines = log.new()
    assert ["second", "third\nline"] == [one.text for one in lines]
    assert kernel.render(lines).endswith("<6>[    2.000000] line\n")


def test_an_unfinished_record_waits_unless_it_is_the_end(ram: Ram, found: kernel.Kernel) -> None:
    log = found.log()
    ram.say(b"whole")
    ram.say(b"half of a", state=kernel.COMMITTED)
    assert ["whole"] == [one.text for one in log.new()]
    assert [] == log.new()
    assert ["half of a"] == [one.text for one in log.new(last=True)]


def test_overwritten_records_are_counted_and_wrapped_text_is_read(
    ram: Ram, found: kernel.Kernel
) -> None:
    ram.say(b"zero")
    log = found.log()
    log.new()
    for number in range(1, 41):
        ram.say(b"%d " % number * 20)
    lines = log.new()
    assert 10 < len(lines) <= 16  # as many as the ring of text has room for
    assert 40 - len(lines) == log.lost
    assert [f"{one.seq} " * 20 for one in lines] == [one.text for one in lines]
    assert 41 == log.seen


def test_garbage_in_the_ring_ends_in_no_endless_loop(ram: Ram, found: kernel.Kernel) -> None:
    log = found.log()
    ram.word(RING + 24, 1 << 61)
    assert [] == log.new(last=True)


def test_symbols_are_spelled_out_of_tokens(ram: Ram, found: kernel.Kernel) -> None:
    tokens = {0: b"T", 1: b"jif", 2: b"fies", 3: b"D"}
    table, places = b"", []
    for number in range(256):
        places.append(len(table))
        table += tokens.get(number, b"?") + b"\0"
    ram.put(TOKENS, table)
    ram.put(INDEX, struct.pack("<256H", *places))
    ram.put(NAMES, bytes([3, 3, 1, 2, 2, 0, 2]))
    ram.put(COUNT_AT, struct.pack("<I", 2))
    ram.put(OFFSETS, struct.pack("<2i", -1 - 0x1000, 0x40))
    ram.word(BASE_AT, text_address(0))

    assert {"jiffies": text_address(0x1000)} == found.find_symbols(["jiffies", "nobody"])
    assert [(text_address(0x1000), "D", "jiffies"), (0x40, "T", "fies")] == list(found.kallsyms())


def test_a_core_has_the_note_and_the_ram_where_drgn_looks(ram: Ram, tmp_path: Path) -> None:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    ram.put(0x30_0000, b"a secret of the guest")
    target = tmp_path / "vmcore"
    used = core.write_core(ram.path, target)

    assert used < SIZE // 4  # sparse
    assert 0o600 == target.stat().st_mode & 0o777
    with target.open("rb") as file:
        elf = ELFFile(file)
        notes, direct, text = elf.iter_segments()
        assert isinstance(notes, NoteSegment)
        (note,) = notes.iter_notes()
        assert "VMCOREINFO" == note["n_name"]
        assert b"6.12.0-cooked" in note["n_descdata"]
        assert (DIRECT, 0) == (direct["p_vaddr"], direct["p_paddr"])
        assert kernel.KERNEL_MAP == text["p_vaddr"]
        file.seek(direct["p_offset"] + 0x30_0000)
        assert b"a secret of the guest" == file.read(21)


def test_addresses_of_symbols_by_the_text_of_kallsyms() -> None:
    text = (
        b"ffffffff81000000 T _text\n"
        b"ffffffff81000100 T not_start\n"
        b"ffffffff82000000 R start\n"
        b"ffffffffc0000000 t start\t[module]\n"
    )
    found = kernel.addresses(text, ["_text", "start", "absent"])
    assert {"_text": 0xFFFFFFFF81000000, "start": 0xFFFFFFFF82000000} == found


def test_a_kernel_without_btf_says_so(ram: Ram) -> None:
    with GuestMemory(ram.path) as memory, pytest.raises(EvidenceError, match="no BTF"):
        kernel.find(memory).types({})
