// SPDX-License-Identifier: GPL-2.0-or-later
/* Goes without taking its probe along: the next call of vfs_write runs what is freed. */
#include <linux/kprobes.h>

#include "guest_only.h"

static int handler(struct kprobe *p, struct pt_regs *regs)
{
	return 0;
}

static struct kprobe hook = { .symbol_name = "vfs_write", .pre_handler = handler };

static int probe_left(void)
{
	return register_kprobe(&hook);
}

CRASH_ON_LOAD(probe_left);
