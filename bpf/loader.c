// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loads the BPF programs into the running kernel and holds them there.
 *
 *	lab_bpf OBJECT PLAN NONCE RECORDS [COMM]
 *	lab_bpf --foreign OBJECT FOLDER
 *
 * The second form attaches all programs of somebody else's object by their sections, pins its
 * maps in FOLDER, says "attached COUNT" and ends at the next line.
 *
 * PLAN is a file that the host wrote, which knows the guest's symbols and its text:
 *
 *	memory DIRECT_MAP MEMORY_MAP MEMORY_END
 *	hook ID NAME FLAGS ERROR WAYS FUNCTION MODULE OFFSETS
 *
 * with one line for each hook of this ring, in the order of its table.  WAYS are what may be
 * tried, best first (fexit,kretprobe,fentry,tp,kprobe,call), MODULE is "-" for the kernel, and OFFSETS
 * are those of the calls in the function, or "-"; numbers are hexadecimal, ERROR is decimal.
 * FUNCTION@ADDRESS is one whose name is not enough: others of the kernel have it.
 *
 * It says "loaded 0xRING", waits for a line, attaches and says "attached COUNT"; waits for a
 * line, turns the hooks off and says "finished SEEN MISSED DROPPED SKIPPED"; and ends, with
 * the ring's header zeroed, at the next line or the end of its input.  What goes wrong is said
 * on stderr, with exit code 1.
 *
 * The ring is the maps' own memory, and the host finds it by physical addresses: the header
 * is one page, and each of its chunk_phys is a page of the addresses of 512 pages.
 */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "lab_event.h"
#include "hooks.h"

#define PAGE		4096UL
#define MOST_CALLS	8	/* of one callee in one function */
#define MOST_RECORDS	(LAB_RING_CHUNKS * LAB_EVENTS_PER_CHUNK)
#define MOMENTS		64	/* readings of two clocks, of which the closest counts */

static const char *const ids[] = {
#define LAB_HOOK_NAME(id)	#id,
	LAB_HOOKS(LAB_HOOK_NAME)
};

struct way {
	struct bpf_program *program;
	struct bpf_program *before;	/* its entry, where a return needs what was there */
	__u32 flag;			/* LAB_HOOK_FENTRY … */
};

struct hook {
	char function[64], module[32];
	uint64_t address;	/* 0: it is found by its name */
	struct way ways[2];	/* the second where the kernel may refuse the first */
	int way_count, way;	/* `way` is the one that is attached */
	uint64_t calls[MOST_CALLS];
	int call_count;
};

static struct hook hooks[LAB_RING_HOOKS];
static struct lab_hook table[LAB_RING_HOOKS];
static int hook_count;
static struct lab_settings settings;
static struct bpf_object *object;
static struct lab_ring_header *header;
static struct lab_event *records;
static volatile __u32 *on;
static char problem[2048];	/* what libbpf said first, and the verifier last */
static bool explained;

static void die(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s%s%s\n", strerror(error), *problem ? ": " : "", problem);
	exit(1);
}

/* The first warning says which program; the verifier's log, which follows, ends with why. */
static int keep_warning(enum libbpf_print_level level, const char *format, va_list arguments)
{
	static char text[1 << 20];
	size_t used = strlen(problem);
	char *line, *why = NULL;

	if (level != LIBBPF_WARN)
		return 0;
	vsnprintf(text, sizeof(text), format, arguments);
	if (!used) {
		snprintf(problem, sizeof(problem), "%.*s", (int)strcspn(text, "\n"), text);
	} else if (!explained && strstr(text, "BEGIN PROG LOAD LOG")) {
		for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
			if (strncmp(line, "processed ", 10) && !strstr(line, "PROG LOAD LOG"))
				why = line;
		snprintf(problem + used, sizeof(problem) - used, ": %s", why ?: "no log");
		explained = true;
	}
	return 0;
}

/* --- The plan ----------------------------------------------------------------------------- */

/* How many arguments the function has, -1: the kernel does not say. */
static int arguments_of(const struct hook *hook)
{
	static struct btf *kernel, *module;
	static char loaded[sizeof(hook->module)];
	const struct btf *types;
	int id;

	if (!kernel)
		kernel = btf__load_vmlinux_btf();
	if (!kernel)
		die("the kernel describes no types (BTF)");
	if (*hook->module && strcmp(loaded, hook->module)) {
		btf__free(module);
		module = btf__load_module_btf(hook->module, kernel);
		strcpy(loaded, hook->module);
	}
	types = *hook->module ? module : kernel;
	id = types ? btf__find_by_name_kind(types, hook->function, BTF_KIND_FUNC) : -1;
	if (id <= 0)
		return -1;
	return btf_vlen(btf__type_by_id(types, btf__type_by_id(types, id)->type));
}

static struct bpf_program *program_of(const char *id, const char *way)
{
	char name[64];

	snprintf(name, sizeof(name), "%s__%s", id, way);
	return bpf_object__find_program_by_name(object, name);
}

/* What every kernel with fentry takes; 6.12 takes 12, and 6.1 says ENOTSUPP when it is attached. */
#define SURE_ARGUMENTS	6

static __u32 flag_of(const char *way)
{
	if (!strcmp(way, "fexit"))
		return LAB_HOOK_FEXIT;
	if (!strcmp(way, "fentry"))
		return LAB_HOOK_FENTRY;
	return strcmp(way, "tp") ? LAB_HOOK_KPROBE : LAB_HOOK_TRACEPOINT;
}

/* Takes the best way that there is a program for and that the kernel's types allow. */
static void choose(struct hook *hook, const char *id, char *ways)
{
	int arguments = arguments_of(hook);

	for (char *name = strtok(ways, ","); name; name = strtok(NULL, ",")) {
		bool typed = name[0] == 'f';	/* fentry, fexit */
		struct way way = { .program = program_of(id, name), .flag = flag_of(name) };

		if (!way.program || (typed && arguments < 0))
			continue;
		if (!strcmp(name, "fexit"))
			way.before = program_of(id, "fentry");
		if (!strcmp(name, "kretprobe"))
			way.before = program_of(id, "kprobe");
		bpf_program__set_autoload(way.program, true);
		if (way.before)
			bpf_program__set_autoload(way.before, true);
		hook->ways[hook->way_count++] = way;
		if (!typed || arguments <= SURE_ARGUMENTS || hook->way_count == 2)
			return;
	}
}

static void take_hook(const char *line)
{
	char id[32], name[48], ways[48], offsets[128];
	struct hook *hook = &hooks[hook_count];
	struct lab_hook *entry = &table[hook_count];
	char *at;

	if (hook_count == LAB_RING_HOOKS ||
	    sscanf(line, "hook %31s %47s %x %d %47s %63s %31s %127s", id, name, &entry->flags,
		   &entry->error, ways, hook->function, hook->module, offsets) != 8) {
		errno = EINVAL;
		die("plan: %s", line);
	}
	memcpy(entry->name, name, sizeof(entry->name));
	at = strchr(hook->function, '@');
	if (at) {
		*at = 0;
		hook->address = strtoull(at + 1, NULL, 16);
	}
	if (!strcmp(hook->module, "-"))
		hook->module[0] = 0;
	for (at = offsets; *at != '-' && hook->call_count < MOST_CALLS;) {
		hook->calls[hook->call_count++] = strtoul(at, &at, 16);
		if (*at++ != ',')
			break;
	}
	for (int i = 0; i < HOOK_COUNT; i++)
		if (!strcmp(ids[i], id))
			settings.index_of[i] = hook_count;
	if (!entry->error) {
		choose(hook, id, ways);
		entry->error = hook->way_count ? 0 : -EOPNOTSUPP;
	}
	hook_count++;
}

static void read_plan(const char *path)
{
	FILE *file = fopen(path, "re");
	char line[512];

	if (!file)
		die("%s", path);
	if (fscanf(file, "memory %llx %llx %llx\n", &settings.direct_map, &settings.memory_map,
		   &settings.memory_end) != 3) {
		errno = EINVAL;
		die("%s begins without memory", path);
	}
	while (fgets(line, sizeof(line), file))
		take_hook(line);
	fclose(file);
}

/* --- The ring ----------------------------------------------------------------------------- */

static struct bpf_map *map_called(const char *name)
{
	struct bpf_map *map = bpf_object__find_map_by_name(object, name);

	errno = ENOENT;
	if (!map)
		die("no map %s", name);
	return map;
}

static void *memory_of(const char *name, size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
			bpf_map__fd(map_called(name)), 0);

	if (at == MAP_FAILED)
		die("cannot map %s", name);
	return at;
}

static uint64_t physical(volatile const void *address)
{
	const uint64_t frame = (1UL << 55) - 1, present = 1UL << 63;
	static int pagemap = -1;
	uint64_t entry;

	(void)*(volatile const char *)address;	/* so that it is mapped */
	if (pagemap < 0)
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pread(pagemap, &entry, sizeof(entry), (uint64_t)address / PAGE * sizeof(entry)) !=
		    sizeof(entry) || !(entry & present) || !(entry & frame))
		die("no physical address of %p", address);
	return (entry & frame) * PAGE;
}

static void make_header(uint64_t capacity)
{
	uint64_t pages = (capacity * sizeof(struct lab_event) + PAGE - 1) / PAGE;
	uint64_t chunks = (pages + LAB_RING_PAGES - 1) / LAB_RING_PAGES;
	uint64_t (*tables)[LAB_RING_PAGES], i;

	tables = mmap(NULL, chunks * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
	if (tables == MAP_FAILED)
		die("no memory for the table of pages");
	for (i = 0; i < pages; i++)
		tables[i / LAB_RING_PAGES][i % LAB_RING_PAGES] =
			physical((char *)records + i * PAGE);
	for (i = 0; i < chunks; i++)
		header->chunk_phys[i] = physical(tables[i]);
	memcpy(header->hooks, table, sizeof(table));
	memcpy(header->nonce, settings.mask, sizeof(header->nonce));
	header->version = LAB_RING_VERSION;
	header->event_size = sizeof(struct lab_event);
	header->capacity = capacity;
	header->chunk_count = chunks;
	header->hook_count = hook_count;
	header->flags = LAB_RING_PAGED | LAB_RING_NANOSECONDS;
	strcpy(header->name, "bpf");
	__sync_synchronize();
	header->magic = LAB_RING_MAGIC;
}

/* --- Attaching, and the end ----------------------------------------------------------------- */

#define OPTIMISATION	"/proc/sys/debug/kprobes-optimization"

/*
 * A probe that is optimised into a jump runs with interrupts on, and what they hit is skipped.
 * Returns what was set before.
 */
static char set_optimisation(char to)
{
	int file = open(OPTIMISATION, O_RDWR | O_CLOEXEC);
	char before;

	if (file < 0 || pread(file, &before, 1, 0) != 1 || pwrite(file, &to, 1, 0) != 1)
		die(OPTIMISATION);
	close(file);
	return before;
}

static int attach_kprobe(const struct hook *hook, const struct bpf_program *program, bool at_return)
{
	char name[sizeof(hook->module) + sizeof(hook->function) + 1];

	strcpy(name, hook->module);
	if (*name)
		strcat(name, ":");
	strcat(name, hook->function);
	for (int i = 0; i < (hook->call_count ?: 1); i++) {
		/* Without a name the kernel takes what would be the offset for an address. */
		LIBBPF_OPTS(bpf_kprobe_opts, opts, .offset = hook->address + hook->calls[i],
			    .retprobe = at_return);

		if (!bpf_program__attach_kprobe_opts(program, hook->address ? NULL : name, &opts))
			return -errno;
	}
	return 0;
}

/* Links stay until the program ends. */
static int attach_way(const struct hook *hook, const struct way *way)
{
	if (way->flag == LAB_HOOK_KPROBE) {
		int error = way->before ? attach_kprobe(hook, way->before, false) : 0;

		return error ?: attach_kprobe(hook, way->program, way->before);
	}
	if (way->before && !bpf_program__attach(way->before))
		return -errno;
	return bpf_program__attach(way->program) ? 0 : -errno;
}

static int attach(struct hook *hook)
{
	int error = 0;

	for (hook->way = 0; hook->way < hook->way_count; hook->way++) {
		error = attach_way(hook, &hook->ways[hook->way]);
		if (!error)
			return 0;
	}
	hook->way = 0;
	return error;
}

static int attach_all(void)
{
	int attached = 0;

	for (int i = 0; i < hook_count; i++) {
		if (!hooks[i].way_count)
			continue;
		header->hooks[i].error = attach(&hooks[i]);
		header->hooks[i].flags |= hooks[i].ways[hooks[i].way].flag;
		attached += !header->hooks[i].error;
	}
	return attached;
}

/* Hits inside another hit of the same program on that CPU: the kernel skips those. */
static uint64_t missed(const struct bpf_program *program)
{
	struct bpf_prog_info info = { 0 };
	__u32 size = sizeof(info);

	if (!program)
		return 0;
	if (bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &size))
		die("no account of what %s missed", bpf_program__name(program));
	return info.recursion_misses;
}

struct moment {
	uint64_t ticks, ns;
};

/* The TSC and the programs' clock at one time */
static struct moment now(void)
{
	uint64_t least = UINT64_MAX;
	struct moment best = { 0 };

	for (int i = 0; i < MOMENTS; i++) {
		uint64_t before, after;
		struct timespec time;

		before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC, &time);
		after = __rdtsc();
		if (after - before >= least)
			continue;
		least = after - before;
		best.ticks = before + (after - before) / 2;
		best.ns = time.tv_sec * 1000000000UL + time.tv_nsec;
	}
	return best;
}

/* In place: from here on the records have the timeline of all others. */
static void to_ticks(struct moment start, struct moment end)
{
	uint64_t stored = header->claimed < header->capacity ? header->claimed : header->capacity;
	double rate = (double)(end.ticks - start.ticks) / (double)(end.ns - start.ns);

	for (uint64_t i = 0; i < stored; i++) {
		int64_t after = records[i].tsc - start.ns;

		if (records[i].commit)
			records[i].tsc = start.ticks + (int64_t)((double)after * rate);
	}
	header->flags &= ~LAB_RING_NANOSECONDS;
}

static void finish(struct moment start)
{
	uint64_t sum = 0;

	*on = 0;
	__sync_synchronize();
	for (int i = 0; i < hook_count; i++) {
		const struct way *way = &hooks[i].ways[hooks[i].way];

		header->hooks[i].missed += missed(way->program) + missed(way->before);
		sum += header->hooks[i].missed;
	}
	to_ticks(start, now());
	header->finished = 1;
	printf("finished %llu %lu %llu %llu\n", header->claimed, sum, header->dropped,
	       header->skipped);
}

static bool next_line(void)
{
	char line[64];

	fflush(stdout);
	return fgets(line, sizeof(line), stdin);
}

static int hold_foreign(const char *path, const char *folder)
{
	struct bpf_program *program;
	int attached = 0;

	object = bpf_object__open_file(path, NULL);
	if (!object)
		die("%s", path);
	if (bpf_object__load(object))
		die("the kernel refused %s", path);
	if (bpf_object__pin_maps(object, folder))
		die("cannot pin the maps of %s in %s", path, folder);
	bpf_object__for_each_program(program, object) {
		if (!bpf_program__attach(program))
			die("cannot attach %s", bpf_program__name(program));
		attached++;
	}
	printf("attached %d\n", attached);
	next_line();
	return 0;
}

int main(int argc, char **argv)
{
	struct bpf_program *program;
	struct moment start;
	uint64_t capacity;
	char optimised;

	libbpf_set_print(keep_warning);
	if (argc == 4 && !strcmp(argv[1], "--foreign"))
		return hold_foreign(argv[2], argv[3]);
	if (argc < 5 || strlen(argv[3]) != 32) {
		fprintf(stderr, "lab_bpf OBJECT PLAN NONCE RECORDS [COMM]\n");
		return 2;
	}
	for (int i = 0; i < 16; i++)
		if (sscanf(argv[3] + 2 * i, "%2hhx", (unsigned char *)settings.mask + i) != 1)
			return 2;
	capacity = strtoul(argv[4], NULL, 10);
	if (!capacity || capacity > MOST_RECORDS)
		return 2;
	if (argc > 5)
		strncpy(settings.comm, argv[5], sizeof(settings.comm) - 1);
	memset(settings.index_of, 0xff, sizeof(settings.index_of));

	object = bpf_object__open_file(argv[1], NULL);
	if (!object)
		die("%s", argv[1]);
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, false);
	read_plan(argv[2]);
	if (bpf_map__set_initial_value(map_called(".rodata"), &settings, sizeof(settings)) ||
	    bpf_map__set_max_entries(map_called("events"), capacity))
		die("cannot set the programs up");
	if (bpf_object__load(object))
		die("the kernel refused the programs");
	records = memory_of("events", capacity * sizeof(struct lab_event));
	header = memory_of(".data.ring", sizeof(*header));
	on = memory_of(".data.on", sizeof(*on));
	make_header(capacity);
	printf("loaded 0x%lx\n", physical(header));
	if (!next_line())
		return 0;
	problem[0] = 0;
	optimised = set_optimisation('0');
	printf("attached %d\n", attach_all());
	start = now();
	*on = 1;	/* all at once, not one by one as they are attached */
	if (next_line()) {
		finish(start);
		next_line();
	}
	*on = 0;
	set_optimisation(optimised);
	/* Freed pages keep their bytes: a search for the magic must not find this one. */
	memset(header, 0, sizeof(*header));
	return 0;
}
