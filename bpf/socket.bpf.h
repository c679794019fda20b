/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The hooks on the way of socket(2), as kmod/socket_chain_main.c has them.
 *
 * A program can read neither MSR_LSTAR nor its own code segment: those words of the barrier
 * stay 0.  Of the argument registers it knows those that the function has.
 */
#ifndef LAB_SOCKET_BPF_H
#define LAB_SOCKET_BPF_H

#include "probe.bpf.h"

#define SIGNAL_PENDING	(1UL << 2)	/* TIF_SIGPENDING of arch/x86/include/asm/thread_info.h */
#define SYSCALL_LENGTH	2		/* bytes of the instruction: 0f 05 */

static __always_inline void take_words(struct lab_event *event, const u64 *words)
{
	int i;

#pragma unroll
	for (i = 0; i < LAB_BYTES_LEN / 8; i++)
		event->bytes[i] = words[i] ^ settings.mask[i & 1];
	event->bytes_len = LAB_BYTES_LEN;
}

static __always_inline void take_args(struct lab_event *event, void *ctx, u64 ret)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	u64 words[LAB_BYTES_LEN / 8] = {
		arg(ctx, 0), arg(ctx, 1), arg(ctx, 2), arg(ctx, 3), arg(ctx, 4), arg(ctx, 5), ret,
		BPF_CORE_READ(task, thread_info.flags) & SIGNAL_PENDING ? LAB_TASK_SIGNAL : 0,
	};

	event->ret = (s32)ret;
	event->flags |= LAB_F_ARGS;
	take_words(event, words);
}

/* What is no address at all, an error code among them, has no fields to be read. */
static __always_inline bool is_object(u64 address)
{
	return address >= settings.direct_map && address < -4095UL;
}

static __always_inline void take_socket(struct lab_event *event, u64 at)
{
	struct socket *socket = (void *)at;
	struct sock *sk;

	event->flags |= LAB_F_SOCKET;
	event->socket = at;
	if (!is_object(at))
		return;
	event->inode = at - bpf_core_field_offset(struct socket_alloc, socket) +
		       bpf_core_field_offset(struct socket_alloc, vfs_inode);
	event->state = BPF_CORE_READ(socket, state);
	event->type = BPF_CORE_READ(socket, type);
	event->ops = (u64)BPF_CORE_READ(socket, ops);
	event->socket_file = (u64)BPF_CORE_READ(socket, file);
	sk = BPF_CORE_READ(socket, sk);
	event->sk = (u64)sk;
	if (is_object((u64)sk))
		event->sk_socket = (u64)BPF_CORE_READ(sk, sk_socket);
}

static __always_inline void take_file(struct lab_event *event, u64 at)
{
	u64 data = 0;

	if (is_object(at))
		data = (u64)BPF_CORE_READ((struct file *)at, private_data);
	/* Other files keep other things there: a socket points back at its file. */
	if (is_object(data) && (u64)BPF_CORE_READ((struct socket *)data, file) == at)
		take_socket(event, data);
	event->flags |= LAB_F_SOCKET;
	event->file = at;
	event->private_data = data;
}

static __always_inline void take_inode(struct lab_event *event, u64 inode, u64 file)
{
	event->flags |= LAB_F_SOCKET;
	event->inode = inode;
	if (is_object(file))
		event->file = file;
}

/* *res of __sock_create, if it succeeded */
static __always_inline void take_result(struct lab_event *event, u64 res, u64 ret)
{
	u64 socket = 0;

	if (ret)
		return;
	bpf_probe_read_kernel(&socket, sizeof(socket), (void *)res);
	take_socket(event, socket);
}

/* A socket whose file failed was released: only its address means anything. */
static __always_inline void take_made(struct lab_event *event, u64 socket, u64 file)
{
	if (is_object(file)) {
		take_file(event, file);
		return;
	}
	event->flags |= LAB_F_SOCKET;
	event->socket = socket;
}

/* struct ksignal: which signal a handler is about to be run for */
static __always_inline void take_signal(struct lab_event *event, u64 ksignal, u64 ret)
{
	if (ret & 1)
		event->size = BPF_CORE_READ((struct ksignal *)ksignal, sig);
}

/* What the entry code saved of the program */
static __always_inline void take_barrier(struct lab_event *event, u64 saved)
{
	struct pt_regs *user = (void *)saved;
	u64 words[LAB_BYTES_LEN / 8] = {
		BPF_CORE_READ(user, di), BPF_CORE_READ(user, si), BPF_CORE_READ(user, dx),
		BPF_CORE_READ(user, orig_ax), BPF_CORE_READ(user, ip), BPF_CORE_READ(user, cs),
	};
	u16 code = 0;

	words[5] &= 0xffff;
	event->user = words[4] - SYSCALL_LENGTH;
	if (!bpf_probe_read_user(&code, sizeof(code), (void *)event->user))
		event->aux = code;
	event->flags |= LAB_F_BARRIER;
	take_words(event, words);
}

#define SOCKET_PROGRAM(id, way, symbol, kind, take)					\
	SEC(#way "/" symbol)								\
	int id##__##way(u64 *ctx)							\
	{										\
		struct lab_event *event;						\
		u64 number, ret = 0;							\
											\
		if (!wanted(HOOK_##id))							\
			return 0;							\
		event = claim(HOOK_##id, kind, &number);				\
		if (!event)								\
			return 0;							\
		if (kind == LAB_RETURN)							\
			bpf_get_func_ret(ctx, &ret);					\
		take;									\
		commit(event, number);							\
		return 0;								\
	}
#define WITH(more)	take_args(event, ctx, ret); more
#define ENTERED(id, symbol, more)	SOCKET_PROGRAM(id, fentry, symbol, LAB_ENTRY, WITH(more))
#define RETURNED(id, symbol, more)	SOCKET_PROGRAM(id, fexit, symbol, LAB_RETURN, WITH(more))
#define CROSSED(id, symbol)								\
	SOCKET_PROGRAM(id, fentry, symbol, LAB_ENTRY, take_barrier(event, arg(ctx, 0)))

#endif /* LAB_SOCKET_BPF_H */
