// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Registers the hooks of a table and turns their hits into records.
 *
 * A handler runs in whatever context the probed code had, with an int3, a jump
 * or ftrace below it.  So it takes no lock, prints nothing, allocates nothing,
 * and reads memory only where the read may fail.
 */
#include <linux/ftrace.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "lab_probe.h"
#include "lab_read.h"
#include "lab_ring.h"

#ifdef CONFIG_KASAN
/* What code calls that KASAN checks, by compilers that tell it from memcpy; no header has it. */
void *__asan_memcpy(void *to, const void *from, size_t size);
#define LAB_ASAN_MEMCPY	((u64)__asan_memcpy)
#else
#define LAB_ASAN_MEMCPY	((u64)memcpy)
#endif

#define POINTS	(LAB_RING_HOOKS + 16)	/* a hook on calls has one point per call */

struct lab_point {
	const struct lab_spec *spec;
	struct lab_hook *hook;
	u16 index;
	atomic_t inside;	/* entered and not yet returned */
	u64 missed_before;	/* what the kernel had counted when recording began */
	u64 traced;		/* start of the function, where `tracer` sees it entered */
	struct kprobe kp;
	struct kretprobe rp;
};

static struct lab_point points[POINTS];
static u32 point_count;
static char only_comm[TASK_COMM_LEN];
static bool on;

static nokprobe_inline void take_registers(struct lab_args *args, const struct pt_regs *regs)
{
	*args = (struct lab_args) {
		.arg = { regs->di, regs->si, regs->dx, regs->cx, regs->r8, regs->r9 },
		.ip = regs->ip,
	};
}

static void identify(struct lab_event *event, const struct lab_point *point, u8 kind)
{
	event->pid = current->pid;
	event->tgid = current->tgid;
	event->hook = point->index;
	event->kind = kind;
	memcpy(event->comm, current->comm, sizeof(event->comm));
}
NOKPROBE_SYMBOL(identify);

static void skip(const struct lab_point *point)
{
	struct lab_event *event;
	u64 index;

	lab_ring_skip();
	if (!point->spec->tell_skipped)
		return;
	event = lab_ring_claim(&index);
	if (!event)
		return;
	identify(event, point, LAB_SKIPPED);
	lab_ring_commit(event, index);
}
NOKPROBE_SYMBOL(skip);

static nokprobe_inline bool wanted(struct lab_point *point, const struct lab_args *args)
{
	if (!READ_ONCE(on))
		return false;
	if (point->spec->want && !point->spec->want(args))
		return false;
	atomic64_inc((atomic64_t *)&point->hook->hits);
	if (only_comm[0] && strncmp(current->comm, only_comm, sizeof(only_comm))) {
		skip(point);
		return false;
	}
	return true;
}

/*
 * Never in_interrupt(): it is true in every handler that an int3 brought here
 * (irqentry_nmi_enter()) and false once the probe is optimised into a jump.
 */
static nokprobe_inline u8 context_of(const struct lab_args *args)
{
	u8 context = 0;

	if (in_serving_softirq())
		context |= LAB_CTX_SOFTIRQ;
	else if (softirq_count())
		context |= LAB_CTX_BH_OFF;
	if (args->irqs_off)
		context |= LAB_CTX_IRQ_OFF;
	return context;
}

/*
 * Turns interrupts off, and nobody below turns them on again.  While a handler runs,
 * the kernel skips all other probes of this CPU (nmissed), so an interrupt in here
 * whose softirq receives a packet would cost the packet's records; and turning them
 * on at the handler's end lets in just those that had to wait.  They come back with
 * the probed code's registers: int3 returns by iret, and popf ends the jump probe's
 * template, arch_rethook_trampoline and ftrace_regs_caller (6.1 and 6.12).
 */
static nokprobe_inline void hold_interrupts(void)
{
	raw_local_irq_disable();
}

static void record(struct lab_point *point, struct lab_args *args, const struct pt_regs *regs)
{
	struct lab_event *event;
	bool more;
	u64 index;

	args->irqs_off = !(regs->flags & X86_EFLAGS_IF);
	do {
		event = lab_ring_claim(&index);
		if (!event)
			break;
		identify(event, point, point->spec->kind);
		event->context = context_of(args);
		event->caller = args->caller;
		more = point->spec->fill(event, args);
		lab_ring_commit(event, index);
		args->part++;
	} while (more);
}
NOKPROBE_SYMBOL(record);

static int entered(struct kprobe *kp, struct pt_regs *regs)
{
	struct lab_point *point = container_of(kp, struct lab_point, kp);
	struct lab_args args;

	hold_interrupts();
	take_registers(&args, regs);
	if (!wanted(point, &args))
		return 0;
	if (point->spec->kind == LAB_ENTRY)
		args.caller = lab_peek((u64 *)regs->sp);
	record(point, &args, regs);
	return 0;
}
NOKPROBE_SYMBOL(entered);

/* Non-zero: this call's return is not of interest. */
static int calling(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct kretprobe *rp = get_kretprobe(ri);
	struct lab_args *args = (void *)ri->data;
	struct lab_point *point;

	hold_interrupts();
	if (!rp)
		return 1;
	point = container_of(rp, struct lab_point, rp);
	take_registers(args, regs);
	if (!wanted(point, args))
		return 1;
	args->ip = 0;
	if (point->spec->keep)
		point->spec->keep(args);
	atomic_inc(&point->inside);
	return 0;
}
NOKPROBE_SYMBOL(calling);

static int returned(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct kretprobe *rp = get_kretprobe(ri);
	struct lab_args *args = (void *)ri->data;
	struct lab_point *point;

	hold_interrupts();
	if (!rp || !READ_ONCE(on))
		return 0;
	point = container_of(rp, struct lab_point, rp);
	args->ret = regs->ax;
	args->caller = get_kretprobe_retaddr(ri);
	record(point, args, regs);
	atomic_dec(&point->inside);
	return 0;
}
NOKPROBE_SYMBOL(returned);

void lab_fill_copy_in(struct lab_event *event, const struct lab_args *args, u64 dst, u64 size,
		      u64 copied)
{
	event->dst = dst;
	event->dst_phys = lab_phys(dst);
	event->size = min_t(u64, size, U32_MAX);
	event->ret = min_t(u64, copied, S32_MAX);
	event->iter_type = args->iter_type;
	event->user = args->user;
	if (args->user_backed)
		event->flags |= LAB_F_SRC_USER;
	if (args->user_room && args->user_room < copied)
		event->aux = args->user_room;
	lab_ring_bytes(event, dst, copied);
}
NOKPROBE_SYMBOL(lab_fill_copy_in);

void lab_fill_copy_out(struct lab_event *event, const struct lab_args *args, u64 src, u64 size,
		       u64 copied)
{
	event->src = src;
	event->src_phys = lab_phys(src);
	event->size = min_t(u64, size, U32_MAX);
	event->ret = min_t(u64, copied, S32_MAX);
	event->iter_type = args->iter_type;
	event->user = args->user;
	if (args->user_backed)
		event->flags |= LAB_F_DST_USER;
	if (args->user_room && args->user_room < copied)
		event->aux = args->user_room;
	lab_ring_bytes(event, src, copied);
}
NOKPROBE_SYMBOL(lab_fill_copy_out);

bool lab_fill_memcpy(struct lab_event *event, struct lab_args *args)
{
	event->dst = args->arg[0];
	event->src = args->arg[1];
	event->dst_phys = lab_phys(event->dst);
	event->src_phys = lab_phys(event->src);
	event->size = min_t(u64, args->arg[2], U32_MAX);
	event->aux = args->ip;
	lab_ring_bytes(event, event->src, event->size);
	return false;
}
NOKPROBE_SYMBOL(lab_fill_memcpy);

static struct lab_point *new_point(const struct lab_spec *spec, u16 index)
{
	struct lab_point *point;

	if (point_count == POINTS)
		return NULL;
	point = &points[point_count++];
	memset(point, 0, sizeof(*point));
	point->spec = spec;
	point->index = index;
	point->hook = &lab_ring->hooks[index];
	return point;
}

static const char *known_places;	/* of functions that are not found by name */

/* Where the host says that a function lies, NULL: it is found by its name. */
static void *placed(const char *symbol)
{
	size_t length = strlen(symbol);
	const char *at = known_places;
	unsigned long long address;

	for (; at && *at; at += strcspn(at, ","), at += *at == ',')
		if (!strncmp(at, symbol, length) && at[length] == '=' &&
		    sscanf(at + length + 1, "%llx", &address) == 1)
			return (void *)(unsigned long)address;
	return NULL;
}

/* Where a function lies, without its being touched: the probe is never armed. */
static int locate(const char *symbol, u64 *start, u64 *size)
{
	static char text[KSYM_SYMBOL_LEN];
	void *place = placed(symbol);
	struct kprobe kp = {
		.symbol_name = place ? NULL : symbol,
		.addr = place,
		.pre_handler = entered,
		.flags = KPROBE_FLAG_DISABLED,
	};
	unsigned long offset, length;
	char *plus;
	int error;

	error = register_kprobe(&kp);
	if (error)
		return error;
	unregister_kprobe(&kp);
	sprint_symbol(text, (unsigned long)kp.addr);	/* name+0xOFFSET/0xSIZE [module] */
	plus = strchr(text, '+');
	if (!plus || sscanf(plus, "+%lx/%lx", &offset, &length) != 2)
		return -ENOENT;
	*start = (u64)kp.addr - offset;
	*size = length;
	return 0;
}

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_REGS

#define FENTRY_WITHIN	16	/* bytes: the call of fentry follows endbr64 at most */

static void traced(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
		   struct ftrace_regs *fregs);

/*
 * What can be is seen at its entry by ftrace itself, not by a kprobe: the kernel skips a
 * kprobe that hits while another one's handler runs on that CPU, and an interrupt that
 * slips in there may send or receive a whole queue of packets.  Nobody skips this.  One
 * for all functions, because unregistering waits for all tasks (synchronize_rcu_tasks()).
 */
static struct ftrace_ops tracer = {
	.func = traced,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_RECURSION,
};
static bool tracing;

/*
 * What runs in place of a function that is replaced.  The value is not handed on in rax: a BPF
 * trampoline on the same function calls this with registers of its own.  One program at a time
 * is followed (`comm`), so one value is enough.
 */
static u64 replaced_by;

static noinline u64 replacement(void)
{
	return READ_ONCE(replaced_by);
}
NOKPROBE_SYMBOL(replacement);

/* Calls nothing that `tracer` traces, so it needs no protection from itself. */
static void traced(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
		   struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	struct lab_args args;
	bool replaced;
	u32 i;

	if (!regs)
		return;
	hold_interrupts();
	for (i = 0; i < point_count; i++) {
		struct lab_point *point = &points[i];

		if (!point->traced || ip - point->traced >= FENTRY_WITHIN)
			continue;
		take_registers(&args, regs);
		if (!wanted(point, &args))
			return;
		args.caller = parent;
		replaced = point->spec->replace && point->spec->replace(&args);
		record(point, &args, regs);
		if (replaced) {
			WRITE_ONCE(replaced_by, args.ret);
			regs->ip = (unsigned long)replacement;
		}
		return;
	}
}
NOKPROBE_SYMBOL(traced);

/* -errno where ftrace cannot see the function: then a kprobe does. */
static int trace(struct lab_point *point)
{
	u64 start, size;
	int error;

	error = locate(point->spec->symbol, &start, &size);
	if (error)
		return error;
	error = ftrace_set_filter_ip(&tracer, start, 0, 0);
	if (!error)
		point->traced = start;
	if (!error && point->spec->replace)
		tracer.flags |= FTRACE_OPS_FL_IPMODIFY;
	return error;
}

/* With an empty filter it would see every function there is. */
static int start_tracer(void)
{
	int error;
	u32 i;

	for (i = 0; i < point_count && !points[i].traced; i++)
		;
	if (i == point_count)
		return 0;
	error = register_ftrace_function(&tracer);
	tracing = !error;
	return error;
}

static void stop_tracer(void)
{
	if (tracing)
		unregister_ftrace_function(&tracer);
	tracing = false;
	ftrace_free_filter(&tracer);
}

#else

static int trace(struct lab_point *point)
{
	return -ENODEV;
}

static int start_tracer(void)
{
	return 0;
}

static void stop_tracer(void)
{
}

#endif

/* At `address`, or at the symbol's first instruction. */
static int attach(const struct lab_spec *spec, u16 index, void *address)
{
	struct lab_point *point = new_point(spec, index);
	void *place = address ?: placed(spec->symbol);
	int error;

	if (!point)
		return -ENOSPC;
	if (spec->kind == LAB_RETURN) {
		point->rp.kp.symbol_name = place ? NULL : spec->symbol;
		point->rp.kp.addr = place;
		point->rp.entry_handler = calling;
		point->rp.handler = returned;
		point->rp.data_size = sizeof(struct lab_args);
		point->rp.maxactive = spec->maxactive;
		error = register_kretprobe(&point->rp);
	} else if (spec->kind == LAB_ENTRY && !address && (!(error = trace(point)) || spec->replace)) {
		;
	} else {
		point->kp.symbol_name = place ? NULL : spec->symbol;
		point->kp.addr = place;
		point->kp.pre_handler = entered;
		error = register_kprobe(&point->kp);
	}
	if (error)
		point_count--;
	return error;
}

/*
 * Nothing can probe memcpy itself (it is .noinstr.text, hence blacklisted), so
 * its direct calls are looked up in the caller's text: E8 (call) or E9 (tail
 * jump) and the distance.  register_kprobe() decodes the function from its start
 * and refuses an address within an instruction, so a chance match does no harm.
 */
static int attach_calls(const struct lab_spec *spec, u16 index)
{
	const u64 targets[] = { (u64)memcpy, (u64)__memcpy, LAB_ASAN_MEMCPY };
	u64 start, size, at;
	int error, last = -ENOENT, found = 0;

	error = locate(spec->symbol, &start, &size);
	if (error)
		return error;
	for (at = start; at + 5 <= start + size; at++) {
		u8 opcode = lab_peek((u8 *)at);
		u64 target = at + 5 + (s64)lab_peek((s32 *)(at + 1));

		if (opcode != 0xe8 && opcode != 0xe9)
			continue;
		if (target != targets[0] && target != targets[1] && target != targets[2])
			continue;
		error = attach(spec, index, (void *)at);
		if (error)
			last = error;
		else
			found++;
	}
	return found ? 0 : last;
}

/* Is `name`, with or without its module, among the comma-separated `names`? */
static bool listed(const char *names, const char *name)
{
	const char *bare = strchr(name, ':');
	size_t length;

	bare = bare ? bare + 1 : name;
	for (; names && *names; names += length + (names[length] == ',')) {
		length = strcspn(names, ",");
		if ((length == strlen(name) && !strncmp(names, name, length)) ||
		    (length == strlen(bare) && !strncmp(names, bare, length)))
			return true;
	}
	return false;
}

static void name_hook(struct lab_hook *hook, const struct lab_spec *spec)
{
	snprintf(hook->name, sizeof(hook->name), "%s%s%s", spec->symbol, spec->callee ? ">" : "",
		 spec->callee ?: "");
}

static void attach_hook(const struct lab_spec *spec, u16 index, const char *without)
{
	struct lab_hook *hook = &lab_ring->hooks[index];
	const struct lab_spec *try;

	for (try = spec; try; try = try->other) {
		name_hook(hook, try);
		hook->flags = try->flags | try->maxactive << LAB_HOOK_ACTIVE_SHIFT;
		if (listed(without, hook->name)) {
			hook->flags |= LAB_HOOK_LEFT_OUT;
			hook->error = -ECANCELED;
			return;
		}
	}
	for (try = spec; try; try = try->other) {
		hook->error = try->kind == LAB_CALLSITE ? attach_calls(try, index)
							: attach(try, index, NULL);
		if (hook->error != -ENOENT)
			break;
	}
	name_hook(hook, hook->error == -ENOENT ? spec : try);
}

/* A miss is a hit inside another handler, or a return for which maxactive was too small. */
static u64 missed_so_far(const struct lab_point *point)
{
	return point->kp.nmissed + point->rp.kp.nmissed + point->rp.nmissed;
}

int lab_probe_start(const struct lab_spec *specs, u32 count, const char *without,
		    const char *comm, const char *places)
{
	int error;
	u32 i;

	if (count > LAB_RING_HOOKS)
		return -E2BIG;
	strscpy(only_comm, comm ?: "", sizeof(only_comm));
	known_places = places;
	/* Calls first, while the functions' text is still as it was compiled. */
	for (i = 0; i < count; i++)
		if (specs[i].kind == LAB_CALLSITE)
			attach_hook(&specs[i], i, without);
	for (i = 0; i < count; i++)
		if (specs[i].kind != LAB_CALLSITE)
			attach_hook(&specs[i], i, without);
	lab_ring->hook_count = count;
	error = start_tracer();
	if (error) {
		lab_probe_stop();
		return error;
	}
	for (i = 0; i < point_count; i++)
		points[i].missed_before = missed_so_far(&points[i]);
	smp_store_release(&on, true);	/* all at once, not one by one as they register */
	return 0;
}

void lab_probe_stop(void)
{
	static struct kretprobe *rps[POINTS];
	static struct kprobe *kps[POINTS];
	int kp_count = 0, rp_count = 0;
	u32 i;

	if (!lab_ring || lab_ring->finished)
		return;
	WRITE_ONCE(on, false);
	smp_mb();	/* what is missed from here on is no loss: nobody records any more */
	for (i = 0; i < point_count; i++) {
		struct lab_point *point = &points[i];

		/* A call that is under way now is a copy without a record. */
		point->hook->missed += missed_so_far(point) - point->missed_before +
				       atomic_read(&point->inside);
		if (point->spec->kind == LAB_RETURN)
			rps[rp_count++] = &point->rp;
		else if (!point->traced)
			kps[kp_count++] = &point->kp;
	}
	/* In two batches, each waiting once for handlers to be done. */
	unregister_kprobes(kps, kp_count);
	unregister_kretprobes(rps, rp_count);
	stop_tracer();
	lab_ring->finished = 1;
}
