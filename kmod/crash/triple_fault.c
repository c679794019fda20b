// SPDX-License-Identifier: GPL-2.0-or-later
/* An empty table of interrupts: the fault cannot be handled, nor the one after, nor the next. */
#include <linux/irqflags.h>

#include "guest_only.h"

static int triple_fault(void)
{
	struct {
		u16 size;
		u64 address;
	} __packed none = { 0, 0 };

	local_irq_disable();
	asm volatile("lidt %0; int3" : : "m" (none));
	return 0;
}

CRASH_ON_LOAD(triple_fault);
