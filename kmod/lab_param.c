// SPDX-License-Identifier: GPL-2.0-or-later
/* What both modules share towards the outside: parameters, refusal, start and stop. */
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/cpufeature.h>

#include "lab_probe.h"
#include "lab_ring.h"

#ifndef CONFIG_X86_64
#error "registers and call instructions are those of x86-64"
#endif

#define NONCE_SIZE	16
#define CMDLINE_MAX	4096

static char *nonce;
module_param(nonce, charp, 0400);
MODULE_PARM_DESC(nonce, "the run's nonce, 32 hexadecimal digits (required)");

static ulong records = 16384;
module_param(records, ulong, 0400);
MODULE_PARM_DESC(records, "how many records the ring holds, 1 to 131072 (default 16384, 4 MiB)");

static char *comm = "";
module_param(comm, charp, 0400);
MODULE_PARM_DESC(comm, "record only while a task of this name runs (softirqs run under any name)");

static char *without = "";
module_param(without, charp, 0400);
MODULE_PARM_DESC(without, "comma-separated names of hooks to leave out");

static char *places = "";
module_param(places, charp, 0400);
MODULE_PARM_DESC(places, "where functions of built-in drivers lie: driver:function=ADDRESS,…");

static bool beside;
module_param(beside, bool, 0400);
MODULE_PARM_DESC(beside, "the other module is loaded in this guest: leave the hooks both have to it");

static DEFINE_MUTEX(lock);	/* `ring` and `finish` may be read while the module goes */

/* A parameter without a set function is called through NULL by `insmod x.ko ring=1`. */
static int refuse_set(const char *value, const struct kernel_param *param)
{
	return -EPERM;
}

static int get_ring(char *buffer, const struct kernel_param *param)
{
	u64 address;

	mutex_lock(&lock);
	address = lab_ring ? virt_to_phys(lab_ring) : 0;
	mutex_unlock(&lock);
	return sysfs_emit(buffer, "0x%llx\n", address);
}

static const struct kernel_param_ops ring_ops = { .set = refuse_set, .get = get_ring };
module_param_cb(ring, &ring_ops, NULL, 0400);
MODULE_PARM_DESC(ring, "read: physical address of the ring's header");

static int get_finish(char *buffer, const struct kernel_param *param)
{
	u64 seen = 0, missed = 0, dropped = 0, skipped = 0;
	u32 i;

	mutex_lock(&lock);
	if (lab_ring) {
		lab_probe_stop();
		seen = lab_ring->claimed;
		dropped = lab_ring->dropped;
		skipped = lab_ring->skipped;
		for (i = 0; i < lab_ring->hook_count; i++)
			missed += lab_ring->hooks[i].missed;
	}
	mutex_unlock(&lock);
	return sysfs_emit(buffer, "%llu %llu %llu %llu\n", seen, missed, dropped, skipped);
}

static const struct kernel_param_ops finish_ops = { .set = refuse_set, .get = get_finish };
module_param_cb(finish, &finish_ops, NULL, 0400);
MODULE_PARM_DESC(finish, "read: turn the hooks off and say: seen missed dropped skipped");

/*
 * A module that hooks the network stack belongs in a guest made to be thrown away.
 * The lab starts its guests with lab.name=… on the kernel's command line; nobody
 * else does.  The hypervisor bit is asked for as well, because a command line can be
 * copied into a boot loader.  No symbol with the command line is exported, so it is
 * read where everyone reads it.
 */
static bool in_lab_guest(void)
{
	struct file *file;
	bool found = false;
	char *text, *word;
	loff_t at = 0;
	ssize_t got;

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return false;
	text = kzalloc(CMDLINE_MAX, GFP_KERNEL);
	if (!text)
		return false;
	file = filp_open("/proc/cmdline", O_RDONLY, 0);
	if (!IS_ERR(file)) {
		got = kernel_read(file, text, CMDLINE_MAX - 1, &at);
		filp_close(file, NULL);
		for (word = text; got > 0 && (word = strstr(word, "lab.name=")); word++)
			if (word == text || word[-1] == ' ')
				found = true;
	}
	kfree(text);
	return found;
}

int lab_start(const struct lab_spec *specs, u32 count, const struct lab_spec *shared,
	      u32 shared_count)
{
	static struct lab_spec all[LAB_RING_HOOKS];
	u8 key[NONCE_SIZE];
	int error;

	if (!in_lab_guest()) {
		pr_err("%s: not loading: a guest of the lab has a hypervisor and lab.name= on its command line\n",
		       THIS_MODULE->name);
		return -EPERM;
	}
	if (!nonce || strlen(nonce) != 2 * NONCE_SIZE || hex2bin(key, nonce, NONCE_SIZE)) {
		pr_err("%s: nonce= wants 32 hexadecimal digits\n", THIS_MODULE->name);
		return -EINVAL;
	}
	if (beside)
		shared_count = 0;
	if (count + shared_count > ARRAY_SIZE(all))
		return -E2BIG;
	memcpy(all, specs, count * sizeof(*specs));
	memcpy(all + count, shared, shared_count * sizeof(*specs));
	mutex_lock(&lock);
	error = lab_ring_make(records, key);
	if (!error)
		error = lab_probe_start(all, count + shared_count, without, comm, places);
	if (error)
		lab_ring_free();
	mutex_unlock(&lock);
	return error;
}

void lab_stop(void)
{
	mutex_lock(&lock);
	lab_probe_stop();
	lab_ring_free();
	mutex_unlock(&lock);
}
