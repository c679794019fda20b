// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/delay.h>
#include <linux/spinlock.h>

#include "guest_only.h"

static DEFINE_SPINLOCK(lock);

static int sleep_in_atomic(void)
{
	spin_lock(&lock);
	msleep(20);
	spin_unlock(&lock);
	return 0;
}

CRASH_ON_LOAD(sleep_in_atomic);
