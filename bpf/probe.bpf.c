// SPDX-License-Identifier: GPL-2.0-or-later
/* The programs, one body for each hook and one program for each way to attach it. */
#include "probe.bpf.h"
#include "socket.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* A call that leaves several records, or is seen at its entry and at its return */
struct walk {
	u64 arg[4];
	u64 at;		/* where the walk is */
	u64 done;
};

/* --- Copies out of user memory, and into it ------------------------------------------- */

/* A copy's arguments, before it is made: copy(to, size, iter) */
static __always_inline int copy_in(u32 hook, u8 kind, u64 to, u64 size, u64 iter, u64 ip)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(hook))
		return 0;
	event = claim(hook, kind, &number);
	if (!event)
		return 0;
	event->dst = to;
	event->dst_phys = phys(to);
	event->size = size;
	if (take_iter(event, iter, size)) {
		event->flags |= LAB_F_SRC_USER;
		take_bytes(event, event->user, event->aux && event->aux < size ? event->aux : size,
			   true);
	}
	if (kind == LAB_CALLSITE && !event->aux)
		event->aux = ip;
	commit(event, number);
	return 0;
}

static __always_inline int copy_out(u32 hook, u8 kind, u64 from, u64 size, u64 iter, u64 ip)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(hook))
		return 0;
	event = claim(hook, kind, &number);
	if (!event)
		return 0;
	event->src = from;
	event->src_phys = phys(from);
	event->size = size;
	if (take_iter(event, iter, size))
		event->flags |= LAB_F_DST_USER;
	if (kind == LAB_CALLSITE && !event->aux)
		event->aux = ip;
	take_bytes(event, from, size, false);
	commit(event, number);
	return 0;
}

#define COPY_CALL(id, body, iter)							\
	SEC("kprobe")									\
	int id##__call(struct pt_regs *ctx)						\
	{										\
		return body(HOOK_##id, LAB_CALLSITE, ctx->di, ctx->si, ctx->iter, ctx->ip);	\
	}

COPY_CALL(getfrag_copy, copy_in, dx)
COPY_CALL(tcp_copy, copy_in, dx)
COPY_CALL(getfrag_csum, copy_in, cx)
COPY_CALL(recvmsg_copy, copy_out, dx)
COPY_CALL(recvmsg6_copy, copy_out, dx)

/* csum_and_copy_from_iter_full(to, size, csum, iter) and its like with four arguments */
#define COPY_FOUR(id, symbol, body)							\
	SEC("fentry/" symbol)								\
	int id##__fentry(u64 *ctx)							\
	{										\
		return body(HOOK_##id, LAB_ENTRY, arg(ctx, 0), arg(ctx, 1), arg(ctx, 3), 0);		\
	}										\
	SEC("kprobe")									\
	int id##__kprobe(struct pt_regs *ctx)						\
	{										\
		return body(HOOK_##id, LAB_ENTRY, ctx->di, ctx->si, ctx->cx, 0);	\
	}

COPY_FOUR(csum_full, "csum_and_copy_from_iter_full", copy_in)
COPY_FOUR(simple_copy, "simple_copy_to_iter", copy_out)
COPY_FOUR(csum_copy, "csum_and_copy_to_iter", copy_out)

/* --- skbs on their way ------------------------------------------------------------------ */

/* ip_generic_getfrag(from, to, offset, len, odd, skb) */
static __always_inline int fill_getfrag(u64 to, u64 size, u64 skb)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(HOOK_getfrag))
		return 0;
	event = claim(HOOK_getfrag, LAB_ENTRY, &number);
	if (!event)
		return 0;
	event->dst = to;
	event->dst_phys = phys(to);
	event->size = size;
	take_skb(event, skb);
	commit(event, number);
	return 0;
}

SEC("fentry/ip_generic_getfrag")
int getfrag__fentry(u64 *ctx)
{
	return fill_getfrag(arg(ctx, 1), arg(ctx, 3), arg(ctx, 5));
}

SEC("kprobe")
int getfrag__kprobe(struct pt_regs *ctx)
{
	return fill_getfrag(ctx->si, ctx->cx, ctx->r9);
}

/* A packet at a function's entry; `sk` and `dev` may be 0, `own`: the device is the skb's */
static __always_inline int fill_packet(u32 hook, u64 skb, u64 dev, bool own, u64 sk, u64 size)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(hook))
		return 0;
	event = claim(hook, LAB_ENTRY, &number);
	if (!event)
		return 0;
	take_packet(event, skb, own ? dev_of(skb) : dev);
	if (sk)
		event->sk = sk;
	event->size = size;
	commit(event, number);
	return 0;
}

/* The positions of skb, dev, sk, size in the arguments are written out for each. */
#define PACKET(id, symbol, fentry_args, kprobe_args)					\
	SEC("fentry/" symbol)								\
	int id##__fentry(u64 *ctx)							\
	{										\
		return fill_packet(HOOK_##id, fentry_args);				\
	}										\
	SEC("kprobe")									\
	int id##__kprobe(struct pt_regs *ctx)						\
	{										\
		return fill_packet(HOOK_##id, kprobe_args);				\
	}
#define ARGS(...)	__VA_ARGS__

PACKET(queue_xmit, "__dev_queue_xmit", ARGS(arg(ctx, 0), 0, true, 0, 0), ARGS(ctx->di, 0, true, 0, 0))
PACKET(netif_rx, "__netif_rx", ARGS(arg(ctx, 0), 0, true, 0, 0), ARGS(ctx->di, 0, true, 0, 0))
PACKET(loopback_xmit, "loopback_xmit", ARGS(arg(ctx, 0), arg(ctx, 1), false, 0, 0),
       ARGS(ctx->di, ctx->si, false, 0, 0))
PACKET(start_xmit, "start_xmit", ARGS(arg(ctx, 0), arg(ctx, 1), false, 0, 0),
       ARGS(ctx->di, ctx->si, false, 0, 0))
PACKET(e1000_xmit, "e1000_xmit_frame", ARGS(arg(ctx, 0), arg(ctx, 1), false, 0, 0),
       ARGS(ctx->di, ctx->si, false, 0, 0))
/* Here skb->dev is still a device; once the skb is queued it is a scratch word. */
PACKET(enqueue, "__udp_enqueue_schedule_skb", ARGS(arg(ctx, 1), 0, true, arg(ctx, 0), 0),
       ARGS(ctx->si, 0, true, ctx->di, 0))
PACKET(established, "tcp_rcv_established", ARGS(arg(ctx, 1), 0, false, arg(ctx, 0), 0),
       ARGS(ctx->si, 0, false, ctx->di, 0))
PACKET(consume, "skb_consume_udp", ARGS(arg(ctx, 1), 0, false, arg(ctx, 0), arg(ctx, 2)),
       ARGS(ctx->si, 0, false, ctx->di, ctx->dx))

/* The tracepoint is inside the function, before the packet goes to its device. */
SEC("tp_btf/net_dev_queue")
int queue_xmit__tp(u64 *ctx)
{
	u64 skb;

	/* As a plain number: the verifier knows this one for a pointer. */
	bpf_probe_read_kernel(&skb, sizeof(skb), ctx);
	return fill_packet(HOOK_queue_xmit, skb, 0, true, 0, 0);
}

static __always_inline int fill_readable(u64 sk)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(HOOK_readable))
		return 0;
	event = claim(HOOK_readable, LAB_ENTRY, &number);
	if (!event)
		return 0;
	event->sk = sk;
	commit(event, number);
	return 0;
}

SEC("fentry/sock_def_readable")
int readable__fentry(u64 *ctx)
{
	return fill_readable(arg(ctx, 0));
}

SEC("kprobe")
int readable__kprobe(struct pt_regs *ctx)
{
	return fill_readable(ctx->di);
}

/* --- The driver --------------------------------------------------------------------------- */

#define MRG_RXBUF	(1UL << 15)	/* VIRTIO_NET_F_MRG_RXBUF */
#define VERSION_1	(1UL << 32)	/* VIRTIO_F_VERSION_1 */
#define RX_PAD		64	/* NET_SKB_PAD and NET_IP_ALIGN on x86 */
#define MAC_BITS	((1UL << 48) - 1)

static __always_inline u64 mac_at(u64 address)
{
	u64 mac = 0;

	bpf_probe_read_kernel(&mac, sizeof(mac), (void *)address);
	return mac & MAC_BITS;
}

/* Where the device wrote: as in kmod/recv_trace_main.c */
static __always_inline u64 written(struct virtnet_info___lab *info, u64 buf, u64 room)
{
	u64 features = BPF_CORE_READ(info, vdev, features);
	u64 header = features & VERSION_1 ? 12 : 10;
	u64 mac;

	if (features & MRG_RXBUF || !phys(buf))
		return buf;
	mac = mac_at((u64)BPF_CORE_READ(info, dev, dev_addr));
	if (mac_at(buf + header) != mac && mac_at(buf + RX_PAD + room + header) == mac)
		return buf + RX_PAD + room;
	return buf;
}

/* receive_buf(vi, rq, buf, len, ctx, …) */
static __always_inline int fill_receive_buf(u64 vi, u64 buf, u64 len, u64 ctx)
{
	struct virtnet_info___lab *info = (void *)vi;
	struct lab_event *event;
	u64 number;

	if (!wanted(HOOK_receive_buf))
		return 0;
	event = claim(HOOK_receive_buf, LAB_ENTRY, &number);
	if (!event)
		return 0;
	buf = written(info, buf, ctx);
	event->src = buf;
	event->src_phys = phys(buf);
	event->size = (u32)len;
	take_dev(event, BPF_CORE_READ(info, dev));
	take_bytes(event, buf, (u32)len, false);
	commit(event, number);
	return 0;
}

SEC("fentry/receive_buf")
int receive_buf__fentry(u64 *ctx)
{
	return fill_receive_buf(arg(ctx, 0), arg(ctx, 2), arg(ctx, 3), arg(ctx, 4));
}

SEC("kprobe")
int receive_buf__kprobe(struct pt_regs *ctx)
{
	return fill_receive_buf(ctx->di, ctx->dx, ctx->cx, ctx->r8);
}

/* page_to_skb(vi, rq, page, offset, len, truesize, [6.1: hdr_valid, metasize,] …): the skb */
static __always_inline int fill_page_to_skb(u64 page, u64 offset, u64 len, u64 skb)
{
	struct lab_event *event;
	u64 number, at;

	if (!wanted(HOOK_page_to_skb))
		return 0;
	event = claim(HOOK_page_to_skb, LAB_RETURN, &number);
	if (!event)
		return 0;
	at = page_address(page);
	event->src = at ? at + (u32)offset : 0;
	event->src_phys = phys(event->src);
	event->size = (u32)len;
	if (skb)
		take_skb(event, skb);
	commit(event, number);
	return 0;
}

SEC("fexit/page_to_skb")
int page_to_skb__fexit(u64 *ctx)
{
	u64 skb = 0;

	bpf_get_func_ret(ctx, &skb);
	return fill_page_to_skb(arg(ctx, 2), arg(ctx, 3), arg(ctx, 4), skb);
}

/* A return probe has no arguments: they are kept from the entry, which nothing nests in. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} page_arguments SEC(".maps");

SEC("kprobe")
int page_to_skb__kprobe(struct pt_regs *ctx)
{
	u32 key = 0;
	struct walk *kept = bpf_map_lookup_elem(&page_arguments, &key);

	if (!kept)
		return 0;
	kept->arg[0] = ctx->dx;
	kept->arg[1] = ctx->cx;
	kept->arg[2] = ctx->r8;
	return 0;
}

SEC("kretprobe")
int page_to_skb__kretprobe(struct pt_regs *ctx)
{
	u32 key = 0;
	struct walk *kept = bpf_map_lookup_elem(&page_arguments, &key);

	if (!kept)
		return 0;
	return fill_page_to_skb(kept->arg[0], kept->arg[1], kept->arg[2], ctx->ax);
}

/* A call of memcpy(dst, src, size) */
static __always_inline int fill_memcpy(u32 hook, struct pt_regs *ctx)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(hook))
		return 0;
	event = claim(hook, LAB_CALLSITE, &number);
	if (!event)
		return 0;
	event->dst = ctx->di;
	event->src = ctx->si;
	event->dst_phys = phys(ctx->di);
	event->src_phys = phys(ctx->si);
	event->size = ctx->dx;
	event->aux = ctx->ip;
	take_bytes(event, ctx->si, ctx->dx, false);
	commit(event, number);
	return 0;
}

#define MEMCPY_CALL(id)									\
	SEC("kprobe")									\
	int id##__call(struct pt_regs *ctx)						\
	{										\
		return fill_memcpy(HOOK_##id, ctx);					\
	}

MEMCPY_CALL(page_copy)
MEMCPY_CALL(xdp_copy)
MEMCPY_CALL(e1000_copy)
MEMCPY_CALL(bounce)

/* --- The DMA API -------------------------------------------------------------------------- */

static __always_inline int fill_dma(u32 hook, u8 kind, u64 device, u64 address, u64 size)
{
	struct lab_event *event;
	u64 number;

	if (!wanted(hook))
		return 0;
	event = claim(hook, kind, &number);
	if (!event)
		return 0;
	event->aux = device;
	event->src = address;
	event->src_phys = phys(address);
	event->size = size;
	take_bytes(event, address, size, false);
	commit(event, number);
	return 0;
}

/* Kernel address of what the device's address is in RAM, 0: of none */
static __always_inline u64 in_ram(u64 device)
{
	return device < settings.memory_end ? settings.direct_map + device : 0;
}

/*
 * dma_map_page_attrs(dev, page, offset, size, dir, attrs): the device's address.  One of RAM
 * is what it says, the page's or a bounce buffer's; behind an IOMMU it stands for the page.
 */
SEC("fexit/dma_map_page_attrs")
int dma_map__fexit(u64 *ctx)
{
	u64 device = 0, address;

	if ((u32)arg(ctx, 4) == DMA_FROM_DEVICE)
		return 0;
	bpf_get_func_ret(ctx, &device);
	address = in_ram(device);
	if (!address)
		address = page_address(arg(ctx, 1));
	if (address && !in_ram(device))
		address += arg(ctx, 2);
	return fill_dma(HOOK_dma_map, LAB_RETURN, device, address, arg(ctx, 3));
}

/*
 * dma_unmap_page_attrs(dev, addr, size, dir, attrs).  What an address behind an IOMMU stands
 * for no program can ask, and then nothing is recorded: the host reads the IOMMU's tables.
 */
static __always_inline int fill_unmap(u64 device, u64 size, u32 way)
{
	if (way == DMA_TO_DEVICE || !in_ram(device))
		return 0;
	return fill_dma(HOOK_dma_unmap, LAB_ENTRY, device, in_ram(device), size);
}

SEC("fentry/dma_unmap_page_attrs")
int dma_unmap__fentry(u64 *ctx)
{
	return fill_unmap(arg(ctx, 1), arg(ctx, 2), arg(ctx, 3));
}

SEC("kprobe")
int dma_unmap__kprobe(struct pt_regs *ctx)
{
	return fill_unmap(ctx->si, ctx->dx, ctx->cx);
}

/* --- One call, several records ------------------------------------------------------------ */

/* __tcp_transmit_skb(sk, skb, …): one record for each frag of the skb that was filled */
static long transmit_frag(u32 part, struct walk *walk)
{
	struct lab_event *event;
	struct span frag;
	u64 number;
	u32 frags;

	event = claim(HOOK_tcp_transmit, LAB_ENTRY, &number);
	if (!event)
		return 1;
	take_skb(event, walk->arg[1]);
	event->sk = walk->arg[0];
	frags = event->frags;
	if (part < frags && part < MOST_FRAGS) {
		frag = read_frag(event->shinfo, part);
		event->src = frag.address;
		event->src_phys = phys(frag.address);
		event->size = frag.size;
		take_bytes(event, frag.address, frag.size, false);
	}
	event->frags = part;
	commit(event, number);
	return part + 1 >= frags;
}

/* virtqueue_add_outbuf(vq, sg, num, data, gfp): one record for each segment */
#define SG_CHAIN	1UL
#define SG_END		2UL
#define XDP_FLAG	1UL	/* VIRTIO_XDP_FLAG, drivers/net/virtio_net.c */
#define DATA_FLAGS	3UL
#define ID_NET		1	/* VIRTIO_ID_NET */

static long outbuf_segment(u32 part, struct walk *walk)
{
	struct virtqueue *vq = (void *)walk->arg[0];
	struct scatterlist *sg = (void *)walk->at;
	u64 link = BPF_CORE_READ(sg, page_link);
	u32 offset = BPF_CORE_READ(sg, offset);
	struct lab_event *event;
	u64 number, page;

	event = claim(HOOK_outbuf, LAB_ENTRY, &number);
	if (!event)
		return 1;
	event->aux = walk->arg[0];
	event->size = BPF_CORE_READ(sg, length);
	page = page_address(link & ~(SG_CHAIN | SG_END));
	if (page) {
		event->src = page + offset;
		event->src_phys = phys(event->src);
	}
	if (!(walk->arg[3] & XDP_FLAG) && BPF_CORE_READ(vq, vdev, id.device) == ID_NET)
		take_skb(event, walk->arg[3] & ~DATA_FLAGS);
	event->frags = part;
	commit(event, number);
	if ((link & SG_END) || part + 1 >= (u32)walk->arg[2])
		return 1;
	sg = (void *)sg + bpf_core_type_size(struct scatterlist);
	link = BPF_CORE_READ(sg, page_link);
	walk->at = link & SG_CHAIN ? link & ~(SG_CHAIN | SG_END) : (u64)sg;
	return 0;
}

/*
 * skb_copy_bits(skb, offset, to, len), skb_copy_and_csum_bits(): one record for each segment
 * of the source that is copied from: part 0 is the linear area, then the frags.  What lies in
 * a frag list is a call of its own.
 */
static __always_inline long bits_segment(u32 hook, u32 part, struct walk *walk)
{
	s64 from = (s32)walk->arg[1], size = (s32)walk->arg[3], first, last, start;
	struct sk_buff *skb = (void *)walk->arg[0];
	u32 length = BPF_CORE_READ(skb, len);
	u32 linear = length - BPF_CORE_READ(skb, data_len);
	u64 shinfo = (u64)BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, end);
	struct skb_shared_info *info = (void *)shinfo;
	u32 frags = BPF_CORE_READ(info, nr_frags);
	struct lab_event *event;
	struct span frag = {};
	u64 number;

	if (size <= 0 || from > (s64)length - size || part > frags)
		return 1;
	if (!part) {
		/* Headers lie at negative offsets. */
		start = from < 0 ? from : 0;
		frag.address = (u64)BPF_CORE_READ(skb, data) + start;
		frag.size = linear - start;
		walk->at = linear;
	} else {
		start = walk->at;
		frag = read_frag(shinfo, part - 1);
		walk->at += frag.size;
	}
	first = start > from ? start : from;
	last = start + frag.size < from + size ? start + frag.size : from + size;
	if (first >= last)
		return start >= from + size;
	event = claim(hook, LAB_ENTRY, &number);
	if (!event)
		return 1;
	take_skb(event, walk->arg[0]);
	event->src = frag.address + (first - start);
	event->src_phys = phys(event->src);
	event->dst = walk->arg[2] + (first - from);
	event->dst_phys = phys(event->dst);
	event->size = last - first;
	event->aux = first;
	event->frags = walk->done++;
	take_bytes(event, event->src, last - first, false);
	commit(event, number);
	return last >= from + size;
}

static long copy_bits_segment(u32 part, struct walk *walk)
{
	return bits_segment(HOOK_copy_bits, part, walk);
}

static long csum_bits_segment(u32 part, struct walk *walk)
{
	return bits_segment(HOOK_csum_bits, part, walk);
}

#define WALK(id, symbol, step, most, arg3_fentry, arg3_kprobe)				\
	SEC("fentry/" symbol)								\
	int id##__fentry(u64 *ctx)							\
	{										\
		struct walk walk = {							\
			.arg = { arg(ctx, 0), arg(ctx, 1), arg(ctx, 2), arg3_fentry },			\
			.at = arg(ctx, 1),							\
		};									\
		if (wanted(HOOK_##id))							\
			bpf_loop(most, step, &walk, 0);					\
		return 0;								\
	}										\
	SEC("kprobe")									\
	int id##__kprobe(struct pt_regs *ctx)						\
	{										\
		struct walk walk = {							\
			.arg = { ctx->di, ctx->si, ctx->dx, arg3_kprobe },		\
			.at = ctx->si,							\
		};									\
		if (wanted(HOOK_##id))							\
			bpf_loop(most, step, &walk, 0);					\
		return 0;								\
	}

WALK(tcp_transmit, "__tcp_transmit_skb", transmit_frag, MOST_FRAGS, 0, 0)
WALK(outbuf, "virtqueue_add_outbuf", outbuf_segment, MOST_FRAGS + 2, arg(ctx, 3), ctx->cx)
WALK(copy_bits, "skb_copy_bits", copy_bits_segment, MOST_FRAGS + 1, arg(ctx, 3), ctx->cx)
WALK(csum_bits, "skb_copy_and_csum_bits", csum_bits_segment, MOST_FRAGS + 1, arg(ctx, 3), ctx->cx)

/* --- pskb_expand_head(skb, nhead, ntail, gfp): the linear area moves to a new head -------- */

struct linear {
	u64 data;
	u64 size;
};

/* By skb: whoever expands one is alone with it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct linear);
} expanding SEC(".maps");

SEC("fentry/pskb_expand_head")
int expand_head__fentry(u64 *ctx)
{
	u64 key = arg(ctx, 0);
	struct sk_buff *skb = (void *)key;
	struct linear linear = {};
	u32 index = settings.index_of[HOOK_expand_head];

	if (!*(volatile __u32 *)&on)
		return 0;
	linear.data = (u64)BPF_CORE_READ(skb, data);
	linear.size = BPF_CORE_READ(skb, len) - BPF_CORE_READ(skb, data_len);
	if (bpf_map_update_elem(&expanding, &key, &linear, BPF_ANY) && index < LAB_RING_HOOKS)
		__sync_fetch_and_add(&ring.hooks[index].missed, 1);
	return 0;
}

SEC("fexit/pskb_expand_head")
int expand_head__fexit(u64 *ctx)
{
	struct lab_event *event;
	struct linear *linear;
	u64 number, key = arg(ctx, 0);
	u64 result = 0;

	linear = bpf_map_lookup_elem(&expanding, &key);
	if (!linear)
		return 0;
	bpf_get_func_ret(ctx, &result);
	if (!wanted(HOOK_expand_head))
		goto done;
	event = claim(HOOK_expand_head, LAB_RETURN, &number);
	if (!event)
		goto done;
	take_skb(event, key);
	event->src_phys = 0;
	event->size = linear->size;
	if (!(s32)result) {
		event->ret = event->size;
		event->src = linear->data;
		event->src_phys = phys(event->src);
		event->dst = event->data;
		event->dst_phys = phys(event->dst);
		take_bytes(event, event->dst, event->size, false);
	}
	commit(event, number);
done:
	bpf_map_delete_elem(&expanding, &key);
	return 0;
}

/* --- socket(2) ---------------------------------------------------------------------------- */

CROSSED(x64_socket, "__x64_sys_socket")
CROSSED(x64_sendto, "__x64_sys_sendto")
CROSSED(x64_recvfrom, "__x64_sys_recvfrom")
ENTERED(sys_socket, "__sys_socket", )
RETURNED(sys_socket_out, "__sys_socket", )
ENTERED(inner_create, "__sys_socket_create", )
ENTERED(map_fd, "sock_map_fd", )
ENTERED(bare_create, "sock_create", )
ENTERED(create, "__sock_create", )
RETURNED(create_out, "__sock_create", take_result(event, arg(ctx, 4), ret))
ENTERED(alloc, "sock_alloc", )
RETURNED(alloc_out, "sock_alloc", take_socket(event, ret))
ENTERED(inet, "inet_create", take_socket(event, arg(ctx, 1)))
RETURNED(inet_out, "inet_create", take_socket(event, arg(ctx, 1)))
ENTERED(unused_fd, "get_unused_fd_flags", )
RETURNED(unused_fd_out, "get_unused_fd_flags", )
ENTERED(alloc_file, "sock_alloc_file", take_socket(event, arg(ctx, 0)))
RETURNED(alloc_file_out, "sock_alloc_file", take_made(event, arg(ctx, 0), ret))
ENTERED(pseudo, "alloc_file_pseudo", take_inode(event, arg(ctx, 0), 0))
RETURNED(pseudo_out, "alloc_file_pseudo", take_inode(event, arg(ctx, 0), ret))
ENTERED(install, "fd_install", take_file(event, arg(ctx, 1)))
RETURNED(install_out, "fd_install", take_file(event, arg(ctx, 1)))
ENTERED(put_fd, "put_unused_fd", )
ENTERED(release, "sock_release", take_socket(event, arg(ctx, 0)))
ENTERED(inner_release, "__sock_release", take_socket(event, arg(ctx, 0)))
ENTERED(inet_release, "inet_release", take_socket(event, arg(ctx, 0)))
ENTERED(put_inode, "iput", take_inode(event, arg(ctx, 0), 0))
RETURNED(signal_out, "get_signal", take_signal(event, arg(ctx, 0), ret))
