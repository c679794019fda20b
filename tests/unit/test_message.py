"""The message: the same in C and in Python, and found again wherever its bytes lie."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import fnv, message, paths
from lab.message import Messages, Run

SEEDS = (0, 1, 0x29, 0x0123456789ABCDEF, (1 << 64) - 1)
INDEXES = (0, 1, 22, 0xFFFF, (1 << 24) - 1)
SIZES = (1, 5, 8, 15, 16, 17, 4099, 65507)

# Reads "derive SEED INDEX SIZE", "unmask HEX SIZE", "digest HEX"; says hex.
HARNESS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "message.h"
int main(void)
{
	static uint8_t bytes[LAB_MESSAGE_SIZE + 1];
	static char word[16], text[1 << 20];
	unsigned long long seed;
	unsigned index;
	size_t size, i;

	while (scanf("%15s", word) == 1) {
		memset(bytes, 0xee, sizeof(bytes));
		if (!strcmp(word, "derive")) {
			if (scanf("%llx %u %zu", &seed, &index, &size) != 3)
				return 1;
			lab_message_derive(bytes, seed, index, size);
		} else {
			if (scanf("%1048575s %zu", text, &size) != 2)
				return 1;
			lab_message_unmask(bytes, text, strlen(text) / 2, size);
		}
		if (bytes[size] != 0xee)
			return 2;
		printf("%016llx ", (unsigned long long)lab_digest(LAB_DIGEST_START, bytes, size));
		for (i = 0; i < size; i++)
			printf("%02x", bytes[i]);
		putchar('\n');
	}
	return 0;
}
"""


def compiled(folder: Path, header: str) -> Path:
    """Compile the harness against a message.h with this text."""
    (folder / "message.h").write_text(header)
    (folder / "harness.c").write_text(HARNESS)
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        ["gcc", *flags, "-o", "harness", "harness.c"], cwd=folder, check=True, timeout=60
    )
    return folder / "harness"


def header_text() -> str:
    return (paths.data() / "guest" / "message.h").read_text()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("message"), header_text())


def ask(harness: Path, *questions: str) -> list[tuple[int, bytes]]:
    """Return digest and bytes for each question."""
    done = subprocess.run(
        [str(harness)],
        input="\n".join(questions),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [line.split(" ") for line in done.stdout.splitlines()]
    return [(int(digest, 16), bytes.fromhex(text)) for digest, text in answers]


def test_c_and_python_derive_the_same_bytes(harness: Path) -> None:
    cases = [(seed, index, size) for seed in SEEDS for index in INDEXES for size in SIZES]

    answers = ask(harness, *(f"derive {s:x} {i} {n}" for s, i, n in cases))

    assert len(answers) == len(cases)
    for (seed, index, size), (digest, found) in zip(cases, answers, strict=True):
        expected = message.derive(seed, index, size)
        assert found == expected, (seed, index, size)
        assert digest == fnv.digest(expected)


def test_the_largest_message_is_the_same_too(harness: Path) -> None:
    ((_, found),) = ask(harness, f"derive 29 7 {message.MAX_SIZE}")

    assert found == message.derive(0x29, 7, message.MAX_SIZE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<< 20", "<< 21"),
        ("0x6c61627461670000", "0x6c61627461670001"),
        ("block + 1", "block"),
        ("z ^ z >> 31", "z ^ z >> 30"),
    ],
)
def test_the_comparison_sees_a_header_that_differs(tmp_path: Path, old: str, new: str) -> None:
    assert old in header_text()
    other = compiled(tmp_path, header_text().replace(old, new))

    ((_, found),) = ask(other, "derive 29 7 64")

    assert found != message.derive(0x29, 7, 64)


@pytest.mark.parametrize("size", [1, 5, 16, 17, 4099])
@pytest.mark.parametrize("payload", [b"x", b"HELLO_SEND_TRACE", bytes(range(256))])
def test_c_unmasks_a_payload_as_python_does(harness: Path, payload: bytes, size: int) -> None:
    ((digest, found),) = ask(harness, f"unmask {message.mask(payload)} {size}")

    assert found == message.from_payload(payload, size)
    assert digest == fnv.digest(found)


def test_a_masked_payload_is_not_in_clear_and_comes_back() -> None:
    masked = message.mask(b"HELLO_SEND_TRACE")

    assert b"HELLO" not in bytes.fromhex(masked)
    assert message.unmask(masked) == b"HELLO_SEND_TRACE"


def test_a_payload_is_repeated_or_cut() -> None:
    assert message.from_payload(b"abc", 7) == b"abcabca"
    assert message.from_payload(b"abcdefgh", 3) == b"abc"


def test_every_block_says_run_message_and_place() -> None:
    text = message.derive(0x29, 22, 100)

    for block in range(7):
        head = text[16 * block : 16 * block + 10]
        assert (message.tag(0x29) + b"\x16\0\0" + bytes([block, 0])).startswith(head)


def test_digest_is_fnv_1a() -> None:
    # The values of the reference implementation's own test suite (draft-eastlake-fnv).
    assert fnv.digest(b"") == 0xCBF29CE484222325
    assert fnv.digest(b"foobar") == 0x85944171F73967E8
    assert fnv.digest(b"bar", fnv.digest(b"foo")) == fnv.digest(b"foobar")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((1 << 64, 0, 1), "seed"),
        ((-1, 0, 1), "seed"),
        ((0, 1 << 24, 1), "index"),
        ((0, 0, 0), "size"),
        ((0, 0, message.MAX_SIZE + 1), "size"),
    ],
)
def test_what_has_no_message_is_refused(arguments: tuple[int, int, int], names: str) -> None:
    with pytest.raises(ValueError) as caught:
        message.derive(*arguments)

    assert str(caught.value).startswith(names)


def test_messages_have_a_seed_or_a_payload() -> None:
    with pytest.raises(ValueError):
        Messages(size=16, count=1)
    with pytest.raises(ValueError):
        Messages(seed=1, payload=b"x", size=16, count=1)
    with pytest.raises(ValueError):
        Messages(seed=1, size=16, count=0)
    with pytest.raises(IndexError):
        Messages(seed=1, size=16, count=3).bytes(3)
    with pytest.raises(ValueError):
        Messages(payload=b"", size=16, count=1).bytes(0)


def test_below_eight_bytes_nothing_is_searched_for() -> None:
    assert Messages(seed=1, size=7, count=1).needle() is None
    assert list(Messages(seed=1, size=7, count=1).runs(message.derive(1, 0, 7) * 9)) == []
    assert Messages(seed=1, size=8, count=1).needle() == message.tag(1)
    assert Messages(payload=b"ab", size=8, count=1).needle() == b"abababab"
    assert Messages(payload=b"HELLO_SEND_TRACE_AND_MORE", size=20, count=1).needle() == (
        b"HELLO_SEND_TRACE"
    )


@given(
    size=st.integers(8, 300),
    pieces=st.lists(st.tuples(st.integers(0, 22), st.binary(max_size=40)), max_size=6),
)
def test_whole_messages_are_found_among_other_bytes(
    size: int, pieces: list[tuple[int, bytes]]
) -> None:
    messages = Messages(seed=0x29, size=size, count=23)
    window, expected = b"", []
    for index, gap in pieces:
        # A gap that happens to go on like the message would be part of the run.
        window += gap + b"\xff\xfe"
        expected.append((len(window), index))
        window += messages.bytes(index)

    found = [run for run in messages.runs(window) if run.size == size]

    assert [(run.start, run.index) for run in found] == expected
    assert all(run.offset == 0 and run.exact for run in found)


@given(st.data())
def test_a_piece_of_a_message_is_placed_by_its_first_whole_block(data: st.DataObject) -> None:
    size = data.draw(st.integers(64, 5000))
    start = data.draw(st.integers(0, size - 48))
    end = data.draw(st.integers(start + 32, size))
    messages = Messages(seed=7, size=size, count=3)
    piece = messages.bytes(2)[start:end]

    runs = list(messages.runs(b"\xfe" * 20 + piece + b"\xfe" * 20))

    # Two 0xfe beside it may be the message's own next bytes, one time in 256.
    assert len(runs) == 1
    assert runs[0].index == 2
    assert runs[0].start - runs[0].offset == 20 - start
    assert runs[0].start <= 20
    assert runs[0].end >= 20 + len(piece)


def test_a_run_ends_at_the_first_byte_that_differs() -> None:
    messages = Messages(seed=7, size=100, count=1)
    window = bytearray(b"\0" * 8 + messages.bytes(0))
    window[8 + 45] ^= 1

    runs = list(messages.runs(window))

    # Byte 45 is the last but two of its block; what follows begins again at 46.
    assert runs == [Run(8, 53, 0, 0, exact=True), Run(54, 108, 0, 46, exact=True)]


def test_messages_that_lie_side_by_side_are_told_apart() -> None:
    messages = Messages(seed=7, size=64, count=23)
    window = messages.bytes(3) + messages.bytes(4) + messages.bytes(3)

    runs = list(messages.runs(window))

    assert [(run.start, run.end, run.index) for run in runs] == [
        (0, 64, 3),
        (64, 128, 4),
        (128, 192, 3),
    ]


def test_a_last_block_without_its_number_is_placed() -> None:
    # 25 bytes: the second block has 9, its number is cut in half.
    messages = Messages(seed=7, size=25, count=5)
    tail = messages.bytes(4)[16:]

    (run,) = messages.runs(b"\xfe" * 9 + tail + b"\xfe" * 9)

    assert run == Run(9, 18, 4, 16, exact=True)


def test_a_tail_too_short_for_its_index_is_placed_by_the_block_before() -> None:
    messages = Messages(seed=7, size=22, count=5)
    window = b"\xfe" * 9 + messages.bytes(4) + b"\xfe" * 9

    assert messages.locate(window, 9 + 16) == Run(9, 31, 4, 0, exact=True)


def test_a_blocks_first_bytes_alone_are_said_and_not_sure() -> None:
    messages = Messages(seed=7, size=64, count=5)
    head = messages.bytes(4)[:8]

    assert list(messages.runs(b"\xfe" * 9 + head + b"\xff" * 8)) == [Run(9, 17, 4, 0, exact=False)]
    # An index no message has: the tag alone.
    assert list(messages.runs(b"\xfe" * 9 + head[:5] + b"\xff" * 8)) == [
        Run(9, 14, 0, 0, exact=False)
    ]
    # And at the end of what was read.
    assert list(messages.runs(head[:6])) == [Run(0, 5, 0, 0, exact=False)]


def test_memory_that_changed_is_no_run() -> None:
    messages = Messages(seed=7, size=64, count=5)

    assert messages.locate(b"\0" * 64, 16) is None
    assert messages.locate(messages.bytes(1), 3) is None


def test_the_wrong_seed_finds_nothing() -> None:
    window = Messages(seed=7, size=4096, count=5).bytes(1)

    assert list(Messages(seed=8, size=4096, count=5).runs(window)) == []


def test_a_payload_is_found_and_says_what_it_cannot_tell() -> None:
    one = Messages(payload=b"HELLO_SEND_TRACE", size=16, count=1)
    many = Messages(payload=b"HELLO_SEND_TRACE", size=16, count=23)
    window = b"---HELLO_SEND_TRACE---HELLO_SEND_TRAC-"

    assert list(one.runs(window)) == [Run(3, 19, 0, 0, exact=True)]
    assert list(many.runs(window)) == [Run(3, 19, 0, 0, exact=False)]


def test_a_repeated_payload_is_one_run() -> None:
    messages = Messages(payload=b"abcde", size=23, count=1)

    assert list(messages.runs(b"--" + messages.bytes(0) + b"--")) == [Run(2, 25, 0, 0, exact=True)]
    # A piece from its middle: it could lie at any repetition, the first is said.
    (run,) = messages.runs(b"--" + messages.bytes(0)[3:21] + b"--")
    assert (run.start, run.end, run.offset) == (2, 20, 3)


def test_big_data_is_searched_in_one_pass() -> None:
    # 16 MiB with 100 messages of 64 KiB: a loop over bytes would take a minute.
    messages = Messages(seed=99, size=65507, count=100)
    noise = random.Random(1).randbytes(1 << 16)
    window = bytearray()
    for index in range(100):
        window += noise + messages.bytes(index)

    runs = list(messages.runs(window))

    assert [(run.index, run.size) for run in runs] == [(index, 65507) for index in range(100)]
