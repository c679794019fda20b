// SPDX-License-Identifier: GPL-2.0-or-later
/* Takes its own lock again: interrupts stay on, so this is a soft lockup. */
#include <linux/spinlock.h>

#include "guest_only.h"

static DEFINE_SPINLOCK(lock);

static int spinlock_deadlock(void)
{
	spin_lock(&lock);
	spin_lock(&lock);
	return 0;
}

CRASH_ON_LOAD(spinlock_deadlock);
