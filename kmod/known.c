// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * known: moves a known number of messages of a known size, and says so.
 *
 * `copies` of them by memcpy() in known_copy(), and `transfers` by real DMA through QEMU's
 * `edu` device: known_dma() has the device read a buffer into itself, then write it out to
 * another one.  Whoever measures must find exactly that.  With `hidden` the last copy is
 * made twice, and nothing is said of it.
 *
 * Reading `moves` tells where the buffers are; reading `go` moves all and then looks at
 * what came of it.  Message bytes are as in guest/message.h.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>

/* docs/specs/edu.rst of QEMU: registers of BAR 0, and the device's own memory */
#define EDU_VENDOR	0x1234
#define EDU_DEVICE	0x11e8
#define EDU_SOURCE	0x80
#define EDU_TARGET	0x88
#define EDU_COUNT	0x90
#define EDU_COMMAND	0x98
#define EDU_START	1
#define EDU_TO_RAM	2
#define EDU_MEMORY	0x40000
#define EDU_ROOM	4096

#define MOST		64
#define DEADLINE_MS	3000

static ulong seed;
module_param(seed, ulong, 0444);
static uint copies = 7;
module_param(copies, uint, 0444);
static uint transfers;
module_param(transfers, uint, 0444);
static uint size = 1009;
module_param(size, uint, 0444);
static bool hidden;
module_param(hidden, bool, 0444);

static u8 *from[MOST], *to[MOST], *spare;
static void __iomem *registers;
static struct pci_dev *edu;

static u64 splitmix64(u64 x)
{
	u64 z = x + 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static void derive(u8 *at, u32 index)
{
	u64 head = (splitmix64(seed ^ 0x6c61627461670000ULL) & 0xffffffffffULL) |
		   (u64)index << 40;
	u64 state = seed + ((u64)index << 20);
	u64 word[2];
	u32 block;

	for (block = 0; block * sizeof(word) < size; block++) {
		word[0] = head;
		word[1] = (block & 0xffff) | splitmix64(state + block + 1) << 16;
		memcpy(at + block * sizeof(word), word,
		       min_t(size_t, sizeof(word), size - block * sizeof(word)));
	}
}

/* Global, and called through nothing that could be inlined: made to be hooked. */
size_t known_copy(void *target, const void *source, size_t count);
int known_dma(u64 source, u64 target, size_t count, u64 way);

/* Returns something, so that memcpy() is called and not jumped to: who copied is on the stack. */
noinline size_t known_copy(void *target, const void *source, size_t count)
{
	memcpy(target, source, count);
	return count;
}

static noinline void known_once_more(size_t count)
{
	memcpy(spare, to[copies - 1], count);
}

noinline int known_dma(u64 source, u64 target, size_t count, u64 way)
{
	unsigned long until = jiffies + msecs_to_jiffies(DEADLINE_MS);

	writeq(source, registers + EDU_SOURCE);
	writeq(target, registers + EDU_TARGET);
	writeq(count, registers + EDU_COUNT);
	writeq(EDU_START | way, registers + EDU_COMMAND);
	while (readq(registers + EDU_COMMAND) & EDU_START) {
		if (time_after(jiffies, until))
			return -ETIMEDOUT;
		msleep(10); /* the device takes 100 ms */
	}
	return 0;
}

static int transfer(u32 index)
{
	dma_addr_t source, target;
	int error = -EIO;

	source = dma_map_single(&edu->dev, from[index], size, DMA_TO_DEVICE);
	target = dma_map_single(&edu->dev, to[index], size, DMA_FROM_DEVICE);
	if (!dma_mapping_error(&edu->dev, source) && !dma_mapping_error(&edu->dev, target)) {
		error = known_dma(source, EDU_MEMORY, size, 0);
		if (!error)
			error = known_dma(EDU_MEMORY, target, size, EDU_TO_RAM);
	}
	if (!dma_mapping_error(&edu->dev, source))
		dma_unmap_single(&edu->dev, source, size, DMA_TO_DEVICE);
	if (!dma_mapping_error(&edu->dev, target))
		dma_unmap_single(&edu->dev, target, size, DMA_FROM_DEVICE);
	return error;
}

/* Reads all bytes and keeps none: FNV-1a. */
static noinline u64 known_look(const u8 *at)
{
	u64 value = 0xcbf29ce484222325ULL;
	u32 i;

	for (i = 0; i < size; i++)
		value = (value ^ READ_ONCE(at[i])) * 0x100000001b3ULL;
	return value;
}

static int get_go(char *text, const struct kernel_param *param)
{
	int written = 0, error;
	u32 i;

	for (i = 0; i < copies; i++)
		known_copy(to[i], from[i], size);
	if (hidden && copies)
		known_once_more(size);
	for (i = copies; i < copies + transfers; i++) {
		error = transfer(i);
		if (error)
			return error;
	}
	for (i = 0; i < copies + transfers; i++)
		written += scnprintf(text + written, PAGE_SIZE - written, "%u %016llx\n", i,
				     known_look(to[i]));
	return written;
}

static int get_moves(char *text, const struct kernel_param *param)
{
	int written = 0;
	u32 i;

	for (i = 0; i < copies + transfers; i++)
		written += scnprintf(text + written, PAGE_SIZE - written,
				     "%s %u %llx %llx %u\n", i < copies ? "copy" : "dma", i,
				     (u64)virt_to_phys(from[i]), (u64)virt_to_phys(to[i]), size);
	return written;
}

static const struct kernel_param_ops go_ops = { .get = get_go };
static const struct kernel_param_ops moves_ops = { .get = get_moves };
module_param_cb(go, &go_ops, NULL, 0400);
module_param_cb(moves, &moves_ops, NULL, 0400);

static void release(void)
{
	u32 i;

	for (i = 0; i < MOST; i++) {
		kfree(from[i]);
		kfree(to[i]);
	}
	kfree(spare);
	if (registers)
		pci_iounmap(edu, registers);
	if (edu) {
		pci_clear_master(edu);
		pci_disable_device(edu);
		pci_dev_put(edu);
	}
}

static int find_edu(void)
{
	int error;

	edu = pci_get_device(EDU_VENDOR, EDU_DEVICE, NULL);
	if (!edu)
		return -ENODEV;
	error = pci_enable_device(edu);
	if (error)
		return error;
	pci_set_master(edu);
	error = dma_set_mask_and_coherent(&edu->dev, DMA_BIT_MASK(32));
	if (error)
		return error;
	registers = pci_iomap(edu, 0, 0);
	return registers ? 0 : -ENOMEM;
}

static int __init known_init(void)
{
	int error = 0;
	u32 i;

	if (copies + transfers > MOST || !size || (transfers && size > EDU_ROOM))
		return -EINVAL;
	if (transfers)
		error = find_edu();
	spare = kzalloc(size, GFP_KERNEL);
	if (!spare)
		error = -ENOMEM;
	for (i = 0; !error && i < copies + transfers; i++) {
		from[i] = kzalloc(size, GFP_KERNEL);
		to[i] = kzalloc(size, GFP_KERNEL);
		if (!from[i] || !to[i])
			error = -ENOMEM;
		else
			derive(from[i], i);
	}
	if (error)
		release();
	return error;
}

static void __exit known_exit(void)
{
	release();
}

module_init(known_init);
module_exit(known_exit);
MODULE_DESCRIPTION("skblab: moves what it says it moves, so that who measures can be measured");
MODULE_LICENSE("GPL");
