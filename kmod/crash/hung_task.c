// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/completion.h>

#include "guest_only.h"

static DECLARE_COMPLETION(never);

static int hung_task(void)
{
	wait_for_completion(&never);
	return 0;
}

CRASH_ON_LOAD(hung_task);
