// SPDX-License-Identifier: GPL-2.0-or-later
/* Takes something at load; gives it back at unload only when told to. */
#include <linux/net.h>
#include <linux/skbuff.h>
#include <linux/vmalloc.h>
#include <net/net_namespace.h>

#include "guest_only.h"

static char *what = "object";
module_param(what, charp, 0);
MODULE_PARM_DESC(what, "object, page, vmalloc, skb or socket");
static bool give_back;
module_param(give_back, bool, 0);

static void *object, *area;
static unsigned long page;
static struct sk_buff *skb;
static struct socket *sock;

static int leak(void)
{
	if (!strcmp(what, "object"))
		object = kmalloc(8, GFP_KERNEL);
	else if (!strcmp(what, "page"))
		page = __get_free_page(GFP_KERNEL);
	else if (!strcmp(what, "vmalloc"))
		area = vmalloc(100);
	else if (!strcmp(what, "skb"))
		skb = alloc_skb(128, GFP_KERNEL);
	else if (!strcmp(what, "socket"))
		return sock_create_kern(&init_net, AF_INET, SOCK_DGRAM, 0, &sock);
	else
		return -EINVAL;
	return object || page || area || skb ? 0 : -ENOMEM;
}

static void give_it_back(void)
{
	if (!give_back)
		return;
	kfree(object);
	free_page(page);
	vfree(area);
	kfree_skb(skb);
	if (sock)
		sock_release(sock);
}

LOAD_AND_UNLOAD(leak, give_it_back);
