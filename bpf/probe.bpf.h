/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ring as BPF programs write it, and what they read of the kernel.
 *
 * Records go straight into the memory that the host reads, so that nothing has to drain
 * them: they are there after a panic as well.
 */
#ifndef LAB_PROBE_BPF_H
#define LAB_PROBE_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "lab_event.h"
#include "hooks.h"

#define barrier()	asm volatile("" ::: "memory")

const volatile struct lab_settings settings SEC(".rodata");

/* Whole pages of its own: the host knows it by its physical address. */
struct lab_ring_header ring SEC(".data.ring") __attribute__((aligned(8)));
__u32 on SEC(".data.on");
__u64 turns[LAB_CPUS] SEC(".data.turns");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);		/* the loader sets it */
	__type(key, __u32);
	__type(value, struct lab_event);
} events SEC(".maps");

/* One of them is in a kernel; the preemption count is in it (6.12) or is it (6.1). */
struct pcpu_hot___lab {
	int preempt_count;
} __attribute__((preserve_access_index));

extern const struct pcpu_hot___lab pcpu_hot __ksym __weak;
extern const int __preempt_count __ksym __weak;

/* Fields that kernels name differently. */
struct iov_iter___new {
	const struct iovec *__iov;
} __attribute__((preserve_access_index));

struct iov_iter___old {
	const struct iovec *iov;
} __attribute__((preserve_access_index));

struct skb_frag___new {
	unsigned long netmem;
	unsigned int len;
	unsigned int offset;
} __attribute__((preserve_access_index));

struct bio_vec___old {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
} __attribute__((preserve_access_index));

/* Private to the driver; its BTF is the module's. */
struct virtnet_info___lab {
	struct virtio_device *vdev;
	struct net_device *dev;
} __attribute__((preserve_access_index));

#define SOFTIRQ_BIT	0x100	/* serving one */
#define SOFTIRQ_BITS	0xff00	/* bottom halves off */
#define EFLAGS_IF	0x200
#define MOST_FRAGS	17	/* MAX_SKB_FRAGS */

/*
 * An argument of a traced function as a plain number; read from ctx directly it would be a
 * pointer with a type, with which the verifier forbids arithmetic.
 */
static __always_inline u64 arg(void *ctx, u32 number)
{
	u64 value = 0;

	bpf_get_func_arg(ctx, number, &value);
	return value;
}

/* Is this hit to be recorded? */
static __always_inline bool wanted(u32 hook)
{
	u32 index = settings.index_of[hook];
	char comm[16];
	int i;

	if (!*(volatile __u32 *)&on || index >= LAB_RING_HOOKS)
		return false;
	__sync_fetch_and_add(&ring.hooks[index].hits, 1);
	if (!settings.comm[0])
		return true;
	bpf_get_current_comm(comm, sizeof(comm));
	for (i = 0; i < 16; i++) {
		if (comm[i] != settings.comm[i]) {
			__sync_fetch_and_add(&ring.skipped, 1);
			return false;
		}
		if (!comm[i])
			break;
	}
	return true;
}

static __always_inline u8 context_of(void)
{
	int count = 0;

	if (&pcpu_hot)
		bpf_probe_read_kernel(&count, sizeof(count),
				      &((struct pcpu_hot___lab *)bpf_this_cpu_ptr(&pcpu_hot))
					       ->preempt_count);
	else if (&__preempt_count)
		count = *(int *)bpf_this_cpu_ptr(&__preempt_count);
	if (count & SOFTIRQ_BIT)
		return LAB_CTX_SOFTIRQ;
	return count & SOFTIRQ_BITS ? LAB_CTX_BH_OFF : 0;
}

/* A record to be filled in, or NULL: there is no room. */
static __always_inline struct lab_event *claim(u32 hook, u8 kind, u64 *number)
{
	u64 at = __sync_fetch_and_add(&ring.claimed, 1);
	u32 cpu = bpf_get_smp_processor_id();
	u64 turn = cpu < LAB_CPUS ? __sync_fetch_and_add(&turns[cpu], 1) + 1 : 0;
	struct lab_event *event;
	u32 key = at;
	u64 task;

	event = at < ring.capacity ? bpf_map_lookup_elem(&events, &key) : NULL;
	if (!event) {
		__sync_fetch_and_add(&ring.dropped, 1);
		return NULL;
	}
	/* Nanoseconds: no program can read the TSC.  The loader turns them into its ticks. */
	event->tsc = bpf_ktime_get_ns();
	event->seq = turn;
	event->cpu = cpu;
	task = bpf_get_current_pid_tgid();
	event->pid = task;
	event->tgid = task >> 32;
	event->hook = settings.index_of[hook];
	event->kind = kind;
	event->context = context_of();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	*number = at;
	return event;
}

static __always_inline void commit(struct lab_event *event, u64 number)
{
	barrier();	/* the host reads a record only when it finds its number */
	*(volatile __u64 *)&event->commit = number + 1;
}

static __always_inline u64 phys(u64 address)
{
	if (address < settings.direct_map || address - settings.direct_map >= settings.memory_end)
		return 0;
	return address - settings.direct_map;
}

static __always_inline u64 page_address(u64 page)
{
	u64 number;

	if (page < settings.memory_map)
		return 0;
	number = (page - settings.memory_map) / bpf_core_type_size(struct page);
	if (number >= settings.memory_end >> 12)
		return 0;
	return settings.direct_map + (number << 12);
}

/*
 * The helper stores what it reads, here and nowhere else, and it is masked at once.  The
 * host knows these pages for the trace's own.
 */
static __always_inline void take_bytes(struct lab_event *event, u64 address, u64 size, bool user)
{
	u32 length = size < LAB_BYTES_LEN ? size : LAB_BYTES_LEN;
	long error;
	int i;

	if (!length || length > LAB_BYTES_LEN)
		return;
	error = user ? bpf_probe_read_user(event->bytes, length, (void *)address)
		     : bpf_probe_read_kernel(event->bytes, length, (void *)address);
	if (error)
		return;
#pragma unroll
	for (i = 0; i < LAB_BYTES_LEN / 8; i++)
		event->bytes[i] ^= settings.mask[i & 1];
	event->bytes_len = length;
}

static __always_inline void take_dev(struct lab_event *event, struct net_device *dev)
{
	if (dev)
		bpf_probe_read_kernel(event->dev, sizeof(event->dev), dev->name);
}

/* skb, head, data, lengths, shared info, socket, physical address of data */
static __always_inline void take_skb(struct lab_event *event, u64 address)
{
	struct sk_buff *skb = (void *)address;
	struct skb_shared_info *shinfo;
	u64 head = 0;

	event->skb = address;
	if (bpf_core_read(&head, sizeof(head), &skb->head))
		return;
	event->head = head;
	event->data = (u64)BPF_CORE_READ(skb, data);
	event->skb_len = BPF_CORE_READ(skb, len);
	event->skb_data_len = BPF_CORE_READ(skb, data_len);
	shinfo = (void *)(head + BPF_CORE_READ(skb, end));
	event->shinfo = (u64)shinfo;
	event->frags = BPF_CORE_READ(shinfo, nr_frags);
	event->sk = (u64)BPF_CORE_READ(skb, sk);
	event->flags |= LAB_F_SKB;
	if (!event->src && !event->dst)
		event->src_phys = phys(event->data);
}

/* The same, the device's name and the first bytes */
static __always_inline void take_packet(struct lab_event *event, u64 skb, u64 dev)
{
	take_skb(event, skb);
	take_dev(event, (void *)dev);
	take_bytes(event, event->data, event->skb_len - event->skb_data_len, false);
}

static __always_inline u64 dev_of(u64 skb)
{
	return (u64)BPF_CORE_READ((struct sk_buff *)skb, dev);
}

#define EMPTY_SEGMENTS	8

/* Where the iterator points before the copy moves it; true: to user memory. */
static __always_inline bool take_iter(struct lab_event *event, u64 address, u64 size)
{
	struct iov_iter *iter = (void *)address;
	const struct iovec *segment;
	u8 type = BPF_CORE_READ(iter, iter_type);
	u64 skip = BPF_CORE_READ(iter, iov_offset);
	u64 length;
	int i;

	event->iter_type = type + 1;
	if (type == bpf_core_enum_value(enum iter_type, ITER_UBUF)) {
		event->user = (u64)BPF_CORE_READ(iter, ubuf) + skip;
		return true;
	}
	if (type != bpf_core_enum_value(enum iter_type, ITER_IOVEC))
		return false;
	if (bpf_core_field_exists(struct iov_iter___new, __iov))
		segment = BPF_CORE_READ((struct iov_iter___new *)iter, __iov);
	else
		segment = BPF_CORE_READ((struct iov_iter___old *)iter, iov);
	for (i = 0; i < EMPTY_SEGMENTS; i++, segment++, skip = 0) {
		length = BPF_CORE_READ(segment, iov_len);
		if (length <= skip)
			continue;
		event->user = (u64)BPF_CORE_READ(segment, iov_base) + skip;
		if (length - skip < size)
			event->aux = length - skip;
		break;
	}
	return true;
}

struct span {
	u64 address;
	u32 size;
};

static __always_inline struct span read_frag(u64 shinfo, u32 index)
{
	u64 at = shinfo + bpf_core_field_offset(struct skb_shared_info, frags);
	struct span out = {};
	u64 page;

	if (bpf_core_type_exists(struct skb_frag___new)) {
		struct skb_frag___new *frag;

		frag = (void *)(at + index * bpf_core_type_size(struct skb_frag___new));
		page = page_address(BPF_CORE_READ(frag, netmem));
		out.address = page ? page + BPF_CORE_READ(frag, offset) : 0;
		out.size = BPF_CORE_READ(frag, len);
	} else {
		struct bio_vec___old *frag;

		frag = (void *)(at + index * bpf_core_type_size(struct bio_vec___old));
		page = page_address((u64)BPF_CORE_READ(frag, bv_page));
		out.address = page ? page + BPF_CORE_READ(frag, bv_offset) : 0;
		out.size = BPF_CORE_READ(frag, bv_len);
	}
	return out;
}

#endif /* LAB_PROBE_BPF_H */
