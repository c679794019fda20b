// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ring: two header pages and chunks of contiguous pages, all found by the
 * host through physical addresses.  It never wraps: the first records of a run
 * are worth more than the last, and a full ring says how many it dropped.
 */
#include <linux/atomic.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <asm/msr.h>

#include "lab_ring.h"

static_assert(sizeof(struct lab_event) == 256);
static_assert(sizeof(struct lab_hook) == 72);
static_assert(offsetof(struct lab_ring_header, hooks) == 256);
static_assert(sizeof(struct lab_ring_header) <= LAB_RING_HEADER_SIZE);
static_assert(sizeof(atomic64_t) == sizeof(__u64));

#define HEADER_ORDER	get_order(LAB_RING_HEADER_SIZE)
#define CHUNK_ORDER	get_order(LAB_RING_CHUNK_SIZE)

struct lab_ring_header *lab_ring;

static struct lab_event *chunks[LAB_RING_CHUNKS];
static u64 mask[2];		/* the nonce as two words */
static u64 capacity;
static DEFINE_PER_CPU(u64, sequence);

/* The counters live in the header, so that they are right after a panic too. */
static nokprobe_inline u64 count(__u64 *counter)
{
	return atomic64_fetch_inc((atomic64_t *)counter);
}

int lab_ring_make(u64 records, const u8 nonce[16])
{
	const gfp_t flags = GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN;
	struct lab_ring_header *header;
	u32 i, wanted = DIV_ROUND_UP_ULL(records, LAB_EVENTS_PER_CHUNK);

	if (!records || records > (u64)LAB_RING_CHUNKS * LAB_EVENTS_PER_CHUNK)
		return -EINVAL;
	header = (void *)__get_free_pages(flags, HEADER_ORDER);
	if (!header)
		return -ENOMEM;
	lab_ring = header;
	for (i = 0; i < wanted; i++) {
		chunks[i] = (void *)__get_free_pages(flags, CHUNK_ORDER);
		if (!chunks[i]) {
			lab_ring_free();
			return -ENOMEM;
		}
		header->chunk_phys[i] = virt_to_phys(chunks[i]);
	}
	capacity = records;
	memcpy(mask, nonce, sizeof(mask));
	memcpy(header->nonce, nonce, sizeof(header->nonce));
	header->version = LAB_RING_VERSION;
	header->event_size = sizeof(struct lab_event);
	header->capacity = records;
	header->chunk_count = wanted;
	strscpy(header->name, THIS_MODULE->name, sizeof(header->name));
	/* struct module was cut into memory areas in v6.4; the macro came with them. */
#ifdef for_each_mod_mem_type
	header->module_base = (u64)THIS_MODULE->mem[MOD_TEXT].base;
#else
	header->module_base = (u64)THIS_MODULE->core_layout.base;
#endif
	smp_wmb();
	WRITE_ONCE(header->magic, LAB_RING_MAGIC);
	return 0;
}

void lab_ring_free(void)
{
	struct lab_ring_header *header = lab_ring;
	u32 i;

	if (!header)
		return;
	lab_ring = NULL;
	/* Freed pages keep their bytes: a search for the magic must not find this one. */
	memset(header, 0, sizeof(*header));
	free_pages((unsigned long)header, HEADER_ORDER);
	for (i = 0; i < LAB_RING_CHUNKS; i++) {
		if (chunks[i])
			free_pages((unsigned long)chunks[i], CHUNK_ORDER);
		chunks[i] = NULL;
	}
}

struct lab_event *lab_ring_claim(u64 *index)
{
	struct lab_event *event;
	u64 at = count(&lab_ring->claimed);
	u64 turn = this_cpu_inc_return(sequence);

	if (at >= capacity) {
		count(&lab_ring->dropped);
		return NULL;
	}
	event = &chunks[at / LAB_EVENTS_PER_CHUNK][at % LAB_EVENTS_PER_CHUNK];
	event->tsc = rdtsc_ordered();
	event->seq = turn;
	event->cpu = raw_smp_processor_id();
	*index = at;
	return event;
}
NOKPROBE_SYMBOL(lab_ring_claim);

void lab_ring_commit(struct lab_event *event, u64 index)
{
	smp_wmb();	/* the host reads a record only when it finds its number */
	WRITE_ONCE(event->commit, index + 1);
}
NOKPROBE_SYMBOL(lab_ring_commit);

void lab_ring_skip(void)
{
	count(&lab_ring->skipped);
}
NOKPROBE_SYMBOL(lab_ring_skip);

/*
 * copy_from_kernel_nofault() would put message bytes on the stack, where a later
 * search of RAM finds them.  Here each word goes from memory to a register, is
 * masked there, and only then stored.  The caller has interrupts off, so no
 * register is saved in between.
 */
void lab_ring_bytes(struct lab_event *event, u64 address, u64 size)
{
	u32 wanted = min_t(u64, size, LAB_BYTES_LEN);
	u32 done = 0;

	/* All kernel mappings lie above the direct map's start, on 4 and 5 levels. */
	if (address < PAGE_OFFSET || address + wanted < address)
		return;
	pagefault_disable();
	for (; done + 8 <= wanted; done += 8) {
		u64 word;

		__get_kernel_nofault(&word, (void *)(address + done), u64, fault);
		event->bytes[done / 8] = word ^ mask[(done / 8) % 2];
	}
	for (; done < wanted; done++) {
		u8 byte;

		__get_kernel_nofault(&byte, (void *)(address + done), u8, fault);
		((u8 *)event->bytes)[done] = byte ^ ((u8 *)mask)[done % 16];
	}
fault:
	pagefault_enable();
	event->bytes_len = done;
}
NOKPROBE_SYMBOL(lab_ring_bytes);

void lab_ring_words(struct lab_event *event, const void *words, u64 size)
{
	u32 i, wanted = min_t(u64, size, LAB_BYTES_LEN) / 8;

	for (i = 0; i < wanted; i++)
		event->bytes[i] = ((const u64 *)words)[i] ^ mask[i % 2];
	event->bytes_len = wanted * 8;
}
NOKPROBE_SYMBOL(lab_ring_words);
