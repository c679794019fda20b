// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a driver tells the DMA API: which memory it gives a device to read, and takes back
 * after a device wrote to it.  Drivers of virtio devices call it only where the device asks
 * for it (VIRTIO_F_ACCESS_PLATFORM).
 */
#include <linux/dma-direction.h>
#include <linux/iommu.h>
#include <linux/kprobes.h>

#include "lab_dma.h"
#include "lab_read.h"
#include "lab_ring.h"

/* What the device's address stands for; without an IOMMU that is the address itself. */
static u64 behind(struct device *dev, u64 address)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);

	if (domain && (domain->type & __IOMMU_DOMAIN_PAGING))
		return iommu_iova_to_phys(domain, address);
	return address;
}
NOKPROBE_SYMBOL(behind);

static void fill(struct lab_event *event, struct lab_args *args, u64 address, u32 size)
{
	event->aux = address;
	event->src_phys = behind((struct device *)args->arg[0], address);
	event->src = lab_virt(event->src_phys);
	if (!event->src)
		event->src_phys = 0;
	event->size = size;
	lab_ring_bytes(event, event->src, size);
}
NOKPROBE_SYMBOL(fill);

/* dma_map_page_attrs(dev, page, offset, size, dir, attrs) */
bool lab_dma_gives(const struct lab_args *args)
{
	return (u32)args->arg[4] == DMA_TO_DEVICE || (u32)args->arg[4] == DMA_BIDIRECTIONAL;
}
NOKPROBE_SYMBOL(lab_dma_gives);

/* At its return: with a bounce buffer the device gets another address than the page's. */
bool lab_dma_fill_map(struct lab_event *event, struct lab_args *args)
{
	fill(event, args, args->ret, args->arg[3]);
	return false;
}
NOKPROBE_SYMBOL(lab_dma_fill_map);

/* dma_unmap_page_attrs(dev, addr, size, dir, attrs) */
bool lab_dma_takes(const struct lab_args *args)
{
	return (u32)args->arg[3] == DMA_FROM_DEVICE || (u32)args->arg[3] == DMA_BIDIRECTIONAL;
}
NOKPROBE_SYMBOL(lab_dma_takes);

/* At its entry: afterwards the device's address stands for nothing. */
bool lab_dma_fill_unmap(struct lab_event *event, struct lab_args *args)
{
	fill(event, args, args->arg[1], args->arg[2]);
	return false;
}
NOKPROBE_SYMBOL(lab_dma_fill_unmap);
