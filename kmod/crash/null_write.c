// SPDX-License-Identifier: GPL-2.0-or-later
/* Writes a member of a struct that is not there. */
#include "guest_only.h"

struct thing {
	long first;
	long second;
	int count;
};

static noinline struct thing *find_thing(const char *name)
{
	return strlen(name) > 100 ? (struct thing *)name : NULL;
}

static int null_write(void)
{
	struct thing *thing = find_thing(THIS_MODULE->name);

	thing->count = 7;
	return 0;
}

CRASH_ON_LOAD(null_write);
