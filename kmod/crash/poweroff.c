// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/reboot.h>

#include "guest_only.h"

static int poweroff(void)
{
	kernel_power_off();
	return 0;
}

CRASH_ON_LOAD(poweroff);
