/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The ring of records in guest RAM. */
#ifndef LAB_RING_H
#define LAB_RING_H

#include "lab_event.h"

/* NULL while there is no ring. */
extern struct lab_ring_header *lab_ring;

/* -EINVAL for a capacity no ring can have, -ENOMEM; on failure nothing is left. */
int lab_ring_make(u64 capacity, const u8 nonce[16]);
void lab_ring_free(void);

/* Any context.  NULL when there is no room: counted as dropped. */
struct lab_event *lab_ring_claim(u64 *index);
void lab_ring_commit(struct lab_event *event, u64 index);

/* Writes up to LAB_BYTES_LEN bytes found at `address`, masked, into the event. */
void lab_ring_bytes(struct lab_event *event, u64 address, u64 size);

void lab_ring_skip(void);

/* Puts what is no memory there: at most LAB_BYTES_LEN bytes. */
void lab_ring_words(struct lab_event *event, const void *words, u64 size);

#endif /* LAB_RING_H */
