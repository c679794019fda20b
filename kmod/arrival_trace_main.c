// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * arrival_trace: what a packet that comes in goes through besides what recv_trace records, from
 * the interrupt to the program that is woken.
 */
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/skbuff.h>

#include "lab_probe.h"
#include "lab_read.h"
#include "lab_socket.h"

/* A lookup runs in a softirq and never sleeps. */
#define LOOKUPS_AT_ONCE	32

static void fill_name(struct lab_event *event, u64 name)
{
	if (copy_from_kernel_nofault(event->dev, (void *)name, sizeof(event->dev) - 1))
		event->dev[0] = 0;
}

/* __handle_irq_event_percpu(desc): size the interrupt's number, dev its first handler's name */
static bool fill_interrupt(struct lab_event *event, struct lab_args *args)
{
	struct irq_desc *desc = (void *)args->arg[0];
	struct irqaction *action = lab_peek(&desc->action);

	event->size = lab_peek(&desc->irq_data.irq);
	if (action)
		fill_name(event, (u64)lab_peek(&action->name));
	return false;
}
NOKPROBE_SYMBOL(fill_interrupt);

/* __napi_schedule(napi), __napi_poll(napi, repoll): aux napi, size its weight, user its poll() */
static bool fill_napi(struct lab_event *event, struct lab_args *args)
{
	struct napi_struct *napi = (void *)args->arg[0];

	event->aux = args->arg[0];
	event->size = lab_peek(&napi->weight);
	event->user = (u64)lab_peek(&napi->poll);
	lab_fill_dev(event, (u64)lab_peek(&napi->dev));
	return false;
}
NOKPROBE_SYMBOL(fill_napi);

/* napi_gro_receive(napi, skb): aux napi */
static bool fill_gro(struct lab_event *event, struct lab_args *args)
{
	event->aux = args->arg[0];
	lab_fill_packet(event, args->arg[1], lab_skb_dev(args->arg[1]));
	return false;
}
NOKPROBE_SYMBOL(fill_gro);

/* ip_rcv_core(skb, …), for packets in a list as well; ip_local_deliver(skb), udp_rcv(skb) */
static bool fill_packet(struct lab_event *event, struct lab_args *args)
{
	lab_fill_packet(event, args->arg[0], lab_skb_dev(args->arg[0]));
	return false;
}
NOKPROBE_SYMBOL(fill_packet);

/*
 * __udp4_lib_lookup(net, saddr, sport, daddr, dport, …): sk what it returned; what was asked
 * for is in .bytes: the six argument registers, and rax.
 */
static bool fill_lookup(struct lab_event *event, struct lab_args *args)
{
	event->sk = args->ret;
	event->size = be16_to_cpu((__force __be16)args->arg[4]);
	lab_fill_args(event, args);
	return false;
}
NOKPROBE_SYMBOL(fill_lookup);

/* try_to_wake_up(task, …): aux the task, size its pid, dev its name */
static bool from_softirq(const struct lab_args *args)
{
	return in_serving_softirq();
}
NOKPROBE_SYMBOL(from_softirq);

static bool fill_wake(struct lab_event *event, struct lab_args *args)
{
	struct task_struct *task = (void *)args->arg[0];

	event->aux = args->arg[0];
	event->size = lab_peek(&task->pid);
	fill_name(event, (u64)task->comm);
	return false;
}
NOKPROBE_SYMBOL(fill_wake);

static const struct lab_spec specs[] = {
	{ .symbol = "__handle_irq_event_percpu", .kind = LAB_ENTRY, .fill = fill_interrupt },
	{ .symbol = "__napi_schedule", .kind = LAB_ENTRY, .fill = fill_napi },
	{ .symbol = "__napi_poll", .kind = LAB_ENTRY, .fill = fill_napi },
	{ .symbol = "napi_gro_receive", .kind = LAB_ENTRY, .fill = fill_gro },
	{
		.symbol = "ip_rcv_core",
		.kind = LAB_ENTRY,
		.fill = fill_packet,
		.other = &(const struct lab_spec){
			.symbol = "ip_rcv",
			.kind = LAB_ENTRY,
			.fill = fill_packet,
		},
	},
	{ .symbol = "ip_local_deliver", .kind = LAB_ENTRY, .fill = fill_packet },
	{ .symbol = "udp_rcv", .kind = LAB_ENTRY, .fill = fill_packet },
	{
		.symbol = "__udp4_lib_lookup",
		.kind = LAB_RETURN,
		.maxactive = LOOKUPS_AT_ONCE,
		.fill = fill_lookup,
	},
	{ .symbol = "try_to_wake_up", .kind = LAB_ENTRY, .want = from_softirq, .fill = fill_wake },
};

static int __init arrival_trace_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), NULL, 0);
}

static void __exit arrival_trace_exit(void)
{
	lab_stop();
}

module_init(arrival_trace_init);
module_exit(arrival_trace_exit);
MODULE_DESCRIPTION("skblab: records what a packet goes through from the interrupt to a program");
MODULE_LICENSE("GPL");
