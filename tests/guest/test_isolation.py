"""What a guest with a module's powers cannot do, tried; and what a QEMU taken over cannot."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lab import access, experiment, playbook, process, topology
from lab.admission import GUEST_BYTES
from lab.deadline import Deadline, wait_until
from lab.errors import GuestError
from lab.guest import MEMORY_MIB, Guest
from lab.journal import Journal
from tests.guest.conftest import LAB, TOP

MARK = b"skblab-reach-out"
THREADS = 16  # main loop, vCPU, RCU, and a few workers for a moment


@pytest.fixture(scope="module")
def pair() -> Iterator[experiment.Stand]:
    """Yield a pair of guests of this module's own."""
    setup, modules = experiment.setup_for(playbook.load("nic"), journal=Journal())
    with experiment.stand(setup, modules, lab_name=f"{LAB}-none", journal=Journal()) as ready:
        ready.pair.attach(deadline=Deadline(10))
        yield ready


def qemu(guest: Guest) -> int:
    """Return the process id of a guest's QEMU."""
    (pid,) = process.holders(guest.folder.lock)
    return pid


def status(pid: int) -> dict[str, str]:
    """Return the fields of a process's or thread's status."""
    pairs = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.strip() for key, _, value in pairs}


# -- the network ------------------------------------------------------------------------------


@dataclass
class Ears:
    """Services of this host, on all its addresses, and all that its interfaces carry."""

    port: int = 0
    tcp: socket.socket = field(default_factory=socket.socket)
    udp: socket.socket = field(default_factory=lambda: socket.socket(type=socket.SOCK_DGRAM))
    wire: socket.socket | None = None

    def heard(self, seconds: float) -> list[str]:
        """Return what came within some seconds."""
        found, deadline = [], Deadline(seconds)
        known = {one.fileno(): one for one in (self.tcp, self.udp, self.wire) if one is not None}
        while not deadline.expired:
            for fd in select.select(list(known), [], [], deadline.remaining)[0]:
                if fd == self.tcp.fileno():
                    caller, address = self.tcp.accept()
                    caller.close()
                    found.append(f"tcp {address}")
                elif fd == self.udp.fileno():
                    found.append(f"udp {self.udp.recvfrom(2048)}")
                elif self.wire is not None and MARK in (frame := self.wire.recv(1 << 16)):
                    found.append(f"wire {frame.hex()}")
        return found


@pytest.fixture
def ears() -> Iterator[Ears]:
    """Listen."""
    ears = Ears()
    with ears.tcp, ears.udp:
        ears.tcp.bind(("0.0.0.0", 0))
        ears.port = ears.tcp.getsockname()[1]
        ears.udp.bind(("0.0.0.0", ears.port))
        ears.tcp.listen()
        if os.geteuid() == 0:
            ears.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        yield ears
        if ears.wire is not None:
            ears.wire.close()


def addresses() -> list[str]:
    """Return where a guest might find somebody: this host by its names, and the world."""
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout
    hosts = [word for word in own.split() if ":" not in word]
    return ["10.0.2.2", "10.0.2.3", "127.0.0.1", "192.0.2.1", "1.1.1.1", *hosts]


def test_no_packet_reaches_the_host_or_the_world(
    pair: experiment.Stand, ears: Ears, tmp_path: Path
) -> None:
    with socket.create_connection(("127.0.0.1", ears.port)):
        ears.udp.sendto(MARK, ("127.0.0.1", ears.port))
        assert {"tcp", "udp"} <= {one.split()[0] for one in ears.heard(0.3)}  # these ears hear
    program = tmp_path / "reach"
    flags = ("-static", "-O2", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *flags, "-o", program, str(TOP / "tests/guest/reach.c")], check=True)
    sender = pair.pair.guests["sender"]
    shell, deadline = sender.require_shell(), Deadline(120)
    shell.put(program, "/tmp/reach", deadline=deadline)
    shell.run(
        "chmod 755 /tmp/reach; ip route add default via 10.0.2.2 dev ssh0 2>/dev/null; true",
        deadline=deadline,
    )
    tries = " ".join(addresses())
    said = shell.run(
        f"for a in {tries}; do"
        f" for p in {ears.port} 22 53; do"
        " for how in tcp udp; do"
        ' /tmp/reach $how $a $p && echo "$how $a:$p" & done; done;'
        f" /tmp/reach raw ssh0 $a {ears.port} & /tmp/reach raw lab0 $a {ears.port} & done; wait",
        deadline=deadline,
    ).stdout.splitlines()
    sent = [int(line) for line in said if line.isdigit()]
    assert [12] * len(sent) == sent  # every frame left the guest
    assert 2 * len(addresses()) == len(sent)
    assert [] == [line for line in said if not line.isdigit()]  # nobody answered anything
    assert [] == ears.heard(0.5)


# -- files ------------------------------------------------------------------------------------


def test_no_file_of_the_host_is_in_reach(pair: experiment.Stand) -> None:
    for guest in pair.pair.guests.values():
        shell = guest.require_shell()
        mounts = "mount -t 9p x /mnt || mount -t virtiofs x /mnt || mount -t nfs x:/ /mnt"
        tried = shell.run(f"{mounts}; ls /sys/block", deadline=Deadline(20), ok=False)
        assert "" == tried.stdout  # no share and no disk
        ours = [str(guest.folder.base), str(guest.folder.ram.parent)]
        for entry in Path(f"/proc/{qemu(guest)}/fd").iterdir():
            target = str(entry.readlink()).removesuffix(" (deleted)")
            if not target.startswith("/") or target.startswith(("/dev/", "/proc/")):
                continue
            flags = (entry.parent.parent / "fdinfo" / entry.name).read_text().split("flags:")[1]
            writable = int(flags.split()[0], 8) & os.O_ACCMODE != os.O_RDONLY
            read_only = str(pair.setup.image.kernel.parent)
            assert target.startswith((*ours, *(() if writable else (read_only,)))), target


def test_a_qemu_taken_over_finds_no_file_and_no_program(
    pair: experiment.Stand, tmp_path: Path
) -> None:
    """QMP may do what QEMU may: it is the most that a break out of a guest would gain."""
    monitor = pair.pair.guests["receiver"].require_monitor()
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    secret.chmod(0o600)
    reads = {"driver": "file", "node-name": "x", "filename": str(secret), "read-only": True}
    writes = {"val": 0, "size": 4096, "filename": str(tmp_path / "written")}
    more = {"qom-type": "memory-backend-ram", "id": "more", "size": 8 << 30, "prealloc": True}
    refusals = [("object-add", more)]
    if os.geteuid() == 0:  # else QEMU is whom the test is
        refusals += [("blockdev-add", reads), ("pmemsave", writes)]
    for command, arguments in refusals:
        with pytest.raises(GuestError, match=r"denied|Cannot allocate|allocate memory|Could not"):
            monitor.execute(command, arguments)
    own = pair.pair.guests["receiver"].folder.own / "big"
    with pytest.raises(GuestError):
        monitor.execute("pmemsave", {"val": 0, "size": MEMORY_MIB << 20, "filename": str(own)})
    assert own.stat().st_size <= process.FILE_LIMIT_BYTES
    own.unlink()


def test_a_qemu_that_starts_a_program_is_ended_by_the_kernel(
    pair: experiment.Stand, tmp_path: Path
) -> None:
    mark = tmp_path / "started"
    with topology.opened(f"{LAB}-exec", create=True) as other:
        other.bring_up(replace(pair.setup, owner=os.getpid()), journal=Journal())
        guest = other.guests["sender"]
        with contextlib.suppress(GuestError):  # it may be gone before it answers
            monitor = guest.require_monitor()
            monitor.execute("migrate", {"uri": f"exec:touch {mark}"}, deadline=Deadline(5))
        wait_until(lambda: not guest.alive, what="QEMU's end", deadline=Deadline(5))
        other.bring_down()
    assert not mark.exists()


# -- bounds -----------------------------------------------------------------------------------


def limits(pid: int) -> dict[str, tuple[str, str]]:
    """Return soft and hard limit of a process, by name."""
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {row[:26].strip(): (row[26:47].strip(), row[47:68].strip()) for row in rows}


def test_memory_processor_processes_and_disk_are_bounded(pair: experiment.Stand) -> None:
    """A guest that takes all it can get: memory, processor, and the console."""
    guest = pair.pair.guests["sender"]
    pid = qemu(guest)
    expected = {
        "Max file size": process.FILE_LIMIT_BYTES,
        "Max address space": process.ADDRESS_LIMIT_BYTES,
        "Max core file size": 0,
    }
    if os.geteuid() == 0:
        expected["Max processes"] = process.TASK_LIMIT
    found = limits(pid)
    assert {name: (str(most),) * 2 for name, most in expected.items()} == {
        name: found[name] for name in expected
    }
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert os.getpriority(os.PRIO_PROCESS, int(task.name)) >= process.NICE
    eat = (
        "for i in 1 2; do (while :; do :; done) & done;"
        " dd if=/dev/zero of=/tmp/x bs=1M count=300 2>/dev/null; dmesg -n 8;"
        " i=0; while [ $i -lt 500 ]; do echo flood >/dev/kmsg; i=$((i+1)); done;"
        " kill %1 %2; echo eaten"
    )
    shell = guest.require_shell()
    start, before = time.monotonic(), ticks(pid)
    assert "eaten" in shell.run(eat, deadline=Deadline(120), ok=False).stdout
    used = (ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start)
    assert used < 2.0  # one vCPU, and the main loop's part
    facts = status(pid)
    assert int(facts["VmHWM"].split()[0]) << 10 < GUEST_BYTES
    assert int(facts["VmPeak"].split()[0]) << 10 < process.ADDRESS_LIMIT_BYTES
    assert int(facts["Threads"]) <= THREADS
    assert guest.folder.console.stat().st_size <= process.FILE_LIMIT_BYTES
    held = sum(file.stat().st_blocks * 512 for file in guest.folder.ram.parent.iterdir())
    assert held <= 2 * ((MEMORY_MIB << 20) + access.SIZE)


def ticks(pid: int) -> int:
    """Return the processor time a process has had, in clock ticks."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def test_qemu_has_a_filter_and_no_power(pair: experiment.Stand) -> None:
    for guest in pair.pair.guests.values():
        for task in Path(f"/proc/{qemu(guest)}/task").iterdir():  # every thread
            facts = status(int(task.name))
            assert ("2", "1") == (facts["Seccomp"], facts["NoNewPrivs"])
            assert "0" not in facts["Uid"].split()
            if os.geteuid() == 0:
                assert {"0" * 16} == {facts[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd")}
                assert "" == facts["Groups"]
