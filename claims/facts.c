// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What only the kernel itself can say of itself: each line `[FACT] name=value` is one
 * answer, given by the running kernel or by the headers it was built from.
 */
#include <linux/err.h>
#include <linux/file.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/preempt.h>
#include <linux/string.h>
#include <linux/uio.h>
#include <net/sock.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>

#define yes_no(value) ((value) ? "yes" : "no")

static bool interrupt_seen, serving_seen;

static int look(struct kprobe *probe, struct pt_regs *regs)
{
	interrupt_seen = in_interrupt();
	serving_seen = in_serving_softirq();
	return 0;
}

/* A probe that has one is never optimised to a jump: it stays an int3. */
static void pin(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

/* Nothing calls into ftrace here, as in all of lib/, where _copy_to_iter is. */
static noinline notrace void without_fentry(void)
{
	barrier();
}

static noinline void with_fentry(void)
{
	barrier();
}

static int tell_context(const char *name, void (*function)(void), bool pinned)
{
	struct kprobe probe = {
		.addr = (void *)function,
		.pre_handler = look,
		.post_handler = pinned ? pin : NULL,
	};
	int error = register_kprobe(&probe);

	if (error)
		return error;
	interrupt_seen = serving_seen = false;
	function();
	unregister_kprobe(&probe);
	pr_info("[FACT] in_interrupt-%s=%s\n", name, yes_no(interrupt_seen));
	pr_info("[FACT] in_serving_softirq-%s=%s\n", name, yes_no(serving_seen));
	return 0;
}

static void tell_pointer(void)
{
	struct { int x; } thing;
	char hashed[24], plain[24];

	scnprintf(hashed, sizeof(hashed), "%p", &thing);
	scnprintf(plain, sizeof(plain), "%px", &thing);
	pr_info("[FACT] pointer-printed=%s\n", hashed);
	/* The last eight digits are all that %p ever prints of its own. */
	pr_info("[FACT] pointer-holds-address=%s\n", yes_no(!strcmp(hashed + 8, plain + 8)));
	pr_info("[FACT] pointer-has-32-bits=%s\n", yes_no(!strncmp(hashed, "00000000", 8)));
}

static int __init facts_init(void)
{
	u64 entry = 0;
	int error;

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return -EPERM;
	rdmsrl(MSR_LSTAR, entry);
	pr_info("[FACT] lstar=%ps\n", (void *)entry);
	pr_info("[FACT] error-at-4095=%s\n", yes_no(IS_ERR_VALUE((unsigned long)-4095L)));
	pr_info("[FACT] error-at-4096=%s\n", yes_no(IS_ERR_VALUE((unsigned long)-4096L)));
	pr_info("[FACT] error-lowest=0x%x\n", (u32)-MAX_ERRNO);
	pr_info("[FACT] iter_ubuf=%d\n", ITER_UBUF);
	pr_info("[FACT] iter_iovec=%d\n", ITER_IOVEC);
	pr_info("[FACT] skc_daddr-bytes=%zu\n", sizeof_field(struct sock_common, skc_daddr));
	pr_info("[FACT] skc_dport-bytes=%zu\n", sizeof_field(struct sock_common, skc_dport));
	pr_info("[FACT] fd_install-can-fail=%s\n",
		yes_no(!__builtin_types_compatible_p(typeof(fd_install(0, NULL)), void)));
	tell_pointer();
	error = tell_context("behind-int3", without_fentry, true);
	return error ?: tell_context("behind-ftrace", with_fentry, false);
}

static void __exit facts_exit(void)
{
}

module_init(facts_init);
module_exit(facts_exit);
MODULE_DESCRIPTION("skblab: what the kernel says of itself");
MODULE_LICENSE("GPL");
