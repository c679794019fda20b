"""From loads and stores to copies, reads and device writes; and what must not be taken for one."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab import access, accesses
from lab.access import encode_log
from lab.accesses import Accesses, analyse, names
from lab.accesses.names import Namer
from lab.message import Messages
from lab.symbols import Symbols

MESSAGES = Messages(seed=0x29, size=40, count=2)
TEXT, OTHER = MESSAGES.bytes(0), MESSAGES.bytes(1)
HEADER = b"ETHERNET-IP-UDP-HEADERS-AND-ALL-THAT-42..!"
KERNEL = 0xFFFF_8881_0000_0000
USER = 0x7FFC_0000_0000
MEMCPY = 0xFFFF_FFFF_8200_0010
PAGE_TO_SKB = 0xFFFF_FFFF_C000_027C
CHECKSUM = 0xFFFF_FFFF_8200_0110

SYMBOLS = """\
ffffffff82000000 T memcpy_orig
ffffffff82000100 T csum_partial
ffffffffc0000000 t page_to_skb\t[virtio_net]
ffffffffc0001000 t receive_buf\t[virtio_net]
"""

Given = dict[str, Any]


def load(virt: int, data: bytes, **more: Any) -> Given:
    return {"virt": virt, "bytes": data, "ip": MEMCPY, **more}


def store(virt: int, data: bytes, **more: Any) -> Given:
    return load(virt, data, store=True, **more)


def seen(folder: Path, *given: Given, messages: Messages = MESSAGES, **more: Any) -> Accesses:
    """Analyse a cooked log."""
    header = {"lost": more.pop("lost")} if "lost" in more else {}
    (folder / "access.bin").write_bytes(encode_log(given, **header))
    (folder / "symbols").write_text(SYMBOLS)
    log = access.read(folder / "access.bin", guest="receiver")
    return analyse(log, messages, symbols=Symbols(folder / "symbols"), **more)


# --- Copies ---------------------------------------------------------------------------------


def test_a_load_and_a_store_of_the_same_bytes_are_a_copy(tmp_path: Path) -> None:
    found = seen(
        tmp_path,
        load(KERNEL + 0x100, HEADER + TEXT, caller=(PAGE_TO_SKB,), reach=8),
        store(KERNEL + 0x2000, HEADER + TEXT, ip=MEMCPY + 0x10, caller=(PAGE_TO_SKB,)),
    )
    (copy,) = found.copies

    assert ("memcpy_orig", ("page_to_skb+0x27c [virtio_net]",)) == (copy.function, copy.callers)
    assert (MEMCPY, MEMCPY + 0x10) == copy.instructions
    assert (0, 0, 40, True) == (copy.message, copy.offset, copy.payload_size, copy.exact)
    assert (len(HEADER) + 40, len(HEADER)) == (copy.size, copy.payload_at)
    assert (KERNEL + 0x100, ((0x100, copy.size),)) == (copy.source_virtual, copy.source)
    assert (KERNEL + 0x2000, ((0x2000, copy.size),)) == (copy.target_virtual, copy.target)
    assert ("receiver/access.bin#0", "receiver/access.bin#1") == copy.evidence
    assert copy.same_call
    assert not copy.from_user
    assert ((), ()) == (found.reads, found.made)


def test_a_copy_in_scattered_parts_is_one(tmp_path: Path) -> None:
    """As memcpy_orig() does: the end first, the odd bytes last, over bytes it did before."""
    whole = HEADER + TEXT
    parts = [(42, 82), (0, 10), (34, 44), (8, 36)]
    given = []
    for start, end in parts:
        given.append(load(KERNEL + start, whole[start:end]))
        given.append(store(KERNEL + 0x3000 + start, whole[start:end]))
    (copy,) = seen(tmp_path, *given).copies

    assert (82, 42, 40) == (copy.size, copy.payload_at, copy.payload_size)
    assert 8 == len(copy.evidence)


def test_a_copy_may_cross_pages_that_lie_apart(tmp_path: Path) -> None:
    (copy,) = seen(
        tmp_path,
        load(KERNEL + 0x100, TEXT),
        store(USER + 0xFF4, TEXT[:12], phys=0x5FF4),
        store(USER + 0x1000, TEXT[12:], phys=0x3000),
    ).copies

    assert ((0x5FF4, 12), (0x3000, 28)) == copy.target
    assert copy.to_user
    assert 40 == copy.payload_size


def test_two_messages_in_one_copy_are_told_apart(tmp_path: Path) -> None:
    found = seen(tmp_path, load(KERNEL, TEXT + OTHER), store(KERNEL + 0x2000, TEXT + OTHER))

    assert [(0, 40, 0), (1, 40, 40)] == [
        (copy.message, copy.payload_size, copy.payload_at) for copy in found.copies
    ]


@pytest.mark.parametrize("payload", [b"0123456789abcdef", b"A"])
def test_messages_that_are_alike_are_paired_by_where_they_lie(
    tmp_path: Path, payload: bytes
) -> None:
    """In one copy that has three of them the first went to the first place, and so on."""
    messages = Messages(payload=payload, size=16, count=3)
    text = HEADER + messages.bytes(0) * 3
    found = seen(
        tmp_path, load(KERNEL, text), store(KERNEL + 0x2000, text), messages=messages
    ).copies

    whole = len(text)
    assert {(((0, whole),), ((0x2000, whole),))} == {(one.source, one.target) for one in found}
    assert [len(HEADER) + at for at in (0, 16, 32)] == [one.payload_at for one in found]


def test_messages_that_are_alike_are_paired_whichever_was_loaded_last(tmp_path: Path) -> None:
    """memcpy_orig() takes the last bytes of what it is given first, or in between."""
    messages = Messages(payload=b"0123456789abcdef", size=16, count=3)
    text = messages.bytes(0) * 3
    found = seen(
        tmp_path,
        load(KERNEL + 16, text[16:], first=1, last=4),
        store(KERNEL + 0x2000, text, first=5, last=14),
        load(KERNEL, text[:16], first=7, last=8),
        messages=messages,
    )

    assert {(((0, 48),), ((0x2000, 48),))} == {(one.source, one.target) for one in found.copies}


def test_a_copy_of_a_part_is_a_copy_of_that_part(tmp_path: Path) -> None:
    for start, end in ((0, 16), (11, 29), (24, 40), (20, 28)):
        part = TEXT[start:end]
        (copy,) = seen(tmp_path, load(KERNEL, part), store(KERNEL + 0x2000, part)).copies
        assert (start, end - start) == (copy.offset, copy.payload_size)


def test_what_was_loaded_once_may_be_stored_twice(tmp_path: Path) -> None:
    found = seen(
        tmp_path, load(KERNEL, TEXT), store(KERNEL + 0x2000, TEXT), store(KERNEL + 0x4000, TEXT)
    )

    assert [KERNEL + 0x2000, KERNEL + 0x4000] == [copy.target_virtual for copy in found.copies]
    assert () == found.reads


def test_a_chain_of_copies_is_followed_step_by_step(tmp_path: Path) -> None:
    found = seen(
        tmp_path,
        load(KERNEL, TEXT, call=1),
        store(KERNEL + 0x2000, TEXT, call=1),
        load(KERNEL + 0x2000, TEXT, call=2),
        store(USER, TEXT, call=2),
    )

    assert [(KERNEL, KERNEL + 0x2000), (KERNEL + 0x2000, USER)] == [
        (copy.source_virtual, copy.target_virtual) for copy in found.copies
    ]


def test_registers_that_an_interrupt_saves_are_a_spill_and_no_copy(tmp_path: Path) -> None:
    """The copy it came into goes on afterwards, with the bytes it gets back."""
    stack = KERNEL + 0x8000
    found = seen(
        tmp_path,
        load(KERNEL, TEXT, call=1),
        store(stack, b"pt_regs!" + TEXT[:32], call=2),
        load(stack, b"pt_regs!" + TEXT[:32], call=3),
        store(KERNEL + 0x2000, TEXT, call=1),
    )
    (copy,), (spill,) = found.copies, found.spills

    assert (KERNEL, KERNEL + 0x2000, True) == (
        copy.source_virtual, copy.target_virtual, copy.same_call
    )  # fmt: skip
    assert (stack + 8, 32, False) == (spill.target_virtual, spill.payload_size, spill.same_call)
    assert [stack + 8] == [read.virtual for read in found.reads]


def test_saved_registers_that_are_moved_on_their_stack_stay_a_spill(tmp_path: Path) -> None:
    """As a probe's trampoline does on 6.1: saves all, and its handler copies what it saved."""
    stack = KERNEL + 0x8000
    given = [
        load(KERNEL, TEXT, call=1),
        store(USER, TEXT, call=1),
        store(stack + 0x100, TEXT[:8], call=2),
        load(stack + 0x100, TEXT[:8], call=3),
        store(stack + 0x40, TEXT[:8], call=3),
    ]
    found = seen(tmp_path, *given)
    assert [USER] == [copy.target_virtual for copy in found.copies]
    assert [stack + 0x100, stack + 0x40] == [spill.target_virtual for spill in found.spills]

    off = seen(tmp_path, *given[:-1], store(KERNEL + 0x4000, TEXT[:8], call=3))
    assert () == off.spills
    assert 3 == len(off.copies)


def test_bytes_that_two_calls_carry_on_are_copied(tmp_path: Path) -> None:
    """One call loads, another stores, and a third goes on from there: no spill."""
    found = seen(
        tmp_path,
        load(KERNEL, TEXT, call=1),
        store(KERNEL + 0x2000, TEXT, call=2),
        load(KERNEL + 0x2000, TEXT, call=3),
        store(KERNEL + 0x4000, TEXT, call=3),
    )

    assert [False, True] == [copy.same_call for copy in found.copies]
    assert () == found.spills


def test_what_reaches_a_user_was_copied_by_however_many_calls(tmp_path: Path) -> None:
    found = seen(tmp_path, load(KERNEL, TEXT, call=1), store(USER, TEXT, call=2))

    assert [False] == [copy.same_call for copy in found.copies]
    assert () == found.spills


@pytest.mark.parametrize(
    "given",
    [
        [load(KERNEL, TEXT), store(KERNEL + 0x2000, OTHER)],  # other bytes
        [load(KERNEL, TEXT), store(KERNEL + 0x2000, TEXT[:7])],  # too few
        [store(KERNEL + 0x2000, TEXT), load(KERNEL, TEXT)],  # before it was loaded
        [load(KERNEL, TEXT), store(KERNEL + 0x2000, TEXT, vcpu=1)],  # by another CPU
        [load(KERNEL, TEXT), store(KERNEL, TEXT)],  # to where they lay
    ],
)
def test_a_cooked_copy_is_none(tmp_path: Path, given: list[Given]) -> None:
    found = seen(tmp_path, *given)

    assert ((), ()) == (found.copies, found.spills)


def test_message_bytes_from_nowhere_were_made(tmp_path: Path) -> None:
    (made,) = seen(tmp_path, store(USER, TEXT)).made

    assert (USER, ((0, 40),), 0) == (made.virtual, made.physical, made.offset)
    assert made.function == "memcpy_orig"


# --- Reads ----------------------------------------------------------------------------------


def test_a_load_that_goes_nowhere_is_a_read(tmp_path: Path) -> None:
    found = seen(tmp_path, load(KERNEL, b"UDPHEADR" + TEXT, ip=CHECKSUM, count=6))
    (read,) = found.reads

    assert ("csum_partial", KERNEL + 8, ((8, 40),), 6) == (
        read.function, read.virtual, read.physical, read.times
    )  # fmt: skip
    assert () == found.copies


def test_of_a_load_the_part_that_was_not_copied_is_a_read(tmp_path: Path) -> None:
    found = seen(tmp_path, load(KERNEL, TEXT), store(USER, TEXT[:24]))

    assert [(0, 24)] == [(copy.offset, copy.payload_size) for copy in found.copies]
    assert [(24, 16)] == [(read.offset, read.payload_size) for read in found.reads]


def test_a_user_program_is_named_by_whoever_knows_it(tmp_path: Path) -> None:
    given = load(USER, TEXT, ip=0x40_1000, caller=(0x40_2000,))

    (read,) = seen(tmp_path, given).reads
    assert ("user 0x401000", ("user 0x402000",)) == (read.function, read.callers)
    (read,) = seen(tmp_path, given, user={0x40_1000: "digest+0x10"}.get).reads
    assert "digest" == read.function


def test_a_function_of_a_module_is_named_with_it(tmp_path: Path) -> None:
    (read,) = seen(tmp_path, load(KERNEL, TEXT, ip=PAGE_TO_SKB)).reads

    assert "page_to_skb [virtio_net]" == read.function


# --- Device writes --------------------------------------------------------------------------


def test_bytes_that_no_cpu_stored_were_written_by_a_device(tmp_path: Path) -> None:
    (write,) = seen(
        tmp_path,
        load(KERNEL, HEADER + TEXT),
        store(KERNEL + 0x2000, HEADER + TEXT),
        load(KERNEL + 0x2000, HEADER + TEXT, call=2),
        load(KERNEL + 42, TEXT, call=3),
    ).device_writes

    assert (((0, 82),), 42, 40, 0) == (
        write.physical, write.payload_at, write.payload_size, write.after
    )  # fmt: skip
    assert ("receiver/access.bin#0",) == write.evidence


def test_what_was_there_before_was_not(tmp_path: Path) -> None:
    found = seen(tmp_path, load(USER, TEXT, phys=0x5000), present=[(0x5000, 0x5028)])

    assert () == found.device_writes


def test_what_a_cpu_stored_in_pieces_was_not(tmp_path: Path) -> None:
    """Pieces too small to be taken for a message still explain where it comes from."""
    pieces = [store(KERNEL + at, TEXT[at : at + 4], call=at + 9) for at in range(0, 40, 4)]

    assert () == seen(tmp_path, *pieces, load(KERNEL, TEXT)).device_writes


def test_what_a_cpu_overwrote_and_is_back_was(tmp_path: Path) -> None:
    (write,) = seen(
        tmp_path,
        load(KERNEL, TEXT, call=1),
        store(KERNEL + 0x2000, TEXT, call=1),
        store(KERNEL + 0x2000, bytes(40), call=2),
        load(KERNEL + 0x2000, TEXT, call=3),
        present=[(0, 40)],
    ).device_writes

    assert (((0x2000, 40),), 3) == (write.physical, write.after)


def test_a_part_that_no_cpu_stored_is_found(tmp_path: Path) -> None:
    (write,) = seen(
        tmp_path, store(KERNEL, TEXT[:16], call=1), load(KERNEL, TEXT, call=2)
    ).device_writes

    assert (16, 24, ((16, 24),)) == (write.offset, write.payload_size, write.physical)


# --- Messages of other kinds ----------------------------------------------------------------


def test_a_payload_is_found_and_is_not_exact_when_sent_twice(tmp_path: Path) -> None:
    messages = Messages(payload=b"a user's own text, ", size=45, count=2)
    text = messages.bytes(0)

    (copy,) = seen(tmp_path, load(KERNEL, text), store(USER, text), messages=messages).copies
    assert (45, False) == (copy.payload_size, copy.exact)


def test_a_short_message_is_followed_from_where_it_is_known_to_be(tmp_path: Path) -> None:
    messages = Messages(payload=b"hi!", size=3, count=1)
    given = [
        load(KERNEL, b"head" + b"hi!", call=1),
        store(KERNEL + 0x2000, b"head" + b"hi!", call=1),
        load(KERNEL + 0x2004, b"hi!", call=2),
        store(USER, b"hi!", call=2),
        store(KERNEL + 0x2004, b"new", call=3),
        load(KERNEL + 0x2004, b"hi!", call=4),  # by chance: it was written over
    ]
    found = seen(tmp_path, *given, messages=messages, holds=[(4, 7, 0, 0)])

    assert [(3, 7, 4), (3, 3, 0)] == [
        (copy.payload_size, copy.size, copy.payload_at) for copy in found.copies
    ]
    assert () == found.reads
    assert () == seen(tmp_path, *given, messages=messages).copies  # nobody knows


def test_two_short_messages_in_one_copy_are_told_apart(tmp_path: Path) -> None:
    messages = Messages(seed=5, size=4, count=2)
    both = b"head" + messages.bytes(0) + messages.bytes(1)
    holds = [(4, 8, 0, 0), (8, 12, 1, 0)]
    found = seen(tmp_path, load(KERNEL, both), store(USER, both), messages=messages, holds=holds)

    assert [(0, 4, 4), (1, 4, 8)] == [
        (copy.message, copy.payload_size, copy.payload_at) for copy in found.copies
    ]


def test_losses_are_told(tmp_path: Path) -> None:
    assert seen(tmp_path).complete
    assert not seen(tmp_path, lost=1).complete


def test_bytes_too_few_to_be_told_are_followed_by_address(tmp_path: Path) -> None:
    """The last fragment of a message may hold one byte: known to be there, it is followed."""
    frame = b"HEADERS!" + TEXT[39:]
    given = [
        load(KERNEL + 0x100, frame, call=1),
        store(KERNEL + 0x2000, frame, call=1),
        load(KERNEL + 0x2008, TEXT[39:], call=2),
        store(USER, b"other", call=2),
        store(USER + 0x3000, TEXT[39:], call=2),
        load(KERNEL + 0x5000, TEXT[39:], call=3),  # the same byte, elsewhere
    ]
    found = seen(tmp_path, *given, holds=[(0x108, 0x109, 0, 39)])

    assert [(39, 1, 9, 8), (39, 1, 1, 0)] == [
        (copy.offset, copy.payload_size, copy.size, copy.payload_at) for copy in found.copies
    ]
    assert USER + 0x3000 == found.copies[1].target_virtual
    assert [0x100] == [write.physical[0][0] for write in found.device_writes]
    assert () == found.reads
    assert () == seen(tmp_path, *given).copies  # nobody knows


def test_a_hold_that_memory_contradicts_is_not_believed(tmp_path: Path) -> None:
    found = seen(tmp_path, load(KERNEL, b"x"), store(USER, b"x"), holds=[(0, 1, 0, 39)])

    assert ((), ()) == (found.copies, found.reads)


# --- A place --------------------------------------------------------------------------------


def test_who_touched_a_place_is_told_in_order(tmp_path: Path) -> None:
    given = [
        load(KERNEL + 0x1030, b"beyond"),
        store(KERNEL + 0x1008, TEXT[:4], count=4, caller=(PAGE_TO_SKB,)),
        load(KERNEL + 0xFFE, b"en", ip=0x40_1000, tsc=11_000),
        load(KERNEL + 0x1000, b"edge", ip=CHECKSUM, tsc=501_000),
    ]
    (tmp_path / "access.bin").write_bytes(encode_log(given))
    (tmp_path / "symbols").write_text(SYMBOLS)
    log = access.read(tmp_path / "access.bin", guest="receiver")
    known = Symbols(tmp_path / "symbols")

    first, second = accesses.touched(log, 0x1000, 0x1030, symbols=known)
    assert "store     +8     4 in 4     memcpy_orig+0x10 < page_to_skb+0x27c [virtio_net]" in first
    assert first.endswith("  #1")
    assert "     250.0 load      +0     4 in 1     csum_partial+0x10  #3" == second
    assert [] == accesses.touched(log, 0x9000, 0x9100, symbols=known)


TRAMPOLINE = 0xFFFF_FFFF_C0FF_0155


def test_code_that_kallsyms_has_no_name_for_is_said_to_be_such(tmp_path: Path) -> None:
    """Trampolines and slots of kprobes lie where modules do, and may be younger than symbols."""
    path = tmp_path / "symbols"
    path.write_text(SYMBOLS)
    assert names.MADE == Namer(Symbols(path), None).name(TRAMPOLINE)
    assert names.MADE == Namer(Symbols(path), None).function(TRAMPOLINE)
    assert "0xffff888000000000" == Namer(Symbols(path), None).name(0xFFFF_8880_0000_0000)  # data

    path.write_text(f"{SYMBOLS}ffffffffc0ff0100 t ftrace_trampoline\t[__builtin__ftrace]\n")
    named = "ftrace_trampoline+0x55 [__builtin__ftrace]"
    assert named == Namer(Symbols(path), None).name(TRAMPOLINE)

    path.unlink()  # then nothing has a name, and none is made up
    assert f"{TRAMPOLINE:#x}" == Namer(Symbols(path), None).name(TRAMPOLINE)


# --- Chance and speed -----------------------------------------------------------------------


def test_any_cut_of_a_copy_is_still_that_copy(tmp_path: Path) -> None:
    """However the runs of one call are cut, the copy is the same."""
    chance = random.Random(29)
    whole = HEADER + TEXT + b"TRAILER"
    for _ in range(60):
        cuts = sorted({0, len(whole), *(chance.randrange(len(whole)) for _ in range(6))})
        parts = list(pairwise(cuts))
        chance.shuffle(parts)
        given = [load(KERNEL + a, whole[a:b]) for a, b in parts]
        given += [store(USER + 0xFE0 + a, whole[a:b]) for a, b in parts if 0xFE0 + b <= 0x1000]
        for a, b in parts:
            if 0xFE0 + b > 0x1000:
                middle = max(a, 0x20)
                given += [store(USER + 0xFE0 + a, whole[a:middle])] if middle > a else []
                given.append(store(USER + 0xFE0 + middle, whole[middle:b], phys=0x7FE0 + middle))
        (copy,) = seen(tmp_path, *given).copies
        assert (len(whole), 42, 40) == (copy.size, copy.payload_at, copy.payload_size)


def test_a_million_accesses_take_less_than_five_seconds(tmp_path: Path) -> None:
    """300,000 runs: what a million accesses come to, with 23 messages of 4,099 bytes among them."""
    messages = Messages(seed=1, size=4099, count=23)
    texts = [messages.bytes(index) for index in range(23)]
    chance = random.Random(5)
    given: list[Given] = [
        load(KERNEL + 16 * at, chance.randbytes(8), call=at, count=3) for at in range(300_000)
    ]
    for index, text in enumerate(texts):
        for part in range(0, 4099, 1024):
            for make, base in ((load, 0x100_0000), (store, 0x200_0000)):
                given.append(
                    make(
                        KERNEL + base + index * 8192 + part, text[part:][:1024], call=10**6 + index
                    )
                )
    raw = encode_log(given)
    (tmp_path / "symbols").write_text(SYMBOLS)
    start = time.process_time()
    (tmp_path / "access.bin").write_bytes(access.keep(raw, texts, needle=messages.needle()))
    log = access.read(tmp_path / "access.bin", guest="receiver")
    found = analyse(log, messages, symbols=Symbols(tmp_path / "symbols"))
    spent = time.process_time() - start

    assert 23 == len(found.copies)
    assert spent < 5.0
