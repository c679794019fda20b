// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/gfp.h>

#include "guest_only.h"

static int memory_exhaustion(void)
{
	void **last = NULL;

	for (;;) {
		void **page = (void **)__get_free_page(GFP_KERNEL);

		if (!page) {
			cond_resched();
			continue;
		}
		*page = last;
		last = page;
	}
	return 0;
}

CRASH_ON_LOAD(memory_exhaustion);
