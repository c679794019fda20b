// SPDX-License-Identifier: GPL-2.0-or-later
/* Overwrites what lies behind an skb's data: the fault comes when the skb is freed. */
#include <linux/skbuff.h>

#include "guest_only.h"

static int skb_shared_info(void)
{
	struct sk_buff *skb = alloc_skb(128, GFP_KERNEL);

	if (!skb)
		return -ENOMEM;
	memset(&skb_shinfo(skb)->frag_list, 'L', sizeof(skb_shinfo(skb)->frag_list));
	kfree_skb(skb);
	return 0;
}

CRASH_ON_LOAD(skb_shared_info);
