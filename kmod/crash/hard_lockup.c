// SPDX-License-Identifier: GPL-2.0-or-later
/* Interrupts off for good: the guest's own detector wants a PMU, which TCG has not got. */
#include <linux/irqflags.h>
#include <linux/processor.h>

#include "guest_only.h"

static int hard_lockup(void)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
	return 0;
}

CRASH_ON_LOAD(hard_lockup);
