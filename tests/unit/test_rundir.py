"""Run directories: made without collisions, written whole, read with suspicion."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import rundir, spec
from lab.errors import HostError, Interrupted, PlaybookError, TraceCorrupt
from lab.experiment import message
from lab.journal import Journal
from lab.report import listing
from lab.rundir import RunDir, making, prune
from lab.rundir import fields as checked
from lab.rundir.faults import digests, file_faults
from lab.rundir.fields import Json
from tests.unit import cooked


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    first = rundir.create(tmp_path, "NIC copies", "0123456789abcdef")
    second = rundir.create(tmp_path, "NIC copies", "0123456789abcdef")

    assert first.path != second.path
    assert "-nic-copies-01234567" in first.name
    assert (tmp_path / "last").resolve() == second.path.resolve()
    assert {"sender", "receiver"} == {entry.name for entry in second.path.iterdir()}


@pytest.mark.parametrize("name", ["file", "file/below", "loop", "n" * 300, "/proc/none/x"])
def test_a_folder_that_can_hold_no_run_is_the_hosts_fault(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(HostError, match="cannot be the folder of runs: ") as wrong:
        rundir.create(tmp_path / name, "nic", "a")
    assert "LAB_RUNS=/another/folder" == wrong.value.hint


def test_a_folder_that_may_be_made_is_not_made_before_there_is_a_run(tmp_path: Path) -> None:
    rundir.usable(tmp_path / "some" / "runs")
    assert not (tmp_path / "some").exists()


@pytest.mark.parametrize("call", ["access", "mkdir"])
def test_a_folder_that_may_not_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """To root every folder is writable, so the answer is a stand-in's."""

    def refuses(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "access":
        monkeypatch.setattr(os, "access", lambda *_: False)
    else:
        monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(HostError, match=r"not writable|No space left") as wrong:
        rundir.create(tmp_path, "nic", "a")
    assert wrong.value.hint is not None


def test_a_run_is_called_by_what_resolves_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    base = tmp_path / "runs"
    here = rundir.create(base, "nic", "a", guests=())
    there = rundir.create(tmp_path / "else where", "nic", "b", guests=())
    for run in (here, there):
        run.write_manifest({"schema": 1})

    assert here.name == rundir.called(here)
    for run in (here, there):
        (word,) = shlex.split(rundir.called(run))
        assert run.path.resolve() == rundir.resolve(word, base).path


def test_what_to_try_names_a_run_that_lies_elsewhere_so_that_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    run = cooked.nic(tmp_path / "elsewhere", without=("_copy_to_iter",)).serve()

    hint = message.analyse(run, spec.Expect(), journal=Journal()).hint

    assert hint == f"invoke lab.lines {run.path}"
    assert rundir.resolve(hint.split()[-1]).path == run.path.resolve()


def test_last_a_name_and_a_path_all_resolve(tmp_path: Path) -> None:
    run = rundir.create(tmp_path, "nic", "0" * 16)
    run.write_manifest({})

    assert run.path.resolve() == rundir.resolve("last", tmp_path).path
    assert run.path.resolve() == rundir.resolve(run.name, tmp_path).path
    assert run.path.resolve() == rundir.resolve(run.path, tmp_path / "elsewhere").path


@pytest.mark.parametrize("text", ["last", "no-such-run", "."])
def test_what_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PlaybookError, match="expected a run directory"):
        rundir.resolve(text, tmp_path)


@pytest.mark.parametrize(
    ("index", "kind"),
    [("index.json", "a sweep"), ("experiments.json", "the runs of lab.claims")],
)
def test_a_folder_of_runs_is_none_and_one_of_its_runs_is(
    tmp_path: Path, index: str, kind: str
) -> None:
    folder = rundir.create(tmp_path, "sizes", "0" * 16, guests=(), last=False).path
    (folder / index).write_text("{}", encoding="utf-8")
    with pytest.raises(PlaybookError, match=f"is {kind}, a folder of 0 runs"):
        rundir.resolve(folder.name, tmp_path)
    run = rundir.create(folder, "sizes", "1" * 16, last=False)
    run.write_manifest({})

    with pytest.raises(PlaybookError, match=f"'{folder.name}' is {kind}, a folder of 1 runs") as no:
        rundir.resolve(folder.name, tmp_path)

    assert "did you mean" not in str(no.value)
    assert no.value.hint is not None
    assert run.path.resolve() == rundir.resolve(no.value.hint, tmp_path).path


def test_a_run_that_is_being_made_is_read_once_it_is(tmp_path: Path) -> None:
    run = rundir.create(tmp_path, "nic", "0" * 16)
    with making.being_made(run.path):
        for _ in ("before it has a manifest", "and then"):
            with pytest.raises(PlaybookError, match="'last' is still being made: "):
                rundir.resolve("last", tmp_path)
            run.write_manifest({"kernel": "6.12"})
        assert (row := listing.row(run.path)) is not None
        assert (None, "being made") == (row.complete, row.verdict)
        assert () == prune.prune(tmp_path, keep=0).paths

    assert run.path.resolve() == rundir.resolve("last", tmp_path).path
    assert not making.is_being_made(tmp_path / "gone")


def test_a_maker_that_dies_makes_no_run_any_more(tmp_path: Path) -> None:
    text = (
        "import sys; from pathlib import Path; from lab.rundir import making\n"
        "with making.being_made(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", text, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert b"held\n" == maker.stdout.readline()
        assert making.is_being_made(tmp_path)
        maker.kill()

    assert not making.is_being_made(tmp_path)


@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
def test_who_interrupts_is_told_where_the_run_lies(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    with pytest.raises(kind) as ended, making.being_made(tmp_path, called="sweep"):
        raise kind

    assert [f"sweep, as far as it came: {tmp_path}"] == ended.value.__notes__
    assert not making.is_being_made(tmp_path)


def test_a_name_that_is_nearly_one_is_guessed(tmp_path: Path) -> None:
    run = rundir.create(tmp_path, "nic", "0" * 16)
    run.write_manifest({})
    near = run.name[:-1] + "7"

    with pytest.raises(PlaybookError, match=f"did you mean '{run.name}'") as refused:
        rundir.resolve(f"runs/{near}", tmp_path)
    assert 2 == refused.value.exit_code


def test_json_is_the_same_text_for_the_same_value(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    one = run.write_json("x.json", {"b": 1, "a": [1, 2]}).read_bytes()
    two = run.write_json("x.json", {"a": [1, 2], "b": 1}).read_bytes()

    assert one == two
    assert ["x.json"] == [entry.name for entry in run.path.iterdir()]


def test_a_cooked_run_reads_back(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    manifest = run.manifest()
    guest = run.guest("sender")

    assert ("link", 16, cooked.SEED) == (manifest.over, manifest.size, manifest.seed)
    assert "heap" == guest.workloads()[0].ready.buffer.region
    assert {"rx", "tx"} == {queue.kind for queue in guest.rings().queues}
    assert 2 == len(guest.census().gates)
    assert 3 == len(guest.tsc())


def test_a_payload_is_unmasked(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, payload=b"HELLO_SEND_TRACE").serve()

    assert b"HELLO" not in run.read_bytes("manifest.json")
    assert b"HELLO_SEND_TRACE" == run.manifest().payload


def test_extents_follow_the_pages_and_say_where_none_is_known() -> None:
    buffer = rundir.UserBuffer(
        virtual=0x1F00,
        size=0x3000,
        region="heap",
        mapping="",
        pages=((0x1000, 0x9000), (0x2000, 0xA000), (0x3000, 0x5000)),
    )

    assert [(0x1F00, 0x9F00, 0x1100), (0x3000, 0x5000, 0x1000), (0x4000, None, 0x100)] == (
        buffer.extents(0x1F00, 0x2200)
    )


def _manifest(run: RunDir) -> object:
    return run.manifest()


def _workloads(run: RunDir) -> object:
    return run.guest("sender").workloads()


def _census(run: RunDir) -> object:
    return run.guest("sender").census()


def _rings(run: RunDir) -> object:
    return run.guest("sender").rings()


def _tsc(run: RunDir) -> object:
    return run.guest("sender").tsc()


FILES: list[tuple[str, Callable[[RunDir], object]]] = [
    ("manifest.json", _manifest),
    ("sender/workload.json", _workloads),
    ("sender/census.json", _census),
    ("sender/rings.json", _rings),
    ("sender/tsc.json", _tsc),
]


@pytest.mark.parametrize(("name", "read"), FILES)
@pytest.mark.parametrize("content", [None, b"", b"{", b"[" * 100_000, b"7", b"\xff\xfe", b"null"])
def test_a_garbled_file_is_named(
    tmp_path: Path, name: str, read: Callable[[RunDir], object], content: bytes | None
) -> None:
    run = cooked.nic(tmp_path).serve()
    path = run.file(name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)

    with pytest.raises(TraceCorrupt, match=name):
        read(run)


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(top: Any) -> None:
        for step in path[:-1]:
            top = top[step]
        top[path[-1]] = value

    return change


FAULTS: list[tuple[str, Callable[[RunDir], object], Callable[[Any], None], str]] = [
    ("manifest.json", _manifest, _set("size", value=-1), "size: expected a size"),
    ("manifest.json", _manifest, _set("size", value=True), "size: expected an integer"),
    ("manifest.json", _manifest, _set("seed", value="xyz"), "seed: expected a seed"),
    ("manifest.json", _manifest, _set("guests", value=["../etc"]), "names of guests"),
    ("manifest.json", _manifest, _set("guests", value=[1]), "guests: expected text"),
    ("manifest.json", _manifest, _set("link", value=[]), "link: expected an object"),
    ("manifest.json", _manifest, _set("payload_masked", value="zz"), "hexadecimal digits"),
    (
        "sender/workload.json",
        _workloads,
        _set(0, "ready", "buffer", "virtual", value=7),
        r"\[0\].ready.buffer.virtual: expected an address",
    ),
    (
        "sender/workload.json",
        _workloads,
        _set(0, "ready", "buffer", "pages", value={}),
        "pages: expected a list",
    ),
    (
        "sender/census.json",
        _census,
        _set("gates", 0, "hits", 0, "physical", value="0xzz"),
        r"gates\[0\].hits\[0\].physical: expected an address",
    ),
    (
        "sender/rings.json",
        _rings,
        _set("queues", 0, "gates", "armed", "descriptors", 3, value=[1, 2]),
        r"descriptors\[3\]: expected 5 integers",
    ),
    ("sender/rings.json", _rings, _set("queues", 0, "queue", value="up"), "expected rx or tx"),
    (
        "sender/rings.json",
        _rings,
        _set("queues", 0, "gates", "armed", "given", value=[0, -1]),
        r"given\[1\]: expected a size",
    ),
    ("sender/tsc.json", _tsc, _set("samples", 0, "after_ns", value=1), "expected after_ns"),
    ("sender/tsc.json", _tsc, _set("samples", 0, "tsc", value=1 << 65), "64 bits"),
]


@pytest.mark.parametrize(("name", "read", "how", "text"), FAULTS)
def test_a_wrong_field_is_named(
    tmp_path: Path,
    name: str,
    read: Callable[[RunDir], object],
    how: Callable[[Any], None],
    text: str,
) -> None:
    run = cooked.nic(tmp_path).serve()
    cooked.edit(run, name, how)

    with pytest.raises(TraceCorrupt, match=text):
        read(run)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps("x" * 100))

    with pytest.raises(TraceCorrupt, match="at most 50 bytes"):
        checked.read_json(path, most=50)


def test_a_text_that_ends_too_early_replaces_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run = RunDir(folder)
    run.write_text("ledger.json", "old")

    def pieces() -> Iterator[str]:
        yield "new"
        raise HostError("no more")

    with pytest.raises(HostError):
        run.write_pieces("ledger.json", pieces())
    assert b"old" == run.read_bytes("ledger.json")
    assert ["ledger.json"] == [path.name for path in folder.iterdir()]

    run.write_pieces("ledger.json", ["ne", "w ", "ü"])
    assert "new ü" == run.read_bytes("ledger.json").decode()


def test_a_folder_that_is_gone_is_a_fault_of_each_of_its_files(tmp_path: Path) -> None:
    values: dict[str, Json] = {"files": {"receiver/argv": "0"}}

    found = list(file_faults(values, {"receiver": tmp_path / "receiver"}))

    assert [("receiver", "receiver/argv is gone since the run")] == found


def test_a_run_of_one_guest_that_names_two_is_no_evidence(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()

    with pytest.raises(TraceCorrupt, match="expected one guest, found 2"):
        run.only_guest()


@pytest.mark.parametrize(
    ("outcome", "listed", "interrupted"),
    [("Interrupted", False, True), ("KeyboardInterrupt", False, True),
     ("DeadlineExceeded", False, False), ("Interrupted", True, False)],
)  # fmt: skip
def test_a_run_that_somebody_ended_is_told_from_others(
    tmp_path: Path, outcome: str, *, listed: bool, interrupted: bool
) -> None:
    run = rundir.create(tmp_path, "nic", "0" * 16)
    run.write_manifest({"files": {}} if listed else {})
    assert not run.interrupted()
    run.write_text("journal.jsonl", json.dumps({"step": "gate", "outcome": outcome}) + "\n")
    assert interrupted == run.interrupted()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("protocol", "x"),
        ("over", ""),
        ("family", "ipx"),
        ("playbook", ""),
        ("link", {"device": ""}),
    ],
)
def test_a_manifest_s_word_is_one_there_is(name: str, value: Any, tmp_path: Path) -> None:
    run = cooked.nic(tmp_path / "run").serve()
    path = run.path / "manifest.json"
    manifest = json.loads(path.read_text())
    changed = {**manifest[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps({**manifest, name: changed}))

    with pytest.raises(TraceCorrupt, match=name if name != "link" else "device"):
        run.manifest()


@pytest.mark.parametrize("name", ["message", "offset", "size"])
def test_a_place_that_a_census_found_says_what_lies_there(name: str, tmp_path: Path) -> None:
    run = cooked.nic(tmp_path / "run").serve()
    path = run.guest("receiver").path / "census.json"
    census = json.loads(path.read_text())
    del census["gates"][0]["hits"][0][name]
    path.write_text(json.dumps(census))

    with pytest.raises(TraceCorrupt, match=name):
        run.guest("receiver").census()


def test_a_link_to_a_folder_is_no_file_of_the_run(tmp_path: Path) -> None:
    """Whoever put it there could have what lies behind it read for the run's own."""
    folder = tmp_path / "sender"
    folder.mkdir()
    (folder / "own").write_text("own")
    files: dict[str, Json] = {"files": {**digests(tmp_path, ["sender"])}}
    assert [] == list(file_faults(files, {"sender": folder}))

    (folder / "elsewhere").symlink_to(tmp_path)

    assert [("sender", "sender/elsewhere is not among the files of the run")] == list(
        file_faults(files, {"sender": folder})
    )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("message", True, "64 bits"),
        ("offset", 1.0, "64 bits"),
        ("size", -1, "a size"),
        ("size", 1 << 64, "64 bits"),
        ("physical", 4096, "an address"),
        ("physical", "4096", "an address"),
        ("physical", f"0x1{'0' * 16}", "an address"),
        ("page", None, "expected text"),
    ],
)
def test_of_many_hits_the_wrong_one_is_named(
    name: str, value: object, text: str, tmp_path: Path
) -> None:
    run = cooked.nic(tmp_path / "run").serve()
    cooked.edit(run, "receiver/census.json", _set("gates", 0, "hits", 1, name, value=value))

    with pytest.raises(TraceCorrupt, match=rf"gates\[0\].hits\[1\].{name}: .*{text}"):
        run.guest("receiver").census()


def test_a_buffer_of_any_size_is_looked_into() -> None:
    """Pages that nobody knows are one run, however many a file says there are."""
    pages = ((0x3000, 0x9000), (0x4000, 0xA000), (1 << 50, 0xB000))
    buffer = rundir.UserBuffer(virtual=0x1000, size=1 << 62, region="", mapping="", pages=pages)

    assert [
        (0x1800, None, 0x1800),
        (0x3000, 0x9000, 0x2000),
        (0x5000, None, (1 << 50) - 0x5000),
        (1 << 50, 0xB000, 0x1000),
        ((1 << 50) + 0x1000, None, (1 << 62) - (1 << 50) - 0x1000 - 0x7FF),
    ] == buffer.extents(0x1800, (1 << 62) - 0x1800 - 0x7FF)
