// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * lookup_chain: what hangs on a file descriptor, followed from inside while its owner asks
 * for the peer's address; and where sendto() of a socket without a peer has it from.
 */
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/socket.h>
#include <net/sock.h>

#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

/*
 * __sys_getpeername(fd, …).  A record has, in the fields of the same width:
 *
 *	skb task, head files, data fdt, src &fdt->fd[fd], dst &files->fd_array[fd], aux file,
 *	shinfo socket, sk sock, user fd, skb_len skc_daddr, skb_data_len skc_dport,
 *	size skc_num, frags skc_family, ret socket->state, bytes the first of the sock
 */
static bool fill_chain(struct lab_event *event, struct lab_args *args)
{
	struct files_struct *files = lab_peek(&current->files);
	struct fdtable *fdt = lab_peek(&files->fdt);
	struct file __rcu **slots = lab_peek(&fdt->fd);
	u32 fd = args->arg[0];
	struct socket *socket;
	struct file *file;
	struct sock *sk;

	event->user = fd;
	event->skb = (u64)current;
	event->head = (u64)files;
	event->data = (u64)fdt;
	if (fd >= lab_peek(&fdt->max_fds))
		return false;
	event->src = (u64)(slots + fd);
	event->src_phys = lab_phys(event->src);
	event->dst = fd < NR_OPEN_DEFAULT ? (u64)&files->fd_array[fd] : 0;
	file = (struct file *)lab_peek((u64 *)event->src);
	event->aux = (u64)file;
	socket = lab_peek(&file->private_data);
	event->shinfo = (u64)socket;
	event->ret = lab_peek(&socket->state);
	sk = lab_peek(&socket->sk);
	event->sk = (u64)sk;
	event->skb_len = lab_peek(&sk->sk_daddr);
	event->skb_data_len = lab_peek(&sk->sk_dport);
	event->size = lab_peek(&sk->sk_num);
	event->frags = lab_peek(&sk->sk_family);
	lab_ring_bytes(event, (u64)sk, sizeof(struct sock_common));
	return false;
}
NOKPROBE_SYMBOL(fill_chain);

/* udp_sendmsg(sk, msg, len): sk, aux msg, src msg_name, size msg_namelen, bytes the address */
static bool fill_name(struct lab_event *event, struct lab_args *args)
{
	struct msghdr *msg = (void *)args->arg[1];

	event->sk = args->arg[0];
	event->aux = args->arg[1];
	event->skb_len = lab_peek(&((struct sock *)event->sk)->sk_daddr);
	event->skb_data_len = lab_peek(&((struct sock *)event->sk)->sk_dport);
	event->src = (u64)lab_peek(&msg->msg_name);
	event->src_phys = lab_phys(event->src);
	event->size = lab_peek(&msg->msg_namelen);
	lab_ring_bytes(event, event->src, event->size);
	return false;
}
NOKPROBE_SYMBOL(fill_name);

static const struct lab_spec specs[] = {
	{ .symbol = "__sys_getpeername", .kind = LAB_ENTRY, .fill = fill_chain },
	{ .symbol = "udp_sendmsg", .kind = LAB_ENTRY, .fill = fill_name },
};

static int __init lookup_chain_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), NULL, 0);
}

static void __exit lookup_chain_exit(void)
{
	lab_stop();
}

module_init(lookup_chain_init);
module_exit(lookup_chain_exit);
MODULE_DESCRIPTION("skblab: records what hangs on a file descriptor");
MODULE_LICENSE("GPL");
