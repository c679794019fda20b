"""What a device was given, by what CPUs stored: the same descriptor again, and tables that go."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from lab import access
from lab.access import Given
from lab.access.tables import INDIRECT, NEXT, WRITE, indirect

SIZE = 8
TABLE, OFFERED = 0x1000, 0x1080
DIRECT = 0xFFFF_8880_0000_0000
PLACES = {"table": TABLE, "offered": OFFERED, "size": SIZE}


class Driver:
    """Gives a device packets as virtqueue_add_split() does, a store at a time."""

    def __init__(self, index: int = 0) -> None:
        self.rows: list[dict[str, Any]] = []
        self.index = index
        self.call = 0

    def store(self, physical: int, data: bytes) -> None:
        self.rows.append(
            {"virt": DIRECT + physical, "phys": physical, "bytes": data, "store": True,
             "call": self.call}
        )  # fmt: skip

    def describe(self, at: int, address: int, length: int, flags: int, following: int) -> None:
        self.store(at + 12, struct.pack("<H", flags))
        self.store(at, struct.pack("<QI", address, length))
        self.store(at + 14, struct.pack("<H", following))

    def offer(self, head: int) -> None:
        self.store(OFFERED + 4 + 2 * (self.index % SIZE), struct.pack("<H", head))
        self.index = (self.index + 1) % (1 << 16)
        self.store(OFFERED + 2, struct.pack("<H", self.index))

    def give(self, *pieces: tuple[int, int], head: int = 0, table: int | None = None) -> None:
        self.call += 1
        at = TABLE + 16 * head if table is None else table
        first = head if table is None else 0
        for number, (address, length) in enumerate(pieces):
            more = NEXT if number + 1 < len(pieces) else 0
            self.describe(at + 16 * number, address, length, more, first + number + 1)
        if table is not None:
            self.describe(TABLE + 16 * head, table, 16 * len(pieces), INDIRECT, head + 1)
        self.offer(head)

    def read(self, folder: Path) -> access.AccessLog:
        (folder / "access.bin").write_bytes(access.encode_log(self.rows))
        return access.read(folder / "access.bin", guest="sender")


def ranges(found: list[Given]) -> list[list[tuple[int, int]]]:
    return [[(piece.physical, piece.size) for piece in one.pieces] for one in found]


@pytest.mark.parametrize("index", [0, 5, SIZE - 1, 0xFFFF])
def test_a_descriptor_that_is_used_again_was_given_twice(tmp_path: Path, index: int) -> None:
    driver = Driver(index)
    driver.give((0x5000, 100))
    driver.give((0x6000, 200))

    found = list(access.given(driver.read(tmp_path), **PLACES))

    assert [[(0x5000, 100)], [(0x6000, 200)]] == ranges(found)
    assert [1, 2] == [one.stored.call for one in found]
    assert [1, 2] == [one.pieces[0].stored.call for one in found]


def test_a_table_is_read_though_its_memory_is_another_s_by_then(tmp_path: Path) -> None:
    driver = Driver()
    driver.give((0x5000, 98), (0x8_0000, 4096), (0x9_0000, 30), table=0x7000)
    driver.give((0xA000, 66), (0xB_0000, 9), table=0x7000)

    found = list(access.given(driver.read(tmp_path), **PLACES))

    assert [
        [(0x5000, 98), (0x8_0000, 4096), (0x9_0000, 30)],
        [(0xA000, 66), (0xB_0000, 9)],
    ] == ranges(found)


def test_pieces_may_follow_one_another_in_the_ring(tmp_path: Path) -> None:
    driver = Driver()
    driver.give((0x5000, 98), (0x8_0000, 40), head=3)

    assert [[(0x5000, 98), (0x8_0000, 40)]] == ranges(
        list(access.given(driver.read(tmp_path), **PLACES))
    )


def test_what_a_device_is_to_write_it_does_not_read(tmp_path: Path) -> None:
    driver = Driver()
    driver.describe(TABLE, 0x5000, 1536, WRITE, 1)
    driver.offer(0)

    assert [] == list(access.given(driver.read(tmp_path), **PLACES))


def test_a_descriptor_nobody_stored_says_nothing(tmp_path: Path) -> None:
    driver = Driver()
    driver.offer(2)

    assert [] == list(access.given(driver.read(tmp_path), **PLACES))


@pytest.mark.parametrize(("length", "said"), [(32, 1), (33, 0), (0, 0), (1 << 20, 0)])
def test_only_what_can_be_one_is_a_table(length: int, said: int) -> None:
    entry = struct.pack("<QIHH", 0x7000, length, INDIRECT, 1)

    found = indirect([(TABLE, entry)], [(TABLE, TABLE + 16 * SIZE)])

    assert ({(0x7000, 0x7000 + length)} if said else set()) == found


def test_a_loop_of_descriptors_ends(tmp_path: Path) -> None:
    driver = Driver()
    driver.describe(TABLE, 0x5000, 10, NEXT, 0)
    driver.offer(0)
    driver.describe(0x7000, 0x7000, 16, INDIRECT, 0)
    driver.describe(TABLE, 0x7000, 16, INDIRECT, 0)
    driver.offer(0)

    found = list(access.given(driver.read(tmp_path), **PLACES))

    assert [[(0x5000, 10)] * SIZE] == ranges(found)


def test_a_run_keeps_the_tables_that_its_descriptors_point_at() -> None:
    driver = Driver()
    driver.give((0x5000, 98), (0x8_0000, 4096), table=0x7000)
    driver.store(0x9000, b"unrelated")
    raw = access.encode_log(driver.rows)
    rings = [(TABLE, OFFERED + 4 + 2 * SIZE)]

    def kept(tables: list[tuple[int, int]]) -> int:
        data = access.keep(raw, [b"a message"], ranges=rings, tables=tables)
        return access.parse_header(data).records

    assert 3 + 2 == kept([])  # the descriptor, its place in the ring and the index
    assert 3 + 2 + 2 * 3 == kept([(TABLE, TABLE + 16 * SIZE)])


# --- e1000e ---------------------------------------------------------------------------------

CONTEXT, DATA, LAST = 1 << 29, 1 << 29 | 1 << 20, 1 << 24


def queue(driver: Driver, *descriptors: tuple[int, int], at: int = 0) -> None:
    """Store descriptors as e1000_tx_queue() does: the last of them is marked at the end."""
    driver.call += 1
    words = [struct.pack("<QII", address, command, 0) for address, command in descriptors]
    words[-1] = struct.pack("<QII", descriptors[-1][0], descriptors[-1][1] | LAST, 0)
    driver.store(TABLE + 16 * at, b"".join(words))


def test_e1000e_is_given_what_comes_up_to_the_last(tmp_path: Path) -> None:
    driver = Driver()
    queue(driver, (0, CONTEXT), (0x5000, DATA | 66), (0x8_0000, DATA | 1448))
    driver.store(TABLE + 16 + 12, bytes(4))  # sent: the driver clears what the device said
    queue(driver, (0x6000, 60), at=3)

    found = list(access.given_e1000e(driver.read(tmp_path), table=TABLE, size=SIZE))

    assert [[(0x5000, 66), (0x8_0000, 1448)], [(0x6000, 60)]] == ranges(found)


def test_a_mark_that_is_stored_apart_ends_the_packet(tmp_path: Path) -> None:
    driver = Driver()
    driver.store(TABLE, struct.pack("<QII", 0x5000, DATA | 66, 0))
    driver.store(TABLE + 8, struct.pack("<I", DATA | LAST | 66))
    driver.store(TABLE, struct.pack("<QII", 0x6000, DATA | LAST | 70, 0))  # the ring came round

    found = list(access.given_e1000e(driver.read(tmp_path), table=TABLE, size=SIZE))

    assert [[(0x5000, 66)], [(0x6000, 70)]] == ranges(found)
