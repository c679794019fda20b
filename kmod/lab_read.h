/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading the kernel from inside a probe.  Nothing here dereferences a pointer
 * that came from a probed function's arguments: every read may fail and then
 * leaves the field 0.
 */
#ifndef LAB_READ_H
#define LAB_READ_H

#include <linux/types.h>
#include <linux/uaccess.h>

#include "lab_event.h"

struct page;

/* The field at `address`, or 0. */
#define lab_peek(address) ({						\
	typeof(*(address)) __value;					\
									\
	if (copy_from_kernel_nofault(&__value, (address), sizeof(__value)))	\
		memset(&__value, 0, sizeof(__value));			\
	__value;							\
})

/* Physical address of kernel memory, 0 where there is none to be had safely. */
u64 lab_phys(u64 address);

/* Kernel address of a page's first byte, 0 for what is no struct page of RAM. */
u64 lab_page(const struct page *page);

/* Kernel address of RAM, 0 for what is none. */
u64 lab_virt(u64 phys);

/* skb, head, data, lengths, shared info, socket, physical address of data. */
void lab_fill_skb(struct lab_event *event, u64 skb);
/* The same, then device and first bytes: what every transmit hook records. */
void lab_fill_packet(struct lab_event *event, u64 skb, u64 dev);
void lab_fill_dev(struct lab_event *event, u64 dev);
u64 lab_skb_dev(u64 skb);

struct lab_args;

/* Keeps an iterator's type and user address as they are before the copy moves them. */
void lab_keep_iter(struct lab_args *args, u64 iter);

#endif /* LAB_READ_H */
