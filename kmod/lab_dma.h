/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LAB_DMA_H
#define LAB_DMA_H

#include "lab_probe.h"

/* Is a page given to a device to read?  Is one taken back that a device wrote to? */
bool lab_dma_gives(const struct lab_args *args);
bool lab_dma_takes(const struct lab_args *args);

bool lab_dma_fill_map(struct lab_event *event, struct lab_args *args);
bool lab_dma_fill_unmap(struct lab_event *event, struct lab_args *args);

#endif /* LAB_DMA_H */
