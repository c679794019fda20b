"""Which hook tells what of a packet's way."""

from __future__ import annotations

from typing import Final

from lab.rundir import Manifest

# The driver is given an skb to transmit: by the device it drives.
XMIT_OF: Final = {"virtio-net-pci": "virtio_net:start_xmit", "e1000e": "e1000e:e1000_xmit_frame"}
DRIVER_XMIT: Final = frozenset(XMIT_OF.values())
# A driver gives memory to its device: by a virtqueue, or by the DMA API.
OUTBUF: Final = "virtqueue_add_outbuf"
DMA_MAP: Final = "dma_map_page_attrs"
# No hook: what the access log saw a CPU store in a descriptor.
DESCRIBED: Final = "(descriptor)"
# A driver is told, or finds, that its device has filled a buffer.
RECEIVE_BUF: Final = "virtio_net:receive_buf"
DMA_UNMAP: Final = "dma_unmap_page_attrs"

SEND_SIDE: Final = DRIVER_XMIT | {
    "ip_generic_getfrag",
    "__tcp_transmit_skb",
    "__dev_queue_xmit",
    "loopback_xmit",
    OUTBUF,
    DMA_MAP,
    DESCRIBED,
}
RECEIVE_SIDE: Final = frozenset(
    {
        "__netif_rx",
        RECEIVE_BUF,
        DMA_UNMAP,
        "virtio_net:page_to_skb",
        "__udp_enqueue_schedule_skb",
        "tcp_rcv_established",
        "sock_def_readable",
        "skb_consume_udp",
    }
)


def uses_dma_api(manifest: Manifest) -> bool:
    """Tell whether the driver of the link's device gets its addresses from the DMA API.

    That of a virtio device need not, unless it is behind an IOMMU or bounces; others must.
    """
    options = dict(manifest.options)
    return "iommu" in options or "swiotlb" in options or not manifest.device.startswith("virtio")


def filled_by(manifest: Manifest) -> str:
    """Return the hook that says which buffers the link's device filled."""
    return DMA_UNMAP if uses_dma_api(manifest) else RECEIVE_BUF


def given_by(manifest: Manifest) -> str:
    """Return the hook that says which memory the link's device was given to read."""
    return DMA_MAP if uses_dma_api(manifest) else OUTBUF
