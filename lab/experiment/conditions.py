"""What decides how bytes travel over the link: set as a playbook asks, then read from the guest."""

from __future__ import annotations

from lab.deadline import Deadline
from lab.guest import RECEIVER, Guest
from lab.spec import Link

NETDEV = "lab0"
COPYBREAK = "/sys/module/e1000e/parameters/copybreak"
# `read` is the shell's own: a program started costs a guest under TCG 40 ms.
ASKED = (
    "read release < /proc/sys/kernel/osrelease; echo kernel: $release;"
    f" ethtool -k {NETDEV}; ethtool -i {NETDEV};"
    f" read mtu < /sys/class/net/{NETDEV}/mtu; echo mtu: $mtu;"
    f" test ! -e {COPYBREAK} || {{ read least < {COPYBREAK}; echo copybreak: $least; }}"
)
# A driver may reset its device for another MTU: until the link is up again what is sent lies in
# the queue.  The kernel tells of it twice, the second time when the queue is let go.
WAIT_LINK = (
    f"until read up < /sys/class/net/{NETDEV}/carrier"
    f" && read state < /sys/class/net/{NETDEV}/operstate"
    ' && test "$up $state" = "1 up"; do usleep 10000; done'
)
QDISC = f"echo qdisc: $(tc qdisc show dev {NETDEV} root)"


def settings(link: Link, *, receives: bool) -> list[str]:
    """Return the shell commands that make a guest's end of the link what `link` says."""
    out = []
    if link.mtu != Link().mtu:
        out += [f"ip link set {NETDEV} mtu {link.mtu}", WAIT_LINK]
    if link.copybreak is not None:
        out.append(f"echo {link.copybreak} > {COPYBREAK}")
    if link.delay_s or link.loss:
        netem = f"delay {link.delay_s * 1000:.0f}ms loss {link.loss}%"
        out.append(f"modprobe sch_netem && tc qdisc replace dev {NETDEV} root netem {netem}")
    if link.xdp is not None and receives:
        out.append(f"xdp {NETDEV} {link.xdp}")
    return out


def set_link(guest: Guest, link: Link, *, deadline: Deadline) -> str:
    """Apply `link` to a guest and return what the guest then says of it."""
    told = f"{ASKED}; {QDISC}" if link.delay_s or link.loss else ASKED
    receives = guest.name == RECEIVER.name
    command = " && ".join([*settings(link, receives=receives), f"{{ {told}; }}"])
    return guest.require_shell().run(command, deadline=deadline).stdout


def counted(guest: Guest, *, deadline: Deadline) -> str:
    """Return what a guest's netem has dropped and let go so far."""
    shell = guest.require_shell()
    return shell.run(f"tc -s qdisc show dev {NETDEV} root", deadline=deadline).stdout
