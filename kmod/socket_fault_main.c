// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * socket_fault: what goes wrong between sock_alloc and fd_install, made to.
 *
 * alloc_file_pseudo is called by sock_alloc_file, which releases the socket when it
 * fails: nothing may be left.  When sock_alloc_file itself does not run nobody does, and
 * the socket is lost: that is what a check for leaks has to catch.  `without` picks one.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>

#include "lab_socket.h"

static uint fail;
module_param(fail, uint, 0600);
MODULE_PARM_DESC(fail, "the function does not run and returns minus this (0: it runs)");

static uint send_signal;
module_param_named(signal, send_signal, uint, 0600);
MODULE_PARM_DESC(signal, "number of a signal to send to the calling task before (0: none)");

#define ERRNO_MOST	4095

static bool act(struct lab_args *args)
{
	uint error = min_t(uint, READ_ONCE(fail), ERRNO_MOST);
	uint number = READ_ONCE(send_signal);

	if (number && number < _NSIG && !send_sig(number, current, 0))
		args->cursor = number;
	if (!error)
		return false;
	args->ret = -(s64)error;
	return true;
}
NOKPROBE_SYMBOL(act);

static bool fill_act(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	event->size = args->cursor;	/* the signal that was sent */
	return false;
}
NOKPROBE_SYMBOL(fill_act);

static const struct lab_spec specs[] = {
	{ .symbol = "alloc_file_pseudo", .kind = LAB_ENTRY, .replace = act, .fill = fill_act },
	{ .symbol = "sock_alloc_file", .kind = LAB_ENTRY, .replace = act, .fill = fill_act },
};

static int __init socket_fault_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), NULL, 0);
}

static void __exit socket_fault_exit(void)
{
	lab_stop();
}

module_init(socket_fault_init);
module_exit(socket_fault_exit);
MODULE_DESCRIPTION("skblab: makes a step of socket(2) fail, leak or be interrupted");
MODULE_LICENSE("GPL");
