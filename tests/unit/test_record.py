"""Traces: read back as written, refused when damaged, honest about what was lost."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import record
from lab.errors import TraceCorrupt
from lab.record import Context, Flag, Hook, Kind

NONCE = bytes.fromhex("00112233445566778899aabbccddeeff")
MESSAGE = bytes(range(100, 116))
COPY: dict[str, Any] = {
    "hook": "_copy_from_iter",
    "kind": Kind.RETURN,
    "comm": "sender",
    "pid": 7,
    "dst": 0xFFFF_8880_0000_1000,
    "dst_phys": 0x1000,
    "size": 16,
    "ret": 16,
    "user": 0x7FFC_0000_0010,
    "flags": Flag.SRC_USER,
    "bytes": MESSAGE,
}
XMIT: dict[str, Any] = {"hook": "__dev_queue_xmit", "skb": 0xFFFF_8880_0000_2000, "dev": "lo"}


def read(data: bytes, folder: Path) -> record.Trace:
    path = folder / "trace.bin"
    path.write_bytes(data)
    return record.read(path, guest="sender")


def with_field(data: bytes, name: str, value: int, *, event: int = 0) -> bytes:
    """Return `data` with one field of one event overwritten."""
    at = record.HEADER_SIZE + event * record.EVENT_SIZE
    for field, code in record.FIELDS:
        if field == name:
            break
        at += struct.calcsize("<" + code)
    return data[:at] + struct.pack("<" + code, value) + data[at + struct.calcsize("<" + code) :]


def test_a_record_reads_back_as_written(tmp_path: Path) -> None:
    trace = read(record.encode_section([COPY, XMIT], nonce=NONCE), tmp_path)

    copy, xmit = trace.records
    for name, value in COPY.items():
        assert value == getattr(copy, name), name
    assert ("sender/trace.bin#0", "sender", "send_trace") == (copy.id, copy.guest, copy.module)
    assert (1, 2) == (copy.seq, xmit.seq)
    assert copy.tsc < xmit.tsc
    assert ("lo", Flag.SKB, Kind.ENTRY, b"") == (xmit.dev, xmit.flags, xmit.kind, xmit.bytes)
    assert trace.complete
    assert (2, 0, 0, 0) == (trace.seen, trace.missed, trace.dropped, trace.skipped)


def test_message_bytes_are_never_in_the_file_in_clear() -> None:
    data = record.encode_section([COPY], nonce=NONCE)

    assert MESSAGE[:4] not in data
    assert MESSAGE in record.encode_section([COPY], nonce=bytes(16))


def test_sections_are_numbered_through(tmp_path: Path) -> None:
    data = record.encode_section([COPY, XMIT], nonce=NONCE)
    data += record.encode_section(
        [{"hook": "virtio_net:receive_buf", "context": Context.SOFTIRQ, "bytes": MESSAGE}],
        name="recv_trace",
        nonce=bytes(reversed(NONCE)),
    )

    trace = read(data, tmp_path)

    assert [0, 1, 2] == [one.number for one in trace.records]
    last = trace.records[-1]
    assert ("sender/trace.bin#2", "recv_trace") == (last.id, last.module)
    assert (MESSAGE, "receive_buf") == (last.bytes, last.function)
    assert last == trace.records.numbered(2)
    assert last == list(trace.records)[2]
    assert [last] == trace.records[2:]
    assert ["_copy_from_iter", "__dev_queue_xmit", "virtio_net:receive_buf"] == [
        hook.name for hook in trace.hooks
    ]


def test_a_missing_record_has_no_number(tmp_path: Path) -> None:
    trace = read(record.encode_section([COPY, {"torn": True}, XMIT]), tmp_path)

    for number in (1, 3, -1):
        with pytest.raises(KeyError):
            trace.records.numbered(number)
    for index in (2, -3):
        with pytest.raises(IndexError):
            trace.records[index]


def test_absent_and_left_out_hooks_are_told_apart(tmp_path: Path) -> None:
    hooks = [
        Hook("_copy_from_iter", flags=record.HOOK_COPY, hits=3),
        Hook("virtio_net:start_xmit", error=-2),
        Hook("loopback_xmit", error=-125, flags=record.HOOK_LEFT_OUT),
    ]

    copy, absent, left_out = read(record.encode_section([COPY], hooks=hooks), tmp_path).hooks

    assert (True, True, False) == (copy.attached, copy.copies, copy.left_out)
    assert (False, False) == (absent.attached, absent.left_out)
    assert (False, True) == (left_out.attached, left_out.left_out)
    assert hooks == [copy, absent, left_out]


def test_an_empty_file_is_a_trace_without_sections(tmp_path: Path) -> None:
    trace = read(b"", tmp_path)

    assert ((), 0) == (trace.sections, len(trace.records))


# --- what a probe lost is counted ---


def test_a_torn_record_is_counted_as_lost(tmp_path: Path) -> None:
    events = [COPY, {"torn": True}, {**XMIT, "seq": 3}]

    trace = read(record.encode_section(events), tmp_path)

    assert [0, 2] == [one.number for one in trace.records]
    assert [2, 2] == [trace.records[1].number, trace.records[-1].number]
    assert (1, 1, False) == (trace.torn, trace.lost, trace.complete)
    assert (1,) == trace.sections[0].torn


def test_dropped_records_are_counted_and_not_looked_for(tmp_path: Path) -> None:
    trace = read(record.encode_section([COPY] * 3, dropped=5), tmp_path)

    assert (8, 5, 5, 3) == (trace.seen, trace.dropped, trace.lost, len(trace.records))
    assert not trace.complete


def test_missed_hits_are_counted(tmp_path: Path) -> None:
    hooks = [Hook("_copy_from_iter", missed=2), Hook("loopback_xmit", missed=1)]

    trace = read(record.encode_section([COPY], hooks=hooks), tmp_path)

    assert (3, False) == (trace.missed, trace.complete)


def test_skipped_records_are_no_loss(tmp_path: Path) -> None:
    trace = read(record.encode_section([COPY], skipped=9), tmp_path)

    assert (9, True) == (trace.skipped, trace.complete)


def test_an_unfinished_trace_is_not_complete(tmp_path: Path) -> None:
    trace = read(record.encode_section([COPY], finished=False), tmp_path)

    assert (0, False) == (trace.lost, trace.complete)


def test_gaps_are_allowed_where_records_were_dropped(tmp_path: Path) -> None:
    events = [COPY, {**COPY, "seq": 4}]

    assert 2 == len(read(record.encode_section(events, dropped=2), tmp_path).records)


# --- what no probe writes is refused ---


def test_a_gap_that_nothing_explains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceCorrupt, match=r"seq: expected at most 1 gaps .* found 2"):
        read(record.encode_section([COPY, {**COPY, "seq": 4}], dropped=1), tmp_path)


def test_each_cpu_counts_for_itself(tmp_path: Path) -> None:
    events = [COPY, {**COPY, "cpu": 1}, {**COPY, "cpu": 1}]

    assert [1, 1, 2] == [one.seq for one in read(record.encode_section(events), tmp_path).records]


@pytest.mark.parametrize("seq", [1, 0])
def test_a_sequence_number_twice_or_zero_is_refused(seq: int, tmp_path: Path) -> None:
    with pytest.raises(TraceCorrupt, match="seq of CPU 0"):
        read(record.encode_section([COPY, {**COPY, "seq": seq}]), tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    data = record.encode_section([COPY, XMIT])

    with pytest.raises(
        TraceCorrupt, match="offset 8192: expected 2 records, 512 bytes, found 511 bytes"
    ):
        read(data[:-1], tmp_path)
    with pytest.raises(TraceCorrupt, match="expected a header of 8192 bytes, found 100 bytes"):
        read(data + data[:100], tmp_path)


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (0, b"x", r"sender/trace\.bin: offset 0: magic: expected 0x474e4952424c4b53, found"),
        (24, b"\x01", r"offset 24: version: expected 2, found 0x1"),
        (28, b"\x80", r"offset 28: event_size: expected 256, found 0x180"),
        (32, b"\xff\xff", r"offset 32: capacity: expected at most 1024, which the chunks hold"),
        (64, b"\x31", r"offset 64: hook_count: expected at most 48, found 0x31"),
        (68, b"\x81", r"offset 68: chunk_count: expected at most 128, found 0x81"),
    ],
)
def test_a_damaged_header_is_refused(offset: int, value: bytes, said: str, tmp_path: Path) -> None:
    data = record.encode_section([COPY])
    data = data[:offset] + value + data[offset + len(value) :]

    with pytest.raises(TraceCorrupt, match=said):
        read(data, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("commit", 99, "offset 8448: commit: expected 2 or 0, found 0x63"),
        ("hook", 2, "expected a hook below 2 and a kind of 1 to 4, found 2 and 1"),
        ("kind", 5, "expected a hook below 2 and a kind of 1 to 4, found 1 and 5"),
        ("bytes_len", 65, "offset 8448: bytes_len: expected at most 64, found 65"),
    ],
)
def test_a_damaged_record_is_refused(name: str, value: int, said: str, tmp_path: Path) -> None:
    data = with_field(record.encode_section([COPY, XMIT]), name, value, event=1)

    with pytest.raises(TraceCorrupt, match=said):
        read(data, tmp_path)


# --- from guest RAM ---


def ram_of(section: bytes) -> dict[int, bytes]:
    """Lay a section's records out in chunks, as they are in a guest."""
    header = record.parse_header(section)
    events = section[record.HEADER_SIZE :]
    return {
        address: events[index * record.CHUNK_SIZE :][: record.CHUNK_SIZE].ljust(
            record.CHUNK_SIZE, b"\0"
        )
        for index, address in enumerate(header.chunks)
    }


@pytest.mark.parametrize("count", [0, 1, 1024, 1025, 3000])
def test_a_dump_is_the_section(count: int) -> None:
    section = record.encode_section([COPY] * count, capacity=3000, hooks=["_copy_from_iter"])
    ram = ram_of(section)

    dumped = record.dump(section[: record.HEADER_SIZE], lambda address, size: ram[address][:size])

    assert section == dumped


def test_a_short_read_of_guest_memory_is_refused() -> None:
    section = record.encode_section([COPY])

    with pytest.raises(TraceCorrupt, match="chunk at 0x1000000: expected 256 bytes, found 255"):
        record.dump(section[: record.HEADER_SIZE], lambda _, size: bytes(size - 1))


def test_a_dump_needs_a_header() -> None:
    with pytest.raises(TraceCorrupt, match="magic"):
        record.dump(bytes(record.HEADER_SIZE), lambda _, size: bytes(size))


def test_a_ring_is_found_by_its_needle() -> None:
    section = record.encode_section([COPY], nonce=NONCE)

    assert section.startswith(record.needle(NONCE))
    assert not section.startswith(record.needle(bytes(16)))


# --- cooking ---


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(TypeError, match="no field of a record: sise"):
        record.encode_section([{**COPY, "sise": 3}])


TEXT = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=15)
SIZES = {"Q": 64, "I": 32, "H": 16, "B": 8}
NUMBERS = {
    name: st.integers(0, 2 ** SIZES[code] - 1)
    for name, code in record.FIELDS
    if code in SIZES and name not in {"commit", "seq", "cpu", "hook", "kind", "bytes_len"}
}
EVENTS = st.fixed_dictionaries(
    {
        "hook": st.sampled_from(["_copy_to_iter", "virtio_net:page_to_skb>memcpy"]),
        "kind": st.sampled_from(Kind),
        "cpu": st.integers(0, 3),
        "comm": TEXT,
        "dev": TEXT,
        "ret": st.integers(-(2**31), 2**31 - 1),
        "bytes": st.binary(max_size=record.BYTES_LEN),
    },
    optional=NUMBERS,
)


@given(events=st.lists(EVENTS, max_size=20), nonce=st.binary(min_size=16, max_size=16))
def test_any_trace_survives_the_way_there_and_back(
    events: list[dict[str, Any]], nonce: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    hooks = ["_copy_to_iter", "virtio_net:page_to_skb>memcpy"]

    data = record.encode_section(events, nonce=nonce, hooks=hooks)
    trace = read(data, folder)

    for event, found in zip(events, trace.records, strict=True):
        assert event == {name: getattr(found, name) for name in event}
    assert data == record.encode_section(list(trace.records), nonce=nonce, hooks=hooks)


def test_a_ring_of_scattered_pages_is_read_page_by_page(tmp_path: Path) -> None:
    count = 40  # of 256 bytes: two pages and a half
    section = record.encode_section([COPY] * count, name="bpf")
    body = section[record.HEADER_SIZE :]
    pages = {0x9000: body[:4096], 0x3000: body[4096:8192], 0x7000: body[8192:]}
    table = struct.pack("<512Q", *pages, *[0] * 509)
    memory = {at: page.ljust(4096, b"\0") for at, page in pages.items()} | {0x5000: table}
    head = bytearray(section[:4096])
    head[72 + 4 : 72 + 8] = struct.pack("<I", record.RING_PAGED)
    head[record.CHUNKS_AT : record.CHUNKS_AT + 8] = struct.pack("<Q", 0x5000)
    head += b"somebody else's page".ljust(4096, b"!")

    dumped = record.dump(bytes(head), lambda at, size: memory[at][:size])

    found = read(dumped, tmp_path)
    assert count == len(found.records)
    assert body == dumped[record.HEADER_SIZE :]
    assert b"somebody" not in dumped
    with pytest.raises(TraceCorrupt, match="chunk at 0x3000"):
        record.dump(bytes(head), lambda at, size: memory[at][: 0 if at == 0x3000 else size])


def test_a_trace_that_is_gone_is_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(TraceCorrupt, match=r"sender/trace\.bin: expected a trace, found none"):
        record.read(tmp_path / "trace.bin", guest="sender")


def test_a_hook_without_a_name_is_corrupt(tmp_path: Path) -> None:
    data = record.encode_section([COPY], nonce=NONCE)
    end = record.HOOKS_AT + record.HOOK_LAYOUT.size
    data = data[: record.HOOKS_AT] + bytes(record.HOOK_LAYOUT.size) + data[end:]
    with pytest.raises(TraceCorrupt, match=f"offset {record.HOOKS_AT}: expected a hook's name"):
        read(data, tmp_path)
