// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * trap: probes that do nothing, so that what they put into a kernel can be looked at.
 *
 * `at` are places for kprobes, "symbol" or "symbol+0x9"; `back` is a function for a
 * kretprobe.  The kernel's own kprobe events refuse what ftrace cannot trace, such as
 * _copy_from_iter(); a module need not.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/slab.h>

#define MOST 8
#define CALLS_AT_ONCE 8

static char *at[MOST];
static int places;
module_param_array(at, charp, &places, 0444);
static char *back;
module_param(back, charp, 0444);

static struct kprobe probes[MOST];
static int armed;

static int nothing(struct kprobe *kp, struct pt_regs *regs)
{
	return 0;
}

static int nothing_at_all(struct kretprobe_instance *call, struct pt_regs *regs)
{
	return 0;
}

static struct kretprobe returning = {
	.handler = nothing_at_all,
	.maxactive = CALLS_AT_ONCE,
};

static void disarm(void)
{
	while (armed)
		unregister_kprobe(&probes[--armed]);
}

static int arm(struct kprobe *probe, char *place)
{
	char *plus = strchr(place, '+');
	unsigned int offset = 0;

	if (plus) {
		*plus = '\0';
		if (kstrtouint(plus + 1, 0, &offset))
			return -EINVAL;
	}
	probe->symbol_name = place;
	probe->offset = offset;
	probe->pre_handler = nothing;
	return register_kprobe(probe);
}

static int __init trap_init(void)
{
	int error = 0;

	while (!error && armed < places) {
		error = arm(&probes[armed], at[armed]);
		armed += !error;
	}
	if (!error && back) {
		returning.kp.symbol_name = back;
		error = register_kretprobe(&returning);
	}
	if (error)
		disarm();
	return error;
}

static void __exit trap_exit(void)
{
	if (back)
		unregister_kretprobe(&returning);
	disarm();
}

module_init(trap_init);
module_exit(trap_exit);
MODULE_DESCRIPTION("skblab: probes that do nothing, to be looked at");
MODULE_LICENSE("GPL");
