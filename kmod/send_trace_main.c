// SPDX-License-Identifier: GPL-2.0-or-later
/* send_trace: from the sender's buffer to the descriptor the device reads. */
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/skbuff.h>
#include <linux/virtio.h>
#include <linux/virtio_ids.h>

#include "lab_dma.h"
#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

/*
 * A copy from user memory may fault and sleep, and then another task copies: as
 * many calls can be under way as tasks write.  More than this many do not in a
 * guest of the lab; if they do, nmissed says so.
 */
#define COPIES_AT_ONCE	64
/* A driver maps with bottom halves off and never sleeps: one call per CPU, few CPUs. */
#define SENDS_AT_ONCE	32

/* _copy_from_iter(addr, bytes, iter) */
static void keep_copy(struct lab_args *args)
{
	lab_keep_iter(args, args->arg[2]);
}
NOKPROBE_SYMBOL(keep_copy);

static bool fill_copy(struct lab_event *event, struct lab_args *args)
{
	lab_fill_copy_in(event, args, args->arg[0], args->arg[1], args->ret);
	return false;
}
NOKPROBE_SYMBOL(fill_copy);

/* csum_and_copy_from_iter(addr, bytes, csum, iter) */
static void keep_csum(struct lab_args *args)
{
	lab_keep_iter(args, args->arg[3]);
}
NOKPROBE_SYMBOL(keep_csum);

/* csum_and_copy_from_iter_full(), same arguments: a bool, all or (reverted) nothing */
static bool fill_csum_full(struct lab_event *event, struct lab_args *args)
{
	lab_fill_copy_in(event, args, args->arg[0], args->arg[1],
			 (u8)args->ret ? args->arg[1] : 0);
	return false;
}
NOKPROBE_SYMBOL(fill_csum_full);

/* ip_generic_getfrag(from, to, offset, len, odd, skb) */
static bool fill_getfrag(struct lab_event *event, struct lab_args *args)
{
	event->dst = args->arg[1];
	event->dst_phys = lab_phys(event->dst);
	event->size = args->arg[3];
	lab_fill_skb(event, args->arg[5]);
	return false;
}
NOKPROBE_SYMBOL(fill_getfrag);

/*
 * __tcp_transmit_skb(sk, skb, …): the skb that was filled.  What is sent is a clone of it
 * with the same head, so the frags told here, one record each, are the clone's too.
 */
static bool fill_tcp_transmit(struct lab_event *event, struct lab_args *args)
{
	struct skb_shared_info *shinfo;
	skb_frag_t frag;
	u64 page;

	lab_fill_skb(event, args->arg[1]);
	event->sk = args->arg[0];
	shinfo = (void *)event->shinfo;
	if (args->part < min_t(u32, event->frags, MAX_SKB_FRAGS) &&
	    !copy_from_kernel_nofault(&frag, &shinfo->frags[args->part], sizeof(frag))) {
		page = lab_page(skb_frag_page(&frag));
		event->src = page ? page + skb_frag_off(&frag) : 0;
		event->src_phys = lab_phys(event->src);
		event->size = skb_frag_size(&frag);
		lab_ring_bytes(event, event->src, event->size);
	}
	args->cursor = event->frags;
	event->frags = args->part;
	return args->part + 1 < min_t(u32, args->cursor, MAX_SKB_FRAGS);
}
NOKPROBE_SYMBOL(fill_tcp_transmit);

/* (skb, …), the device is the skb's own */
static bool fill_xmit(struct lab_event *event, struct lab_args *args)
{
	lab_fill_packet(event, args->arg[0], lab_skb_dev(args->arg[0]));
	return false;
}
NOKPROBE_SYMBOL(fill_xmit);

/* ndo_start_xmit(skb, dev) */
static bool fill_start_xmit(struct lab_event *event, struct lab_args *args)
{
	lab_fill_packet(event, args->arg[0], args->arg[1]);
	return false;
}
NOKPROBE_SYMBOL(fill_start_xmit);

/*
 * virtqueue_add_outbuf(vq, sg, num, data, gfp): one record per segment.  data is an
 * skb only if the device is a NIC and VIRTIO_XDP_FLAG is off; VIRTIO_ORPHAN_FLAG
 * (drivers/net/virtio_net.c) is the other bit a driver may have set.
 */
#define MAX_SEGMENTS	(MAX_SKB_FRAGS + 2)	/* virtio header, linear area, frags */
#define XDP_FLAG	1UL
#define DATA_FLAGS	3UL

static bool is_nic(struct virtqueue *vq)
{
	struct virtio_device *device = lab_peek(&vq->vdev);

	return lab_peek(&device->id.device) == VIRTIO_ID_NET;
}
NOKPROBE_SYMBOL(is_nic);

static bool fill_outbuf(struct lab_event *event, struct lab_args *args)
{
	struct scatterlist sg;
	u64 page;

	if (!args->part)
		args->cursor = args->arg[1];
	event->aux = args->arg[0];
	if (!copy_from_kernel_nofault(&sg, (void *)args->cursor, sizeof(sg))) {
		event->size = sg.length;
		page = lab_page((struct page *)(sg.page_link & ~SG_PAGE_LINK_MASK));
		if (page) {
			event->src = page + sg.offset;
			event->src_phys = lab_phys(event->src);
		}
	} else {
		sg.page_link = SG_END;
	}
	if (!(args->arg[3] & XDP_FLAG) && is_nic((void *)args->arg[0]))
		lab_fill_skb(event, args->arg[3] & ~DATA_FLAGS);
	event->frags = args->part;

	if ((sg.page_link & SG_END) || args->part + 1 >= min_t(u32, args->arg[2], MAX_SEGMENTS))
		return false;
	args->cursor += sizeof(sg);
	sg.page_link = lab_peek(&((struct scatterlist *)args->cursor)->page_link);
	if (sg.page_link & SG_CHAIN)
		args->cursor = sg.page_link & ~SG_PAGE_LINK_MASK;
	return true;
}
NOKPROBE_SYMBOL(fill_outbuf);

/* The 6.1 form: a function of lib/, and the _full one an inline around it. */
static const struct lab_spec csum_in_lib = {
	.symbol = "csum_and_copy_from_iter",
	.kind = LAB_RETURN,
	.flags = LAB_HOOK_COPY,
	.maxactive = COPIES_AT_ONCE,
	.keep = keep_csum,
	.fill = fill_copy,
};

static const struct lab_spec specs[] = {
	{
		.symbol = "_copy_from_iter",
		.kind = LAB_RETURN,
		.flags = LAB_HOOK_COPY,
		.maxactive = COPIES_AT_ONCE,
		.keep = keep_copy,
		.fill = fill_copy,
	},
	{
		.symbol = "csum_and_copy_from_iter_full",
		.kind = LAB_RETURN,
		.flags = LAB_HOOK_COPY,
		.maxactive = COPIES_AT_ONCE,
		.keep = keep_csum,
		.fill = fill_csum_full,
		.other = &csum_in_lib,
	},
	{ .symbol = "ip_generic_getfrag", .kind = LAB_ENTRY, .fill = fill_getfrag },
	{ .symbol = "__tcp_transmit_skb", .kind = LAB_ENTRY, .fill = fill_tcp_transmit },
	{ .symbol = "__dev_queue_xmit", .kind = LAB_ENTRY, .fill = fill_xmit },
	{ .symbol = "loopback_xmit", .kind = LAB_ENTRY, .fill = fill_start_xmit },
	{ .symbol = "__netif_rx", .kind = LAB_ENTRY, .fill = fill_xmit },
	{ .symbol = "virtio_net:start_xmit", .kind = LAB_ENTRY, .fill = fill_start_xmit },
	{ .symbol = "virtqueue_add_outbuf", .kind = LAB_ENTRY, .fill = fill_outbuf },
	{ .symbol = "e1000e:e1000_xmit_frame", .kind = LAB_ENTRY, .fill = fill_start_xmit },
	{
		.symbol = "dma_map_page_attrs",
		.kind = LAB_RETURN,
		.maxactive = SENDS_AT_ONCE,
		.want = lab_dma_gives,
		.fill = lab_dma_fill_map,
	},
};

static int __init send_trace_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), lab_skb_specs, lab_skb_count);
}

static void __exit send_trace_exit(void)
{
	lab_stop();
}

module_init(send_trace_init);
module_exit(send_trace_exit);
MODULE_DESCRIPTION("skblab: records where a sent message's bytes are and who copies them");
MODULE_LICENSE("GPL");
