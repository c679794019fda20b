"""The hooks that BPF programs have; `bpf/probe.bpf.c` has the programs, by the same ids."""

from __future__ import annotations

from dataclasses import dataclass

SEND, RECV, SOCKET = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook: a function, or the calls of `callee` inside it.

    `ways` are the ways there are programs for, best first.  `module` is part of the name;
    without one a function may lie in the kernel or in any module.
    """

    id: str
    function: str
    sides: int
    ways: tuple[str, ...]
    callee: str = ""
    module: str = ""
    copies: bool = False

    @property
    def name(self) -> str:
        """As in the table of hooks and in `Record.hook`."""
        prefix = f"{self.module}:" if self.module else ""
        return f"{prefix}{self.function}{'>' if self.callee else ''}{self.callee}"


ENTRY = ("fentry", "kprobe")
CALL = ("call",)
IN, OUT = ("fentry",), ("fexit",)
VIRTIO = "virtio_net"
E1000E = "e1000e"

# BPF attaches to no function of lib/ (they have no fentry call, and the kernel refuses a
# kprobe there), so the copies that happen in them are seen where they are called.
HOOKS: tuple[Hook, ...] = (
    Hook("getfrag_copy", "ip_generic_getfrag", SEND, CALL, "_copy_from_iter", copies=True),
    Hook("tcp_copy", "tcp_sendmsg_locked", SEND, CALL, "_copy_from_iter", copies=True),
    Hook("csum_full", "csum_and_copy_from_iter_full", SEND, ENTRY, copies=True),
    Hook("getfrag_csum", "ip_generic_getfrag", SEND, CALL, "csum_and_copy_from_iter", copies=True),
    Hook("getfrag", "ip_generic_getfrag", SEND, ENTRY),
    Hook("tcp_transmit", "__tcp_transmit_skb", SEND, ENTRY),
    Hook("queue_xmit", "__dev_queue_xmit", SEND, ("fentry", "tp", "kprobe")),
    Hook("loopback_xmit", "loopback_xmit", SEND, ENTRY),
    Hook("netif_rx", "__netif_rx", SEND, ENTRY),
    Hook("start_xmit", "start_xmit", SEND, ENTRY, module=VIRTIO),
    Hook("outbuf", "virtqueue_add_outbuf", SEND, ENTRY),
    Hook("e1000_xmit", "e1000_xmit_frame", SEND, ENTRY, module=E1000E),
    Hook("dma_map", "dma_map_page_attrs", SEND, ("fexit",)),
    Hook("receive_buf", "receive_buf", RECV, ENTRY, module=VIRTIO),
    Hook("page_to_skb", "page_to_skb", RECV, ("fexit", "kretprobe"), module=VIRTIO),
    Hook("page_copy", "page_to_skb", RECV, CALL, "memcpy", module=VIRTIO, copies=True),
    Hook("xdp_copy", "xdp_linearize_page", RECV, CALL, "memcpy", module=VIRTIO, copies=True),
    Hook("dma_unmap", "dma_unmap_page_attrs", RECV, ENTRY),
    Hook("e1000_copy", "e1000_clean_rx_irq", RECV, CALL, "memcpy", module=E1000E, copies=True),
    Hook("enqueue", "__udp_enqueue_schedule_skb", RECV, ENTRY),
    Hook("established", "tcp_rcv_established", RECV, ENTRY),
    Hook("readable", "sock_def_readable", RECV, ENTRY),
    Hook("recvmsg_copy", "udp_recvmsg", RECV, CALL, "_copy_to_iter", copies=True),
    Hook("recvmsg6_copy", "udpv6_recvmsg", RECV, CALL, "_copy_to_iter", copies=True),
    Hook("simple_copy", "simple_copy_to_iter", RECV, ENTRY, copies=True),
    Hook("csum_copy", "csum_and_copy_to_iter", RECV, ENTRY, copies=True),
    Hook("consume", "skb_consume_udp", RECV, ENTRY),
    Hook("copy_bits", "skb_copy_bits", SEND | RECV, ENTRY, copies=True),
    Hook("csum_bits", "skb_copy_and_csum_bits", SEND | RECV, ENTRY, copies=True),
    Hook("expand_head", "pskb_expand_head", SEND | RECV, ("fexit",), copies=True),
    Hook("bounce", "swiotlb_bounce", SEND | RECV, CALL, "memcpy", copies=True),
    # socket(2): a way in and a way out are two hooks of one name, as in socket_chain_probe.
    Hook("x64_socket", "__x64_sys_socket", SOCKET, IN),
    Hook("x64_sendto", "__x64_sys_sendto", SOCKET, IN),
    Hook("x64_recvfrom", "__x64_sys_recvfrom", SOCKET, IN),
    Hook("sys_socket", "__sys_socket", SOCKET, IN),
    Hook("sys_socket_out", "__sys_socket", SOCKET, OUT),
    Hook("inner_create", "__sys_socket_create", SOCKET, IN),
    Hook("map_fd", "sock_map_fd", SOCKET, IN),
    Hook("bare_create", "sock_create", SOCKET, IN),
    Hook("create", "__sock_create", SOCKET, IN),
    Hook("create_out", "__sock_create", SOCKET, OUT),
    Hook("alloc", "sock_alloc", SOCKET, IN),
    Hook("alloc_out", "sock_alloc", SOCKET, OUT),
    Hook("inet", "inet_create", SOCKET, IN),
    Hook("inet_out", "inet_create", SOCKET, OUT),
    Hook("unused_fd", "get_unused_fd_flags", SOCKET, IN),
    Hook("unused_fd_out", "get_unused_fd_flags", SOCKET, OUT),
    Hook("alloc_file", "sock_alloc_file", SOCKET, IN),
    Hook("alloc_file_out", "sock_alloc_file", SOCKET, OUT),
    Hook("pseudo", "alloc_file_pseudo", SOCKET, IN),
    Hook("pseudo_out", "alloc_file_pseudo", SOCKET, OUT),
    Hook("install", "fd_install", SOCKET, IN),
    Hook("install_out", "fd_install", SOCKET, OUT),
    Hook("put_fd", "put_unused_fd", SOCKET, IN),
    Hook("release", "sock_release", SOCKET, IN),
    Hook("inner_release", "__sock_release", SOCKET, IN),
    Hook("inet_release", "inet_release", SOCKET, IN),
    Hook("put_inode", "iput", SOCKET, IN),
    Hook("signal_out", "get_signal", SOCKET, OUT),
)

# A callee by all the names the compiler may call it.
ALIASES = {"memcpy": ("memcpy", "__memcpy", "__asan_memcpy")}
