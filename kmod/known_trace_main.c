// SPDX-License-Identifier: GPL-2.0-or-later
/* known_trace: what known.ko is seen to move, at the functions it moves with. */
#include <linux/kprobes.h>
#include <linux/module.h>

#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

/* known_copy(target, source, count) */
static bool fill_copy(struct lab_event *event, struct lab_args *args)
{
	event->dst = args->arg[0];
	event->src = args->arg[1];
	event->dst_phys = lab_phys(event->dst);
	event->src_phys = lab_phys(event->src);
	event->size = args->arg[2];
	lab_ring_bytes(event, event->src, event->size);
	return false;
}
NOKPROBE_SYMBOL(fill_copy);

/* known_dma(source, target, count, way): bus addresses, which without an IOMMU are physical */
static bool fill_dma(struct lab_event *event, struct lab_args *args)
{
	event->aux = args->arg[3];
	if (args->arg[3])
		event->dst_phys = args->arg[1];
	else
		event->src_phys = args->arg[0];
	event->size = args->arg[2];
	return false;
}
NOKPROBE_SYMBOL(fill_dma);

static const struct lab_spec specs[] = {
	{ .symbol = "known:known_copy", .kind = LAB_ENTRY, .flags = LAB_HOOK_COPY,
	  .fill = fill_copy },
	{ .symbol = "known:known_dma", .kind = LAB_ENTRY, .fill = fill_dma },
};

static int __init known_trace_init(void)
{
	return lab_start(specs, ARRAY_SIZE(specs), NULL, 0);
}

static void __exit known_trace_exit(void)
{
	lab_stop();
}

module_init(known_trace_init);
module_exit(known_trace_exit);
MODULE_DESCRIPTION("skblab: records what known.ko moves");
MODULE_LICENSE("GPL");
