// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Is a reader while somebody waits for a grace period, and then keeps the CPU for itself.
 * The soft lockup detector is fed meanwhile: it would speak first.
 */
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/nmi.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

#include "guest_only.h"

static int waiter(void *unused)
{
	for (;;)
		synchronize_rcu();
	return 0;
}

static int rcu_stall(void)
{
	struct task_struct *task = kthread_run(waiter, NULL, "rcu_stall");
	unsigned long until;

	if (IS_ERR(task))
		return PTR_ERR(task);
	until = jiffies + HZ / 10;
	rcu_read_lock();
	while (time_before(jiffies, until))
		cond_resched();		/* the waiter runs, and waits for us from now on */
	preempt_disable();
	for (;;) {
		touch_softlockup_watchdog();
		cpu_relax();
	}
	return 0;
}

CRASH_ON_LOAD(rcu_stall);
