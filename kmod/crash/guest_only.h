/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What every module of the corpus asks before it does its worst: is this a guest of the
 * lab?  Only there is lab.name=… on the kernel's command line and a hypervisor below.
 */
#ifndef GUEST_ONLY_H
#define GUEST_ONLY_H

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/cpufeature.h>

#define CMDLINE_MAX	4096

static bool guest_only(void)
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

/* A module that does its worst at load, and something at unload. */
#define LOAD_AND_UNLOAD(load, unload)			\
	static int __init load##_init(void)		\
	{						\
		if (!guest_only())			\
			return -EPERM;			\
		return load();				\
	}						\
	static void __exit load##_exit(void)		\
	{						\
		unload();				\
	}						\
	module_init(load##_init);			\
	module_exit(load##_exit);			\
	MODULE_DESCRIPTION("a known fault of skblab's crash corpus");	\
	MODULE_LICENSE("GPL")

static inline void nothing(void)
{
}

/* A module that crashes on load needs nothing else. */
#define CRASH_ON_LOAD(crash)	LOAD_AND_UNLOAD(crash, nothing)

#endif
