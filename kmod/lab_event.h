/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The wire format of one observation, and of the ring that holds them.
 *
 * Shared by the kernel modules (kmod/), the BPF loader (bpf/) and, through a
 * unit test that compiles this file, lab/record/.  Everything is little
 * endian and naturally aligned; there is no implicit padding.
 *
 * The ring lives in guest RAM.  Two contiguous header pages carry a magic, the
 * run's nonce and the physical addresses of the chunks; the host finds the
 * header at the physical address the module announces (or by searching the RAM
 * file for magic + nonce) and needs no further help from the guest.
 */
#ifndef LAB_EVENT_H
#define LAB_EVENT_H

#ifndef __VMLINUX_H__	/* BPF programs have the types from the kernel's BTF */
#include <linux/types.h>
#endif

#define LAB_RING_MAGIC		0x474e4952424c4b53ULL	/* "SKBLRING" in memory */
#define LAB_RING_VERSION	2
#define LAB_RING_HEADER_SIZE	8192			/* bytes, page aligned */
#define LAB_RING_CHUNK_SIZE	(256 * 1024)		/* bytes, contiguous */
#define LAB_RING_CHUNKS		128			/* at most 128 Ki events */
#define LAB_RING_PAGES		512			/* pages of a chunk, LAB_RING_PAGED */
#define LAB_RING_HOOKS		48
#define LAB_EVENTS_PER_CHUNK	(LAB_RING_CHUNK_SIZE / 256)

#define LAB_COMM_LEN		16
#define LAB_DEV_LEN		16
#define LAB_BYTES_LEN		64

/* lab_event.kind: where in the hooked function the handler ran */
enum lab_kind {
	LAB_ENTRY	= 1,	/* first instruction */
	LAB_RETURN	= 2,	/* return; arguments as saved at entry */
	LAB_CALLSITE	= 3,	/* a call instruction inside the function */
	LAB_SKIPPED	= 4,	/* entered by a task of another name: no more is recorded */
};

/* lab_event.context: bits */
#define LAB_CTX_SOFTIRQ		0x01	/* in_serving_softirq() */
#define LAB_CTX_BH_OFF		0x02	/* bottom halves disabled, not serving one */
#define LAB_CTX_IRQ_OFF		0x04	/* interrupts were off in the probed code */

/* lab_event.flags: bits */
#define LAB_F_SRC_USER		0x01	/* the source of the copy is user memory: .user */
#define LAB_F_DST_USER		0x02	/* the destination is user memory: .user */
#define LAB_F_SKB		0x04	/* .head .data .skb_len .skb_data_len are valid */
#define LAB_F_SOCKET		0x08	/* .socket and what follows it are, not .skb */
#define LAB_F_ARGS		0x10	/* .bytes hold no memory: struct lab_words_args */
#define LAB_F_BARRIER		0x20	/* .bytes hold no memory: struct lab_words_barrier */

/*
 * One observation, 256 bytes.  0 means "does not apply here" in every field.
 * Addresses are guest addresses; sizes are bytes.
 */
struct lab_event {
	__u64 commit;		/* index in the ring + 1, written last; 0: never finished */
	__u64 tsc;		/* raw rdtsc when the handler took the record */
	__u64 seq;		/* counts up per CPU from 1, without gaps unless dropped */
	__u32 cpu;
	__u32 pid;		/* thread id of current */
	__u32 tgid;		/* process id of current */
	__u16 hook;		/* index into lab_ring_header.hooks */
	__u8  kind;		/* enum lab_kind */
	__u8  context;		/* LAB_CTX_* */
	char  comm[LAB_COMM_LEN];
	union {
		struct {
			__u64 skb;	/* struct sk_buff * */
			__u64 head;	/* skb->head */
			__u64 data;	/* skb->data */
			__u32 skb_len;	/* skb->len */
			__u32 skb_data_len;	/* skb->data_len: bytes in frags and frag lists */
			__u64 src;	/* kernel virtual address bytes are read from */
			__u64 dst;	/* kernel virtual address bytes are written to */
			__u64 src_phys;	/* physical address of .src; of .data where only
					 * an skb applies */
			__u64 dst_phys;	/* physical address of .dst */
		};
		struct {		/* LAB_F_SOCKET: as they are at that moment */
			__u64 socket;	/* struct socket *; its .sk is in .sk */
			__u64 ops;	/* socket->ops */
			__u64 inode;	/* the socket's, around it */
			__u32 state;	/* socket->state */
			__u32 type;	/* socket->type */
			__u64 socket_file;	/* socket->file */
			__u64 file;	/* struct file * */
			__u64 private_data;	/* file->private_data */
			__u64 sk_socket;	/* sk->sk_socket */
		};
	};
	__u32 size;		/* bytes asked for (copies), buffer length (devices) */
	__s32 ret;		/* return value: bytes copied, error, ...; kind RETURN only */
	__u64 user;		/* user virtual address the copy reads or writes */
	__u64 sk;		/* struct sock * */
	__u64 caller;		/* return address: who called the hooked function */
	char  dev[LAB_DEV_LEN];	/* netdev name, NUL padded */
	__u64 aux;		/* hook's own: instruction address at CALLSITE, virtqueue at
				 * virtqueue_add_outbuf, instruction bytes at __x64_sys_* */
	__u64 shinfo;		/* address of skb_shared_info, 0 where no skb applies */
	__u16 bytes_len;	/* how many of .bytes are valid */
	__u8  flags;		/* LAB_F_* */
	__u8  iter_type;	/* the running kernel's enum iter_type + 1; 0: no iterator */
	__u32 frags;		/* skb_shinfo->nr_frags; index of the segment at
				 * virtqueue_add_outbuf */
	__u64 bytes[LAB_BYTES_LEN / 8];	/* first bytes at the observed address, XORed with the
				 * ring's nonce (repeating every 16 bytes) so that a
				 * search of guest RAM for a message never finds a trace */
};

/* lab_event.bytes with LAB_F_ARGS */
struct lab_words_args {
	__u64 arg[6];		/* rdi rsi rdx rcx r8 r9 as they were at entry */
	__u64 ret;		/* rax, kind RETURN only: all 64 bits of it */
	__u64 task;		/* LAB_TASK_* */
};

#define LAB_TASK_SIGNAL		0x01	/* a signal is pending */

/* lab_event.bytes with LAB_F_BARRIER: registers of the program at its syscall instruction */
struct lab_words_barrier {
	__u64 di, si, dx;
	__u64 number;		/* rax */
	__u64 ip;		/* rip: of the next instruction */
	__u64 cs_before;	/* the program's code segment; bits 0-1: privilege level */
	__u64 cs_after;		/* the CPU's, in the kernel */
	__u64 lstar;		/* MSR_LSTAR: where the instruction jumps to */
};

/* One hook that was asked for: attached, or absent and why. 72 bytes. */
struct lab_hook {
	char  name[48];		/* "symbol", "module:symbol" or "caller>callee" (call sites) */
	__s32 error;		/* 0 attached, else -errno of the registration */
	__u32 flags;		/* LAB_HOOK_* */
	__u64 hits;		/* times the handler ran */
	__u64 missed;		/* times the kernel could not run it (nmissed) */
};

#define LAB_HOOK_COPY		0x01	/* sees a copy of message bytes */
#define LAB_HOOK_LEFT_OUT	0x02	/* taken out by the "without" parameter */
#define LAB_HOOK_ACTIVE_SHIFT	16	/* above: maxactive of a RETURN hook */
/* How BPF attached it; modules leave these 0. */
#define LAB_HOOK_FENTRY		0x10
#define LAB_HOOK_FEXIT		0x20
#define LAB_HOOK_TRACEPOINT	0x40
#define LAB_HOOK_KPROBE		0x80	/* at entry, or at the call where the name says so */

/* lab_ring_header.flags: what is different in a ring that BPF programs write */
#define LAB_RING_PAGED		0x01	/* chunk_phys: pages of 512 addresses of pages */
#define LAB_RING_NANOSECONDS	0x02	/* .tsc is CLOCK_MONOTONIC: the loader did not end */

/* LAB_RING_HEADER_SIZE bytes, two contiguous pages */
struct lab_ring_header {
	__u64 magic;
	__u8  nonce[16];
	__u32 version;
	__u32 event_size;
	__u64 capacity;		/* events */
	__u64 claimed;		/* events ever asked for, the dropped included */
	__u64 dropped;		/* no room */
	__u64 skipped;		/* not recorded because of the comm filter */
	__u32 hook_count;
	__u32 chunk_count;
	__u32 finished;		/* 1 after "finish": hooks are off, missed is final */
	__u32 flags;		/* LAB_RING_* */
	char  name[24];		/* module name, "bpf" */
	__u64 module_base;	/* address of the module's text */
	__u64 pad[18];		/* hooks start at byte 256 */
	struct lab_hook hooks[LAB_RING_HOOKS];
	__u64 chunk_phys[LAB_RING_CHUNKS];
};

#endif /* LAB_EVENT_H */
