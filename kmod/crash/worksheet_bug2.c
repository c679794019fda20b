// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The worksheet's bug 2: in_interrupt() in a kprobe handler.  The handler of an int3 runs
 * as if in an NMI, so it is always true there: the probe loads, sees nothing, harms nothing.
 */
#include <linux/preempt.h>

#include "hook.h"

static int handler(struct kprobe *p, struct pt_regs *regs)
{
	if (!is_receiver())
		return 0;
	if (in_interrupt())
		return 0;
	pr_info("[COPY4] src=%px len=%zu\n", (void *)regs->di, (size_t)regs->si);
	return 0;
}

HOOK_COPY_TO_ITER(handler);
