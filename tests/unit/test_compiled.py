"""The walk compiled: it writes what Python writes, and what does not fit is not taken."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import build, compiled, fnv, ledger
from lab.commands import Console, measure
from lab.errors import HostError, ToolMissing
from lab.journal import Journal
from lab.report import page
from tests.unit import cooked
from tests.unit.cooked import Cook
from tests.unit.cooked_dma import behind_iommu, bounced

# In a process of its own: which walk a process has is settled when it begins.
CHILD = """\
import sys
import sysconfig
from pathlib import Path
from lab import compiled
compiled.use()
from lab import fnv, ledger
from lab.rundir import RunDir
print("compiled" if fnv.COMPILED else "python")
for folder in sys.argv[1:]:
    print(ledger.build(RunDir(Path(folder))).to_json())
"""


def filled_in(path: Path) -> Cook:
    """Let the host fill in a checksum that the sender left to its device."""
    cook = cooked.nic(path, size=1000)
    frame = bytearray(cook.receiver.frames[1])
    frame[40:42] = b"\x12\x34"
    cook.receiver.frames[1] = bytes(frame)
    cooked.change(cook.receiver, "virtio_net:receive_buf", bytes=(bytes(12) + frame)[:64])
    return cook


def sent_twice(path: Path) -> Cook:
    """Lie: the message's bytes leave user memory once more, and one is another."""
    cook = cooked.nic(path)
    again = dict(next(e for e in cook.sender.events if e["hook"].endswith("_iter_full")))
    again |= {"tsc": cook.sender.tick(), "dst": 0x5000000, "dst_phys": 0x5000000}
    cook.sender.events.append(again)
    cooked.change(cook.receiver, "_copy_to_iter", bytes=b"another message!")
    return cook


# Whole, and with copies, devices and messages that nobody saw; and with lies.
COOKED: tuple[Callable[[Path], Cook], ...] = (
    cooked.nic,
    cooked.loopback,
    cooked.tcp,
    partial(cooked.nic, size=9000, count=3),
    partial(cooked.nic, count=5, slots=2, family="ipv6", device="e1000e"),
    partial(cooked.nic, count=3, lost=(1,)),
    partial(cooked.nic, without=("_copy_from_iter",)),
    partial(cooked.loopback, count=40, without=("loopback_xmit",)),
    partial(cooked.tcp, size=4000, count=4, together=True),
    partial(cooked.tcp, payload=b"again and again", count=4),
    partial(cooked.nic, absent=("rings", "wire")),
    partial(cooked.nic, without=("virtio_net:page_to_skb>memcpy",)),
    partial(cooked.tcp, size=1449),
    partial(cooked.tcp, size=3000, dropped=1),
    partial(cooked.tcp, count=5, coalesce=True),
    lambda path: behind_iommu(cooked.nic(path)),
    lambda path: bounced(cooked.nic(path)),
    filled_in,
    sent_twice,
)


def ledgers(folders: list[str], *, child: str = CHILD, **environ: str) -> tuple[str, str]:
    """Return by what ledgers were made, and their text."""
    done = subprocess.run(
        [sys.executable, "-c", child, *folders],
        env={**os.environ, **environ},
        cwd=Path(compiled.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    by, _, text = done.stdout.partition("\n")
    return by, text


def folder_in(path: Path) -> Path:
    folder = path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return what was compiled; it is there when its own tests are run."""
    plugin = sys.modules.get("tests.compiled_walk")
    if plugin is None:
        pytest.skip("not run by `pytest -p tests.compiled_walk`")
    monkeypatch.setenv(compiled.SWITCH, "")
    monkeypatch.setenv("LAB_CACHE", str(plugin.CACHE))
    assert compiled.built()
    return compiled.home()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache."""
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(compiled.SWITCH, "")
    return tmp_path / "cache"


@pytest.mark.parametrize("word", [*compiled.OFF, "NO", "False", " Off "])
def test_the_switch_is_off_by_any_word_for_it(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(compiled, "MODULES", ())  # none of them is imported yet
    monkeypatch.setattr(compiled, "_hold", lambda: pytest.fail("it was looked for"))
    monkeypatch.setenv(compiled.SWITCH, word)
    assert not compiled.use()


@pytest.mark.parametrize("word", ["", "yes", "1", "none"])
def test_the_switch_is_on_by_any_other(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(compiled, "MODULES", ())
    monkeypatch.setattr(compiled, "_hold", lambda: looked.append(True))
    monkeypatch.setenv(compiled.SWITCH, word)
    assert not compiled.use()
    assert looked


def test_both_write_the_same(tmp_path: Path, built: Path) -> None:
    del built
    folders = []
    for number, cook in enumerate(COOKED):
        folder = tmp_path / str(number)
        folder.mkdir()
        folders.append(str(cook(folder).serve().path))

    by, text = ledgers(folders)
    by_python, text_of_python = ledgers(folders, LAB_COMPILED="no")

    assert ("compiled", "python") == (by, by_python)
    assert text == text_of_python
    assert '"complete": false' in text
    assert '"disagreements": []' in text
    assert text.count('"disagreements": []') < len(COOKED)
    assert '"complete": true' in text


def test_nothing_is_compiled_that_nobody_asked_for(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "nic"
    folder.mkdir()
    cooked.nic(folder).serve()

    assert "python" == ledgers([str(folder)])[0]
    assert not (cache / "compiled").exists()


@pytest.fixture
def copied(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of what was compiled, in a cache of its own."""
    cache = tmp_path / "cache"
    shutil.copytree(built, cache / "compiled" / built.name)
    monkeypatch.setenv("LAB_CACHE", str(cache))
    return cache / "compiled" / built.name


def test_what_was_compiled_is_taken(copied: Path) -> None:
    assert copied == compiled.home()
    assert "compiled" == ledgers([])[0]


def test_a_bit_that_flipped_is_noticed(copied: Path) -> None:
    file = copied / f"lab.fnv{compiled.SUFFIX}"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    assert not compiled.built()
    assert "python" == ledgers([])[0]


@pytest.mark.parametrize("changed", ["fnv.py", "record/__init__.py"])
def test_what_was_changed_is_not_what_was_compiled(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Of modules that are not compiled too: constants of theirs are compiled in."""
    top = tmp_path / "lab"
    shutil.copytree(Path(compiled.__file__).parent, top)
    monkeypatch.setattr(compiled, "__file__", str(top / "compiled.py"))
    assert (copied, True) == (compiled.home(), compiled.built())

    with (top / changed).open("a") as file:
        file.write("# changed\n")

    assert copied != compiled.home()
    assert not compiled.built()


@pytest.mark.parametrize("folder", ["", "compiled"])
def test_what_others_may_write_to_is_not_run(copied: Path, folder: str) -> None:
    (copied.parents[1] / folder).chmod(0o777)

    assert not compiled.built()
    assert "python" == ledgers([])[0]


@pytest.fixture
def pretended(cache: Path) -> Path:
    """Return a folder that holds what is taken for the walk, compiled; nothing of it can be run."""
    cache.mkdir(mode=0o700)
    folder = compiled.home()
    folder.parent.mkdir(mode=0o700)
    folder.mkdir(mode=0o755)
    for name in compiled.FILES:
        (folder / name).write_bytes(b"no program")
    build.seal(folder)
    assert compiled.built()
    return folder


@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_is_another_users_is_not_run(
    pretended: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    of_another = [pretended, *pretended.parents][level]
    stat = Path.stat

    def stat_of(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = stat(path, follow_symlinks=follow_symlinks)
        if path != of_another:
            return found
        values = list(found)
        values[4] += 1  # st_uid
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", stat_of)

    assert not compiled.built()


@pytest.mark.parametrize("mode", [0o770, 0o707])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_a_group_or_all_may_write_to_is_not_run(
    pretended: Path, level: int, mode: int
) -> None:
    [pretended, *pretended.parents][level].chmod(mode)

    assert not compiled.built()


def test_a_link_to_what_was_compiled_is_not_followed(pretended: Path, tmp_path: Path) -> None:
    pretended.rename(tmp_path / "elsewhere")
    pretended.symlink_to(tmp_path / "elsewhere")

    assert not compiled.built()


@pytest.mark.parametrize("folder", ["", "compiled"])
def test_nothing_is_compiled_where_it_would_not_be_run(
    pretended: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "run", None)
    (pretended.parents[1] / folder).chmod(0o777)

    with pytest.raises(HostError, match=r"others may write to .* is not run") as refused:
        compiled.compile_all(journal=Journal())
    assert "chmod go-w" in str(refused.value.hint)


def test_what_was_compiled_and_cannot_be_loaded_is_told(pretended: Path) -> None:
    del pretended
    with pytest.raises(HostError, match="what was compiled cannot be loaded: ") as refused:
        compiled.compile_all(journal=Journal())
    assert "LAB_CACHE=" in str(refused.value.hint)


@pytest.fixture
def sources(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return sources of our own to compile; no compiler is called."""
    cache.mkdir(mode=0o700)
    top = tmp_path / "lab"
    shutil.copytree(Path(compiled.__file__).parent, top)
    monkeypatch.setattr(compiled, "__file__", str(top / "compiled.py"))
    monkeypatch.setattr(compiled, "refuse_without_tools", lambda: None)
    monkeypatch.setattr(build, "run", None)
    return top


def test_sources_changed_as_they_are_copied_are_refused(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree = shutil.copytree

    def copied_and_changed(*args: Any, **kwargs: Any) -> Path:
        done: Path = copytree(*args, **kwargs)
        (sources / "fnv.py").write_text("START = 1\n")
        return done

    monkeypatch.setattr(shutil, "copytree", copied_and_changed)

    with pytest.raises(HostError, match="the sources were changed as they were copied"):
        compiled.compile_all(journal=Journal())
    assert [] == list((cache / "compiled").iterdir())


def test_a_disk_that_is_full_is_told(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: object) -> Path:
        why = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: '{source}' -> '{target}'"
        raise shutil.Error([(str(source), str(target), why)] * 200)

    monkeypatch.setattr(shutil, "copytree", full)

    with pytest.raises(HostError, match=r"cannot be copied: .*No space left on device") as refused:
        compiled.compile_all(journal=Journal())
    assert 1 == str(refused.value).count(str(sources))
    assert [] == list((cache / "compiled").iterdir())


def test_what_is_missing_from_the_seal_too_is_missed(pretended: Path) -> None:
    (pretended / f"lab.fnv{compiled.SUFFIX}").unlink()
    (pretended / build.SEAL).unlink()
    build.seal(pretended)

    assert not compiled.built()


def test_what_cannot_be_loaded_is_left_alone(copied: Path, tmp_path: Path) -> None:
    """As on a file system mounted noexec."""
    for name in compiled.SHARED:
        (copied / f"{name}{compiled.SUFFIX}").write_bytes(b"no program")
    (copied / build.SEAL).unlink()
    build.seal(copied)
    run = cooked.nic(folder_in(tmp_path)).serve()

    assert compiled.built()
    assert "python" == ledgers([str(run.path)])[0]


def test_a_damaged_template_is_compiled_anew(tmp_path: Path, cache: Path) -> None:
    run = cooked.nic(folder_in(tmp_path)).serve()
    built = ledger.build(run)
    first = page(built, run)
    kept = sorted((cache / "templates").iterdir())
    assert kept

    for data in (b"", b"x" * 30, None):
        for path in kept:
            whole = bytearray(path.read_bytes())
            whole[len(whole) // 2] ^= 4
            path.write_bytes(bytes(whole) if data is None else data)
        assert first == page(built, run)
        assert kept == sorted((cache / "templates").iterdir())


def test_what_is_gone_before_it_was_loaded_is_not_missed(copied: Path, tmp_path: Path) -> None:
    """As when somebody empties the cache: what was found is taken no more, and Python is."""
    run = cooked.nic(folder_in(tmp_path)).serve()
    gone = "assert compiled.use()\nimport shutil\nshutil.rmtree(compiled.home())\n"
    child = CHILD.replace("compiled.use()\n", gone)

    by, text = ledgers([str(run.path)], child=child)

    assert "python" == by
    assert text == ledgers([str(run.path)], LAB_COMPILED="no")[1]
    assert not copied.exists()


def test_it_is_looked_for_when_it_is_wanted(copied: Path) -> None:
    """What no task asks for costs no start anything."""
    late = "compiled.use_late()\nimport lab.errors\nassert 'lab.build' not in sys.modules\n"
    child = CHILD.replace("compiled.use()\n", late)

    assert "compiled" == ledgers([], child=child)[0]
    assert "python" == ledgers([], child=child, LAB_COMPILED="no")[0]
    shutil.rmtree(copied)
    assert "python" == ledgers([], child=child)[0]


def test_a_build_that_is_used_is_not_removed(copied: Path) -> None:
    """By another process, from before it loads anything of it to its end."""
    waits = "assert compiled.use()\nprint('found', flush=True)\nsys.stdin.readline()\n"
    child = CHILD.replace("compiled.use()\n", waits)
    with subprocess.Popen(
        [sys.executable, "-c", child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(compiled.__file__).parent.parent,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "found\n" == process.stdout.readline()
        assert [] == compiled.evict(keep=0)
        assert compiled.built()
        process.stdin.write("\n")
        process.stdin.close()
        assert "compiled\n" == process.stdout.readline()
    assert [copied.name] == compiled.evict(keep=0)
    assert not copied.exists()


def test_builds_used_longest_ago_go(cache: Path) -> None:
    folders = [cache / "compiled" / str(number) for number in range(compiled.KEPT + 3)]
    for age, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "lab.fnv.so").write_bytes(b"")
        os.utime(folder, (10_000 - age, 10_000 - age))
    unfinished = cache / "compiled" / ".new-abc"
    unfinished.mkdir()
    held = os.open(folders[-1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    try:
        gone = compiled.evict()
    finally:
        os.close(held)

    assert {folder.name for folder in folders[compiled.KEPT : -1]} == set(gone)
    assert {*folders[: compiled.KEPT], folders[-1], unfinished} == {*unfinished.parent.iterdir()}


def test_what_is_being_removed_is_not_taken(copied: Path) -> None:
    held = os.open(copied, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert "python" == ledgers([])[0]
    finally:
        os.close(held)
    os.utime(copied, (1, 1))
    assert "compiled" == ledgers([])[0]
    assert copied.stat().st_mtime > 1  # it is known to be used


def test_what_is_imported_stays_as_it_is(copied: Path) -> None:
    assert "lab.fnv" in sys.modules
    before = list(sys.meta_path)

    assert not compiled.use()
    assert before == sys.meta_path


def test_what_to_compile_with_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    journal = Journal()
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "find_spec", lambda name: None if name == "mypyc" else object())
        with pytest.raises(ToolMissing, match="mypyc is not installed"):
            compiled.compile_all(journal=journal)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: "/nowhere")
    with pytest.raises(ToolMissing, match=r"Python\.h is not installed") as refused:
        compiled.compile_all(journal=journal)
    assert "libpython3-dev" in str(refused.value.hint)


def test_a_bench_says_when_nothing_is_compiled(cache: Path) -> None:
    from lab import bench_report

    del cache
    with pytest.raises(HostError, match="no report was made by compiled code"):
        bench_report.measure((1,), by=bench_report.COMPILED, journal=Journal())
    found = bench_report.measure((1,), by=bench_report.PYTHON, journal=Journal())
    assert found[str(bench_report.EVENTS)]["per_s"] > 0


def test_a_slow_report_says_what_would_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cooked.nic(tmp_path).serve()
    for limit, walk, said in ((60.0, False, False), (0.0, True, False), (0.0, False, True)):
        monkeypatch.setattr(measure, "SLOW_S", limit)
        monkeypatch.setattr(fnv, "COMPILED", walk)
        told = io.StringIO()
        measure.recompute(Console(json=False, journal=Journal(stream=told)), str(run.path))
        assert said is ("invoke lab.compile" in told.getvalue())


def test_a_digest_is_one_of_64_bits() -> None:
    """As guest/message.h has it: test_message.py compares; here what has the highest bit."""
    high = fnv.digest(b"\xff" * 3)
    for _ in range(64):
        high = fnv.digest(b"\xa5\x00\xff", high)
        assert 0 <= high < 1 << 64
    parts = fnv.digest(b"bar", fnv.digest(b"foo"))
    assert parts == fnv.digest(b"foobar") == 0x85944171F73967E8
