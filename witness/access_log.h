/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file that the plugin and the host share: a header, through which the plugin is told
 * to arm and to sleep, then records, then the bytes the records saw.  lab/access.py is the
 * same in Python; a unit test compares the two.
 *
 * A record is a run: accesses one after the other to adjoining bytes of one page, in one
 * direction, by one call of one function.  A copy of 64 KiB byte by byte is 16 runs of
 * loads and 16 of stores, not 131,072 records.  A run ends before an access that would
 * change a byte it already holds, so nothing that was seen is overwritten.
 */
#ifndef LAB_ACCESS_LOG_H
#define LAB_ACCESS_LOG_H

#include <stdint.h>

#define LAB_ACCESS_MAGIC 0x535345434341424cULL /* "LBACCESS" */
#define LAB_ACCESS_VERSION 1
#define LAB_ACCESS_HEADER_SIZE 4096
#define LAB_ACCESS_CALLERS 3

enum lab_access_command {
	LAB_ACCESS_SLEEP = 0,
	LAB_ACCESS_ARM = 1,
};

enum lab_access_state {
	LAB_ACCESS_ABSENT = 0, /* no plugin has opened the file */
	LAB_ACCESS_ASLEEP = 1,
	LAB_ACCESS_ARMED = 2,
};

enum lab_access_flag {
	LAB_ACCESS_STORE = 1, /* else a load */
	LAB_ACCESS_IO = 2, /* a device's register: no bytes */
	LAB_ACCESS_OUTSIDE = 4, /* memory that is not the guest's RAM, or unknown: no bytes */
	LAB_ACCESS_SPLIT = 8, /* holds the second part of an access that crossed pages */
};

struct lab_access_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_size;
	uint32_t record_size;
	uint32_t command; /* host: enum lab_access_command */
	uint32_t asked; /* host: number of the command */
	uint32_t state; /* plugin: enum lab_access_state */
	uint32_t answered; /* plugin: number of the command that `state` answers */
	uint32_t api; /* plugin: version of the interface it was built for */
	uint64_t capacity; /* records there is room for */
	uint64_t content_capacity; /* bytes there is room for */
	uint64_t records; /* records written */
	uint64_t content; /* bytes written */
	uint64_t accesses; /* made while armed, by all vCPUs */
	uint64_t logged; /* of them: in the records */
	uint64_t lost; /* of them: found no room */
	uint64_t calls; /* of them: return addresses stored by a call, loaded by a return */
	uint64_t armed_tsc; /* the host's TSC and CLOCK_MONOTONIC, one after the other */
	uint64_t armed_ns;
	uint64_t slept_tsc;
	uint64_t slept_ns;
	uint64_t switch_ns; /* how long the last change of state held the vCPUs */
	uint64_t raw_records; /* in a file that was filtered: records before that */
	uint64_t left_out; /* in a file that was filtered: records that belong in and had no room */
	uint64_t digest[2]; /* in a file that was filtered: of all the rest of it; else 0 */
};

struct lab_access {
	uint64_t tsc; /* of the first access: the host's; the guest's is that plus a constant */
	uint64_t virt;
	uint64_t phys;
	uint64_t ip; /* lowest instruction */
	uint64_t caller[LAB_ACCESS_CALLERS]; /* return addresses, innermost first; 0: not known */
	uint32_t first; /* number of the first access in the window, counted from 1 */
	uint32_t last; /* number of the last */
	uint32_t content; /* where its bytes are among the bytes */
	uint32_t call; /* which call of which function; runs with the same were made by the same */
	uint32_t count; /* accesses */
	uint16_t size; /* bytes */
	uint16_t reach; /* from the lowest to the highest instruction */
	uint8_t vcpu;
	uint8_t flags;
	uint8_t narrowest; /* smallest access, bytes */
	uint8_t widest;
	uint32_t zero;
};

_Static_assert(sizeof(struct lab_access_header) == 176, "header");
_Static_assert(sizeof(struct lab_access) == 88, "record");

#endif
