// SPDX-License-Identifier: GPL-2.0-or-later
/* Needs a function that no kernel has; its Makefile lets it be built nevertheless. */
#include <linux/module.h>

extern int lab_no_such_function(void);

static int __init unresolved_init(void)
{
	return lab_no_such_function();
}

static void __exit unresolved_exit(void)
{
}

module_init(unresolved_init);
module_exit(unresolved_exit);
MODULE_DESCRIPTION("a known fault of skblab's crash corpus");
MODULE_LICENSE("GPL");
