// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The worksheet's bug 1 as it stands there.  On 6.12 iter_type 1 is ITER_IOVEC and recv()
 * uses ITER_UBUF (0), so the else branch takes the user's buffer for a struct iovec and
 * reads it in kernel mode: not NULL, but a user address that SMAP guards.  6.1 has no
 * member __iov: it does not compile there.
 */
#include "hook.h"

static int handler(struct kprobe *p, struct pt_regs *regs)
{
	struct iov_iter *iter = (struct iov_iter *)regs->dx;
	void __user *dest;

	if (!is_receiver())
		return 0;
	dest = iter->iter_type == 1 ? iter->ubuf : iter->__iov->iov_base;
	if (!iter)
		return 0;
	pr_info("[COPY4] dest=%px\n", dest);
	return 0;
}

HOOK_COPY_TO_ITER(handler);
