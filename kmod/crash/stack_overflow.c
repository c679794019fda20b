// SPDX-License-Identifier: GPL-2.0-or-later
/* Calls itself until the stack's guard page ends it. */
#include "guest_only.h"

static noinline int deeper(int depth)
{
	volatile char room[512];

	room[depth % sizeof(room)] = depth;
	if (depth < 0)
		return room[0];
	return deeper(depth + 1) + room[depth % sizeof(room)];
}

static int stack_overflow(void)
{
	return deeper(0) ? -EIO : 0;
}

CRASH_ON_LOAD(stack_overflow);
