"""What is asked of a lab: frozen values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

Experiment = Literal[
    "message", "steps", "socket", "crash", "chain", "known", "trap", "as-written",
    "arrival",
]  # fmt: skip
# What became of a module that was tried.
Verdict = Literal[
    "loaded", "build-failed", "refused", "warn", "bug", "oops", "panic", "soft-lockup",
    "hard-lockup", "hung-task", "rcu-stall", "kfence", "kasan", "slub", "corrupt", "leak",
    "flood", "oom", "reset", "poweroff", "guest-lost", "deadline",
]  # fmt: skip
Device = Literal["virtio-net-pci", "e1000e"]
Backend = Literal["dgram", "tap"]
ProbeKind = Literal["kmod", "bpf", "both", "none"]
Over = Literal["loopback", "link"]
Swiotlb = Literal["force"]
Xdp = Literal["pass"]
Protocol = Literal["udp", "tcp"]
Family = Literal["ipv4", "ipv6"]
Fault = Literal["alloc_file_pseudo", "sock_alloc_file"]

FAULTS: tuple[Fault, ...] = get_args(Fault)

# What `probes.without` may name: the hooks of the modules, as in
# docs/internals.md (a test compares the two).
HOOKS: tuple[str, ...] = (
    "_copy_from_iter",
    "csum_and_copy_from_iter_full",
    "csum_and_copy_from_iter",
    "ip_generic_getfrag",
    "__tcp_transmit_skb",
    "__dev_queue_xmit",
    "loopback_xmit",
    "__netif_rx",
    "virtio_net:start_xmit",
    "virtqueue_add_outbuf",
    "e1000e:e1000_xmit_frame",
    "dma_map_page_attrs",
    "virtio_net:receive_buf",
    "virtio_net:page_to_skb",
    "virtio_net:page_to_skb>memcpy",
    "virtio_net:xdp_linearize_page>memcpy",
    "dma_unmap_page_attrs",
    "e1000e:e1000_clean_rx_irq>memcpy",
    "__udp_enqueue_schedule_skb",
    "tcp_rcv_established",
    "sock_def_readable",
    "_copy_to_iter",
    "csum_and_copy_to_iter",
    "skb_consume_udp",
    "skb_copy_bits",
    "skb_copy_and_csum_bits",
    "pskb_expand_head",
    "swiotlb_bounce>memcpy",
    # arrival_trace.ko
    "__handle_irq_event_percpu",
    "__napi_schedule",
    "__napi_poll",
    "napi_gro_receive",
    "ip_rcv_core",
    "ip_local_deliver",
    "udp_rcv",
    "__udp4_lib_lookup",
    "try_to_wake_up",
    # socket_latency_probe.ko and socket_chain_probe.ko
    "__x64_sys_socket",
    "__x64_sys_sendto",
    "__x64_sys_recvfrom",
    "__sys_socket",
    "__sys_socket_create",
    "sock_map_fd",
    "sock_create",
    "__sock_create",
    "sock_alloc",
    "inet_create",
    "get_unused_fd_flags",
    "sock_alloc_file",
    "alloc_file_pseudo",
    "fd_install",
    "put_unused_fd",
    "sock_release",
    "__sock_release",
    "inet_release",
    "iput",
    "get_signal",
)

# Hooks that BPF programs alone have: the calls of functions to which BPF cannot attach, and
# their callers (lab/bpf/hooks.py; a test compares the two).
BPF_HOOKS: tuple[str, ...] = (
    "ip_generic_getfrag>_copy_from_iter",
    "ip_generic_getfrag>csum_and_copy_from_iter",
    "tcp_sendmsg_locked>_copy_from_iter",
    "udp_recvmsg>_copy_to_iter",
    "udpv6_recvmsg>_copy_to_iter",
    "simple_copy_to_iter",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnKernel:
    """A kernel of the user's own, as files of this host; in a playbook relative to that."""

    image: str  # a bzImage
    modules: str  # lib/modules/RELEASE, or the INSTALL_MOD_PATH it lies in
    headers: str = ""  # its build tree, or its headers; "": where the modules' link `build` leads

    def __str__(self) -> str:
        return self.image


AnyKernel = str | OwnKernel  # a series of ours, or the user's own


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The wire between the guests and the device at each of its ends."""

    device: Device = "virtio-net-pci"
    backend: Backend = "dgram"
    mtu: int = 1500
    iommu: bool = False  # between the device and memory, and the driver uses it
    swiotlb: Swiotlb | None = None  # force: all that a device reads and writes is bounced
    mrg_rxbuf: bool = True  # virtio: a frame may go over several receive buffers
    xdp: Xdp | None = None  # a program of ours in the receiver's driver; pass: as they came
    copybreak: int | None = None  # bytes; e1000e copies shorter frames (None: as the driver has it)
    delay_s: float = 0.0  # of every frame, on either way
    loss: float = 0.0  # percent of the frames, on either way


RECORDS_AT_MOST = 131_072  # that a ring has room for, as kmod/lab_param.c has it


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """What watches inside the guests."""

    kind: ProbeKind = "kmod"
    without: tuple[str, ...] = ()  # hooks left out, of HOOKS and BPF_HOOKS
    comm: str | None = None  # record only this comm
    foreign: tuple[str, ...] = ()  # files of the user: .c, .ko, .bpf.o, .bt
    records: int | None = None  # that each ring has room for; None: for those of the workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Who sends what to whom; `size` and `port` hold for every message."""

    over: Over
    family: Family = "ipv4"
    protocol: Protocol = "udp"
    size: int = 16
    count: int = 1
    payload: bytes | None = None  # repeated to fill `size`; None: derived from the run's seed
    connect: bool = False  # the sender's UDP socket; one of TCP always is
    port: int = 9999


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """A kernel module that may crash, and what is done with it."""

    path: str  # a .c file, a folder with a Makefile, or a .ko; in a file relative to that
    target: str | None = None  # which, where the folder makes several
    params: tuple[str, ...] = ()
    soak_s: float = 1.0  # watched on after the trigger
    unload: bool = True
    kfence: bool = False  # sample allocations
    slub_debug: str | None = None  # the allocator's own checks, such as FZPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """What an experiment with socket(2) does besides its single calls."""

    repeats: int = 10_000  # of each way to fail between sock_alloc and fd_install
    fault: Fault = "alloc_file_pseudo"  # the function that is made to fail
    control: int = 200  # sockets lost on purpose, so that the check for leaks is checked


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a module moves whose answer is known: messages by memcpy, and others by DMA."""

    copies: int = 7
    size: int = 1009  # bytes of each
    transfers: int = 0  # out of RAM into QEMU's edu device, and back to other RAM
    hidden: bool = False  # one copy more, of which the module says nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Expect:
    """What the ledger, or the post-mortem, must say; None: nothing is expected of that line."""

    complete: bool | None = None
    guest_cpu_copies: int | None = None
    device_reads: int | None = None
    device_writes: int | None = None
    handovers: int | None = None
    same_object: bool | None = None
    same_head: bool | None = None
    skb_len_at_xmit: int | None = None
    unexplained: int | None = None
    verdict: Verdict | None = None
    at: str | None = None  # a beginning of the place, such as null_write.c:20


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Values to go through, each with each; an empty list is the playbook's own value."""

    kernel: tuple[str, ...] = ()
    over: tuple[Over, ...] = ()
    device: tuple[Device, ...] = ()
    backend: tuple[Backend, ...] = ()
    family: tuple[Family, ...] = ()
    protocol: tuple[Protocol, ...] = ()
    connect: tuple[bool, ...] = ()
    size: tuple[int, ...] = ()
    repeat: int = 1  # runs of each cell


@dataclass(frozen=True, kw_only=True, slots=True)
class Playbook:
    """One question, and all that is needed to ask it."""

    name: str
    question: str
    experiment: Experiment = "message"
    kernel: AnyKernel = "6.12"
    link: Link = field(default_factory=Link)
    probes: Probes = field(default_factory=Probes)
    module: Module | None = None  # of a crash
    workload: Workload = field(default_factory=lambda: Workload(over="loopback"))
    known: Known = field(default_factory=Known)  # of ground truth
    trigger: Workload | None = None  # what is sent while the module is loaded
    calls: Calls = field(default_factory=Calls)
    expect: Expect = field(default_factory=Expect)
    not_judged: tuple[tuple[str, str], ...] = ()  # lines of `expect` that options took away: why
    sweep: Sweep = field(default_factory=Sweep)
    deadline_s: float = 180.0  # a dead guest is told at once; this is for what hangs
    source: bytes = b""  # the exact bytes of the file
    path: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections:
    """Which parts of a playbook an experiment reads; `link` and `probes` are most kinds'."""

    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()  # of the parts that most kinds have
    expects: tuple[str, ...] = ("complete",)  # lines of `expect`
    must: tuple[str, ...] = ()  # those that have to be there
    probes: tuple[str, ...] = get_args(ProbeKind)  # kinds it can be done with
    foreign: bool = False  # whether the user's own probes are loaded


EXPECTABLE = tuple(line.name for line in fields(Expect))
ENDING = ("verdict", "at")
OF_LEDGERS = tuple(line for line in EXPECTABLE if line not in ENDING)
SECTIONS: dict[Experiment, Sections] = {
    "message": Sections(needs=("workload",), may=("sweep",), expects=OF_LEDGERS, foreign=True),
    "steps": Sections(
        needs=("workload",), expects=OF_LEDGERS, probes=("none",), foreign=True,
    ),
    "socket": Sections(may=("calls",), probes=("kmod", "bpf", "both")),
    "arrival": Sections(
        needs=("workload",), expects=OF_LEDGERS, probes=("kmod",), foreign=True,
    ),
    "chain": Sections(probes=("kmod",)),
    "known": Sections(needs=("known",), probes=("kmod", "none")),
    "trap": Sections(lacks=("link", "probes")),
    "crash": Sections(
        needs=("module",), may=("trigger",), lacks=("link", "probes"), expects=ENDING,
        must=("verdict",),
    ),
    "as-written": Sections(probes=("kmod",)),
}  # fmt: skip
# Sections that belong to some kinds only.
SPECIAL = frozenset(name for kind in SECTIONS.values() for name in kind.needs + kind.may)
