// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/preempt.h>
#include <linux/processor.h>

#include "guest_only.h"

static int soft_lockup(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

CRASH_ON_LOAD(soft_lockup);
