"""From what a guest should be to QEMU's command line: pure, golden-tested.

Also what the installed binary is and can do, asked once and remembered.
"""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.errors import HostError
from lab.process import tool

BINARY = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
# No announcing after a restore; without this, and with no rounds of it asked for, QEMU 7.2
# dies when the guest resets the device.
QUIET = ",guest_announce=off"


@dataclass(frozen=True, kw_only=True, slots=True)
class Binary:
    """The QEMU that is installed."""

    path: str
    version: str  # "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
    machine: str  # the versioned q35, so that a snapshot names what it needs


@dataclass(frozen=True, kw_only=True, slots=True)
class GuestConfig:
    """Everything that decides a guest's command line.

    Paths are strings: `kernel` and `initramfs` are /dev/fd names of files handed over
    open, since QEMU runs as a user who may not reach the cache.
    """

    lab: str
    name: str
    accelerator: str  # "tcg" or "kvm"
    machine: str
    memory_mib: int
    ram: str
    kernel: str
    initramfs: str | None  # None where RAM is restored: it is in there already
    cmdline: str
    folder: str  # the guest's own sockets and logs
    link_device: str
    link_mac: str
    link_local: str  # UNIX datagram sockets of the two ends
    link_remote: str
    ssh_mac: str
    link_tap: int | None = None  # its open file, instead of the two sockets
    incoming: bool = False
    plugin: str | None = None
    devices: tuple[str, ...] = ()  # more of them, each as -device takes it
    link_options: str = ""  # of the link's device, each with a comma in front


def command_line(config: GuestConfig, *, binary: str = BINARY) -> list[str]:
    """Return QEMU's argv for `config`."""
    c = config
    argv = [binary, "-name", f"skblab-{c.lab}-{c.name}"]
    # First of all objects: the TCG plugin interface of QEMU 7.2 gives offsets into a RAM
    # block, which equal physical addresses only for the first one.
    argv += [
        "-object",
        f"memory-backend-file,id=ram,size={c.memory_mib}M,mem-path={c.ram},share=on",
        "-machine",
        f"{c.machine},memory-backend=ram,vmport=off,graphics=off",
        *_processor(c.accelerator),
        "-m",
        f"{c.memory_mib}M",
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-no-reboot",
        "-action",
        "panic=pause",
        "-kernel",
        c.kernel,
        "-append",
        c.cmdline,
    ]
    if c.initramfs is not None:
        argv += ["-initrd", c.initramfs]
    argv += [
        "-chardev",
        f"socket,id=qmp,path={c.folder}/qmp,server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        f"file,id=console,path={c.folder}/console.log,append=on",
        "-serial",
        "chardev:console",
        # First of all devices: one of them may be what the others reach memory through.
        *(word for device in c.devices for word in ("-device", device)),
        "-device",
        "pvpanic-pci,addr=02.0",
        "-device",
        "vmcoreinfo",
        "-device",
        "virtio-serial-pci,id=serial,addr=03.0,max_ports=4",
        "-chardev",
        f"socket,id=agent,path={c.folder}/agent,server=on,wait=off",
        "-device",
        "virtserialport,bus=serial.0,nr=1,chardev=agent,name=lab.agent",
        # restrict=on: the guest reaches nothing but the answers to our SSH connections.
        "-netdev",
        "user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device",
        f"virtio-net-pci,id=ssh0,netdev=ssh,mac={c.ssh_mac},addr=04.0,romfile={QUIET}",
        "-netdev",
        _link(c),
        "-device",
        f"{c.link_device},id=lab0,netdev=link,mac={c.link_mac},addr=05.0,romfile="
        + (QUIET if c.link_device.startswith("virtio") else "")
        + c.link_options,
    ]
    if c.plugin is not None:
        argv += ["-plugin", c.plugin]
    if c.incoming:
        argv += ["-incoming", "defer", "-S"]
    return argv


def _link(c: GuestConfig) -> str:
    if c.link_tap is not None:
        # Its packets through QEMU, where they are captured: vhost would take them past it.
        return f"tap,id=link,fd={c.link_tap},vhost=off"
    return f"dgram,id=link,{_end('local', c.link_local)},{_end('remote', c.link_remote)}"


def _end(side: str, path: str) -> str:
    return f"{side}.type=unix,{side}.path={path}"


def _processor(accelerator: str) -> list[str]:
    # TCG: `max` with four-level page tables, so that the direct map lies where the seeds
    # (and most machines) have it.  tb-size bounds the translator's own memory.
    if accelerator == "tcg":
        return ["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max,la57=off"]
    return ["-accel", accelerator, "-cpu", "host"]


@functools.cache
def installed() -> Binary:
    """Return what QEMU is installed; `ToolMissing` names the package that brings it."""
    path = tool(BINARY, package=PACKAGE)
    first = _output(path, "--version").splitlines()[0]
    version = first.removeprefix("QEMU emulator version ").strip()
    for line in _output(path, "-machine", "help").splitlines():
        words = line.split()
        if words and words[0] == "q35" and "(alias of " in line:
            machine = line.split("(alias of ")[1].rstrip(")")
            return Binary(path=path, version=version, machine=machine)
    raise HostError(f"{path} has no q35 machine", hint=f"apt-get install {PACKAGE}")


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise HostError(f"{' '.join(argv)} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def digest_of_binary() -> str:
    """Return what tells this QEMU build from another: path, version, size, time of change."""
    binary = installed()
    facts = Path(binary.path).stat()
    return f"{binary.version}|{facts.st_size}|{facts.st_mtime_ns}"
