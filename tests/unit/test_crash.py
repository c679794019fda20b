"""The machine side of lab.try that needs no guest: building, comparing, weighing, the corpus."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import attempt, paths, snapshot
from lab.crash import Trial, compare, corpus, module, watch
from lab.errors import PlaybookError, ProbeBuildFailed
from lab.journal import Journal
from lab.postmortem import VERDICTS, log

TOP = Path(__file__).parents[2]
CORPUS = TOP / "kmod" / "crash"


# -- building ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Stands in for a kernel's headers: its Makefile makes what the test needs."""

    release: str
    headers: Path
    kernel_sha256: str = ""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("needs gcc and make")
    headers = tmp_path / "headers"
    headers.mkdir()
    rule = (
        "modules:\n"
        "\t@for c in $(M)/*.c; do $(CC) -g -c $(KCFLAGS) -o $${c%.c}.ko $$c || exit 2; done\n"
    )
    (headers / "Makefile").write_text(rule)
    return Target("1.2.3", headers)


def source(folder: Path, name: str, text: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.c"
    info = f'__attribute__((section(".modinfo"))) char n[] = "name={name}";\n'
    path.write_text(info + (text or "int init_module(void) { return 1; }\n"))
    return path


def test_a_c_file_becomes_a_module_with_and_without_debug(target: Target, tmp_path: Path) -> None:
    path = source(tmp_path / "it", "thing", "int f(void) { return 1; }\n")
    made = module.prepare(path, target, journal=Journal())

    assert "thing" == made.name
    assert made.ko.stat().st_size < made.debug.stat().st_size
    assert made.sources is not None
    assert (made.sources / "thing.c").read_bytes() == path.read_bytes()
    assert "<f+0x0>" in made.disassembly


def test_the_same_source_is_built_once_and_another_anew(target: Target, tmp_path: Path) -> None:
    path = source(tmp_path / "it", "thing")
    first = module.prepare(path, target, journal=Journal())
    again = module.prepare(path, target, journal=Journal())
    path.write_text(path.read_text() + "int more;\n")
    other = module.prepare(path, target, journal=Journal())

    assert first.ko == again.ko
    assert first.ko != other.ko


def test_compiler_errors_come_as_they_are(target: Target, tmp_path: Path) -> None:
    path = source(tmp_path / "it", "thing", "int f(void) { return nothing; }\n")
    with pytest.raises(ProbeBuildFailed) as caught:
        module.prepare(path, target, journal=Journal())

    assert "thing.c:2:22: error: 'nothing' undeclared" in str(caught.value.log)
    assert str(tmp_path) not in str(caught.value.log).split("error:")[0]
    left = list((paths.cache() / "crash").iterdir())
    assert not left, "a failed build leaves nothing behind"


def test_a_folder_with_several_modules_wants_a_name(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    source(folder, "one")
    source(folder, "two")
    (folder / "Makefile").write_text("obj-m := one.o two.o\n")

    with pytest.raises(PlaybookError, match="2 modules: one, two"):
        module.prepare(folder, target, journal=Journal())
    assert "two" == module.prepare(folder, target, journal=Journal(), name="two").name
    with pytest.raises(PlaybookError, match="no module 'three'"):
        module.prepare(folder, target, journal=Journal(), name="three")


@pytest.mark.parametrize("name", ["x.txt", "none.c", "folder", "broken.ko", "a b.c"])
def test_what_is_no_module_is_refused(target: Target, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "it"
    (folder / "folder").mkdir(parents=True)
    (folder / "x.txt").write_text("")
    (folder / "broken.ko").write_bytes(b"\x7fELF, or so it says")
    (folder / "a b.c").write_text("")

    with pytest.raises(PlaybookError, match="no such file" if name == "none.c" else None):
        module.prepare(folder / name, target, journal=Journal())


@pytest.mark.parametrize(
    ("name", "said"), [("null_wirte.c", "no such file (did you mean 'null_write.c'?)"),
                       ("notes.txt", "is no module")],
)  # fmt: skip
def test_what_is_no_module_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    (tmp_path / "null_write.c").write_text("")
    (tmp_path / "notes.txt").write_text("")
    bench: Any = None  # it is not asked for anything

    with pytest.raises(PlaybookError, match=re.escape(said)) as refused:
        attempt.run(bench, tmp_path / name, Trial(), journal=Journal(), command="")
    assert 2 == refused.value.exit_code
    assert not (tmp_path / "runs").exists()


def test_a_built_module_is_taken_as_it_is(target: Target, tmp_path: Path) -> None:
    path = source(tmp_path / "it", "thing")
    ko = tmp_path / "given.ko"
    subprocess.run(["gcc", "-c", "-o", str(ko), str(path)], check=True)

    made = module.prepare(ko, target, journal=Journal())
    assert ("thing", ko) == (made.name, made.ko)
    assert "<init_module+0x0>" in made.disassembly


def test_a_save_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.c"
    path.write_text("int a;\n")
    before = attempt._stamp(path)
    assert before == attempt._stamp(path)
    path.write_text("int ab;\n")
    assert before != attempt._stamp(path)
    path.unlink()
    assert attempt._stamp(path) is None  # between an editor's two steps


# -- comparing -------------------------------------------------------------------------------


def test_runs_of_difference_join_over_small_gaps() -> None:
    assert [] == compare.runs(b"same", b"same")
    assert [(1, 4)] == compare.runs(b"abcdefghij", b"aXcXefghij")
    assert [(1, 2), (9, 10)] == compare.runs(b"abcdefghij", b"aXcdefghiX")


NOP5 = "0f1f440000"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (NOP5, "e811223344", "ftrace, static key or static call"),
        ("e811223344", NOP5, "ftrace, static key or static call"),
        (NOP5, "e911223344", "ftrace, static key or static call"),
        ("6690", "eb10", "ftrace, static key or static call"),
        ("55", "cc", "probe"),
        ("554889e541", "e911223344", "probe"),
        ("554889e541", "554889e551", None),
        ("554889e54157", "0b0b0b0b0b0b", None),
        ("4889e5", "4889f5", None),
    ],
)
def test_what_the_kernel_patches_itself_is_told_from_what_is_written_over(
    old: str, new: str, kind: str | None
) -> None:
    pad = bytes.fromhex("31c031c031c0")
    before, after = pad + bytes.fromhex(old) + pad, pad + bytes.fromhex(new) + pad
    ((first, last),) = compare.runs(before, after, gap=8)

    assert kind == compare.patched(before, after, first, last)


def test_a_snapshots_ram_is_read_at_physical_addresses(tmp_path: Path) -> None:
    page = 4096
    path = tmp_path / "ram"
    path.write_bytes(b"A" * page + b"B" * page + b"C" * page)
    frozen = snapshot.Frozen(
        ram_size=10 * page, runs=((page, 2 * page), (7 * page, page)), ram_sha256="",
        state_sha256="", nonce="", hostkey="", release="",
    )  # fmt: skip
    with compare.Packed(path, frozen) as packed:
        assert b"\0\0AA" == packed.read(page - 2, 4)
        assert b"AABB" == packed.read(2 * page - 2, 4)
        assert b"BB\0\0" == packed.read(3 * page - 2, 4)
        assert b"\0CC" == packed.read(7 * page - 1, 3)
        assert bytes(8) == packed.read(5 * page, 8)
        assert [page, 2 * page, 7 * page] == [at for at, _ in packed.pages()]


# -- weighing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ran", "share", "believed"),
    [(3.0, 1.0, True), (0.0, 1.0, True), (0.4, 0.1, False), (0.9, 0.45, False), (1.2, 0.3, True)],
)
def test_a_starved_guest_is_not_believed(*, ran: float, share: float, believed: bool) -> None:
    """Idle counts as fed: a guest that asked for no CPU was denied none."""
    assert believed is watch.weigh(ran, share)


@pytest.mark.parametrize(
    ("line", "fatal"),
    [
        ("BUG: kernel NULL pointer dereference, address: 0", True),
        ("Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI", True),
        ("x invoked oom-killer: gfp_mask=0x0", True),
        ("general protection fault, probably for non-canonical address", True),
        ("stack segment: 0000 [#1] SMP", True),
        ("Kernel panic - not syncing: x", False),  # QEMU tells of one that is
        ("mine: Oops injection is armed", False),
        ("traps: prog[12] general protection fault ip:401 sp:7ff error:0", False),
        ("mine: never saw a general protection fault", False),
        ("Out of memory is what we hope for", False),
        ("WARNING: CPU: 0 PID: 1 at a.c:1", False),
        ("---[ end trace 0000000000000000 ]---", False),
        ("BUG: scheduling while atomic: x/1/0x2", False),
        ("BUG: KFENCE: use-after-free read in f", False),
        ("clean: nothing to see", False),
    ],
)
def test_watching_goes_on_after_what_the_kernel_survives(*, line: str, fatal: bool) -> None:
    assert fatal is (watch.FATAL.search(line) is not None)
    # What ends the watch has to be a verdict afterwards.
    assert not fatal or log.complaints(log.read(f"<4>[    1.000000] {line}\n"))


@pytest.mark.parametrize(
    ("line", "lockup"),
    [
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 2s! [x:1]", True),
        ("INFO: task x:1 blocked for more than 2 seconds.", True),
        ("rcu: INFO: rcu_preempt self-detected stall on CPU", True),
        ("mine: no soft lockup was seen", False),
        ("mine: nobody blocked for more than 2 seconds", False),
    ],
)
def test_a_lockup_is_said_by_the_kernel(*, line: str, lockup: bool) -> None:
    assert lockup is (watch.LOCKUP.search(line) is not None)


# -- the corpus ----------------------------------------------------------------------------------

ENTRIES = corpus.load(CORPUS)


def test_every_file_of_the_corpus_is_in_it_and_the_other_way_round() -> None:
    used = {entry.path for entry in ENTRIES}
    assert {*CORPUS.glob("*.c"), CORPUS / "unresolved"} == used


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_states_a_verdict_for_both_kernels(entry: corpus.Entry) -> None:
    assert {"6.12", "6.1"} == entry.verdict.keys()
    assert set(entry.verdict.values()) <= set(VERDICTS)
    assert len(set(entry.verdict.values())) == 1 or entry.why, "a difference is explained"


def test_loaded_in_spite_of_a_fault_is_explained() -> None:
    for entry in ENTRIES:
        if "loaded" in entry.verdict.values():
            assert entry.why, entry.name


def test_only_the_final_form_of_the_worksheet_works() -> None:
    """Bug 2 loads as well, and sees nothing: that is the bug."""
    loaded = {
        entry.name
        for entry in ENTRIES
        if entry.name.startswith("worksheet") and entry.verdict["6.12"] == "loaded"
    }
    assert {"worksheet_final", "worksheet_bug2"} == loaded


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.c")), ids=lambda path: path.name)
def test_every_module_asks_where_it_is_before_it_does_harm(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^(CRASH_ON_LOAD|LOAD_AND_UNLOAD|HOOK_COPY_TO_ITER)\(", text, re.MULTILINE)


def test_both_ways_in_refuse_outside_a_guest() -> None:
    for name in ("guest_only.h", "hook.h"):
        text = (CORPUS / name).read_text(encoding="utf-8")
        assert "if (!guest_only())" in text
        assert "return -EPERM;" in text


def test_an_unknown_field_of_the_corpus_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.yaml").write_text(
        "schema: 1\nmodules:\n- {name: x, verdikt: {}, verdict: {'6.12': oops}}\n"
    )
    with pytest.raises(PlaybookError, match="verdikt"):
        corpus.load(tmp_path)


def test_the_host_is_never_told_to_load_anything() -> None:
    """Programs of the host are started in few places; none of them is insmod or modprobe."""
    for path in (TOP / "lab").rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "insmod" in line or "modprobe" in line:
                assert "subprocess" not in line
                assert "process." not in line, f"{path.name}:{number}"
