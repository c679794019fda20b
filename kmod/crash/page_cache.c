// SPDX-License-Identifier: GPL-2.0-or-later
/* Changes one byte of a program in the page cache; the guest never notices. */
#include <linux/highmem.h>
#include <linux/pagemap.h>

#include "guest_only.h"

#define VICTIM	"/usr/sbin/bpftool"

static int page_cache(void)
{
	struct file *file = filp_open(VICTIM, O_RDONLY, 0);
	struct page *page;
	char *bytes;

	if (IS_ERR(file))
		return PTR_ERR(file);
	page = find_get_page(file->f_mapping, 5);
	if (page) {
		bytes = kmap_local_page(page);
		bytes[100] ^= 1;
		kunmap_local(bytes);
		put_page(page);
	}
	filp_close(file, NULL);
	return page ? 0 : -ENOENT;
}

CRASH_ON_LOAD(page_cache);
