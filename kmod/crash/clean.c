// SPDX-License-Identifier: GPL-2.0-or-later
/* Does nothing wrong: what a verdict other than `loaded` is measured against. */
#include "guest_only.h"

static int clean(void)
{
	pr_info("clean: nothing to see\n");
	return 0;
}

CRASH_ON_LOAD(clean);
