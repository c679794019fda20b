// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/reboot.h>

#include "guest_only.h"

static int reboot(void)
{
	kernel_restart(NULL);
	return 0;
}

CRASH_ON_LOAD(reboot);
