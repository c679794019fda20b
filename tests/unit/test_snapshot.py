"""Snapshots: what comes back is what went in, and a flipped bit is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lab import snapshot
from lab.errors import NoSpace, SnapshotError
from lab.snapshot import Frozen

SIZE = 1 << 20


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    path = tmp_path / "guest.ram"
    with path.open("wb") as out:
        out.truncate(SIZE)
        for at, data in ((0, b"first"), (8192, bytes(4096)), (12288, b"third"), (SIZE - 1, b"!")):
            out.seek(at)
            out.write(data)
    return path


def frozen(ram: Path, packed: Path) -> Frozen:
    runs, digest = snapshot.pack(ram, packed)
    return Frozen(
        ram_size=SIZE,
        runs=runs,
        ram_sha256=digest,
        state_sha256="",
        nonce="n",
        hostkey="h",
        release="r",
    )


def test_what_is_packed_comes_back(tmp_path: Path, ram: Path) -> None:
    packed, back = tmp_path / "packed", tmp_path / "back"
    facts = frozen(ram, packed)
    back.touch()
    snapshot.unpack(packed, back, facts)
    assert ram.read_bytes() == back.read_bytes()


def test_zero_pages_are_left_out(tmp_path: Path, ram: Path) -> None:
    facts = frozen(ram, tmp_path / "packed")
    assert ((0, 4096), (12288, 4096), (SIZE - 4096, 4096)) == facts.runs
    assert 3 * 4096 == (tmp_path / "packed").stat().st_size


def test_a_flipped_bit_in_ram_is_noticed(tmp_path: Path, ram: Path) -> None:
    packed, back = tmp_path / "packed", tmp_path / "back"
    facts = frozen(ram, packed)
    data = bytearray(packed.read_bytes())
    data[5000] ^= 1
    packed.write_bytes(data)
    back.touch()
    with pytest.raises(SnapshotError, match="corrupt"):
        snapshot.unpack(packed, back, facts)


def test_a_truncated_ram_file_is_noticed(tmp_path: Path, ram: Path) -> None:
    packed, back = tmp_path / "packed", tmp_path / "back"
    facts = frozen(ram, packed)
    os.truncate(packed, 5000)
    back.touch()
    with pytest.raises(SnapshotError, match="truncated"):
        snapshot.unpack(packed, back, facts)


def test_a_flipped_bit_in_the_device_state_is_noticed(tmp_path: Path, ram: Path) -> None:
    facts = frozen(ram, tmp_path / "packed")
    state = tmp_path / "state"
    state.write_bytes(b"anything else")
    with pytest.raises(SnapshotError, match="corrupt"):
        snapshot.verify_state(state, facts)
    state.unlink()
    with pytest.raises(SnapshotError, match="missing"):
        snapshot.verify_state(state, facts)


def test_stored_and_loaded(tmp_path: Path, ram: Path) -> None:
    part = snapshot.begin("one")
    facts = frozen(ram, part / "sender.ram")
    snapshot.commit(part, "one", {"sender": facts})
    loaded = snapshot.load("one")
    assert loaded is not None
    assert facts == loaded.guests["sender"]
    assert loaded.file("sender", "ram").exists()
    snapshot.discard("one")
    assert snapshot.load("one") is None


def test_half_a_snapshot_is_none(tmp_path: Path) -> None:
    snapshot.begin("half")
    assert snapshot.load("half") is None


def test_garbled_meta_is_an_error(tmp_path: Path, ram: Path) -> None:
    part = snapshot.begin("bad")
    snapshot.commit(part, "bad", {"sender": frozen(ram, part / "sender.ram")})
    meta = snapshot.folder() / "bad" / "meta.json"
    for text in ("{", "[]", json.dumps({"guests": {"sender": {"runs": []}}})):
        meta.write_text(text)
        with pytest.raises(SnapshotError, match="garbled"):
            snapshot.load("bad")


def test_the_oldest_go_first(tmp_path: Path, ram: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        part = snapshot.begin(name)
        snapshot.commit(part, name, {"sender": frozen(ram, part / "sender.ram")})
        meta = snapshot.folder() / name / "meta.json"
        os.utime(meta, (1000 - age, 1000 - age))
    one = sum(path.stat().st_blocks * 512 for path in (snapshot.folder() / "new").iterdir())
    assert ["old"] == snapshot.evict(keep={"new"}, budget=2 * one)
    assert [] == snapshot.evict(keep={"new", "middle"}, budget=0), "a lab that is up needs it"
    assert ["middle"] == snapshot.evict(keep={"new"}, budget=0)
    assert (snapshot.folder() / "new").is_dir()


def test_a_new_snapshot_evicts_none_that_is_in_use(
    ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evict = snapshot.evict
    monkeypatch.setattr(snapshot, "evict", lambda *, keep: evict(keep=keep, budget=0))
    for age, name in enumerate(("used", "idle", "new")):
        part = snapshot.begin(name)
        facts = {"sender": frozen(ram, part / "sender.ram")}
        snapshot.commit(part, name, facts, used={"used", "idle"} if age < 2 else {"used"})

    left = {path.name for path in snapshot.folder().iterdir()}
    assert left == {"used", "new"}


def test_too_little_space_is_said_before_it_hurts(tmp_path: Path) -> None:
    snapshot.require_space(tmp_path, 1, what="a test", hint="more")
    with pytest.raises(NoSpace, match="a test needs"):
        snapshot.require_space(tmp_path, 1 << 62, what="a test", hint="more")


def test_the_key_depends_on_every_fact() -> None:
    assert snapshot.key({"a": 1}) == snapshot.key({"a": 1})
    assert snapshot.key({"a": 1}) != snapshot.key({"a": 2})


def test_a_page_moved_in_the_meta_data_is_noticed(tmp_path: Path, ram: Path) -> None:
    """The RAM's digest says what the pages hold; where they go is in meta.json."""
    part = snapshot.begin("moved")
    snapshot.commit(part, "moved", {"sender": frozen(ram, part / "sender.ram")})
    meta = snapshot.folder() / "moved" / "meta.json"
    text = meta.read_text()
    meta.write_text(text.replace("12288", "16384"))
    assert text != meta.read_text()
    with pytest.raises(SnapshotError, match="corrupt"):
        snapshot.load("moved")
