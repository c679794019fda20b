// SPDX-License-Identifier: GPL-2.0-or-later
/* Halts with interrupts off: no CPU time is burnt, and nothing short of an NMI wakes it. */
#include <linux/irqflags.h>
#include <asm/irqflags.h>

#include "guest_only.h"

static int hard_halt(void)
{
	local_irq_disable();
	for (;;)
		asm volatile("hlt");
	return 0;
}

CRASH_ON_LOAD(hard_halt);
