"""Runs in a network namespace of its own: makes the taps and their bridge, hands them out, ends.

A program by itself, not imported: argv is the number of a socket to send the file
descriptors to, then a name for each tap.
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
BRIDGE = "lab"
MTU = 65_521  # the most of a tap; what guests take is theirs to say
# Packets that wait for a guest, which loses what comes beyond. Each may have 64 KiB: this
# is what a link can cost the host, 256 MiB a guest.
QUEUE = 4096
# Nobody speaks on the link but the guests, and what they say is not looked into: where the
# host has br_netfilter loaded, it would drop and defragment here too.
SILENT = {
    "ipv6/conf/default/disable_ipv6": "1",
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-ip6tables": "0",
    "bridge/bridge-nf-call-arptables": "0",
}


def tap(name: str) -> int:
    """Return a new tap, which hands over a packet with the header that says how to finish it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), flags))
    return fd


def main(number: str, *names: str) -> None:
    """Make a tap for each of `names`, all on one bridge, and send them to socket `number`."""
    for key, value in SILENT.items():
        with contextlib.suppress(FileNotFoundError):  # not in this kernel, so as it should be
            Path("/proc/sys/net", key).write_text(value, encoding="ascii")
    taps = [tap(name) for name in names]
    steps = [f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0"]
    steps += [f"link set {BRIDGE} mtu {MTU} up"]
    steps += [f"link set {name} mtu {MTU} txqueuelen {QUEUE} master {BRIDGE} up" for name in names]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(steps), text=True, check=True)
    with socket.socket(fileno=int(number)) as line:
        socket.send_fds(line, [b"taps"], taps)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
