// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A QEMU TCG plugin that logs what guest CPUs load and store.
 *
 *	-plugin access.so,log=FILE,ram=FILE
 *
 * Asleep it has asked QEMU for nothing but a word when a vCPU idles or resumes.  Armed,
 * through the header of the log, it has all translated code thrown away and translated
 * again with a callback at every access to memory; put to sleep, the same without.
 *
 * Values are read from the guest's RAM file at the physical address: after the access, as
 * callbacks come.  Of an atomic operation, load and store both show what it left.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "access_log.h"
#include "plugin_abi.h"

#define PAGE 4096u
#define VCPUS 8
#define OPEN_RUNS 4 /* of each direction; a copy needs one, code around it uses the others */
#define STACK_SHIFT 14 /* THREAD_SIZE of x86-64: a kernel stack is one area; KASAN's are two */
/*
 * Where KASAN keeps what it knows of memory, a byte for eight (Documentation/arch/x86/x86_64/mm.rst,
 * four levels of page tables); else a hole.  No data is there, and half of all accesses may be.
 */
#define SHADOW_START 0xffffec0000000000ull
#define SHADOW_SIZE 0x100000000000ull
#define STACKS 64
#define DEPTH 48
#define PUSHED 8 /* text addresses stored that are remembered; a probe's handler stores some */
#define TEXT(address) ((address) >> 31 == 0x1ffffffffull) /* kernel and modules: the last 2 GiB */
#define IRET_RSP 3 /* the word of an interrupt's frame that says where the stack was */
#define FARTHEST 1024u /* bytes between two instructions of one run; bounds a record's reach */
#define WIDEST 64u /* bytes of one access: AVX-512 */

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* A call that has not returned: where its return address lies, and what it is. */
struct frame {
	uint64_t slot;
	uint64_t back;
	uint32_t call;
};

/* The calls on one stack, oldest first. */
struct stack {
	uint64_t area; /* address >> STACK_SHIFT, 0: unused */
	uint64_t used; /* vcpu->switches when it was turned to last */
	uint32_t base; /* stands for the call that was there before we were */
	unsigned int depth;
	struct frame frames[DEPTH];
};

/* A run that may still grow; its bytes lie where they lie in their page. */
struct run {
	struct lab_access record;
	bool open;
	uint8_t bytes[PAGE];
};

/* An address of kernel text that was stored where a stack may be. */
struct pushed {
	uint64_t slot;
	uint64_t back;
};

struct vcpu {
	struct stack stacks[STACKS];
	struct stack *stack; /* the one in use */
	uint64_t switches;
	struct pushed pushed[PUSHED];
	unsigned int oldest_pushed;
	uint64_t popper; /* the instruction of two bytes that loaded last, */
	uint64_t popped; /* where from, */
	unsigned int words; /* and how many words in a row before that one */
	struct run runs[2][OPEN_RUNS]; /* loads, stores */
	unsigned int victim[2];
};

LAB_EXPORT int qemu_plugin_version = LAB_PLUGIN_API;

static struct lab_access_header *header;
static struct lab_access *records;
static uint8_t *content;
static const uint8_t *ram;
static uint64_t ram_size;
static struct vcpu vcpus[VCPUS];
static uint32_t last_call;
static uint64_t switch_began;
static bool switching;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void count(uint64_t *counter, uint64_t by)
{
	__atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

/* ---- The log ---- */

/* Take `by` of what is counted by `used`; whether there was room. */
static bool claim(uint64_t *used, uint64_t by, uint64_t capacity, uint64_t *at)
{
	uint64_t now = __atomic_load_n(used, __ATOMIC_RELAXED);

	do {
		if (by > capacity - now)
			return false;
		*at = now;
	} while (!__atomic_compare_exchange_n(used, &now, now + by, true, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
	return true;
}

static void write_out(struct lab_access *record, const uint8_t *bytes)
{
	uint64_t where = 0, at;

	if (!claim(&header->content, bytes ? record->size : 0, header->content_capacity, &where) ||
	    !claim(&header->records, 1, header->capacity, &at)) {
		count(&header->lost, record->count);
		return;
	}
	record->content = where;
	if (bytes)
		memcpy(content + where, bytes, record->size);
	records[at] = *record;
	count(&header->logged, record->count);
}

static void close_run(struct run *run)
{
	if (!run->open)
		return;
	run->open = false;
	write_out(&run->record, run->bytes + run->record.virt % PAGE);
}

/* ---- Calls ---- */

/* Return the stack `address` lies on; one that is new takes the place of the oldest used. */
static struct stack *stack_of(struct vcpu *vcpu, uint64_t address)
{
	uint64_t area = address >> STACK_SHIFT;
	struct stack *stack = vcpu->stack, *oldest = vcpu->stacks;

	if (stack && stack->area == area)
		return stack;
	for (stack = vcpu->stacks; stack < vcpu->stacks + STACKS; stack++) {
		if (stack->area == area)
			goto found;
		if (stack->used < oldest->used)
			oldest = stack;
	}
	stack = oldest;
	stack->area = area;
	stack->depth = 0;
	stack->base = __atomic_add_fetch(&last_call, 1, __ATOMIC_RELAXED);
found:
	stack->used = ++vcpu->switches;
	return stack;
}

/* Forget calls whose return address lies below `top`: the stack was cut back. */
static void cut(struct stack *stack, uint64_t top)
{
	while (stack->depth && stack->frames[stack->depth - 1].slot < top)
		stack->depth--;
}

static void enter(struct vcpu *vcpu, uint64_t slot, uint64_t back)
{
	struct stack *stack = vcpu->stack = stack_of(vcpu, slot);
	struct frame *frame;

	cut(stack, slot + 1);
	if (stack->depth == DEPTH) {
		memmove(stack->frames, stack->frames + 1, (DEPTH - 1) * sizeof(*frame));
		stack->depth--;
	}
	frame = &stack->frames[stack->depth++];
	frame->slot = slot;
	frame->back = back;
	frame->call = __atomic_add_fetch(&last_call, 1, __ATOMIC_RELAXED);
}

/* Whether a call's return address lies there: a kretprobe puts another in its place. */
static bool is_slot(const struct stack *stack, uint64_t slot)
{
	for (unsigned int i = 0; i < stack->depth; i++)
		if (stack->frames[i].slot == slot)
			return true;
	return false;
}

/*
 * A kprobe on a call instruction makes the call itself (int3_emulate_call()): its handler
 * stores the return address on the stack of who was interrupted, and iretq goes on in the
 * function called, with a stack that ends there.
 */
static void follow_iret(struct vcpu *vcpu, uint64_t virt, uint64_t value, uint64_t ip)
{
	struct pushed *pushed;

	vcpu->words = vcpu->popper == ip && vcpu->popped + 8 == virt ? vcpu->words + 1 : 0;
	vcpu->popper = ip;
	vcpu->popped = virt;
	if (vcpu->words != IRET_RSP)
		return;
	for (pushed = vcpu->pushed; pushed < vcpu->pushed + PUSHED; pushed++)
		if (pushed->slot == value && pushed->back) {
			if (!is_slot(stack_of(vcpu, value), value))
				enter(vcpu, value, pushed->back);
			pushed->back = 0;
			return;
		}
}

static void remember(struct vcpu *vcpu, uint64_t slot, uint64_t back)
{
	struct pushed *pushed;

	for (pushed = vcpu->pushed; pushed < vcpu->pushed + PUSHED; pushed++)
		if (pushed->slot == slot)
			goto found;
	pushed = &vcpu->pushed[vcpu->oldest_pushed++ % PUSHED];
found:
	*pushed = (struct pushed){ slot, back };
}

/*
 * Follow calls by what they do to the stack; whether the access was a return address's.
 *
 * A call is what stores the address of the instruction behind it; so does an interrupt
 * after that instruction.  An instruction of one byte with an access of eight is push, pop,
 * ret, leave, pushf or popf: each says where the stack ends.  One that loads a return
 * address we saw stored is a return, whatever was put in its place meanwhile (retpolines
 * do), as is one of two bytes (iretq); a longer one only looks at it.
 */
static bool follow(struct vcpu *vcpu, uint64_t virt, uint64_t value, uint64_t ip, bool store,
		   unsigned int length)
{
	struct stack *stack = vcpu->stack;

	if (store && value - ip - 2 < 14) {
		enter(vcpu, virt, value);
		return true;
	}
	if (store && TEXT(value))
		remember(vcpu, virt, value);
	if (length == 1) {
		stack = vcpu->stack = stack_of(vcpu, virt);
		cut(stack, virt);
	}
	if (length == 2 && !store)
		follow_iret(vcpu, virt, value, ip);
	if (length > 2 || store || !stack || !stack->depth ||
	    stack->frames[stack->depth - 1].slot != virt)
		return false;
	stack->depth--;
	return true;
}

static uint32_t current_call(const struct vcpu *vcpu)
{
	const struct stack *stack = vcpu->stack;

	if (!stack)
		return 0;
	return stack->depth ? stack->frames[stack->depth - 1].call : stack->base;
}

static void name_callers(const struct vcpu *vcpu, uint64_t *caller)
{
	const struct stack *stack = vcpu->stack;
	unsigned int depth = stack ? stack->depth : 0;

	for (unsigned int i = 0; i < LAB_ACCESS_CALLERS; i++)
		caller[i] = i < depth ? stack->frames[depth - 1 - i].back : 0;
}

/* ---- Runs ---- */

struct access {
	uint64_t virt;
	uint64_t phys;
	uint64_t ip;
	uint64_t number;
	uint32_t call;
	uint8_t vcpu;
	uint8_t size; /* of this part, within one page */
	uint8_t flags;
	bool counted; /* the first part of its access */
};

static void start_record(struct lab_access *record, const struct access *a,
			 const struct vcpu *vcpu)
{
	*record = (struct lab_access){
		.tsc = __rdtsc(),
		.virt = a->virt,
		.phys = a->phys,
		.ip = a->ip,
		.first = a->number,
		.last = a->number,
		.call = a->call,
		.count = a->counted,
		.size = a->size,
		.vcpu = a->vcpu,
		.flags = a->flags,
		.narrowest = a->size,
		.widest = a->size,
	};
	name_callers(vcpu, record->caller);
}

static uint64_t highest(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t lowest(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Add an access to a run that it adjoins or overlaps and agrees with; whether it did. */
static bool grow(struct run *run, const struct access *a, const uint8_t *bytes)
{
	struct lab_access *record = &run->record;
	uint64_t start = record->virt, end = start + record->size;
	uint64_t both_start = highest(start, a->virt), both_end = lowest(end, a->virt + a->size);
	uint64_t low = lowest(record->ip, a->ip);
	uint64_t high = highest(record->ip + record->reach, a->ip);

	if (!run->open || record->call != a->call || record->count == UINT32_MAX ||
	    a->virt + a->size < start || a->virt > end || (a->virt ^ start) / PAGE ||
	    (a->phys ^ record->phys) / PAGE || high - low > FARTHEST)
		return false;
	if (both_start < both_end && memcmp(run->bytes + both_start % PAGE,
					    bytes + (both_start - a->virt), both_end - both_start))
		return false;
	memcpy(run->bytes + a->virt % PAGE, bytes, a->size);
	record->virt = lowest(start, a->virt);
	record->phys = lowest(record->phys, a->phys);
	record->size = highest(end, a->virt + a->size) - record->virt;
	record->ip = low;
	record->reach = high - low;
	record->last = a->number;
	record->count += a->counted;
	record->flags |= a->flags;
	record->narrowest = lowest(record->narrowest, a->size);
	record->widest = highest(record->widest, a->size);
	return true;
}

static void add(struct vcpu *vcpu, const struct access *a, const uint8_t *bytes)
{
	bool store = a->flags & LAB_ACCESS_STORE;
	struct run *runs = vcpu->runs[store];
	struct run *run;

	for (unsigned int i = 0; i < OPEN_RUNS; i++)
		if (grow(&runs[i], a, bytes))
			return;
	run = &runs[vcpu->victim[store]++ % OPEN_RUNS];
	close_run(run);
	start_record(&run->record, a, vcpu);
	memcpy(run->bytes + a->virt % PAGE, bytes, a->size);
	run->open = true;
}

/* Log what lies in one page of an access. */
static void log_part(struct vcpu *vcpu, struct access *a, lab_meminfo info)
{
	const struct lab_hwaddr *where = qemu_plugin_get_hwaddr(info, a->virt);
	struct lab_access alone;

	if (where)
		a->phys = qemu_plugin_hwaddr_phys_addr(where);
	if (where && qemu_plugin_hwaddr_is_io(where))
		a->flags |= LAB_ACCESS_IO;
	else if (!where || a->phys >= ram_size || a->size > ram_size - a->phys)
		a->flags |= LAB_ACCESS_OUTSIDE;
	if (a->flags & (LAB_ACCESS_IO | LAB_ACCESS_OUTSIDE)) {
		start_record(&alone, a, vcpu);
		write_out(&alone, NULL);
		return;
	}
	add(vcpu, a, ram + a->phys);
}

static void on_access(unsigned int index, lab_meminfo info, uint64_t virt, uint64_t ip,
		      unsigned int length)
{
	bool store = qemu_plugin_mem_is_store(info);
	unsigned int size = 1u << qemu_plugin_mem_size_shift(info);
	unsigned int here = PAGE - virt % PAGE;
	const struct lab_hwaddr *where;
	struct vcpu *vcpu;
	struct access a;
	uint64_t number, phys, value;

	if (__atomic_load_n(&header->command, __ATOMIC_RELAXED) != LAB_ACCESS_ARM ||
	    virt - SHADOW_START < SHADOW_SIZE)
		return;
	number = __atomic_add_fetch(&header->accesses, 1, __ATOMIC_RELAXED);
	if (index >= VCPUS || number > UINT32_MAX || size > WIDEST) {
		count(&header->lost, 1);
		return;
	}
	vcpu = &vcpus[index];
	/* A stack is aligned, so what follows calls never crosses a page. */
	if (size == 8 && here >= 8 && (length <= 2 || store)) {
		where = qemu_plugin_get_hwaddr(info, virt);
		if (where && !qemu_plugin_hwaddr_is_io(where)) {
			phys = qemu_plugin_hwaddr_phys_addr(where);
			if (phys < ram_size && ram_size - phys >= 8) {
				memcpy(&value, ram + phys, sizeof(value));
				if (follow(vcpu, virt, value, ip, store, length)) {
					count(&header->calls, 1);
					return;
				}
			}
		}
	}
	a = (struct access){
		.virt = virt,
		.ip = ip,
		.number = number,
		.call = current_call(vcpu),
		.vcpu = index,
		.size = size < here ? size : here,
		.flags = store ? LAB_ACCESS_STORE : 0,
		.counted = true,
	};
	log_part(vcpu, &a, info);
	if (size <= here)
		return;
	/* QEMU has just looked up both pages, so the second can be asked for as well. */
	a.virt = virt + here;
	a.phys = 0;
	a.size = size - here;
	a.flags = (store ? LAB_ACCESS_STORE : 0) | LAB_ACCESS_SPLIT;
	a.counted = false;
	log_part(vcpu, &a, info);
}

/* The callback says how long the instruction is, its data where it lies. */
static void on_access_of_1(unsigned int vcpu, lab_meminfo info, uint64_t virt, void *ip)
{
	on_access(vcpu, info, virt, (uintptr_t)ip, 1);
}

static void on_access_of_2(unsigned int vcpu, lab_meminfo info, uint64_t virt, void *ip)
{
	on_access(vcpu, info, virt, (uintptr_t)ip, 2);
}

static void on_access_of_more(unsigned int vcpu, lab_meminfo info, uint64_t virt, void *ip)
{
	on_access(vcpu, info, virt, (uintptr_t)ip, 3);
}

/* ---- Awake and asleep ---- */

static void on_translate(lab_plugin_id id, struct lab_tb *tb)
{
	size_t instructions = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (size_t i = 0; i < instructions; i++) {
		struct lab_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		size_t length = qemu_plugin_insn_size(insn);
		lab_mem_cb callback = length == 1 ? on_access_of_1 :
				      length == 2 ? on_access_of_2 :
						    on_access_of_more;

		qemu_plugin_register_vcpu_mem_cb(insn, callback, LAB_CB_NO_REGS, LAB_MEM_BOTH,
						 (void *)(uintptr_t)qemu_plugin_insn_vaddr(insn));
	}
}

static void on_vcpu(lab_plugin_id id, unsigned int vcpu);

static void watch(lab_plugin_id id)
{
	qemu_plugin_register_vcpu_idle_cb(id, on_vcpu);
	qemu_plugin_register_vcpu_resume_cb(id, on_vcpu);
}

static void begin_window(void)
{
	memset(vcpus, 0, sizeof(vcpus));
	last_call = 0;
	header->records = 0;
	header->content = 0;
	header->accesses = 0;
	header->logged = 0;
	header->lost = 0;
	header->calls = 0;
	header->slept_tsc = 0;
	header->slept_ns = 0;
	header->armed_tsc = __rdtsc();
	header->armed_ns = now_ns();
}

static void end_window(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(vcpus); i++)
		for (size_t k = 0; k < OPEN_RUNS; k++) {
			close_run(&vcpus[i].runs[0][k]);
			close_run(&vcpus[i].runs[1][k]);
		}
	header->slept_tsc = __rdtsc();
	header->slept_ns = now_ns();
}

/* All callbacks are gone, all vCPUs are held. */
static void on_reset(lab_plugin_id id)
{
	uint32_t asked = __atomic_load_n(&header->asked, __ATOMIC_ACQUIRE);
	bool arm = __atomic_load_n(&header->command, __ATOMIC_ACQUIRE) == LAB_ACCESS_ARM;

	if (header->state == LAB_ACCESS_ARMED)
		end_window();
	watch(id);
	if (arm) {
		begin_window();
		qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	}
	header->switch_ns = now_ns() - switch_began;
	switching = false;
	header->state = arm ? LAB_ACCESS_ARMED : LAB_ACCESS_ASLEEP;
	__atomic_store_n(&header->answered, asked, __ATOMIC_RELEASE);
}

static void on_vcpu(lab_plugin_id id, unsigned int vcpu)
{
	uint32_t asked = __atomic_load_n(&header->asked, __ATOMIC_ACQUIRE);

	(void)vcpu;
	if (asked == header->answered || __atomic_exchange_n(&switching, true, __ATOMIC_ACQ_REL))
		return;
	switch_began = now_ns();
	qemu_plugin_reset(id, on_reset);
}

/* ---- Start ---- */

static int refuse(const char *what, const char *why)
{
	fprintf(stderr, "access log: %s: %s\n", what, why);
	return -1;
}

static void *map(const char *path, int mode, uint64_t *size)
{
	struct stat facts;
	void *at = MAP_FAILED;
	int fd = open(path, mode | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	if (!fstat(fd, &facts)) {
		*size = facts.st_size;
		at = mmap(NULL, *size, mode == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ,
			  MAP_SHARED, fd, 0);
	}
	close(fd);
	return at == MAP_FAILED ? NULL : at;
}

static const char *fault(uint64_t size)
{
	uint64_t room = size - LAB_ACCESS_HEADER_SIZE;

	if (size < LAB_ACCESS_HEADER_SIZE || header->magic != LAB_ACCESS_MAGIC ||
	    header->version != LAB_ACCESS_VERSION ||
	    header->header_size != LAB_ACCESS_HEADER_SIZE ||
	    header->record_size != sizeof(struct lab_access))
		return "not a log of this version";
	if (header->capacity > room / sizeof(struct lab_access) ||
	    header->content_capacity > room - header->capacity * sizeof(struct lab_access) ||
	    header->content_capacity > UINT32_MAX)
		return "smaller than it says";
	return NULL;
}

int qemu_plugin_install(lab_plugin_id id, const struct lab_info *info, int argc, char **argv)
{
	const char *log = NULL, *memory = NULL, *why;
	uint64_t size = 0;

	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "log=", 4))
			log = argv[i] + 4;
		else if (!strncmp(argv[i], "ram=", 4))
			memory = argv[i] + 4;
		else
			return refuse(argv[i], "expected log=FILE or ram=FILE");
	}
	if (!log || !memory)
		return refuse("arguments", "expected log=FILE and ram=FILE");
	if (!info->system_emulation || strcmp(info->target_name, "x86_64"))
		return refuse(info->target_name, "expected a whole x86_64 machine");
	ram = map(memory, O_RDONLY, &ram_size);
	if (!ram)
		return refuse(memory, strerror(errno));
	header = map(log, O_RDWR, &size);
	if (!header)
		return refuse(log, strerror(errno));
	why = fault(size);
	if (why)
		return refuse(log, why);
	records = (struct lab_access *)((uint8_t *)header + LAB_ACCESS_HEADER_SIZE);
	content = (uint8_t *)(records + header->capacity);
	header->api = LAB_PLUGIN_API;
	header->state = LAB_ACCESS_ASLEEP;
	watch(id);
	return 0;
}
