/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hooks from a table: who attaches where is data, see *_main.c. */
#ifndef LAB_PROBE_H
#define LAB_PROBE_H

#include <linux/types.h>

#include "lab_event.h"

/* What a handler knows: registers first, memory only through lab_read.h. */
struct lab_args {
	u64 arg[6];		/* rdi rsi rdx rcx r8 r9 as they were at entry */
	u64 ip;			/* the probed instruction; 0 at LAB_RETURN */
	u64 ret;		/* rax, LAB_RETURN only */
	u64 caller;
	u64 user;		/* where the iterator pointed before the copy */
	u64 user_room;		/* bytes of its segment from there on, 0: all of them */
	u64 cursor;		/* a fill function's own, 0 at first */
	u64 kept[2];		/* what a keep function found, for its fill function */
	u32 part;		/* counts the records of one hit */
	u8 iter_type;
	bool user_backed;
	bool irqs_off;
};

struct lab_spec {
	const char *symbol;	/* "symbol" or "module:symbol" */
	const char *callee;	/* LAB_CALLSITE: which calls inside `symbol` */
	enum lab_kind kind;
	u32 flags;		/* LAB_HOOK_* */
	int maxactive;		/* LAB_RETURN: calls that can be under way at once */

	/* Is this call one to record?  NULL: every call is. */
	bool (*want)(const struct lab_args *args);
	/* LAB_RETURN: reads at entry what the function is going to change. */
	void (*keep)(struct lab_args *args);
	/* LAB_ENTRY: leaves a record, kind LAB_SKIPPED, of each call that `comm` filters out. */
	bool tell_skipped;
	/*
	 * LAB_ENTRY: acts before the function does; true: it does not run at all, and its
	 * caller gets args->ret.  Only ftrace can do that: where it cannot, the hook is absent.
	 */
	bool (*replace)(struct lab_args *args);
	/* Fills one record; true asks for a further one. */
	bool (*fill)(struct lab_event *event, struct lab_args *args);
	/* What to attach to where a kernel has no such symbol, or NULL. */
	const struct lab_spec *other;
};

/*
 * Attaches what can be attached and writes the hook table.  A hook that is absent
 * is no failure here: its error stands in the table, and the host judges.
 *
 * `places` says where functions of drivers lie that are built into the kernel, as the host found
 * them: "virtio_net:receive_buf=ffffffff81234560,…".
 */
int lab_probe_start(const struct lab_spec *specs, u32 count, const char *without,
		    const char *comm, const char *places);

/* lab_skb.c: hooks that both modules have, see the `beside` parameter. */
extern const struct lab_spec lab_skb_specs[];
extern const u32 lab_skb_count;

/* Turns all hooks off and makes `missed` final.  May be called again. */
void lab_probe_stop(void);

/* The common end of a copy's record. */
void lab_fill_copy_in(struct lab_event *event, const struct lab_args *args, u64 dst, u64 size,
		      u64 copied);
void lab_fill_copy_out(struct lab_event *event, const struct lab_args *args, u64 src, u64 size,
		       u64 copied);

/* At a call of memcpy(dst, src, size). */
bool lab_fill_memcpy(struct lab_event *event, struct lab_args *args);

/* lab_param.c: the whole of a module's init and exit; `shared` is left out by `beside`. */
int lab_start(const struct lab_spec *specs, u32 count, const struct lab_spec *shared,
	      u32 shared_count);
void lab_stop(void);

#endif /* LAB_PROBE_H */
