// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest_only.h"

static int init_fails(void)
{
	return -ENODEV;
}

CRASH_ON_LOAD(init_fails);
