// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * xdp: puts a small XDP program on a netdev, in its driver, and leaves it there.
 *
 *	xdp NETDEV pass
 *
 * pass lets every frame go on as it came.  What matters is what a driver does for it: how it
 * lays out receive buffers, which of them it copies, what it asks its device not to do.
 *
 * By system calls: the program is two instructions, and a loader would be larger than all else.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef NETLINK_EXT_ACK
#define NETLINK_EXT_ACK 11
#endif

/* Return the descriptor of the program `r0 = XDP_PASS; exit`. */
static int load(void)
{
	static const struct bpf_insn pass[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = XDP_PASS },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.prog_type = BPF_PROG_TYPE_XDP;
	attributes.insns = (uintptr_t)pass;
	attributes.insn_cnt = sizeof(pass) / sizeof(pass[0]);
	attributes.license = (uintptr_t)"GPL";
	memcpy(attributes.prog_name, "lab_pass", sizeof("lab_pass"));
	return syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof(attributes));
}

struct request {
	struct nlmsghdr head;
	struct ifinfomsg link;
	char attributes[64];
};

static struct rtattr *add(struct request *request, int type, const void *data, size_t size)
{
	struct rtattr *one = (void *)((char *)request + NLMSG_ALIGN(request->head.nlmsg_len));

	one->rta_type = type;
	one->rta_len = RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(one), data, size);
	request->head.nlmsg_len = NLMSG_ALIGN(request->head.nlmsg_len) + RTA_ALIGN(one->rta_len);
	return one;
}

/* What the kernel says besides the error's number; it explains why a driver refused. */
static const char *explanation(struct nlmsghdr *head)
{
	struct nlmsgerr *error = NLMSG_DATA(head);
	size_t at = sizeof(*error);

	if (!(head->nlmsg_flags & NLM_F_ACK_TLVS))
		return "";
	if (!(head->nlmsg_flags & NLM_F_CAPPED))
		at += error->msg.nlmsg_len - NLMSG_HDRLEN;
	while (NLMSG_HDRLEN + at + sizeof(struct nlattr) <= head->nlmsg_len) {
		struct nlattr *one = (void *)((char *)error + at);

		if (one->nla_type == NLMSGERR_ATTR_MSG)
			return (char *)one + NLA_HDRLEN;
		if (one->nla_len < NLA_HDRLEN)
			break;
		at += NLA_ALIGN(one->nla_len);
	}
	return "";
}

/* In driver mode or not at all: the kernel's own stand-in takes skbs that are made already. */
static int attach(int index, int program)
{
	const int on = 1;
	const uint32_t flags = XDP_FLAGS_DRV_MODE;
	int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct request request = {
		.head = { .nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)),
			  .nlmsg_type = RTM_SETLINK,
			  .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
		.link = { .ifi_family = AF_UNSPEC, .ifi_index = index },
	};
	union {
		struct nlmsghdr head;
		char room[1024];
	} answer;
	struct rtattr *nest;

	nest = add(&request, IFLA_XDP | NLA_F_NESTED, NULL, 0);
	add(&request, IFLA_XDP_FD, &program, sizeof(program));
	add(&request, IFLA_XDP_FLAGS, &flags, sizeof(flags));
	nest->rta_len = (char *)&request + request.head.nlmsg_len - (char *)nest;
	if (netlink < 0 ||
	    setsockopt(netlink, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on)) < 0 ||
	    send(netlink, &request, request.head.nlmsg_len, 0) < 0 ||
	    recv(netlink, &answer, sizeof(answer), 0) < (ssize_t)NLMSG_LENGTH(sizeof(int))) {
		fprintf(stderr, "xdp: netlink: %s\n", strerror(errno));
		return -1;
	}
	if (answer.head.nlmsg_type == NLMSG_ERROR) {
		int error = ((struct nlmsgerr *)NLMSG_DATA(&answer.head))->error;

		if (error) {
			fprintf(stderr, "xdp: the driver takes no program: %s. %s\n",
				strerror(-error), explanation(&answer.head));
			return -1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	unsigned int index;
	int program;

	if (argc != 3 || strcmp(argv[2], "pass") != 0) {
		fprintf(stderr, "usage: xdp NETDEV pass\n");
		return 2;
	}
	index = if_nametoindex(argv[1]);
	if (!index) {
		fprintf(stderr, "xdp: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	program = load();
	if (program < 0) {
		fprintf(stderr, "xdp: the kernel takes no program: %s\n", strerror(errno));
		return 1;
	}
	if (attach(index, program) < 0)
		return 1;
	printf("xdp: %s\n", argv[2]);
	return 0;
}
