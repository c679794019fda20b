"""Each known fault gets the verdict that corpus.yaml states, in a guest that is clean again."""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path

import drgn
import pytest

from lab import attempt, crash, paths, postmortem, snapshot
from lab.bench import DIE_ON_LOAD
from lab.crash import corpus, watch
from lab.deadline import Deadline
from lab.journal import Journal
from tests import own_cache
from tests.conftest import children
from tests.crash.conftest import NAME, SERIES, Try, changed, entry, prebuild

# One of each way to be seen that no other test here has; the whole corpus is --long.
SHORT = (
    "worksheet_bug1", "worksheet_final", "sleep_in_atomic", "rcu_stall", "hung_task", "page_cache",
    "kernel_text", "unresolved", "use_after_free_kfence",
)  # fmt: skip


def faults(found: postmortem.Postmortem, known: corpus.Entry, series: str) -> list[str]:
    return postmortem.matches(found, known.verdict[series], known.at.get(series))


@pytest.mark.parametrize("name", SHORT)
def test_a_known_fault_gets_its_verdict(tried: Try, name: str) -> None:
    result = tried(name)

    assert [] == faults(result.found, entry(name), SERIES), postmortem.render(result.found)


def test_a_verdict_that_is_not_the_right_one_is_noticed(tried: Try) -> None:
    """The comparison itself can fail: what is stated is not what decides."""
    found = tried("clean").found

    assert "loaded" == found.verdict.word
    assert faults(found, entry("null_write"), SERIES)


def test_the_post_mortem_leads_to_the_line_and_the_member(tried: Try) -> None:
    result = tried("null_write")
    page = (result.run.path / "postmortem.txt").read_text()

    assert result.found.at.startswith("null_write.c:20 ")
    assert "thing->count = 7;" == result.found.source
    assert "struct thing.count" == result.found.member
    assert "movl" in (result.found.instruction or "")
    assert "do_one_initcall" in page
    assert str(Path.cwd()) not in page


def test_the_log_is_recovered_though_the_console_saw_nothing(tried: Try) -> None:
    """After a hard lockup only RAM has the kernel's last words."""
    result = tried("hard_lockup")
    assert [] == faults(result.found, entry("hard_lockup"), SERIES)
    folder = result.run.guest("receiver").path

    assert "NMI: Not continuing" in (folder / "kernel.log").read_text()
    assert "Not continuing" not in (folder / "console.log").read_text()


def test_the_peer_lives_on_and_keeps_what_it_holds(bench: attempt.Bench, tried: Try) -> None:
    sender = bench.pair.guests["sender"]
    deadline = Deadline(20)
    bench.pair.attach("sender", deadline=deadline)
    sender.require_shell().run("echo kept > /run/mark", deadline=deadline)
    before = sender.require_agent().ping(deadline=deadline)

    assert "panic" == tried("worksheet_bug1").found.verdict.word

    after = sender.require_agent().ping(deadline=deadline)
    assert after.tsc > before.tsc
    said = sender.require_shell().run("cat /run/mark", deadline=deadline).stdout
    assert "kept\n" == said
    # The link works in both directions with the restored one.
    bench.pair.attach("receiver", deadline=deadline)
    done = (
        bench.pair.guests["receiver"]
        .require_shell()
        .run("ping -c 1 -W 5 192.168.29.100", deadline=deadline)
    )
    assert 0 == done.exit_code


def test_the_restored_guest_is_the_snapshots(bench: attempt.Bench, tried: Try) -> None:
    tried("warn_on")
    receiver = bench.pair.guests["receiver"]
    deadline = Deadline(20)
    bench.pair.attach("receiver", deadline=deadline)
    text = (
        receiver.require_shell()
        .run("lsmod; dmesg; sysctl kernel.watchdog_thresh", deadline=deadline)
        .stdout
    )
    assert "warn_on" not in text
    assert "kernel.watchdog_thresh = 10" in text, "thresholds are lowered in lab.try alone"


def test_a_snapshot_that_is_gone_from_the_cache_is_made_anew(
    bench: attempt.Bench, tried: Try, tmp_path: Path
) -> None:
    # Gone for this bench: others go on with it.
    name = bench.pair.require_state().snapshot
    with own_cache.beside(tmp_path / "cache"), pytest.MonkeyPatch.context() as patched:
        patched.setenv("LAB_CACHE", str(tmp_path / "cache"))
        assert snapshot.load(name) is None

        assert "oops" == tried("bug_on").found.verdict.word
        assert snapshot.load(name) is not None
        assert bench.pair.up
    # By this name there is another one again, as if another lab had made it anew: the kernel
    # in it lies elsewhere.
    assert bench.pair.require_state().pristine
    assert "oops" == tried("bug_on").found.verdict.word


def test_an_endless_printer_is_bounded(tried: Try) -> None:
    result = tried("console_flood")
    used = sum(file.stat().st_size for file in result.run.path.rglob("*") if file.is_file())

    assert "flood" == result.found.verdict.word
    assert used < 64 << 20


# Its warning is read by nobody: the console is off, and 9,000 lines overtake it.
UNREAD = """
#include <linux/module.h>
static int __init unread_init(void)
{
	int turn, level = console_printk[0];
	console_printk[0] = 0;
	WARN(1, "unread: as asked\\n");
	for (turn = 0; turn < 9000; turn++)
		pr_info("unread: %d\\n", turn);
	console_printk[0] = level;
	return 0;
}
static void __exit unread_exit(void)
{
}
module_init(unread_init);
module_exit(unread_exit);
MODULE_DESCRIPTION("warns, and then says more than the log holds");
MODULE_LICENSE("GPL");
"""


def test_a_warning_that_the_log_lost_is_a_warning_all_the_same(
    bench: attempt.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that hardly gets to look: once every three seconds."""
    monkeypatch.setattr(watch, "TICK_S", 3.0)
    path = tmp_path / "unread.c"
    path.write_text(UNREAD)
    trial = crash.Trial(soak_s=0.0, again=0)
    found = attempt.run(bench, path, trial, journal=Journal(), command="test").found

    assert found.taken["log"]["lost"] > 1000
    assert "WARNING" not in "".join(found.said)
    assert "warn" == found.verdict.word, postmortem.render(found)
    assert "marked itself W" in found.verdict.why


def test_a_module_refuses_where_no_lab_is(bench: attempt.Bench, tmp_path: Path) -> None:
    """The same kernel without lab.name= on its command line: nothing crashes."""
    known = entry("null_write")
    made = crash.prepare(known.path, bench.setup.image, journal=Journal())
    receiver = bench.pair.guests["receiver"]
    deadline = Deadline(20)
    bench.pair.attach("receiver", deadline=deadline)
    bench.pair.touch()
    shell = receiver.require_shell()
    shell.put(made.ko, "/run/null_write.ko", deadline=deadline)
    done = shell.run(
        "echo quiet > /run/cmdline; mount --bind /run/cmdline /proc/cmdline;"
        " insmod /run/null_write.ko; echo $?; umount /proc/cmdline; lsmod",
        deadline=deadline,
    )
    assert "Operation not permitted" in done.stderr
    assert "null_write" not in done.stdout


def test_nothing_is_loaded_on_the_host(
    tried: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host's own insmod is not even looked at."""
    for program in ("insmod", "modprobe", "rmmod", "sudo"):
        fake = tmp_path / program
        fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    modules = Path("/proc/modules")
    before = modules.read_text() if modules.exists() else ""

    tried("null_write")

    assert not (tmp_path / "called").exists()
    assert before == (modules.read_text() if modules.exists() else "")


def test_a_build_that_fails_touches_no_guest(bench: attempt.Bench, tmp_path: Path) -> None:
    path = tmp_path / "broken.c"
    path.write_text("int f(void) { return nothing; }\n")
    child = bench.pair.guests["receiver"].child
    result = attempt.run(bench, path, crash.Trial(), journal=Journal(), command="test")

    assert "build-failed" == result.found.verdict.word
    assert result.found.at.startswith("broken.c:1")
    assert "error: " in postmortem.render(result.found)
    assert child is bench.pair.guests["receiver"].child


def test_a_kept_ram_becomes_a_core_that_drgn_opens(bench: attempt.Bench) -> None:
    known = entry("null_write")
    trial = changed("null_write", keep_ram=True)
    result = attempt.run(bench, known.path, trial, journal=Journal(), command="test")
    path, size, package = attempt.vmcore(result.run)
    try:
        assert size < 512 << 20
        assert package.endswith("-dbg")
        program = drgn.Program()
        program.set_core_dump(str(path))
        assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
        # By the kernel's own page tables: the module's text, in vmalloc space.
        rip = next(
            int(line.split("=")[1].split()[0], 16)
            for line in _registers(result).splitlines()
            if line.startswith("RIP=")
        )
        assert 16 == len(program.read(rip & ~15, 16))
        assert "null_write: loading" in _log_by_drgn(program)
    finally:
        path.unlink()
        result.run.guest("receiver").file("ram").unlink()


def _registers(result: attempt.Result) -> str:
    return (result.run.guest("receiver").path / "registers.txt").read_text()


def _log_by_drgn(program: object) -> str:
    """Read the kernel's log with nothing but drgn's reads."""
    from lab import kernel

    class Memory:
        """Guest RAM as drgn gives it."""

        path = Path("vmcore")
        size = 512 << 20

        def read(self, address: int, size: int) -> bytes:
            data: bytes = program.read(address, size, physical=True)  # type: ignore[attr-defined]
            return data

        def find(self, needle: bytes) -> object:
            step = 1 << 20
            for at in range(0, self.size, step):
                offset = self.read(at, min(step + 64, self.size - at)).find(needle)
                if offset >= 0:
                    yield at + offset

    core = kernel.find(Memory())  # type: ignore[arg-type]
    return kernel.render(core.log().new(last=True))


def test_prebuilt_modules_that_die_on_load_are_done_within_a_minute(tried: Try) -> None:
    """Ten in thirty seconds, on a host that does nothing else; `lab.bench` times twenty."""
    start = time.monotonic()
    for name in DIE_ON_LOAD:
        assert [] == faults(tried(name).found, entry(name), SERIES)
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - start < 30 * busy


# -- long -----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("series", ["6.12", "6.1"])
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_the_whole_corpus_three_times(series: str, turn: int) -> None:
    wrong = []
    for extra in sorted({one.slub_debug for one in corpus.load()}):
        words = f"slub_debug={extra}" if extra else ""
        with attempt.bench(NAME, kernel=series, journal=Journal(), extra=words) as on:
            prebuild(on)
            for known in corpus.load():
                if known.slub_debug == extra:
                    trial = corpus.trial(known)
                    result = attempt.run(on, known.path, trial, journal=Journal(), command="test")
                    found = faults(result.found, known, series)
                    wrong += [f"{known.name}: {one}" for one in found]
    assert [] == wrong


def _left() -> dict[str, object]:
    """Return all that an attempt could leave behind on the host."""
    folders = (paths.runtime(), paths.ram())
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "processes": len(children()),
        "threads": threading.active_count(),
        "files": sorted(str(path) for folder in folders for path in folder.glob(f"{NAME}/**/*")),
    }


@pytest.mark.long
def test_two_hundred_crashes_leave_nothing_and_get_no_slower(tried: Try) -> None:
    for name in DIE_ON_LOAD:
        tried(name)
    before = _left()
    seconds = []
    for number in range(200):
        name = DIE_ON_LOAD[number % len(DIE_ON_LOAD)]
        start = time.monotonic()
        assert [] == faults(tried(name).found, entry(name), SERIES)
        seconds.append(time.monotonic() - start)
    first, last = statistics.median(seconds[:20]), statistics.median(seconds[-20:])
    print(f"first 20: {first:.2f} s, last 20: {last:.2f} s (medians)")
    assert before == _left()
    assert last < 1.3 * first + 0.2
