"""bpftrace for one measurement: what is packed, what its script says, and what that prints."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from lab import bench_trace, bpftrace, paths
from lab.errors import ImageError
from lab.image import deb, elf, recipe
from lab.record import Hook

PRINTED = """Attaching 3 probes...
ready
^C

@[kprobe:__dev_queue_xmit]: 10016
@[kprobe:ip_generic_getfrag]: 10000
"""


def member(data: bytes, target: str | None = None) -> deb.Member:
    return deb.Member(path="", mode=0o755, data=data, target=target)


def test_a_lock_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bpftrace.lock.yaml"
    path.write_text("schema: 1\nseries: bpftrace\npackages:\n- {name: x}\n")

    with pytest.raises(ImageError, match=r"bpftrace\.lock\.yaml: packages\[0\]"):
        bpftrace.read_lock(path, suites={"bookworm"})


def test_the_lock_is_one_like_the_others() -> None:
    parts = recipe.load(paths.data() / "images")
    found = bpftrace.read_lock(paths.data() / "images/bpftrace.lock.yaml", suites=set(parts.suites))

    assert bpftrace.NAME == found.series
    assert bpftrace.NAME in {package.name for package in found.packages}
    assert (
        found.dump().splitlines()[1:]
        == ((paths.data() / "images/bpftrace.lock.yaml").read_text().splitlines()[1:])
    )


def test_a_script_counts_the_calls_of_its_functions_and_says_when() -> None:
    text = bpftrace.script(["ip_rcv", "udp_rcv"])

    assert "kprobe:ip_rcv,\nkprobe:udp_rcv { @[probe] = count(); }" in text
    assert 'BEGIN { printf("ready\\n"); }' in text


def test_what_it_prints_is_read() -> None:
    assert {"__dev_queue_xmit": 10016, "ip_generic_getfrag": 10000} == bpftrace.counts(PRINTED)
    assert {} == bpftrace.counts("ERROR: Could not resolve symbol\n")


def test_the_program_is_packed_with_the_libraries_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "bpftrace": {bpftrace.PROGRAM: member(b"program")},
        "libx": {
            "usr/lib/x86_64-linux-gnu/libx.so.1": member(b"", "libx.so.1.2"),
            "usr/lib/x86_64-linux-gnu/libx.so.1.2": member(b"library"),
        },
    }
    monkeypatch.setattr(
        deb,
        "members",
        lambda package, wanted: {k: v for k, v in files[package.name].items() if wanted(k)},
    )
    asked: dict[str, object] = {}

    def libraries(programs: dict[str, bytes], shelf: dict[str, bytes]) -> dict[str, bytes]:
        asked.update(programs=programs, shelf=shelf)
        return {"libx.so.1": shelf["libx.so.1"]}

    monkeypatch.setattr(elf, "libraries", libraries)
    packed = bpftrace.pack({name: Path(name) for name in files})

    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert ["bpftrace", "lib/libx.so.1"] == archive.getnames()
        inside = archive.extractfile("lib/libx.so.1")
        assert inside is not None
        assert b"library" == inside.read()
    assert {"libx.so.1": b"library", "libx.so.1.2": b"library"} == asked["shelf"]


def test_a_package_without_the_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb, "members", lambda package, wanted: {})

    with pytest.raises(ImageError, match="has no file usr/bin/bpftrace"):
        bpftrace.pack({"bpftrace": Path("x")})


def test_it_is_attached_to_what_bpf_programs_saw_called_at_entry() -> None:
    hooks = [
        Hook("ip_generic_getfrag", hits=10),
        Hook("tcp_rcv_established"),  # never called
        Hook("udp_recvmsg>_copy_to_iter", hits=10),  # a call, not an entry
        Hook("virtio_net:start_xmit", hits=10),  # of another link
        Hook("__netif_rx", error=-2, hits=10),
    ]

    assert ("ip_generic_getfrag",) == bench_trace.attachable(hooks)


def test_the_ratio_is_of_what_an_event_costs() -> None:
    kinds = {"bpf": {"cost_per_event_us": 5.0}, "bpftrace": {"cost_per_event_us": 12.5}}

    assert 2.5 == bench_trace.ratio_to_bpftrace(kinds)
    assert 0.0 == bench_trace.ratio_to_bpftrace({"bpf": {"cost_per_event_us": 5.0}})
