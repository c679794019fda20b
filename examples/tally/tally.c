// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the UDP datagrams that this host receives, by destination port.
 *
 * /proc/tally says "PORT COUNT" a line; writing to it starts anew.
 */
#include <linux/module.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/udp.h>
#include <net/ip.h>
#include <net/net_namespace.h>

static atomic_t counts[U16_MAX + 1];

static unsigned int count(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	struct udphdr _header, *udp;

	if (ip_hdr(skb)->protocol != IPPROTO_UDP)
		return NF_ACCEPT;
	udp = skb_header_pointer(skb, ip_hdrlen(skb), sizeof(_header), &_header);
	if (udp)
		atomic_inc(&counts[ntohs(udp->dest)]);
	return NF_ACCEPT;
}

static const struct nf_hook_ops ops = {
	.hook = count,
	.pf = NFPROTO_IPV4,
	.hooknum = NF_INET_LOCAL_IN,
	.priority = NF_IP_PRI_FIRST,
};

static int show(struct seq_file *file, void *unused)
{
	unsigned int port;

	for (port = 0; port <= U16_MAX; port++)
		if (atomic_read(&counts[port]))
			seq_printf(file, "%u %d\n", port, atomic_read(&counts[port]));
	return 0;
}

static int tally_open(struct inode *inode, struct file *file)
{
	return single_open(file, show, NULL);
}

static ssize_t tally_write(struct file *file, const char __user *buf, size_t len, loff_t *at)
{
	unsigned int port;

	for (port = 0; port <= U16_MAX; port++)
		atomic_set(&counts[port], 0);
	return len;
}

static const struct proc_ops proc = {
	.proc_open = tally_open,
	.proc_read = seq_read,
	.proc_write = tally_write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static int __init tally_init(void)
{
	int err;

	if (!proc_create("tally", 0600, NULL, &proc))
		return -ENOMEM;
	err = nf_register_net_hook(&init_net, &ops);
	if (err)
		remove_proc_entry("tally", NULL);
	return err;
}

static void __exit tally_exit(void)
{
	nf_unregister_net_hook(&init_net, &ops);
	remove_proc_entry("tally", NULL);
}

module_init(tally_init);
module_exit(tally_exit);

MODULE_DESCRIPTION("Counts received UDP datagrams by port");
MODULE_LICENSE("GPL");
