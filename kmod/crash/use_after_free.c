// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads what it has freed.  Nothing faults, the bytes are still there: a plain kernel
 * cannot see it.  With KFENCE one allocation each interval gets a page of its own.
 */
#include <linux/delay.h>

#include "guest_only.h"

static int use_after_free(void)
{
	int turn, sum = 0;

	for (turn = 0; turn < 40; turn++) {
		char *freed = kmalloc(64, GFP_KERNEL);

		if (!freed)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(freed);
		kfree(freed);
		sum += READ_ONCE(freed[8]);
		msleep(8);
	}
	pr_info("use_after_free: %d\n", sum);
	return 0;
}

CRASH_ON_LOAD(use_after_free);
