// SPDX-License-Identifier: GPL-2.0-or-later
/* tally as it was written first: its hook trusts the transport header, and its table. */
#include <linux/ip.h>
#include <linux/module.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/udp.h>
#include <net/net_namespace.h>

struct row {
	unsigned long first_seen;
	unsigned int count;
};

static struct row *rows[16];

static unsigned int count(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	if (ip_hdr(skb)->protocol == IPPROTO_UDP)
		rows[ntohs(udp_hdr(skb)->dest) % 16]->count++;
	return NF_ACCEPT;
}

static const struct nf_hook_ops ops = {
	.hook = count,
	.pf = NFPROTO_IPV4,
	.hooknum = NF_INET_LOCAL_IN,
	.priority = NF_IP_PRI_FIRST,
};

static int __init broken_init(void)
{
	return nf_register_net_hook(&init_net, &ops);
}

static void __exit broken_exit(void)
{
	nf_unregister_net_hook(&init_net, &ops);
}

module_init(broken_init);
module_exit(broken_exit);

MODULE_DESCRIPTION("A counter without rows to count in");
MODULE_LICENSE("GPL");
