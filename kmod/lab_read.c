// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/uio.h>

#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

/* struct iov_iter's `iov` became `__iov` in v6.4; this macro came with the new name. */
#ifdef iter_iov_addr
#define segments_of(iter)	((iter)->__iov)
#else
#define segments_of(iter)	((iter)->iov)
#endif

/* Used up segments that an iterator may still point at; more are not looked through. */
#define EMPTY_SEGMENTS	8

u64 lab_phys(u64 address)
{
	void *at = (void *)address;
	struct page *page;
	u8 byte;

	if (!address)
		return 0;
	if (virt_addr_valid(at))
		return virt_to_phys(at);
	/* A stack, say.  What the running code can read is mapped and stays so under it. */
	if (!is_vmalloc_addr(at) || copy_from_kernel_nofault(&byte, at, sizeof(byte)))
		return 0;
	page = vmalloc_to_page(at);
	return page ? page_to_phys(page) + offset_in_page(at) : 0;
}
NOKPROBE_SYMBOL(lab_phys);

u64 lab_page(const struct page *page)
{
	/* Arithmetic only: the struct page itself is not looked at. */
	if ((u64)page < VMEMMAP_START || !pfn_valid(page_to_pfn(page)))
		return 0;
	return (u64)page_to_virt(page);
}
NOKPROBE_SYMBOL(lab_page);

u64 lab_virt(u64 phys)
{
	return phys && pfn_valid(PHYS_PFN(phys)) ? (u64)phys_to_virt(phys) : 0;
}
NOKPROBE_SYMBOL(lab_virt);

void lab_fill_skb(struct lab_event *event, u64 at)
{
	struct sk_buff *skb = (void *)at;
	unsigned char *head, *data;
	unsigned int len, data_len;
	sk_buff_data_t end;

	event->skb = at;
	if (copy_from_kernel_nofault(&head, &skb->head, sizeof(head)) ||
	    copy_from_kernel_nofault(&data, &skb->data, sizeof(data)) ||
	    copy_from_kernel_nofault(&len, &skb->len, sizeof(len)) ||
	    copy_from_kernel_nofault(&data_len, &skb->data_len, sizeof(data_len)) ||
	    copy_from_kernel_nofault(&end, &skb->end, sizeof(end)))
		return;
	event->head = (u64)head;
	event->data = (u64)data;
	event->skb_len = len;
	event->skb_data_len = data_len;
#ifdef NET_SKBUFF_DATA_USES_OFFSET
	event->shinfo = (u64)head + end;
#else
	event->shinfo = (u64)end;
#endif
	event->frags = lab_peek(&((struct skb_shared_info *)event->shinfo)->nr_frags);
	event->sk = (u64)lab_peek(&skb->sk);
	event->flags |= LAB_F_SKB;
	if (!event->src && !event->dst)
		event->src_phys = lab_phys(event->data);
}
NOKPROBE_SYMBOL(lab_fill_skb);

u64 lab_skb_dev(u64 skb)
{
	return (u64)lab_peek(&((struct sk_buff *)skb)->dev);
}
NOKPROBE_SYMBOL(lab_skb_dev);

/* A name is shown only if it can be one: `dev` may be a guess (see recv_trace_main.c). */
void lab_fill_dev(struct lab_event *event, u64 dev)
{
	char name[LAB_DEV_LEN];
	int i;

	static_assert(sizeof(name) == sizeof_field(struct net_device, name));
	if (copy_from_kernel_nofault(name, ((struct net_device *)dev)->name, sizeof(name)))
		return;
	for (i = 0; i < sizeof(name) && name[i]; i++)
		if (name[i] <= ' ' || name[i] > '~' || name[i] == '/')
			return;
	if (i < sizeof(name))
		memcpy(event->dev, name, i);
}
NOKPROBE_SYMBOL(lab_fill_dev);

void lab_fill_packet(struct lab_event *event, u64 skb, u64 dev)
{
	lab_fill_skb(event, skb);
	if (dev)
		lab_fill_dev(event, dev);
	lab_ring_bytes(event, event->data, event->skb_len - event->skb_data_len);
}
NOKPROBE_SYMBOL(lab_fill_packet);

void lab_keep_iter(struct lab_args *args, u64 at)
{
	const struct iovec *segment;
	struct iov_iter iter;
	struct iovec iov;
	u64 skip;
	int i;

	if (copy_from_kernel_nofault(&iter, (void *)at, sizeof(iter)))
		return;
	args->iter_type = iter.iter_type + 1;
	if (iter.iter_type == ITER_UBUF) {
		args->user_backed = true;
		args->user = (u64)iter.ubuf + iter.iov_offset;
		return;
	}
	if (iter.iter_type != ITER_IOVEC)
		return;
	args->user_backed = true;
	segment = segments_of(&iter);
	skip = iter.iov_offset;
	for (i = 0; i < EMPTY_SEGMENTS && i < iter.nr_segs; i++, segment++, skip = 0) {
		if (copy_from_kernel_nofault(&iov, segment, sizeof(iov)))
			return;
		if (iov.iov_len <= skip)
			continue;
		args->user = (u64)iov.iov_base + skip;
		args->user_room = iov.iov_len - skip;
		return;
	}
}
NOKPROBE_SYMBOL(lab_keep_iter);
