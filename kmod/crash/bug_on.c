// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest_only.h"

static int bug_on(void)
{
	BUG_ON(THIS_MODULE->name[0] == 'b');
	return 0;
}

CRASH_ON_LOAD(bug_on);
