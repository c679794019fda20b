// SPDX-License-Identifier: GPL-2.0-or-later
/* The worksheet's final form (block 21): registers only, no pointer is followed. */
#include "hook.h"

static int handler_copy_to_iter(struct kprobe *p, struct pt_regs *regs)
{
	const void *source = (const void *)regs->di;
	size_t len = (size_t)regs->si;

	if (strncmp(current->comm, "receiver", 8) != 0)
		return 0;
	pr_info("[COPY4] PID=%d comm=%s src=%px len=%zu\n",
		current->pid, current->comm, source, len);
	return 0;
}

HOOK_COPY_TO_ITER(handler_copy_to_iter);
