"""What goes wrong in the middle: each ends in time, by its name, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from lab import experiment, paths, playbook, rundir, snapshot, topology
from lab.commands import told
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, GuestError, GuestLost, LabError, NoSpace
from lab.experiment import message
from lab.guest import Guest
from lab.journal import Journal
from tests.guest.at_step import AtStep
from tests.guest.conftest import LAB, TOP, Invoke, qemus

OWN = f"run-{os.getpid()}"  # the pair that a run in this process makes for itself
SOON_S = 15.0  # from a fault to its error, on a host that does other things too
STAGES = (
    "conditions",
    "load probes",
    "gate armed",
    "gate sent",
    "gate received",
    "read out traces",
)
IN_SHORT = {("load probes", 0), ("gate received", 1)}
KILLS = [
    pytest.param(
        *(stage, which),
        marks=()
        if (stage, which) in {("load probes", 0), ("gate received", 1)}
        else pytest.mark.long,
    )
    for stage in STAGES
    for which in (0, 1)
]


def stages(*short: str, every: tuple[str, ...] = STAGES) -> list[object]:
    """Return the stages as parameters; those not in `short` belong to the long form."""
    return [
        stage if stage in short else pytest.param(stage, marks=pytest.mark.long) for stage in every
    ]


def take(journal: Journal) -> experiment.Outcome:
    """Run the nic playbook on a pair of its own."""
    return experiment.run(
        playbook.load("nic"), lab_name=f"{LAB}-none", journal=journal, command="test"
    )


def nothing_left(*names: str) -> None:
    """Check that no process and no file of these labs stays."""
    for name in names:
        assert [] == qemus(name)
        assert not (paths.runtime() / name).exists()
        assert not (paths.ram() / name).exists()


def last_run(runs: Path) -> Path:
    return max((path for path in runs.iterdir() if path.name != "last"), key=os.path.getmtime)


def error_of(work: Callable[[], object]) -> LabError | None:
    """Return the error of ours that `work` ends with, None where it ends well."""
    try:
        work()
    except LabError as error:
        return error
    return None


@pytest.fixture(autouse=True)
def _runs_here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RUNS", str(runs))


@pytest.fixture(scope="class")
def pair() -> Iterator[experiment.Stand]:
    """Yield a pair of guests of this test's own, or of its class's, ready for runs."""
    setup, modules = experiment.setup_for(playbook.load("nic"), journal=Journal())
    with experiment.stand(setup, modules, lab_name=f"{LAB}-none", journal=Journal()) as ready:
        yield ready
    nothing_left(OWN)


def measure(
    ready: experiment.Stand, journal: Journal, *, deadline_s: float = 180.0
) -> message.Answer:
    """Take one measurement on a pair that is there."""
    asked = dataclasses.replace(playbook.load("nic"), deadline_s=deadline_s)
    run_dir = experiment.new_run(asked, ready.setup, paths.runs(), guests=message.guests(asked))
    message.take(ready, asked, run_dir, journal=journal, command="test")
    return message.answer(run_dir, asked.expect, journal=journal)


# -- killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "which"), KILLS)
def test_qemu_killed_at_any_stage_is_a_guest_error_soon(runs: Path, stage: str, which: int) -> None:
    since = [0.0]

    def kill() -> None:
        os.kill(qemus(OWN)[which], signal.SIGKILL)
        since[0] = time.monotonic()

    journal = AtStep(stage, kill)
    # Whichever line to it was listened to tells of the end first.
    with pytest.raises(GuestLost, match=r"QEMU died|hung up|line is dead|SSH ended") as lost:
        take(journal)
    assert time.monotonic() - since[0] < SOON_S
    assert (last_run(runs) / "manifest.json").exists()
    assert f"run: {last_run(runs)}" in getattr(lost.value, "__notes__", [])
    nothing_left(OWN)


OF_A_LAB = ("boot the pair", "save the snapshot", "restore the pair")


@pytest.mark.parametrize("stage", stages("save the snapshot", every=OF_A_LAB))
def test_qemu_killed_as_its_lab_comes_up_is_an_error_or_is_booted_around(stage: str) -> None:
    setup, _ = experiment.setup_for(playbook.load("nic"), journal=Journal())
    name, killed = f"{LAB}-struck", list[int]()

    def strike() -> None:
        wait_until(lambda: qemus(name), what="QEMU", deadline=Deadline(SOON_S))
        killed.append(qemus(name)[0])
        os.kill(killed[0], signal.SIGKILL)

    def later() -> None:  # in this step it is started
        threading.Thread(target=strike).start()

    act = strike if stage == "save the snapshot" else later
    with topology.opened(name, create=True) as pair:
        if stage == "restore the pair":
            pair.bring_up(setup, journal=AtStep(stage, act))  # what is not restored is booted
            assert pair.up
            assert killed[0] not in qemus(name)
            pair.bring_down()
        else:
            with pytest.raises(GuestError):
                pair.bring_up(setup, journal=AtStep(stage, act), fresh=True)
            assert not pair.up
    assert killed
    nothing_left(name)
    assert not list(snapshot.folder().glob(f"*.{os.getpid()}.part"))


KILLED = """
import os, signal, sys
from lab import experiment, image, accelerator, playbook, topology
from lab.journal import Journal
from tests.guest.at_step import AtStep

stage, name = sys.argv[1:]
journal = AtStep(stage, lambda: os.kill(os.getpid(), signal.SIGKILL))
asked = playbook.load("nic")
if stage in ("boot the pair", "save the snapshot"):
    setup, _ = experiment.setup_for(asked, journal=Journal())
    with topology.opened(name, create=True) as pair:
        pair.bring_up(setup, journal=journal, fresh=True)
else:
    experiment.run(asked, lab_name=name, journal=journal, command="test")
"""
OF_THE_HARNESS = (
    "boot the pair",
    "save the snapshot",
    "restore the pair",
    *STAGES,
    "ledger",
    "report",
)


@pytest.mark.parametrize(
    "stage", stages("save the snapshot", "gate sent", "ledger", every=OF_THE_HARNESS)
)
def test_the_harness_killed_at_any_stage_leaves_what_gc_removes(tmp_path: Path, stage: str) -> None:
    name = f"{LAB}-dead"
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, stage, name],
        cwd=TOP,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LAB_RUNS": str(tmp_path), "PYTHONPATH": str(TOP)},
    )
    assert -signal.SIGKILL == killed.wait(120)
    topology.collect_garbage()
    nothing_left(name, f"run-{killed.pid}")
    assert not list(snapshot.folder().glob(f"*.{killed.pid}.part"))
    for ledger in tmp_path.glob("*/ledger.json"):
        assert ledger.read_text().endswith("}\n")  # whole, or not there


# -- no room -----------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[Callable[[], None]]:
    """Yield what makes every write of this process beyond `size` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ends_for_want_of_room(stage: str, act: Callable[[], None]) -> str:
    """Take a run in which `act` leaves no room at a stage; return what the user is told."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    journal = AtStep(stage, act)
    try:
        with pytest.raises(Exit) as stop, told():
            take(journal)
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    assert journal.acted
    assert 3 == stop.value.code, stop.value
    assert "try: free space" in str(stop.value)
    return str(stop.value)


@pytest.mark.parametrize(
    ("stage", "size"), [("read out traces", 16 << 10), ("ledger", 1 << 10), ("report", 1 << 10)]
)
def test_no_room_for_what_a_run_writes_is_the_host_s_fault(
    runs: Path, capsys: pytest.CaptureFixture[str], stage: str, size: int
) -> None:
    with no_file_beyond(size) as full:
        ends_for_want_of_room(stage, full)
    written = {"read out traces": "sender/trace.bin", "ledger": "ledger.json"}
    if stage in written:
        assert not (last_run(runs) / "report.txt").exists()
    nothing_left(OWN)


@pytest.mark.long
def test_a_disk_that_is_full_has_no_room_for_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, _ = experiment.setup_for(playbook.load("nic"), journal=Journal())
    name, ours = f"{LAB}-full", paths.cache()
    with small_disk("64m", mode=0o700) as cache:
        for folder in ("images", "headers", "witness", "kmod", "guest"):
            (cache / folder).symlink_to(ours / folder)
        monkeypatch.setenv("LAB_CACHE", str(cache))
        with topology.opened(name, create=True) as pair:
            with pytest.raises(NoSpace, match="a snapshot"):
                pair.bring_up(setup, journal=Journal(), fresh=True)
            assert not pair.up
        assert not list(snapshot.folder().glob("*.part"))
    nothing_left(name)


@contextlib.contextmanager
def small_disk(size: str, *, mode: int = 0o711) -> Iterator[Path]:
    """Yield a folder on a disk of its own, of so little room."""
    # Not below tmp_path, through which QEMU's user may not pass.
    folder = Path(tempfile.mkdtemp(prefix="skblab-small-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        folder.rmdir()
        pytest.skip("needs root: to mount a small tmpfs")
    folder.chmod(mode)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path) -> None:
    """Leave no byte of a disk."""
    with (folder / "filling").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with (folder / "filling").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


@pytest.mark.parametrize(
    "stage", stages("read out traces", every=("read out traces", "ledger", "report"))
)
def test_a_disk_that_is_full_is_the_host_s_fault(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    with small_disk("64m") as folder:
        monkeypatch.setenv("LAB_RUNS", str(folder))
        said = ends_for_want_of_room(stage, lambda: fill(folder))
        assert "No space left on device" in said
        ledger = last_run(folder) / "ledger.json"
        assert not ledger.exists() or ledger.read_text().endswith("}\n")  # whole, or not there
    nothing_left(OWN)


def test_no_room_for_a_snapshot_leaves_neither_lab_nor_half_of_one() -> None:
    setup, _ = experiment.setup_for(playbook.load("nic"), journal=Journal())
    name = f"{LAB}-full"
    with no_file_beyond(8 << 20) as full, topology.opened(name, create=True) as pair:
        journal = AtStep("save the snapshot", full)
        with pytest.raises(OSError, match="File too large"):
            pair.bring_up(setup, journal=journal, fresh=True)
        assert not pair.up
    nothing_left(name)
    assert not list(snapshot.folder().glob(f"*.{os.getpid()}.part"))


def test_a_ram_folder_that_fills_up_is_a_lost_guest(invoke: Invoke) -> None:
    """QEMU dies by SIGBUS when its guest touches memory that no longer is there."""
    name = f"{LAB}-sigbus"
    with small_disk("1700m") as folder:
        here = {"LAB_RAM": str(folder)}
        try:
            assert 0 == invoke("lab.up", lab=name, **here).code
            used = os.statvfs(folder)
            size = (used.f_blocks - used.f_bfree) * used.f_frsize + (24 << 20)
            remount = ["mount", "-o", f"remount,size={size >> 10}k", str(folder)]
            subprocess.run(remount, check=True)
            dd = "dd if=/dev/zero of=/tmp/x bs=1M count=200"
            done = invoke("lab.exec", "sender", dd, lab=name, **here)
            assert 4 == done.code, done.err
            assert "GuestLost: sender: QEMU died" in done.err
            assert 0 == invoke("lab.down", lab=name, **here).code
        finally:
            invoke("lab.down", lab=name, **here)


@pytest.mark.parametrize(
    "stage",
    stages("gate armed", every=("save the snapshot", "load probes", "gate armed", "report")),
)
def test_a_ram_folder_that_is_full_at_any_stage_is_said_or_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """What is there already stays; QEMU ends where its guest, or the access log, wants more."""
    setup, _ = experiment.setup_for(playbook.load("nic"), journal=Journal())
    name = f"{LAB}-filled"
    with small_disk("1700m") as folder:
        monkeypatch.setenv("LAB_RAM", str(folder))
        journal = AtStep(stage, lambda: fill(folder))
        start = time.monotonic()

        def work() -> None:
            if stage == "save the snapshot":
                with topology.opened(name, create=True) as pair:
                    pair.bring_up(setup, journal=journal, fresh=True)
                    pair.bring_down()
            else:
                assert not take(journal).trouble

        error = error_of(work)
        print(stage, repr(error))
        assert error is None or error.exit_code in (3, 4, 6, 7), error  # and no bug of ours
        assert journal.acted
        assert time.monotonic() - start < 120
        assert {"filling", "admission.lock"} >= {path.name for path in folder.iterdir()}
    nothing_left(OWN, name)


# -- guests that are not themselves ----------------------------------------------------------------


def shell(guest: Guest, command: str) -> str:
    return guest.require_shell().run(command, deadline=Deadline(20)).stdout


def test_a_guest_that_answers_ssh_and_nothing_else_ends_at_the_deadline(up: Invoke) -> None:
    assert 0 == up("lab.exec", "receiver", "kill -STOP $(pidof lab-agent)").code
    start = time.monotonic()
    done = up("lab.run-nic", "--no-reset")
    assert 7 == done.code, done.err
    assert "the agent of receiver" in done.err
    assert time.monotonic() - start < SOON_S + 10
    assert 0 == up("lab.reset").code


def test_an_agent_that_is_killed_is_started_again(up: Invoke) -> None:
    up("lab.exec", "receiver", "kill -9 $(pidof lab-agent); sleep 1")
    done = up("lab.run-nic", "--no-reset")
    assert 0 == done.code, done.err


@pytest.mark.parametrize("stage", stages("gate armed", every=("load probes", *STAGES[2:])))
def test_an_agent_that_is_killed_in_mid_run_is_an_error_or_does_no_harm(
    pair: experiment.Stand, stage: str
) -> None:
    """What it relays is gone with it; it is started again, and knows nothing of a workload."""

    def kill() -> None:
        shell(pair.pair.guests["receiver"], "kill -9 $(pidof lab-agent)")

    def work() -> None:
        assert measure(pair, journal).ledger.complete

    journal, start = AtStep(stage, kill), time.monotonic()
    error = error_of(work)
    print(stage, repr(error))
    assert error is None or isinstance(error, GuestError | DeadlineExceeded), error
    assert error is None or "receiver" in str(error), error
    assert journal.acted
    assert time.monotonic() - start < 90


@pytest.mark.parametrize("stage", stages(every=("load probes", "gate armed", "read out traces")))
def test_an_sshd_that_is_stopped_in_mid_run_ends_at_the_deadline(
    pair: experiment.Stand, stage: str
) -> None:
    def stop() -> None:
        agent = pair.pair.guests["receiver"].require_agent()
        deadline = Deadline(10)
        agent.start("stop", "sh", "-c", "kill -STOP $(pidof dropbear)", deadline=deadline)
        agent.wait_exit("stop", deadline=deadline)

    journal, start = AtStep(stage, stop), time.monotonic()
    with pytest.raises(DeadlineExceeded, match="in receiver"):
        measure(pair, journal, deadline_s=30.0)
    assert journal.acted
    assert time.monotonic() - start < 60


def link(ready: experiment.Stand, *, up: bool) -> None:
    """Plug the receiver's end of the link, or pull it."""
    monitor = ready.pair.guests["receiver"].require_monitor()
    monitor.execute("set_link", {"name": "lab0", "up": up})


class TestOnOnePair:
    """What leaves a pair as good as it was: one of them is for all of these."""

    def test_a_link_cut_in_mid_run_is_no_proof_and_restored_it_is_one(
        self, pair: experiment.Stand
    ) -> None:
        cut = AtStep("gate armed", lambda: link(pair, up=False))
        found = measure(pair, cut)
        assert cut.acted
        assert not found.ledger.complete
        assert found.trouble
        link(pair, up=True)
        # Cut and plugged in again before anything is sent: nothing is lost.
        link(pair, up=False)
        again = AtStep("gate armed", lambda: link(pair, up=True))
        assert measure(pair, again).ledger.complete

    def test_a_link_cut_and_restored_under_tcp_is_sent_again_and_accounted_for(
        self, pair: experiment.Stand
    ) -> None:
        """What the device dropped is sent until it arrives, and the ledger has all of it."""
        plugged = threading.Event()

        def plug() -> None:
            link(pair, up=True)
            plugged.set()

        def cut() -> None:
            link(pair, up=False)
            threading.Timer(1.0, plug).start()

        asked = playbook.override(playbook.load("nic"), protocol="tcp")
        journal = AtStep("gate armed", cut)
        run_dir = experiment.new_run(asked, pair.setup, paths.runs(), guests=message.guests(asked))
        message.take(pair, asked, run_dir, journal=journal, command="test")
        found = message.answer(run_dir, asked.expect, journal=journal)
        assert journal.acted
        assert plugged.is_set()
        assert found.ledger.complete, found.trouble
        assert found.ledger.messages[0].totals.device_writes >= 1

    @pytest.mark.parametrize("seconds", [1_000_000, 4_102_444_800])
    def test_a_clock_that_jumps_changes_nothing(self, pair: experiment.Stand, seconds: int) -> None:
        """To January 1970, and to the year 2100, while a message is on its way."""

        def jump() -> None:
            for guest in pair.pair.guests.values():
                line = f"clock {seconds} 0"
                guest.require_agent().ask(line, expect="ok clock", deadline=Deadline(5))

        found = measure(pair, AtStep("gate armed", jump))
        assert found.ledger.complete, found.trouble


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 0", "receiver ended with 0 before 'ready'"),
        ("while :; do echo ready ready ready ready ready ready ready; done", "receiver"),
        pytest.param(
            *("head -c 3000000 /dev/zero; exit 3", "receiver ended with 3 before 'ready'"),
            marks=pytest.mark.long,
        ),
        (r"printf 'ready \377\376{\n'; exit 1", "receiver"),
        pytest.param(
            *(r"echo 'ready {\"role\": \"receiver\"}'; sleep 9", "receiver"), marks=pytest.mark.long
        ),
    ],
    ids=["nothing", "no end", "no line", "no text", "no sense"],
)
def test_a_workload_that_says_nonsense_is_the_guest_s_fault(
    pair: experiment.Stand, script: str, says: str
) -> None:
    pair.pair.attach(deadline=Deadline(10))
    receiver = pair.pair.guests["receiver"]
    write = f"rm /usr/bin/receiver; printf '%s\\n' '#!/bin/sh' \"{script}\" >/usr/bin/receiver"
    shell(receiver, f"{write}; chmod 755 /usr/bin/receiver")
    start = time.monotonic()
    with pytest.raises((GuestError, DeadlineExceeded)) as wrong:
        measure(pair, Journal())
    assert says in str(wrong.value)
    assert len(str(wrong.value)) < 2_000
    assert time.monotonic() - start < 60


def test_names_that_lead_elsewhere_lead_nowhere(up: Invoke, tmp_path: Path) -> None:
    """What a guest calls a file is never a path on the host; a link of its is the guest's."""
    make = "mkdir -p /tmp/a; cd /tmp/a; ln -s /etc/passwd link; ln -s /dev/zero zero; mkdir ..x"
    assert 0 == up("lab.exec", "sender", make).code
    (tmp_path / "here").mkdir()
    target = tmp_path / "here" / "link"
    assert 0 == up("lab.get", "sender", "/tmp/a/link", str(target)).code
    assert target.read_text() != Path("/etc/passwd").read_text()
    assert not target.is_symlink()
    for name in ("/tmp/a/..", "/tmp/a/../a/..x", "/tmp/a"):
        assert 4 == up("lab.get", "sender", name, str(tmp_path / "here" / "dir")).code
    assert [target] == list((tmp_path / "here").iterdir())


def test_a_console_that_leads_elsewhere_is_not_read(pair: experiment.Stand) -> None:
    """QEMU owns the folder it writes to: what it lays there is not followed."""
    pair.pair.attach(deadline=Deadline(10))
    guest = pair.pair.guests["sender"]
    guest.folder.console.unlink()
    guest.folder.console.symlink_to("/etc/passwd")
    asked = playbook.load("nic")
    run_dir = rundir.create(paths.runs(), asked.name, "0" * 64)
    message.take(pair, asked, run_dir, journal=Journal(), command="test")
    assert not (run_dir.path / "sender" / "console.log").exists()
