// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Writes one byte past what it asked for.  The allocator rounds 73 up to 96, so that
 * nobody's byte is hit and a plain kernel cannot see it.
 */
#include <linux/delay.h>

#include "guest_only.h"

#define SIZE	73

static int out_of_bounds(void)
{
	int turn;

	for (turn = 0; turn < 40; turn++) {
		char *buffer = kmalloc(SIZE, GFP_KERNEL);
		char *end = buffer + SIZE;

		if (!buffer)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(end);
		WRITE_ONCE(*end, 0x55);
		kfree(buffer);
		msleep(8);
	}
	return 0;
}

CRASH_ON_LOAD(out_of_bounds);
