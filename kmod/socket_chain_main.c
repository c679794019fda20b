// SPDX-License-Identifier: GPL-2.0-or-later
/* socket_chain_probe: every object that socket(2) makes, at every step of its making. */
#include <linux/err.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/signal_types.h>
#include <linux/uaccess.h>
#include <asm/msr.h>
#include <asm/ptrace.h>

#include "lab_read.h"
#include "lab_ring.h"
#include "lab_socket.h"

#define SYSCALL_LENGTH	2	/* bytes of the instruction: 0f 05 */

/*
 * __x64_sys_*(const struct pt_regs *regs): what the entry code saved of the program.
 * The entry code itself is .noinstr.text: nobody can hook it.
 */
static bool fill_barrier(struct lab_event *event, struct lab_args *args)
{
	struct pt_regs *user = (void *)args->arg[0];
	struct lab_words_barrier words = {
		.di = lab_peek(&user->di),
		.si = lab_peek(&user->si),
		.dx = lab_peek(&user->dx),
		.number = lab_peek(&user->orig_ax),
		.ip = lab_peek(&user->ip),
		.cs_before = lab_peek(&user->cs),
	};
	u16 code = 0;

	asm volatile("mov %%cs, %0" : "=r"(words.cs_after));
	rdmsrl(MSR_LSTAR, words.lstar);
	event->user = words.ip - SYSCALL_LENGTH;
	if (!copy_from_user_nofault(&code, (void __user *)event->user, sizeof(code)))
		event->aux = code;
	event->flags |= LAB_F_BARRIER;
	lab_ring_words(event, &words, sizeof(words));
	return false;
}
NOKPROBE_SYMBOL(fill_barrier);

/* __sock_create(net, family, type, protocol, struct socket **res, kern) */
static bool fill_create(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	if (!args->ret)
		lab_fill_socket(event, (u64)lab_peek((struct socket **)args->arg[4]));
	return false;
}
NOKPROBE_SYMBOL(fill_create);

/* struct socket *sock_alloc(void) */
static bool fill_alloc(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	lab_fill_socket(event, args->ret);
	return false;
}
NOKPROBE_SYMBOL(fill_alloc);

/* inet_create(net, socket, protocol, kern) */
static bool fill_inet_create(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	lab_fill_socket(event, args->arg[1]);
	return false;
}
NOKPROBE_SYMBOL(fill_inet_create);

/* Whose first argument is a socket; it may be gone when they return. */
static bool fill_first(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	lab_fill_socket(event, args->arg[0]);
	return false;
}
NOKPROBE_SYMBOL(fill_first);

/* struct file *sock_alloc_file(socket, flags, name): a socket whose file failed is released */
static bool fill_alloc_file(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	if (!IS_ERR_VALUE((unsigned long)args->ret)) {
		lab_fill_file(event, args->ret);
		return false;
	}
	event->flags |= LAB_F_SOCKET;
	event->socket = args->arg[0];
	return false;
}
NOKPROBE_SYMBOL(fill_alloc_file);

/* struct file *alloc_file_pseudo(inode, …): private_data is not set yet */
static bool fill_pseudo(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	event->flags |= LAB_F_SOCKET;
	event->inode = args->arg[0];
	if (args->ret && !IS_ERR_VALUE((unsigned long)args->ret))
		event->file = args->ret;
	return false;
}
NOKPROBE_SYMBOL(fill_pseudo);

/* void fd_install(fd, file) */
static bool fill_install(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	lab_fill_file(event, args->arg[1]);
	return false;
}
NOKPROBE_SYMBOL(fill_install);

/* void iput(inode) */
static bool fill_iput(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	event->flags |= LAB_F_SOCKET;
	event->inode = args->arg[0];
	return false;
}
NOKPROBE_SYMBOL(fill_iput);

/* bool get_signal(struct ksignal *): which signal a handler is about to be run for */
static bool fill_signal(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	if (args->ret & 1)
		event->size = lab_peek(&((struct ksignal *)args->arg[0])->sig);
	return false;
}
NOKPROBE_SYMBOL(fill_signal);

#define CALLED(function, enter, leave)							\
	{ .symbol = function, .kind = LAB_ENTRY, .fill = enter },			\
	{ .symbol = function, .kind = LAB_RETURN, .maxactive = SOCKET_CALLS_AT_ONCE,	\
	  .fill = leave }

static const struct lab_spec specs[] = {
	{ .symbol = "__x64_sys_socket", .kind = LAB_ENTRY, .fill = fill_barrier },
	{ .symbol = "__x64_sys_sendto", .kind = LAB_ENTRY, .fill = fill_barrier },
	{ .symbol = "__x64_sys_recvfrom", .kind = LAB_ENTRY, .fill = fill_barrier },
	CALLED("__sys_socket", lab_args_only, lab_args_only),
	/* The book's chain has these two; where the compiler inlined them they are absent. */
	{ .symbol = "__sys_socket_create", .kind = LAB_ENTRY, .fill = lab_args_only },
	{ .symbol = "sock_map_fd", .kind = LAB_ENTRY, .fill = lab_args_only },
	/* And this one, which is there; the hook says whether socket(2) calls it. */
	{ .symbol = "sock_create", .kind = LAB_ENTRY, .fill = lab_args_only },
	CALLED("__sock_create", lab_args_only, fill_create),
	CALLED("sock_alloc", lab_args_only, fill_alloc),
	CALLED("inet_create", fill_inet_create, fill_inet_create),
	CALLED("get_unused_fd_flags", lab_args_only, lab_args_only),
	CALLED("sock_alloc_file", fill_first, fill_alloc_file),
	CALLED("alloc_file_pseudo", fill_pseudo, fill_pseudo),
	CALLED("fd_install", fill_install, fill_install),
	{ .symbol = "put_unused_fd", .kind = LAB_ENTRY, .fill = lab_args_only },
	{ .symbol = "sock_release", .kind = LAB_ENTRY, .fill = fill_first },
	{ .symbol = "__sock_release", .kind = LAB_ENTRY, .fill = fill_first },
	{ .symbol = "inet_release", .kind = LAB_ENTRY, .fill = fill_first },
	{ .symbol = "iput", .kind = LAB_ENTRY, .fill = fill_iput },
	{
		.symbol = "get_signal",
		.kind = LAB_RETURN,
		.maxactive = SOCKET_CALLS_AT_ONCE,
		.fill = fill_signal,
	},
};

static int __init socket_chain_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), NULL, 0);
}

static void __exit socket_chain_exit(void)
{
	lab_stop();
}

module_init(socket_chain_init);
module_exit(socket_chain_exit);
MODULE_DESCRIPTION("skblab: records each object of a socket at each step of socket(2)");
MODULE_LICENSE("GPL");
