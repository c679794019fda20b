// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * socket_latency_probe: when __sys_socket began, when it ended, and with what.
 *
 * A kretprobe keeps what it needs for the end with the call, not in a table.  Calls of
 * other programs than `comm` are skipped, and each leaves a record that says so.
 */
#include <linux/kprobes.h>
#include <linux/module.h>

#include "lab_socket.h"

static const struct lab_spec specs[] = {
	{
		.symbol = "__sys_socket",
		.kind = LAB_ENTRY,
		.tell_skipped = true,
		.fill = lab_args_only,
	},
	{
		.symbol = "__sys_socket",
		.kind = LAB_RETURN,
		.maxactive = SOCKET_CALLS_AT_ONCE,
		.fill = lab_args_only,
	},
};

static int __init socket_latency_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), NULL, 0);
}

static void __exit socket_latency_exit(void)
{
	lab_stop();
}

module_init(socket_latency_init);
module_exit(socket_latency_exit);
MODULE_DESCRIPTION("skblab: records what socket(2) was asked, what it returned and when");
MODULE_LICENSE("GPL");
