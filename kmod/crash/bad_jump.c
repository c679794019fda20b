// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest_only.h"

static int bad_jump(void)
{
	int (*callback)(void) = (int (*)(void))0xffffdead00001000UL;

	OPTIMIZER_HIDE_VAR(callback);
	return callback() ? -EIO : 0;	/* no tail call: who jumped stays on the stack */
}

CRASH_ON_LOAD(bad_jump);
