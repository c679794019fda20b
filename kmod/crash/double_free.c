// SPDX-License-Identifier: GPL-2.0-or-later
/* Frees twice in a row: the hardened free list is the first to notice. */
#include "guest_only.h"

static int double_free(void)
{
	void *freed = kmalloc(64, GFP_KERNEL);

	if (!freed)
		return -ENOMEM;
	kfree(freed);
	OPTIMIZER_HIDE_VAR(freed);
	kfree(freed);
	return 0;
}

CRASH_ON_LOAD(double_free);
