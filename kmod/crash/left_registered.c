// SPDX-License-Identifier: GPL-2.0-or-later
/* Goes without taking its device number along: it cannot be loaded again. */
#include <linux/fs.h>

#include "guest_only.h"

#define MAJOR_WANTED	240	/* of those for experiments */

static int left_registered(void)
{
	return register_chrdev_region(MKDEV(MAJOR_WANTED, 0), 1, "left");
}

CRASH_ON_LOAD(left_registered);
