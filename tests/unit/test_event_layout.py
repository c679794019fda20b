"""kmod/lab_event.h and lab/record/ say the same about every byte."""

from __future__ import annotations

import dataclasses
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from lab import record

KMOD = Path(__file__).parents[2] / "kmod"


def socket_offsets() -> dict[str, int]:
    """Return where `Record.socket` reads each field: a record whose fields are offsets."""
    offsets, at = {}, 0
    for name, code in record.FIELDS:
        offsets[name] = at
        at += struct.calcsize("<" + code)
    event = {"hook": "h", "flags": record.Flag.SOCKET, "context": 0, "kind": record.Kind.ENTRY}
    names = ("skb", "head", "data", "skb_len", "skb_data_len", "src", "dst", "src_phys", "dst_phys")
    event |= {name: offsets[name] for name in (*names, "sk")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.bin"
        path.write_bytes(record.encode_section([event]))
        found = record.read(path, guest="sender").records[0].socket
    assert found is not None
    return dataclasses.asdict(found)


STRUCTS = {
    "lab_event": record.FIELDS,
    "lab_hook": record.HOOK_FIELDS,
    "lab_ring_header": record.HEADER_FIELDS,
    "lab_words_args": (("arg", "48s"), ("ret", "Q"), ("task", "Q")),
    "lab_words_barrier": tuple((f.name, "Q") for f in dataclasses.fields(record.Barrier)),
}
CONSTANTS = {
    "LAB_RING_MAGIC": record.MAGIC,
    "LAB_RING_VERSION": record.VERSION,
    "LAB_RING_HEADER_SIZE": record.HEADER_SIZE,
    "LAB_RING_CHUNK_SIZE": record.CHUNK_SIZE,
    "LAB_RING_CHUNKS": record.CHUNKS,
    "LAB_RING_HOOKS": record.HOOKS,
    "LAB_EVENTS_PER_CHUNK": record.EVENTS_PER_CHUNK,
    "LAB_BYTES_LEN": record.BYTES_LEN,
    "LAB_HOOK_COPY": record.HOOK_COPY,
    "LAB_HOOK_LEFT_OUT": record.HOOK_LEFT_OUT,
    "LAB_ENTRY": record.Kind.ENTRY,
    "LAB_RETURN": record.Kind.RETURN,
    "LAB_CALLSITE": record.Kind.CALLSITE,
    "LAB_CTX_SOFTIRQ": record.Context.SOFTIRQ,
    "LAB_CTX_BH_OFF": record.Context.BH_OFF,
    "LAB_CTX_IRQ_OFF": record.Context.IRQ_OFF,
    "LAB_F_SRC_USER": record.Flag.SRC_USER,
    "LAB_F_DST_USER": record.Flag.DST_USER,
    "LAB_SKIPPED": record.Kind.SKIPPED,
    "LAB_F_SKB": record.Flag.SKB,
    "LAB_F_SOCKET": record.Flag.SOCKET,
    "LAB_F_ARGS": record.Flag.ARGS,
    "LAB_F_BARRIER": record.Flag.BARRIER,
    "LAB_TASK_SIGNAL": record.TASK_SIGNAL,
    "LAB_HOOK_ACTIVE_SHIFT": record.HOOK_ACTIVE_SHIFT,
    "sizeof(struct lab_words_args)": record.WORDS.size,
    "sizeof(struct lab_words_barrier)": record.WORDS.size,
    **{
        f"offsetof(struct lab_event, {theirs})": offset
        for theirs, offset in socket_offsets().items()
    },
    "sizeof(struct lab_event)": record.EVENT_SIZE,
    "sizeof(struct lab_hook)": record.HOOK_LAYOUT.size,
    "offsetof(struct lab_ring_header, hooks)": record.HOOKS_AT,
    "offsetof(struct lab_ring_header, chunk_phys)": record.CHUNKS_AT,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Return what the C compiler says: each constant, and offset and size of each field."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    asked = [(name, name) for name in CONSTANTS]
    for struct_name, fields in STRUCTS.items():
        for field, _ in fields:
            at = f"struct {struct_name}, {field}"
            asked.append((f"offset {struct_name}.{field}", f"offsetof({at})"))
            member = f"((struct {struct_name} *)0)->{field}"
            asked.append((f"size {struct_name}.{field}", f"sizeof({member})"))
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        '#include "lab_event.h"',
        "int main(void) {",
        *(f'printf("{name}=%llu\\n", (unsigned long long)({code}));' for name, code in asked),
        "return sizeof(struct lab_ring_header) > LAB_RING_HEADER_SIZE; }",
    ]
    folder = tmp_path_factory.mktemp("layout")
    (folder / "layout.c").write_text("\n".join(lines))
    # -Wpadded: a hole in a struct is an error
    flags = ["-Wall", "-Wextra", "-Wpadded", "-Werror", f"-I{KMOD}"]
    subprocess.run(
        [compiler, *flags, "-o", "layout", "layout.c"], cwd=folder, check=True, timeout=60
    )
    done = subprocess.run(
        [folder / "layout"], check=True, capture_output=True, text=True, timeout=10
    )
    pairs = (line.split("=") for line in done.stdout.splitlines())
    return {name: int(value) for name, value in pairs}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_the_same(name: str, compiled: dict[str, int]) -> None:
    assert CONSTANTS[name] == compiled[name]


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_lies_where_python_reads_it(name: str, compiled: dict[str, int]) -> None:
    expected = {}
    at = 0
    for field, code in STRUCTS[name]:
        expected[field] = (at, struct.calcsize("<" + code))
        at += struct.calcsize("<" + code)

    found = {
        field: (compiled[f"offset {name}.{field}"], compiled[f"size {name}.{field}"])
        for field, _ in STRUCTS[name]
    }

    assert expected == found


def test_a_moved_field_would_be_seen(compiled: dict[str, int]) -> None:
    """The comparison fails when two fields of the same size change places."""
    names = [field for field, _ in record.FIELDS]
    swapped = {"src": "dst", "dst": "src"}
    offsets = [compiled[f"offset lab_event.{swapped.get(name, name)}"] for name in names]

    assert sorted(offsets) != offsets
