// SPDX-License-Identifier: GPL-2.0-or-later
/* The worksheet's "safer" bug 3: a user address is not NULL either, so it faults as well. */
#include "hook.h"

static int handler(struct kprobe *p, struct pt_regs *regs)
{
	struct iov_iter *iter = (struct iov_iter *)regs->dx;
	void __user *dest = NULL;
	int type;

	if (!is_receiver() || !iter)
		return 0;
	type = iter->iter_type;
	if (type == 0 && iter->__iov)
		dest = iter->__iov->iov_base;
	pr_info("[COPY4] dest=%px\n", dest);
	return 0;
}

HOOK_COPY_TO_ITER(handler);
