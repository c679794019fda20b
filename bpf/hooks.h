/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The hooks that BPF can have, for the programs and for their loader; lab/hooks.py says where
 * each of them is.  A hook's programs are called ID__fexit, ID__fentry, ID__tp, ID__kprobe and
 * ID__call, by the ways to attach it.
 */
#ifndef LAB_HOOKS_H
#define LAB_HOOKS_H

#define LAB_HOOKS(HOOK) \
	HOOK(getfrag_copy) \
	HOOK(tcp_copy) \
	HOOK(csum_full) \
	HOOK(getfrag_csum) \
	HOOK(getfrag) \
	HOOK(tcp_transmit) \
	HOOK(queue_xmit) \
	HOOK(loopback_xmit) \
	HOOK(netif_rx) \
	HOOK(start_xmit) \
	HOOK(outbuf) \
	HOOK(e1000_xmit) \
	HOOK(dma_map) \
	HOOK(receive_buf) \
	HOOK(page_to_skb) \
	HOOK(page_copy) \
	HOOK(xdp_copy) \
	HOOK(dma_unmap) \
	HOOK(e1000_copy) \
	HOOK(enqueue) \
	HOOK(established) \
	HOOK(readable) \
	HOOK(recvmsg_copy) \
	HOOK(recvmsg6_copy) \
	HOOK(simple_copy) \
	HOOK(csum_copy) \
	HOOK(consume) \
	HOOK(copy_bits) \
	HOOK(csum_bits) \
	HOOK(expand_head) \
	HOOK(bounce) \
	HOOK(x64_socket) \
	HOOK(x64_sendto) \
	HOOK(x64_recvfrom) \
	HOOK(sys_socket) \
	HOOK(sys_socket_out) \
	HOOK(inner_create) \
	HOOK(map_fd) \
	HOOK(bare_create) \
	HOOK(create) \
	HOOK(create_out) \
	HOOK(alloc) \
	HOOK(alloc_out) \
	HOOK(inet) \
	HOOK(inet_out) \
	HOOK(unused_fd) \
	HOOK(unused_fd_out) \
	HOOK(alloc_file) \
	HOOK(alloc_file_out) \
	HOOK(pseudo) \
	HOOK(pseudo_out) \
	HOOK(install) \
	HOOK(install_out) \
	HOOK(put_fd) \
	HOOK(release) \
	HOOK(inner_release) \
	HOOK(inet_release) \
	HOOK(put_inode) \
	HOOK(signal_out)

#define LAB_HOOK_ID(id)	HOOK_##id,
enum { LAB_HOOKS(LAB_HOOK_ID) HOOK_COUNT };

#define LAB_CPUS	64	/* CPUs whose records are counted; the lab's guests have fewer */
#define LAB_NO_HOOK	0xffff	/* index of a hook that this ring does not have */

/* What the loader tells the programs; constants to the verifier. */
struct lab_settings {
	__u64 mask[2];		/* the nonce */
	__u64 direct_map;	/* page_offset_base */
	__u64 memory_map;	/* vmemmap_base */
	__u64 memory_end;	/* behind the last physical byte */
	__u16 index_of[HOOK_COUNT];	/* in this ring's table of hooks */
	char comm[16];
};

#endif /* LAB_HOOKS_H */
