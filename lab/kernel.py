"""What a guest's kernel says of itself in guest RAM: log, symbols, page tables.

Needs no help of the guest and no debug information: the kernel keeps a text for crash
dumps (VMCOREINFO) that names where its things lie, and that text is found by searching.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lab.btf import Btf
from lab.errors import BadAddress, EvidenceError, LabError
from lab.memory import GuestMemory

MARK = b"OSRELEASE="
NEEDED = b"SYMBOL(prb)="
KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map, of every x86-64 kernel
PAGE = 4096
PRESENT, LARGE = 1, 0x80
FRAME = 0x000F_FFFF_FFFF_F000
MOST_BITS = 28  # of the log's rings; Debian's kernels have 12 and 17
ID_MASK = (1 << 62) - 1
COMMITTED, FINALIZED = 1, 2  # states of a log record that can be read
WORD = struct.Struct("<Q")
# Around the first task's kernel stack, by whichever name: every stack has that size (THREAD_SIZE),
# which KASAN doubles, and lies at a multiple of it.
STACKS = (("__start_init_stack", "__end_init_stack"), ("__start_init_task", "__end_init_task"))
STACK, MOST_STACK = 1 << 14, 1 << 18
BTF = ("__start_BTF", "__stop_BTF")  # symbols around the description of the kernel's types


@dataclass(frozen=True, slots=True)
class Line:
    """One record of the kernel's log; `level` as in printk, 0 (emergency) to 7 (debug)."""

    seq: int
    seconds: float  # of the guest's boot
    level: int
    text: str


class Kernel:
    """The kernel that runs (or ran) in a guest's RAM."""

    def __init__(self, memory: GuestMemory, info: str, *, at: int) -> None:
        self.memory = memory
        self.info = info
        self.at = at  # physical address of `info`
        pairs = (line.partition("=") for line in info.splitlines())
        self._values: dict[str, str] = {key: value for key, _, value in pairs}
        self._base = self.number("phys_base")
        self._levels = 5 if self.number("pgtable_l5_enabled", 0) else 4
        self._pages: dict[int, int] = {}

    @property
    def release(self) -> str:
        return self._values["OSRELEASE"]

    @property
    def text_at(self) -> int:
        """Virtual address of the first byte of kernel text."""
        return self.symbol("_stext")

    def symbol(self, name: str) -> int:
        """Return the virtual address VMCOREINFO gives for a symbol."""
        return self._int(f"SYMBOL({name})", 16)

    def number(self, name: str, default: int | None = None) -> int:
        key = f"NUMBER({name})"
        if default is not None and key not in self._values:
            return default
        return self._int(key, 0)

    def offset(self, name: str) -> int:
        return self._int(f"OFFSET({name})")

    def size(self, name: str) -> int:
        return self._int(f"SIZE({name})")

    def _int(self, key: str, base: int = 10) -> int:
        try:
            return int(self._values[key], base)
        except (KeyError, ValueError) as error:
            found = self._values.get(key, "nothing")
            raise EvidenceError(
                f"the guest's VMCOREINFO has no {key}: expected a number, found {found[:40]}"
            ) from error

    # -- memory ------------------------------------------------------------------

    def physical(self, address: int) -> int:
        """Return the physical address of a kernel address; `BadAddress` where none is mapped."""
        if KERNEL_MAP <= address < KERNEL_MAP + self.number("KERNEL_IMAGE_SIZE", 1 << 30):
            return address - KERNEL_MAP + self._base
        page = address & ~(PAGE - 1)
        if page not in self._pages:
            self._pages[page] = self._walk(page)
        return self._pages[page] + (address - page)

    def _walk(self, address: int) -> int:
        table = self.symbol("init_top_pgt") - KERNEL_MAP + self._base
        for level in range(self._levels - 1, -1, -1):
            shift = 12 + 9 * level
            entry = self._word_at(table + 8 * (address >> shift & 511))
            if not entry & PRESENT:
                raise BadAddress(f"{address:#x} is not mapped")
            if level and entry & LARGE:
                size = 1 << shift
                return (entry & FRAME & ~(size - 1)) + (address & (size - 1))
            table = entry & FRAME
        return table

    def _word_at(self, physical: int) -> int:
        return int(WORD.unpack(self.memory.read(physical, 8))[0])

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a kernel address; `BadAddress` where it is not mapped."""
        parts = []
        while size > 0:
            step = min(size, PAGE - address % PAGE)
            parts.append(self.memory.read(self.physical(address), step))
            address, size = address + step, size - step
        return b"".join(parts)

    def word(self, address: int) -> int:
        """Return the 64-bit word at a kernel address."""
        return int(WORD.unpack(self.read(address, 8))[0])

    # -- symbols -----------------------------------------------------------------

    def kallsyms(self) -> Iterator[tuple[int, str, str]]:
        """Yield (address, type, name) of every symbol of the kernel itself, modules left out."""
        count = struct.unpack("<I", self.read(self.symbol("kallsyms_num_syms"), 4))[0]
        base = self.word(self.symbol("kallsyms_relative_base"))
        offsets = struct.unpack(f"<{count}i", self.read(self.symbol("kallsyms_offsets"), 4 * count))
        places = struct.unpack("<256H", self.read(self.symbol("kallsyms_token_index"), 512))
        table = self.read(self.symbol("kallsyms_token_table"), max(places) + 128)
        tokens = [table[at : table.index(b"\0", at)].decode("latin-1") for at in places]
        start = self.symbol("kallsyms_names")
        # The table of names ends somewhere before the tokens.
        names = self.read(start, self.symbol("kallsyms_token_table") - start)
        at = 0
        for offset in offsets:
            length = names[at]
            at += 1
            if length & 0x80:  # two bytes since v6.1: names may be longer than 127 tokens
                length = length & 0x7F | names[at] << 7
                at += 1
            text = "".join([tokens[byte] for byte in names[at : at + length]])
            at += length
            # Negative: relative to the base; else absolute (per-CPU symbols).
            yield (base - 1 - offset if offset < 0 else offset), text[:1], text[1:]

    def find_symbols(self, names: Iterable[str]) -> dict[str, int]:
        """Return the addresses of these symbols, as far as the kernel has them."""
        wanted = set(names)
        return {name: at for at, _, name in self.kallsyms() if name in wanted}

    def types(self, symbols: Mapping[str, int]) -> Btf:
        """Return the layout of the kernel's structs; `symbols` are those named in `BTF`."""
        start, end = (symbols.get(name, 0) for name in BTF)
        if not 0 < start < end:
            raise EvidenceError(f"the kernel {self.release} describes no types: it has no BTF")
        return Btf(self.read(start, end - start))

    def module_types(self, types: Btf, modules_at: int, name: str) -> Btf:
        """Return the kernel's types and those of module `name`, where it describes any.

        `modules_at` is the address of `btf_modules`, the list of modules that do.
        """
        at = self.word(modules_at)
        while at != modules_at:
            entry = at - types.offset("btf_module.list")
            module = self.word(entry + types.offset("btf_module.module"))
            called = types.field("module.name")
            text = self.read(module + called.offset, called.size).partition(b"\0")[0]
            if text == name.encode():
                btf = self.word(entry + types.offset("btf_module.btf"))
                size = self._short(btf + types.offset("btf.data_size"))
                return types.extended(self.read(self.word(btf + types.offset("btf.data")), size))
            at = self.word(at)
        return types

    def _short(self, address: int) -> int:
        return int(struct.unpack("<I", self.read(address, 4))[0])

    # -- log ---------------------------------------------------------------------

    def log(self) -> Log:
        """Return a reader of the kernel's log, from its oldest record on."""
        return Log(self)


class Log:
    """Reads the kernel's log as it grows; `lost` counts records overwritten before we came.

    `seen` is the sequence number after the last record that was read.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        ring = kernel.word(kernel.symbol("prb"))
        field, read = kernel.offset, kernel.word
        self._desc_ring = ring + field("printk_ringbuffer.desc_ring")
        data_ring = ring + field("printk_ringbuffer.text_data_ring")
        self._count = 1 << self._bits(self._desc_ring + field("prb_desc_ring.count_bits"))
        self._descs = read(self._desc_ring + field("prb_desc_ring.descs"))
        self._infos = read(self._desc_ring + field("prb_desc_ring.infos"))
        self._size = 1 << self._bits(data_ring + field("prb_data_ring.size_bits"))
        self._data = read(data_ring + field("prb_data_ring.data"))
        self._next: int | None = None
        self.seen = 0
        self.lost = 0

    def _bits(self, at: int) -> int:
        bits = int.from_bytes(self._kernel.read(at, 4), "little")
        if bits > MOST_BITS:
            raise EvidenceError(
                f"the guest's log is of 2^{bits} parts: expected 2^{MOST_BITS} at most"
            )
        return bits

    def new(self, *, last: bool = False) -> list[Line]:
        """Return the records since the call before; with `last` unfinished ones as well.

        Raises ValueError, or an error of ours, where the log was written over.
        """
        try:
            return self._new(last=last)
        except struct.error as error:
            raise ValueError(f"the guest's log is garbled: {error}") from error

    def _new(self, *, last: bool) -> list[Line]:
        kernel = self._kernel
        head = kernel.word(self._desc_ring + kernel.offset("prb_desc_ring.head_id")) & ID_MASK
        if self._next is not None and head == (self._next - 1) & ID_MASK:
            return []
        tail = kernel.word(self._desc_ring + kernel.offset("prb_desc_ring.tail_id")) & ID_MASK
        at = tail if self._next is None else self._next
        if (head - at) & ID_MASK >= self._count:  # it was overwritten meanwhile
            at = tail
        lines: list[Line] = []
        while (head - at) & ID_MASK < self._count:
            try:
                line, wait = self._record(at)
            except (ValueError, LabError, struct.error):
                if lines:
                    return lines  # those before it were read; it is met again at the next call
                raise
            if wait and not last:
                break
            if line is not None:
                self.lost += max(0, line.seq - self.seen) if self._next is not None else 0
                self.seen = line.seq + 1
                lines.append(line)
            at = (at + 1) & ID_MASK
            self._next = at
        return lines

    def _record(self, number: int) -> tuple[Line | None, bool]:
        """Return the record of this number, and whether it may still change."""
        kernel, field = self._kernel, self._kernel.offset
        index = number & (self._count - 1)
        size = kernel.size("prb_desc")
        raw = kernel.read(self._descs + index * size, size)
        state = WORD.unpack_from(raw, field("prb_desc.state_var"))[0]
        if state & ID_MASK != number:
            return None, False
        if state >> 62 not in (COMMITTED, FINALIZED):
            return None, state >> 62 == 0
        blocks = field("prb_desc.text_blk_lpos")
        begin = WORD.unpack_from(raw, blocks + field("prb_data_blk_lpos.begin"))[0]
        end = WORD.unpack_from(raw, blocks + field("prb_data_blk_lpos.next"))[0]
        info_size = kernel.size("printk_info")
        info = kernel.read(self._infos + index * info_size, info_size)
        at = field("printk_info.text_len")
        length, _facility, flags = struct.unpack_from("<HBB", info, at)
        text = b""
        if not begin & 1:  # an odd position: a record without text
            # A block that does not fit before the end of the ring lies at its start.
            wrapped = begin // self._size != (end - 1) // self._size
            start = 0 if wrapped else begin % self._size
            length = min(length, self._size - start - 8)
            block = kernel.read(self._data + start, max(length, 0) + 8)
            if WORD.unpack_from(block)[0] & ID_MASK != number:
                return None, False  # a later record's text lies there
            text = block[8:]
        line = Line(
            seq=WORD.unpack_from(info, field("printk_info.seq"))[0],
            seconds=WORD.unpack_from(info, field("printk_info.ts_nsec"))[0] / 1e9,
            level=flags >> 5,
            text=text.decode("utf-8", "backslashreplace"),
        )
        return line, state >> 62 == COMMITTED


def find(memory: GuestMemory, *, near: int | None = None) -> Kernel:
    """Return the kernel in a guest's RAM; `near` is where its VMCOREINFO was found before."""
    for at in _places(memory, near):
        text = memory.read(at, min(PAGE, memory.size - at)).partition(b"\0")[0]
        if NEEDED in text and b"NUMBER(phys_base)" in text:
            return Kernel(memory, text.decode("ascii", "replace"), at=at)
    raise EvidenceError(
        f"{memory.path.name} holds no VMCOREINFO: expected the text of a booted Linux kernel"
    )


def _places(memory: GuestMemory, near: int | None) -> Iterator[int]:
    if near is not None and memory.read(near, len(MARK)) == MARK:
        yield near
    yield from memory.find(MARK)


def addresses(kallsyms: bytes, names: Iterable[str]) -> dict[str, int]:
    """Return the addresses of these symbols of the kernel itself in the text of kallsyms.

    Takes milliseconds where `Kernel.find_symbols`, which needs no such text, takes a second.
    """
    found: dict[str, int] = {}
    for name in names:
        at = kallsyms.find(f" {name}\n".encode())
        if at >= 0:
            line = kallsyms[kallsyms.rfind(b"\n", 0, at) + 1 : at]
            found[name] = int(line.split(b" ")[0], 16)
    return found


def stack_size(addresses: Mapping[str, int]) -> int:
    """Return the bytes of a kernel stack by the kernel's symbols; what is usual without them."""
    for start, end in STACKS:
        size = addresses.get(end, 0) - addresses.get(start, 0)
        if start in addresses and 0 < size <= MOST_STACK and size & (size - 1) == 0:
            return size
    return STACK


def render(lines: Iterable[Line]) -> str:
    """Return log lines as text, one per line: `<level>[seconds] text`."""
    return "".join(
        f"<{line.level}>[{line.seconds:12.6f}] {part}\n"
        for line in lines
        for part in line.text.split("\n")
    )


def facts(kernel: Kernel, names: Iterable[str]) -> dict[str, object]:
    """Return what is worth remembering of a kernel whose snapshot is restored again."""
    return {"vmcoreinfo": kernel.at, "symbols": kernel.find_symbols(names)}


def symbols_of(stored: Mapping[str, object]) -> dict[str, int]:
    """Return the symbols that `facts` kept."""
    kept = stored.get("symbols")
    return {str(k): int(v) for k, v in kept.items()} if isinstance(kept, dict) else {}
