// SPDX-License-Identifier: GPL-2.0-or-later
/* Keeps what it sees of every UDP message in a slab object, and tells nobody. */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/skbuff.h>
#include <linux/slab.h>

#define ROOM 512

static void *kept;

/* __udp_enqueue_schedule_skb(sk, skb) */
static int enqueued(struct kprobe *kp, struct pt_regs *regs)
{
	struct sk_buff *skb = (void *)regs->si;

	memcpy(kept, skb->data, min_t(unsigned int, skb_headlen(skb), ROOM));
	return 0;
}

static struct kprobe kp = {
	.symbol_name = "__udp_enqueue_schedule_skb",
	.pre_handler = enqueued,
};

static int __init keeper_init(void)
{
	int error;

	kept = kzalloc(ROOM, GFP_KERNEL);
	if (!kept)
		return -ENOMEM;
	error = register_kprobe(&kp);
	if (error)
		kfree(kept);
	return error;
}

static void __exit keeper_exit(void)
{
	unregister_kprobe(&kp);
	kfree(kept);
}

module_init(keeper_init);
module_exit(keeper_exit);
MODULE_DESCRIPTION("skblab's tests: a hidden copy that stays");
MODULE_LICENSE("GPL");
