/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The worksheet's probe: a handler on _copy_to_iter, for tasks called "receiver".
 *
 * Whether a probe is an int3 or has been optimised to a jump decides what a fault in its
 * handler does to the machine: the handler of an int3 runs as if in an NMI, where an oops
 * is a panic; behind a jump it runs in the task, where an oops kills the task.  So it is
 * pinned: a probe with a post_handler is never optimised.  (6.12 was seen to leave this
 * one an int3 without it, too.)
 */
#ifndef HOOK_H
#define HOOK_H

#include <linux/kprobes.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/uio.h>

#include "guest_only.h"

static void pin(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static bool is_receiver(void)
{
	return strncmp(current->comm, "receiver", 8) == 0;
}

#define HOOK_COPY_TO_ITER(handler)					\
	static struct kprobe hook = {					\
		.symbol_name = "_copy_to_iter",				\
		.pre_handler = handler,					\
		.post_handler = pin,					\
	};								\
	static int __init hook_init(void)				\
	{								\
		if (!guest_only())					\
			return -EPERM;					\
		return register_kprobe(&hook);				\
	}								\
	static void __exit hook_exit(void)				\
	{								\
		unregister_kprobe(&hook);				\
	}								\
	module_init(hook_init);						\
	module_exit(hook_exit);						\
	MODULE_DESCRIPTION("the worksheet's probe, as it was");		\
	MODULE_LICENSE("GPL")

#endif
