"""One machine's life: start, reach, freeze, thaw, stop."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lab import access, process, qemu, snapshot, ssh
from lab.accelerator import kvm_group
from lab.agent import Agent, ClockSample
from lab.deadline import Deadline, wait_until
from lab.errors import GuestError, GuestLost, GuestPanicked, LaunchFailed, SnapshotError
from lab.image import Image, used
from lab.memory import GuestMemory
from lab.qmp import Monitor

MEMORY_MIB = 512
HOME = "/root"  # in the guest
BUILT_FOR = frozenset({"virtio-net-pci"})  # devices whose driver every guest loads
PLUGIN = "access.so"
CONSOLE_TAIL = 12  # lines shown when a guest is lost


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What tells one guest from the other; the IPv4 addresses are the worksheet's.

    Its IPv6 address on the link guest/init.c makes of the last byte of the other.
    """

    name: str
    address: str
    link_mac: str
    ssh_mac: str

    @property
    def address6(self) -> str:
        return f"fd29::{int(self.address.rpartition('.')[2]):x}"


SENDER = Identity(
    name="sender",
    address="192.168.29.100",
    link_mac="52:54:00:29:00:64",
    ssh_mac="52:54:00:29:01:64",
)
RECEIVER = Identity(
    name="receiver",
    address="192.168.29.158",
    link_mac="52:54:00:29:00:9e",
    ssh_mac="52:54:00:29:01:9e",
)
PAIR = (SENDER, RECEIVER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Where a guest's things lie while it runs."""

    base: Path  # of the lab, ours
    ram: Path  # the RAM file
    name: str

    @property
    def own(self) -> Path:
        """The folder QEMU itself may write to."""
        return self.base / self.name

    @property
    def lock(self) -> Path:
        return self.base / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        return self.base / f"{self.name}.qemu.log"

    @property
    def console(self) -> Path:
        return self.own / "console.log"


def cmdline(me: Identity, peer: Identity, *, device: str) -> str:
    """Return the kernel's command line for guest `me` with this device on the link."""
    return " ".join(
        [
            "console=ttyS0",
            "quiet",
            "loglevel=4",
            "panic=0",
            "net.ifnames=0",
            "random.trust_cpu=on",
            f"lab.name={me.name}",
            f"lab.mac.lab={me.link_mac}",
            f"lab.mac.ssh={me.ssh_mac}",
            f"lab.address={me.address}/24",
            f"lab.peer={peer.address}",
            f"lab.peermac={peer.link_mac}",
            *([] if device in BUILT_FOR else [f"lab.modules={device}"]),
        ]
    )


class Guest:
    """A guest that runs, or is about to."""

    def __init__(self, me: Identity, peer: Identity, folder: Folder, *, lab: str) -> None:
        self.me = me
        self.peer = peer
        self.folder = folder
        self.lab = lab
        self.name = me.name
        self.child: process.Child | None = None
        self.monitor: Monitor | None = None
        self.agent: Agent | None = None
        self.shell: ssh.Shell | None = None
        self.argv: list[str] = []
        self.extra = ""  # more words for the kernel's command line
        self.devices: tuple[str, ...] = ()  # more than every guest has
        self.link_options = ""  # of the link's device
        self.plugin: Path | None = None  # the access log, where there is one

    # -- life ------------------------------------------------------------------

    def config(
        self,
        *,
        accelerator: str,
        device: str,
        kernel: str,
        initramfs: str | None,
        tap: int | None = None,
    ) -> qemu.GuestConfig:
        """Return what decides this guest's command line; `tap` is its end of a link of taps."""
        link = self.folder.base / "link"
        return qemu.GuestConfig(
            lab=self.lab,
            name=self.name,
            accelerator=accelerator,
            machine=qemu.installed().machine,
            memory_mib=MEMORY_MIB,
            ram=str(self.folder.ram),
            kernel=kernel,
            initramfs=initramfs,
            cmdline=f"{cmdline(self.me, self.peer, device=device)} {self.extra}".rstrip(),
            folder=str(self.folder.own),
            link_device=device,
            link_mac=self.me.link_mac,
            link_local=str(link / self.name),
            link_remote=str(link / self.peer.name),
            link_tap=tap,
            ssh_mac=self.me.ssh_mac,
            incoming=initramfs is None,
            plugin=self._plugin_argument(),
            devices=self.devices,
            link_options=self.link_options,
        )

    def _plugin_argument(self) -> str | None:
        if self.plugin is None:
            return None
        return access.plugin_argument(self._own_plugin, log=self.access_log, ram=self.folder.ram)

    @property
    def _own_plugin(self) -> Path:
        return self.folder.base / f"{self.name}.{PLUGIN}"

    @property
    def access_log(self) -> Path:
        """The file through which the plugin is switched and into which it writes."""
        return self.folder.ram.with_suffix(".access")

    def prepare(self) -> None:
        """Make the folders QEMU writes to and an empty RAM file of the right size."""
        for folder in (self.folder.own, self.folder.base / "link"):
            folder.mkdir(mode=0o700, exist_ok=True)
            process.give(folder, mode=0o700)
        self.folder.ram.unlink(missing_ok=True)
        fd = os.open(self.folder.ram, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, MEMORY_MIB << 20)
        finally:
            os.close(fd)
        process.give(self.folder.ram, mode=0o600)
        if self.plugin is not None:
            # In our folder, not QEMU's: it runs this file and need not be able to change it.
            self._own_plugin.unlink(missing_ok=True)
            shutil.copyfile(self.plugin, self._own_plugin)
            self._own_plugin.chmod(0o755)
            access.Control.create(self.access_log).close()
            process.give(self.access_log, mode=0o600)

    def launch(
        self,
        image: Image,
        *,
        accelerator: str,
        device: str,
        incoming: bool,
        dies_with_us: bool,
        tap: int | None = None,
    ) -> None:
        """Start QEMU: booting, or waiting for a device state when `incoming`."""
        for stale in ("qmp", "agent"):
            (self.folder.own / stale).unlink(missing_ok=True)
        (self.folder.base / "link" / self.name).unlink(missing_ok=True)
        used(image)
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(image.kernel.open("rb"))]
            if not incoming:
                files.append(opened.enter_context(image.initramfs.open("rb")))
            names = [f"/dev/fd/{file.fileno()}" for file in files]
            config = self.config(
                accelerator=accelerator,
                device=device,
                kernel=names[0],
                initramfs=None if incoming else names[1],
                tap=tap,
            )
            self.argv = qemu.command_line(config, binary=qemu.installed().path)
            self.child = process.start(
                self.argv,
                lock=self.folder.lock,
                log=self.folder.log,
                cwd=self.folder.own,
                pass_fds=[file.fileno() for file in files] + ([] if tap is None else [tap]),
                dies_with_us=dies_with_us,
                group=kvm_group() if accelerator == "kvm" else None,
            )

    def attach(self, *, deadline: Deadline) -> None:
        """Connect to the monitor of the QEMU that runs."""
        self.monitor = Monitor(self.name, self.folder.own / "qmp")
        try:
            self.monitor.connect(deadline=deadline, alive=lambda: self.alive)
        except GuestLost as error:
            raise LaunchFailed(
                self.name,
                f"QEMU ended at once: {tail(self.folder.log, 3) or 'it said nothing'}",
                log=self.folder.log,
                hint="invoke lab.doctor",
            ) from error

    def greet(self, *, deadline: Deadline) -> str:
        """Connect to the agent; return the kernel release it reports."""
        self.agent = Agent(self.name, self.folder.own / "agent", check=self.check)
        return self.agent.connect(deadline=deadline)

    @property
    def alive(self) -> bool:
        return process.is_locked(self.folder.lock)

    def check(self) -> None:
        """Raise what has become of the guest, if anything has; cheap, asks no guest."""
        fate = self.monitor.fate if self.monitor is not None else None
        if fate is None and self.alive:
            return
        log = self.folder.console
        said = tail(log, CONSOLE_TAIL)
        if fate == "panicked":
            first = panic_line(log) or "the kernel declared a panic"
            raise GuestPanicked(self.name, first, log=log, hint="invoke lab.reset")
        what = {None: "QEMU died", "lost": "QEMU died"}.get(fate, f"the guest {fate}")
        detail = tail(self.folder.log, 2) or said or "it said nothing"
        raise GuestLost(self.name, f"{what}: {detail}", log=log, hint="invoke lab.reset")

    def hang_up(self) -> None:
        """Close our lines to the guest; it goes on."""
        for line in (self.shell, self.agent, self.monitor):
            if line is not None:
                line.close()
        self.shell = self.agent = self.monitor = None

    def stop(self) -> bool:
        """End QEMU and remove its sockets and RAM file; say whether it had to be killed."""
        killed = False
        if self.monitor is not None and self.alive:
            with contextlib.suppress(GuestError, TimeoutError):
                self.monitor.execute("quit", deadline=Deadline(2.0))
        self.hang_up()
        killed = process.stop(self.folder.lock, grace_s=1.0)
        if self.child is not None:
            process.reap(self.child.pid)
        for ours in (self.folder.ram, self.access_log, self._own_plugin):
            ours.unlink(missing_ok=True)
        for name in ("qmp", "agent"):
            (self.folder.own / name).unlink(missing_ok=True)
        (self.folder.base / "link" / self.name).unlink(missing_ok=True)
        return killed

    # -- what the agent does -----------------------------------------------------

    def settle(self, *, deadline: Deadline) -> tuple[str, str]:
        """Make a booted guest ready to be used or frozen; return (nonce, host key)."""
        agent = self.require_agent()
        agent.put(
            f"{HOME}/.ssh/authorized_keys",
            ssh.public_key().encode() + b"\n",
            mode=0o600,
            deadline=deadline,
        )
        self.set_time(deadline=deadline)
        agent.ask("ssh-start", expect="ok ssh-start", deadline=deadline)
        words = agent.ask("hostkey", expect="hostkey", deadline=deadline)
        nonce = secrets.token_hex(16)
        agent.ask(f"nonce-set {nonce}", expect="ok nonce-set", deadline=deadline)
        agent.ask("scrub", expect="ok scrub", deadline=deadline)
        return nonce, " ".join(words[1:3])

    def prove_restored(self, nonce: str, *, deadline: Deadline) -> None:
        """Raise `SnapshotError` unless the guest's memory holds the snapshot's nonce."""
        words = self.require_agent().ask("nonce-get", expect="nonce", deadline=deadline)
        if words[1] != nonce:
            raise SnapshotError(f"{self.name} was not restored: nonce {words[1]} is not {nonce}")

    def set_time(self, *, deadline: Deadline) -> None:
        """Give the guest the host's time and fresh entropy (a restored one has old ones)."""
        agent = self.require_agent()
        agent.ask(f"entropy {secrets.token_hex(32)}", expect="ok entropy", deadline=deadline)
        now = time.time_ns()
        agent.ask(f"clock {now // 10**9} {now % 10**9}", expect="ok clock", deadline=deadline)

    def sample_clock(self, *, count: int, deadline: Deadline) -> list[ClockSample]:
        """Ping the agent `count` times for the guest's TSC."""
        agent = self.require_agent()
        return [agent.ping(deadline=deadline) for _ in range(count)]

    # -- freeze and thaw -----------------------------------------------------------

    def save(self, into: Path, *, nonce: str, hostkey: str, release: str) -> snapshot.Frozen:
        """Write this (stopped) guest's RAM and device state into a snapshot folder."""
        state = into / f"{self.name}.state"
        monitor = self.require_monitor()
        with state.open("wb") as out:
            monitor.give_fd("state", out.fileno())
            monitor.execute("migrate", {"uri": "fd:state"})
            self._wait_migrated(Deadline(30.0))
        runs, digest = snapshot.pack(self.folder.ram, into / f"{self.name}.ram")
        return snapshot.Frozen(
            ram_size=MEMORY_MIB << 20,
            runs=runs,
            ram_sha256=digest,
            state_sha256=hashlib.sha256(state.read_bytes()).hexdigest(),
            nonce=nonce,
            hostkey=hostkey,
            release=release,
        )

    def load(self, stored: snapshot.Snapshot, *, deadline: Deadline) -> None:
        """Feed the device state to a QEMU that waits for it; the guest is stopped then."""
        monitor = self.require_monitor()
        ignore_shared(monitor)
        # After a migration QEMU announces every NIC on its link, for half a second: frames
        # that nobody in the lab sent.
        monitor.execute("migrate-set-parameters", {"announce-rounds": 0})
        with stored.file(self.name, "state").open("rb") as source:
            monitor.give_fd("state", source.fileno())
            monitor.execute("migrate-incoming", {"uri": "fd:state"})
            self._wait_migrated(deadline)

    def _wait_migrated(self, deadline: Deadline) -> None:
        monitor = self.require_monitor()

        def ended() -> str | None:
            self.check()
            answer = monitor.execute("query-migrate", deadline=deadline)
            status = str(answer.get("status", ""))
            return status if status in ("completed", "failed", "cancelled") else None

        status = wait_until(
            ended, what=f"state of {self.name}", deadline=deadline, interval_s=0.002
        )
        if status != "completed":
            raise SnapshotError(
                f"{self.name}: device state {status}: {tail(self.folder.log, 3)}",
                log=self.folder.log,
            )

    # -- reach -------------------------------------------------------------------

    def ssh_port(self, *, deadline: Deadline) -> int:
        """Return the port on 127.0.0.1 that QEMU picked for the guest's SSH server."""
        text = self.require_monitor().human("info usernet", deadline=deadline)
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", text)
        if found is None:
            raise GuestError(self.name, f"QEMU forwards no SSH port: {text!r}")
        return int(found.group(1))

    def open_shell(self, *, port: int, hostkey: str) -> ssh.Shell:
        """Return the guest's shell; it connects at its first command."""
        if self.shell is None:
            self.shell = ssh.Shell(self.name, port=port, hostkey=hostkey, check=self.check)
        return self.shell

    def memory(self) -> GuestMemory:
        """Open the guest's RAM for reading."""
        return GuestMemory(self.folder.ram)

    def require_agent(self) -> Agent:
        if self.agent is None:
            raise GuestLost(self.name, "no line to the agent is open")
        return self.agent

    def require_monitor(self) -> Monitor:
        if self.monitor is None:
            raise GuestLost(self.name, "no line to the monitor is open")
        return self.monitor

    def require_shell(self) -> ssh.Shell:
        if self.shell is None:
            raise GuestLost(self.name, "no shell is open")
        return self.shell


def ignore_shared(monitor: Monitor) -> None:
    """Leave RAM out of migration: it is a file that both sides already have."""
    monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
    )


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a log on one line, "" where there is none."""
    try:
        text = process.read_given(path, most=8192).decode("utf-8", "replace")
    except OSError:
        return ""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(kept[-lines:])


def panic_line(path: Path) -> str | None:
    """Return the line of a console log in which the kernel gave up, if it did."""
    try:
        text = process.read_given(path).decode("utf-8", "replace")
    except OSError:
        return None
    marks = ("Kernel panic", "BUG:", "Oops:", "general protection fault")
    for line in text.splitlines():
        if any(mark in line for mark in marks):
            return line.split("] ", 1)[-1].strip()
    return None
