// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/sched.h>

#include "guest_only.h"

static int console_flood(void)
{
	unsigned long turn;

	for (turn = 0;; turn++) {
		pr_emerg("console_flood: %lu and no end to it\n", turn);
		cond_resched();
	}
	return 0;
}

CRASH_ON_LOAD(console_flood);
