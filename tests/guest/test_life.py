"""Lab life: up, restored, proven, used, reset, down, and nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import dpkt
import pytest

from lab import accelerator, admission, image, paths, snapshot, topology, witness
from lab.deadline import Deadline, wait_until
from lab.journal import Journal
from tests import own_cache
from tests.guest.conftest import INVOKE, LAB, TOP, Done, Invoke, qemus, wait_gone


def test_up_status_exec_down_leaves_nothing(invoke: Invoke) -> None:
    invoke("lab.down")  # what another test left up is no longer as it was restored
    done = invoke("lab.up", "--json")
    assert 0 == done.code, done.err
    assert {"sender", "receiver"} == set(done.value["guests"])
    again = invoke("lab.up")
    assert "already up" in again.out
    assert invoke("lab.status", "--json").value["pristine"]
    said = invoke("lab.exec", "receiver", "uname -r; hostname")
    assert ["6.12" == said.out[:4], "receiver" in said.out] == [True, True]
    assert not invoke("lab.status", "--json").value["pristine"]
    pids = qemus(LAB)
    assert 2 == len(pids)
    assert 0 == invoke("lab.down").code
    wait_gone(pids)
    assert not (paths.runtime() / LAB).exists()
    assert not (paths.ram() / LAB).exists()


def test_the_second_up_is_restored_and_the_clock_is_right(up: Invoke) -> None:
    up("lab.down")
    done = up("lab.up", "--json")
    assert "restored" in done.value["how"]
    guest = int(up("lab.exec", "sender", "date +%s").out)
    assert abs(guest - time.time()) < 5


def test_two_restored_guests_do_not_share_random_numbers(up: Invoke) -> None:
    read = "head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'"
    first = {up("lab.exec", name, read).out for name in ("sender", "receiver")}
    up("lab.reset")
    second = {up("lab.exec", name, read).out for name in ("sender", "receiver")}
    assert 4 == len(first | second)


def test_reset_takes_back_what_was_done(up: Invoke) -> None:
    up("lab.exec", "sender", "touch /run/mark")
    assert 0 == up("lab.exec", "sender", "test -e /run/mark").code
    assert 0 == up("lab.reset").code
    assert 4 == up("lab.exec", "sender", "test -e /run/mark").code


def test_a_file_goes_in_and_comes_out(up: Invoke, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "in").write_bytes(data)
    assert 0 == up("lab.put", "sender", str(tmp_path / "in"), "/tmp/file").code
    assert 0 == up("lab.get", "sender", "/tmp/file", str(tmp_path / "out")).code
    assert data == (tmp_path / "out").read_bytes()
    missing = up("lab.get", "sender", "/tmp/none", str(tmp_path / "none"))
    assert 4 == missing.code
    assert "CommandFailed" in missing.err


def test_qemu_is_confined(up: Invoke) -> None:
    """Seccomp filters, no root, no new privileges: read from the host's /proc."""
    up("lab.status")
    for pid in qemus(LAB):
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert "2" == status["Seccomp"].strip()
        assert "1" == status["NoNewPrivs"].strip()
        if os.geteuid() == 0:
            assert "0" not in status["Uid"].split()


@contextlib.contextmanager
def spoiled(
    invoke: Invoke, cache: Path, name: str, spoil: Callable[[Path], None]
) -> Iterator[tuple[Done, Callable[..., Done]]]:
    """Bring a lab up from a copy of a snapshot that was spoiled: others go on with ours.

    Yield how that went, and what runs `invoke WORDS` there.
    """

    def there(*words: str) -> Done:
        return invoke(*words, lab=f"{LAB}-spoiled", LAB_CACHE=str(cache))

    with own_cache.beside(cache, snapshot=name) as folder:
        spoil(folder)
        try:
            yield there("lab.up", "--json"), there
        finally:
            there("lab.down")


def test_a_corrupt_snapshot_is_noticed_and_booted_around(up: Invoke, tmp_path: Path) -> None:
    def flip(folder: Path) -> None:
        with (folder / "sender.ram").open("r+b") as out:
            out.seek(1_000_000)
            byte = out.read(1)
            out.seek(1_000_000)
            out.write(bytes([byte[0] ^ 1]))

    name = up("lab.status", "--json").value["snapshot"]
    with spoiled(up, tmp_path / "cache", name, flip) as (done, there):
        assert 0 == done.code, done.err
        assert "booted" in done.value["how"]
        assert "corrupt" in done.err
        said = there("lab.console", "sender")
    assert 0 == said.code
    assert "\x1b" not in said.out  # no escapes for the reader's terminal, of a boot either


def test_a_killed_guest_is_a_typed_error_within_seconds(up: Invoke) -> None:
    os.kill(qemus(LAB)[0], signal.SIGKILL)
    start = time.monotonic()
    done = up("lab.exec", "sender", "true")
    assert done.code in (3, 4)
    assert time.monotonic() - start < 5
    assert "try:" in done.err
    assert 0 == up("lab.up").code


def test_a_panic_is_a_typed_error_within_seconds(up: Invoke) -> None:
    start = time.monotonic()
    done = up("lab.exec", "receiver", "echo c > /proc/sysrq-trigger")
    assert 4 == done.code
    assert "GuestPanicked" in done.err
    assert time.monotonic() - start < 10
    assert "sysrq" in done.err.lower() or "panic" in done.err.lower()
    assert 0 == up("lab.reset").code


def test_a_stopped_sshd_ends_at_the_deadline(up: Invoke) -> None:
    up("lab.exec", "sender", "kill -STOP $(pidof dropbear | tr ' ' '\\n' | sort -n | head -n 1)")
    start = time.monotonic()
    done = up("lab.exec", "sender", "true", "--deadline", "3")
    assert 7 == done.code, done.err
    assert "DeadlineExceeded" in done.err
    assert time.monotonic() - start < 10
    assert 0 == up("lab.reset").code


def test_gc_removes_what_a_killed_owner_left(up: Invoke, sole_collector: None) -> None:
    name = f"{LAB}-gone"
    assert 0 == up("lab.up", lab=name).code
    pids = qemus(name)
    (topology.Lab(name).base / "state.json").unlink()
    half = snapshot.folder() / "0000.999999999.part"
    half.mkdir(parents=True)
    stray = paths.ram() / f"{LAB}-stray"
    stray.mkdir()
    (stray / admission.MARK).write_text("/nowhere\n")
    removed = up("lab.gc", "--json").value["removed"]
    assert f"lab {name}" in removed
    assert f"RAM of {stray.name}" in removed
    assert f"half snapshot {half.name}" in removed
    wait_gone(pids)
    assert topology.Lab(LAB).up


def test_a_lab_that_is_busy_says_so(up: Invoke) -> None:
    with topology.opened(LAB):
        done = up("lab.reset")
    assert 3 == done.code
    assert "LabBusy" in done.err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("lab.up", "--lab", "no/such"), 2, "no name for a lab"),
        (("lab.exec", "nobody", "true"), 2, "no guest 'nobody'"),
        (("lab.status", "--lab", "not-up"), 3, "not up"),
        (("lab.run", "nik"), 2, "nic"),
        (("lab.run-nic", "--size", "0"), 2, "size"),
        (("lab.run-nic", "--size", "65508"), 2, "65507"),
        (("lab.run-nic", "--without", "page_to_skbb"), 2, "page_to_skb"),
        (("lab.report", "no-such-run"), 2, "no-such-run"),
    ],
)
def test_bad_input_names_what_is_wrong(
    up: Invoke, words: tuple[str, ...], code: int, text: str
) -> None:
    done = up(*words)
    assert code == done.code, done.err
    assert text in done.err


def test_no_space_in_the_ram_folder_is_said_before_qemu_dies(
    invoke: Invoke, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        done = invoke("lab.up", lab=f"{LAB}-small", LAB_RAM=str(small))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert 3 == done.code
    assert "NoSpace" in done.err
    assert "LAB_RAM" in done.err
    assert not qemus(f"{LAB}-small")


def test_a_qemu_that_dies_at_start_is_a_typed_error(invoke: Invoke, tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "qemu-system-x86_64"
    fake.parent.mkdir()
    real = shutil.which("qemu-system-x86_64")
    fake.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version|-machine) exec ' + str(real) + ' "$@";; esac\n'
        "echo 'I will not' >&2; exit 1\n"
    )
    fake.chmod(0o755)
    for part in (tmp_path, *tmp_path.parents):
        if part != Path("/") and part.stat().st_uid == os.geteuid():
            part.chmod(part.stat().st_mode | 0o011)
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = invoke("lab.up", lab=f"{LAB}-dies", PATH=path, LAB_ACCEL="tcg")
    assert 4 == done.code, done.err
    assert "LaunchFailed" in done.err
    assert "I will not" in done.err
    assert not (paths.runtime() / f"{LAB}-dies" / "state.json").exists()


def test_a_missing_qemu_names_its_package(invoke: Invoke, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            target = tools / program.name
            if not program.name.startswith("qemu-system") and not target.exists():
                target.symlink_to(program)
    done = invoke("lab.up", lab=f"{LAB}-none", PATH=str(tools))
    assert 3 == done.code, done.err
    assert "qemu-system-x86" in done.err


def test_a_panicked_guest_is_known_to_every_command(up: Invoke) -> None:
    up("lab.exec", "receiver", "echo c > /proc/sysrq-trigger")
    start = time.monotonic()
    assert 4 == up("lab.status").code
    assert "GuestPanicked" in up("lab.exec", "receiver", "true").err
    assert 4 == up("lab.run-nic", "--no-reset").code
    assert time.monotonic() - start < 10
    anew = up("lab.up")
    assert 0 == anew.code
    assert "brought up anew" in anew.err
    assert 0 == up("lab.status").code


def test_a_second_ctrl_c_does_not_cut_the_cleanup_short(tmp_path: Path) -> None:
    name = f"{LAB}-twice"
    process = subprocess.Popen(
        [str(INVOKE), "lab.up", "--fresh"],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LAB_NAME": name},
    )
    wait_until(lambda: qemus(name), what="QEMU", deadline=Deadline(60))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)  # as fast as a person presses it
    _, err = process.communicate(timeout=60)
    assert 130 == process.returncode, err
    assert not qemus(name)
    assert not (paths.runtime() / name).exists()
    assert not (paths.ram() / name).exists()


def test_ctrl_c_ends_an_exec_at_once(up: Invoke) -> None:
    process = subprocess.Popen(
        [str(INVOKE), "lab.exec", "sender", "echo begun; sleep 60", "--deadline", "90"],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LAB_NAME": LAB},
    )
    assert process.stdout is not None
    assert "begun\n" == process.stdout.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert 130 == process.returncode
    assert time.monotonic() - start < 5


def test_a_failed_get_leaves_the_local_file_alone(up: Invoke, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("precious")
    assert 4 == up("lab.get", "sender", "/no/such", str(kept)).code
    assert "precious" == kept.read_text()
    assert [kept] == list(tmp_path.iterdir())
    assert 2 == up("lab.get", "sender", "/etc/hosts", str(tmp_path)).code


def test_a_full_disk_is_the_host_s_fault(up: Invoke) -> None:
    done = up("lab.run-loopback", LAB_RUNS="/proc/nowhere")
    assert 3 == done.code, done.err
    assert "try:" in done.err


def test_a_restored_pair_says_nothing_on_the_link() -> None:
    """QEMU announces restored NICs for half a second unless told not to."""
    journal = Journal()
    built = image.ensure("6.12", journal=journal, locked=False, offline=False)
    speed = accelerator.choose(built, journal=journal)
    setup = topology.standard(built, speed, journal=journal)
    with topology.opened(f"{LAB}-quiet", create=True) as pair:
        try:
            pair.bring_up(replace(setup, owner=os.getpid()), journal=journal)
            captures = [witness.Capture(guest) for guest in pair.guests.values()]
            for capture in captures:
                capture.start()
            time.sleep(1.0)  # nothing is waited for: the announcements take 0.55 s
            for capture in captures:
                capture.stop()
            for capture, name in zip(captures, pair.guests, strict=True):
                kept = pair.base / f"{name}.pcap"
                capture.keep(kept)
                with kept.open("rb") as file:
                    assert [] == list(dpkt.pcap.Reader(file))
        finally:
            pair.bring_down()


def test_the_debugger_s_port_is_opened_once(up: Invoke) -> None:
    first = up("lab.gdb", "sender")
    assert 0 == first.code, first.err
    assert first.out == up("lab.gdb", "sender").out
    socket = Path(first.out.rpartition("target remote ")[2].strip().rstrip("'"))
    assert socket.is_socket()
