// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copies from one skb to another, or within one: on the sender's side where the device
 * takes no frags, on the receiver's where segments are put together.  In a guest that has
 * both modules these hooks are one module's only (`beside`), so that no call is seen twice.
 */
#include <linux/kprobes.h>
#include <linux/skbuff.h>

#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

/* In softirqs and in tasks that send or receive; only allocation can make one sleep. */
#define CALLS_AT_ONCE	64

/* Finds where byte `at` of an skb lies and how many follow it there; 0: in a frag list. */
static u32 segment_at(const struct lab_event *event, u32 at, u64 *address)
{
	struct skb_shared_info *shinfo = (void *)event->shinfo;
	u32 start = event->skb_len - event->skb_data_len;
	skb_frag_t frag;
	u32 i, size;
	u64 page;

	if ((s32)at < (s32)start) {
		*address = event->data + (s32)at;	/* headers lie at negative offsets */
		return start - at;
	}
	for (i = 0; i < event->frags && i < MAX_SKB_FRAGS; i++, start += size) {
		if (copy_from_kernel_nofault(&frag, &shinfo->frags[i], sizeof(frag)))
			return 0;
		size = skb_frag_size(&frag);
		if (at - start >= size)
			continue;
		page = lab_page(skb_frag_page(&frag));
		*address = page ? page + skb_frag_off(&frag) + at - start : 0;
		return size - (at - start);
	}
	return 0;
}
NOKPROBE_SYMBOL(segment_at);

/*
 * skb_copy_bits(skb, offset, to, len), skb_copy_and_csum_bits(): one record per segment
 * of the source.  Both call themselves for each skb of a frag list (a real call in 6.1
 * and 6.12), and then this runs again: what lies there is the inner call's to record.
 * At entry, because the bits are still where they are copied from: 6.12 and 6.1 refuse,
 * and copy nothing, only if the skb is shorter than what is asked for.
 */
static bool fill_bits(struct lab_event *event, struct lab_args *args)
{
	s32 offset = args->arg[1], len = args->arg[3];
	u64 source = 0, unused;
	u32 done = args->cursor, size = 0;

	lab_fill_skb(event, args->arg[0]);
	event->src_phys = 0;
	if (len > 0 && offset <= (s64)event->skb_len - len)
		size = min_t(u32, segment_at(event, offset + done, &source), len - done);
	if (size) {
		event->src = source;
		event->src_phys = lab_phys(source);
		event->dst = args->arg[2] + done;
		event->dst_phys = lab_phys(event->dst);
		event->size = size;
		lab_ring_bytes(event, source, size);
	}
	event->aux = (s64)offset + done;
	args->cursor = done + size;
	if (!size || args->cursor >= len)
		goto last;
	if (!segment_at(event, offset + (u32)args->cursor, &unused))
		goto last;
	event->frags = args->part;
	return true;
last:
	event->frags = args->part;
	return false;
}
NOKPROBE_SYMBOL(fill_bits);

/* pskb_expand_head(skb, nhead, ntail, gfp): the linear area moves to a new head */
static void keep_linear(struct lab_args *args)
{
	struct sk_buff *skb = (void *)args->arg[0];

	args->kept[0] = (u64)lab_peek(&skb->data);
	args->kept[1] = lab_peek(&skb->len) - lab_peek(&skb->data_len);
}
NOKPROBE_SYMBOL(keep_linear);

/* Of what moved only what the skb holds is told, not what was left in its headroom. */
static bool fill_expand_head(struct lab_event *event, struct lab_args *args)
{
	lab_fill_skb(event, args->arg[0]);
	event->src_phys = 0;
	event->size = args->kept[1];
	if ((s32)args->ret)
		return false;
	event->ret = event->size;
	event->src = args->kept[0];
	event->src_phys = lab_phys(event->src);
	event->dst = event->data;
	event->dst_phys = lab_phys(event->dst);
	/* From the copy: the old head may be free by now. */
	lab_ring_bytes(event, event->dst, event->size);
	return false;
}
NOKPROBE_SYMBOL(fill_expand_head);

const struct lab_spec lab_skb_specs[] = {
	{
		.symbol = "skb_copy_bits",
		.kind = LAB_ENTRY,
		.flags = LAB_HOOK_COPY,
		.fill = fill_bits,
	},
	{
		.symbol = "skb_copy_and_csum_bits",
		.kind = LAB_ENTRY,
		.flags = LAB_HOOK_COPY,
		.fill = fill_bits,
	},
	{
		.symbol = "pskb_expand_head",
		.kind = LAB_RETURN,
		.flags = LAB_HOOK_COPY,
		.maxactive = CALLS_AT_ONCE,
		.keep = keep_linear,
		.fill = fill_expand_head,
	},
	/* Between the memory of a driver and a buffer its device can reach. */
	{
		.symbol = "swiotlb_bounce",
		.callee = "memcpy",
		.kind = LAB_CALLSITE,
		.flags = LAB_HOOK_COPY,
		.fill = lab_fill_memcpy,
	},
};
const u32 lab_skb_count = ARRAY_SIZE(lab_skb_specs);
