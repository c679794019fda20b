// SPDX-License-Identifier: GPL-2.0-or-later
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <net/sock.h>

#include "lab_read.h"
#include "lab_ring.h"
#include "lab_socket.h"

void lab_fill_args(struct lab_event *event, const struct lab_args *args)
{
	struct lab_words_args words = {
		.ret = args->ret,
		.task = task_sigpending(current) ? LAB_TASK_SIGNAL : 0,
	};

	static_assert(sizeof(words) == LAB_BYTES_LEN);
	memcpy(words.arg, args->arg, sizeof(words.arg));
	event->ret = (s32)args->ret;
	event->flags |= LAB_F_ARGS;
	lab_ring_words(event, &words, sizeof(words));
}
NOKPROBE_SYMBOL(lab_fill_args);

/* What is no address at all, an error code among them, has no fields to be read. */
static nokprobe_inline bool is_object(u64 address)
{
	return address >= PAGE_OFFSET && !IS_ERR_VALUE(address);
}

void lab_fill_socket(struct lab_event *event, u64 at)
{
	struct socket *socket = (void *)at;

	event->flags |= LAB_F_SOCKET;
	event->socket = at;
	if (!is_object(at))
		return;
	event->inode = (u64)SOCK_INODE(socket);
	event->state = lab_peek(&socket->state);
	event->type = lab_peek(&socket->type);
	event->ops = (u64)lab_peek(&socket->ops);
	event->socket_file = (u64)lab_peek(&socket->file);
	event->sk = (u64)lab_peek(&socket->sk);
	if (is_object(event->sk))
		event->sk_socket = (u64)lab_peek(&((struct sock *)event->sk)->sk_socket);
}
NOKPROBE_SYMBOL(lab_fill_socket);

void lab_fill_file(struct lab_event *event, u64 at)
{
	u64 data = 0;

	if (is_object(at))
		data = (u64)lab_peek(&((struct file *)at)->private_data);
	/* Other files keep other things there: a socket points back at its file. */
	if (is_object(data) && (u64)lab_peek(&((struct socket *)data)->file) == at)
		lab_fill_socket(event, data);
	event->flags |= LAB_F_SOCKET;
	event->file = at;
	event->private_data = data;
}
NOKPROBE_SYMBOL(lab_fill_file);

bool lab_args_only(struct lab_event *event, struct lab_args *args)
{
	lab_fill_args(event, args);
	return false;
}
NOKPROBE_SYMBOL(lab_args_only);
