// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest_only.h"

static int warn_on(void)
{
	WARN(1, "warn_on: as asked\n");
	return 0;
}

CRASH_ON_LOAD(warn_on);
