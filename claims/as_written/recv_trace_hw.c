// SPDX-License-Identifier: GPL-2.0-or-later
/* The worksheet's receive probe in its final form (block 21), which follows no pointer. */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <asm/cpufeature.h>

static int handler_copy_to_iter(struct kprobe *p, struct pt_regs *regs)
{
	const void *source = (const void *)regs->di;
	size_t len = (size_t)regs->si;

	if (strncmp(current->comm, "receiver", 8) != 0)
		return 0;
	pr_info("[COPY4] PID=%d comm=%s src=%px len=%zu\n",
		current->pid, current->comm, source, len);
	return 0;
}

static struct kprobe kp_copy = {
	.symbol_name = "_copy_to_iter",
	.pre_handler = handler_copy_to_iter,
};

static int __init recv_trace_hw_init(void)
{
	/* Ours alone: a guest has a hypervisor, the host must never load it. */
	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return -EPERM;
	return register_kprobe(&kp_copy);
}

static void __exit recv_trace_hw_exit(void)
{
	unregister_kprobe(&kp_copy);
}

module_init(recv_trace_hw_init);
module_exit(recv_trace_hw_exit);
MODULE_DESCRIPTION("the worksheet's receive probe, as it was");
MODULE_LICENSE("GPL");
