// SPDX-License-Identifier: GPL-2.0-or-later
/* recv_trace: from the buffer the device filled to the receiver's own. */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>

#include "lab_dma.h"
#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

/* As in send_trace_main.c: a copy to user memory may fault and sleep. */
#define COPIES_AT_ONCE	64
/* page_to_skb() runs in a softirq and never sleeps: one call per CPU, few CPUs. */
#define SOFTIRQS_AT_ONCE	32

/*
 * struct virtnet_info is private to the driver.  It begins with vdev, cvq and dev in 6.1
 * and 6.12, as seen on live guests; lab_fill_dev() shows the result only if it is a name.
 */
#define VIRTNET_INFO_VDEV	0
#define VIRTNET_INFO_DEV	2

static bool is_for(const u8 *frame, const u8 *address)
{
	return lab_peek((u32 *)frame) == lab_peek((u32 *)address) &&
	       lab_peek((u16 *)(frame + 4)) == lab_peek((u16 *)(address + 4));
}
NOKPROBE_SYMBOL(is_for);

/*
 * Where the device wrote.  Without VIRTIO_NET_F_MRG_RXBUF a buffer begins with room for the skb
 * that is built around it, and with as much more for an XDP program as `ctx` says: `buf` is
 * its beginning in some kernels and what lies behind that room in others.  Which it is shows
 * the frame, which is for this NIC.
 */
static u64 written(const struct lab_args *args)
{
	struct virtio_device *vdev = (void *)lab_peek((u64 *)args->arg[0] + VIRTNET_INFO_VDEV);
	struct net_device *dev = (void *)lab_peek((u64 *)args->arg[0] + VIRTNET_INFO_DEV);
	u64 buf = args->arg[2], inner = buf + NET_SKB_PAD + NET_IP_ALIGN + args->arg[4];
	u64 features = lab_peek(&vdev->features);
	u32 header = sizeof(struct virtio_net_hdr);
	const u8 *address;

	if (lab_peek(&vdev->id.device) != VIRTIO_ID_NET || !lab_phys(buf) ||
	    features & BIT_ULL(VIRTIO_NET_F_MRG_RXBUF))
		return buf;
	if (features & BIT_ULL(VIRTIO_F_VERSION_1))
		header = sizeof(struct virtio_net_hdr_v1);
	address = lab_peek(&dev->dev_addr);
	if (!is_for((u8 *)buf + header, address) && is_for((u8 *)inner + header, address))
		return inner;
	return buf;
}
NOKPROBE_SYMBOL(written);

/* receive_buf(vi, rq, buf, len, ctx, xdp_xmit, stats) */
static bool fill_receive_buf(struct lab_event *event, struct lab_args *args)
{
	event->src = written(args);
	event->src_phys = lab_phys(event->src);
	event->size = args->arg[3];
	lab_fill_dev(event, lab_peek((u64 *)args->arg[0] + VIRTNET_INFO_DEV));
	lab_ring_bytes(event, event->src, event->size);
	return false;
}
NOKPROBE_SYMBOL(fill_receive_buf);

/* page_to_skb(vi, rq, page, offset, len, …) */
static bool fill_page_to_skb(struct lab_event *event, struct lab_args *args)
{
	u64 page = lab_page((struct page *)args->arg[2]);

	if (page) {
		event->src = page + (u32)args->arg[3];
		event->src_phys = lab_phys(event->src);
	}
	event->size = args->arg[4];
	if (args->ret)
		lab_fill_skb(event, args->ret);
	return false;
}
NOKPROBE_SYMBOL(fill_page_to_skb);

/* __udp_enqueue_schedule_skb(sk, skb): here skb->dev is still a device */
static bool fill_enqueue(struct lab_event *event, struct lab_args *args)
{
	lab_fill_packet(event, args->arg[1], lab_skb_dev(args->arg[1]));
	event->sk = args->arg[0];
	return false;
}
NOKPROBE_SYMBOL(fill_enqueue);

/* tcp_rcv_established(sk, skb): skb->dev may be gone (sk_add_backlog()) */
static bool fill_established(struct lab_event *event, struct lab_args *args)
{
	lab_fill_packet(event, args->arg[1], 0);
	event->sk = args->arg[0];
	return false;
}
NOKPROBE_SYMBOL(fill_established);

/* sock_def_readable(sk) */
static bool fill_readable(struct lab_event *event, struct lab_args *args)
{
	event->sk = args->arg[0];
	return false;
}
NOKPROBE_SYMBOL(fill_readable);

/* _copy_to_iter(addr, bytes, iter) */
static void keep_copy(struct lab_args *args)
{
	lab_keep_iter(args, args->arg[2]);
}
NOKPROBE_SYMBOL(keep_copy);

/* csum_and_copy_to_iter(addr, bytes, state, iter) */
static void keep_csum(struct lab_args *args)
{
	lab_keep_iter(args, args->arg[3]);
}
NOKPROBE_SYMBOL(keep_csum);

static bool fill_copy(struct lab_event *event, struct lab_args *args)
{
	lab_fill_copy_out(event, args, args->arg[0], args->arg[1], args->ret);
	return false;
}
NOKPROBE_SYMBOL(fill_copy);

/*
 * skb_consume_udp(sk, skb, len).  No device: skb->dev has been a scratch word since
 * the skb was queued (udp_set_dev_scratch()).
 */
static bool fill_consume(struct lab_event *event, struct lab_args *args)
{
	lab_fill_packet(event, args->arg[1], 0);
	event->sk = args->arg[0];
	event->size = args->arg[2];
	return false;
}
NOKPROBE_SYMBOL(fill_consume);

static const struct lab_spec specs[] = {
	{ .symbol = "virtio_net:receive_buf", .kind = LAB_ENTRY, .fill = fill_receive_buf },
	{
		.symbol = "virtio_net:page_to_skb",
		.kind = LAB_RETURN,
		.maxactive = SOFTIRQS_AT_ONCE,
		.fill = fill_page_to_skb,
	},
	{
		.symbol = "virtio_net:page_to_skb",
		.callee = "memcpy",
		.kind = LAB_CALLSITE,
		.flags = LAB_HOOK_COPY,
		.fill = lab_fill_memcpy,
	},
	{
		.symbol = "virtio_net:xdp_linearize_page",
		.callee = "memcpy",
		.kind = LAB_CALLSITE,
		.flags = LAB_HOOK_COPY,
		.fill = lab_fill_memcpy,
	},
	{
		.symbol = "dma_unmap_page_attrs",
		.kind = LAB_ENTRY,
		.want = lab_dma_takes,
		.fill = lab_dma_fill_unmap,
	},
	{
		.symbol = "e1000e:e1000_clean_rx_irq",
		.callee = "memcpy",
		.kind = LAB_CALLSITE,
		.flags = LAB_HOOK_COPY,
		.fill = lab_fill_memcpy,
	},
	{ .symbol = "__udp_enqueue_schedule_skb", .kind = LAB_ENTRY, .fill = fill_enqueue },
	{ .symbol = "tcp_rcv_established", .kind = LAB_ENTRY, .fill = fill_established },
	{ .symbol = "sock_def_readable", .kind = LAB_ENTRY, .fill = fill_readable },
	{
		.symbol = "_copy_to_iter",
		.kind = LAB_RETURN,
		.flags = LAB_HOOK_COPY,
		.maxactive = COPIES_AT_ONCE,
		.keep = keep_copy,
		.fill = fill_copy,
	},
	{
		.symbol = "csum_and_copy_to_iter",
		.kind = LAB_RETURN,
		.flags = LAB_HOOK_COPY,
		.maxactive = COPIES_AT_ONCE,
		.keep = keep_csum,
		.fill = fill_copy,
	},
	{ .symbol = "skb_consume_udp", .kind = LAB_ENTRY, .fill = fill_consume },
};

static int __init recv_trace_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), lab_skb_specs, lab_skb_count);
}

static void __exit recv_trace_exit(void)
{
	lab_stop();
}

module_init(recv_trace_init);
module_exit(recv_trace_exit);
MODULE_DESCRIPTION("skblab: records where a received message's bytes are and who copies them");
MODULE_LICENSE("GPL");
