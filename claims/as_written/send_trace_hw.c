// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The worksheet's send probe (blocks 7 to 11), written anew from its text: what it prints
 * and by what it filters is its author's, and so is what that overlooks.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <linux/string.h>
#include <asm/cpufeature.h>

static int copy_from_iter_pre(struct kprobe *p, struct pt_regs *regs)
{
	void *dest_addr = (void *)regs->di;
	size_t len = (size_t)regs->si;

	if (strncmp(current->comm, "sender", 6) != 0)
		return 0;
	pr_info("[COPY1] PID=%d comm=%s dest=%px len=%zu\n",
		current->pid, current->comm, dest_addr, len);
	return 0;
}

static int dev_queue_xmit_pre(struct kprobe *p, struct pt_regs *regs)
{
	struct sk_buff *skb = (struct sk_buff *)regs->di;

	if (!skb->dev || strcmp(skb->dev->name, "lo") != 0)
		return 0;
	pr_info("[COPY2] dev=%s skb_data=%px skb_len=%u\n", skb->dev->name, skb->data, skb->len);
	return 0;
}

static struct kprobe kp_copy = {
	.symbol_name = "_copy_from_iter",
	.pre_handler = copy_from_iter_pre,
};

static struct kprobe kp_xmit = {
	.symbol_name = "__dev_queue_xmit",
	.pre_handler = dev_queue_xmit_pre,
};

static struct kprobe *probes[] = { &kp_copy, &kp_xmit };

static int __init send_trace_hw_init(void)
{
	/* Ours alone: a guest has a hypervisor, the host must never load it. */
	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return -EPERM;
	return register_kprobes(probes, ARRAY_SIZE(probes));
}

static void __exit send_trace_hw_exit(void)
{
	unregister_kprobes(probes, ARRAY_SIZE(probes));
}

module_init(send_trace_hw_init);
module_exit(send_trace_hw_exit);
MODULE_DESCRIPTION("the worksheet's send probe, as it was");
MODULE_LICENSE("GPL");
