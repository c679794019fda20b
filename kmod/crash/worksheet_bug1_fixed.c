// SPDX-License-Identifier: GPL-2.0-or-later
/* What the worksheet calls the fix of bug 1: iter was never NULL, so nothing changes. */
#include "hook.h"

static int handler(struct kprobe *p, struct pt_regs *regs)
{
	struct iov_iter *iter = (struct iov_iter *)regs->dx;
	void __user *dest;

	if (!is_receiver())
		return 0;
	if (!iter)
		return 0;
	dest = iter->iter_type == 1 ? iter->ubuf : iter->__iov->iov_base;
	pr_info("[COPY4] dest=%px\n", dest);
	return 0;
}

HOOK_COPY_TO_ITER(handler);
