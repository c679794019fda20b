// SPDX-License-Identifier: GPL-2.0-or-later
/* Sleeps and wakes and sleeps: nothing is hung, nothing is locked up, and nothing comes of it. */
#include <linux/sched.h>

#include "guest_only.h"

static int init_never_returns(void)
{
	for (;;)
		schedule_timeout_interruptible(HZ / 4);
	return 0;
}

CRASH_ON_LOAD(init_never_returns);
