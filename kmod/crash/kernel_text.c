// SPDX-License-Identifier: GPL-2.0-or-later
/* Changes code that nobody runs for now: the fault comes another day, or never. */
#include <linux/irqflags.h>
#include <linux/reboot.h>

#include "guest_only.h"

#define WRITE_PROTECT	(1UL << 16)

static int kernel_text(void)
{
	u8 *code = (u8 *)emergency_restart;
	unsigned long flags, cr0;

	OPTIMIZER_HIDE_VAR(code);
	local_irq_save(flags);
	asm volatile("mov %%cr0, %0" : "=r" (cr0));
	asm volatile("mov %0, %%cr0" : : "r" (cr0 & ~WRITE_PROTECT) : "memory");
	code[10] ^= 0x40;
	code[11] ^= 0x40;
	asm volatile("mov %0, %%cr0" : : "r" (cr0) : "memory");
	local_irq_restore(flags);
	return 0;
}

CRASH_ON_LOAD(kernel_text);
