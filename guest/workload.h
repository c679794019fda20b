/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What sender and receiver share: arguments, addresses, the buffer and where
 * it lies, the steps on stdin and stdout.
 *
 * What is said is built in one static buffer and written at once; stdin is read
 * byte by byte.  There is no stdio stream that could hold message bytes, and
 * nothing here copies any.
 */
#ifndef LAB_WORKLOAD_H
#define LAB_WORKLOAD_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "message.h"

#define PAGE_SIZE	4096UL
#define SLOT_ALIGN	64UL
#define BUFFER_SIZE	(1UL << 20)	/* of all slots, unless one message is larger */
#define LINE_SIZE	60000UL		/* below the agent's 65,536, with its "out NAME " */
#define LISTED		1024UL		/* messages a step lists, fewer where the line is full */
#define HEX_SIZE	64UL		/* first bytes of a message that `done` shows */
#define HEX_LISTED	64UL		/* messages it shows them of */
#define SLOTS		(BUFFER_SIZE / SLOT_ALIGN)
#define SOCKET_BUFFER	(16 << 20)	/* bytes: a burst of small datagrams must fit */
#define IDLE_MS		5000

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct workload {
	const char *role;
	bool tcp;
	bool connected;
	const char *address_text;
	unsigned long port;
	union address address;
	socklen_t address_size;
	size_t size, count;
	bool seeded;
	uint64_t seed;
	const char *masked;	/* hex */
	size_t masked_length;	/* bytes it stands for */
	int idle_ms;

	size_t slot_size, slots;
	uint8_t *buffer;
	int fd;
};

static struct workload work = { .idle_ms = IDLE_MS, .fd = -1 };

static inline size_t buffer_size(void)
{
	return work.slots * work.slot_size;
}

static inline uint8_t *slot(size_t message)
{
	return work.buffer + message % work.slots * work.slot_size;
}

/* ---- ends ------------------------------------------------------------- */

static inline void __attribute__((noreturn, format(printf, 2, 3)))
quit(int code, const char *format, ...)
{
	char text[512];
	size_t used = snprintf(text, sizeof(text), "%s: ", work.role);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text + used, sizeof(text) - used - 1, format, arguments);
	va_end(arguments);
	strcat(text, "\n");
	(void)!write(2, text, strlen(text));
	_exit(code);
}

/* ---- arguments -------------------------------------------------------- */

static inline unsigned long
read_number(const char *option, const char *text, unsigned long least, unsigned long most)
{
	unsigned long value;
	char *rest;

	errno = 0;
	value = strtoul(text, &rest, 10);
	if (*text < '0' || *text > '9' || errno || *rest || value < least || value > most)
		quit(2, "%s: expected %lu to %lu, found '%.40s'", option, least, most, text);
	return value;
}

static inline void read_seed(const char *text)
{
	size_t size = strlen(text);
	const char *digit;

	for (digit = text; *digit && lab_nibble(*digit) >= 0; digit++)
		work.seed = work.seed << 4 | lab_nibble(*digit);
	if (!size || size > 16 || *digit)
		quit(2, "--seed: expected 1 to 16 hex digits, found '%.40s'", text);
	work.seeded = true;
}

static inline void read_masked(const char *text)
{
	size_t size = strlen(text);
	const char *digit;

	for (digit = text; *digit && lab_nibble(*digit) >= 0; digit++)
		;
	if (!size || size % 2 || *digit)
		quit(2, "--payload-masked: expected pairs of hex digits");
	work.masked = text;
	work.masked_length = size / 2;
}

/* An IPv6 address may name its link: fe80::1%eth1. */
static inline void read_address(const char *text, unsigned long port)
{
	char bare[INET6_ADDRSTRLEN] = "";
	size_t size = strcspn(text, "%");

	if (inet_pton(AF_INET, text, &work.address.v4.sin_addr) == 1) {
		work.address.v4.sin_family = AF_INET;
		work.address.v4.sin_port = htons(port);
		work.address_size = sizeof(work.address.v4);
		return;
	}
	if (size < sizeof(bare))
		memcpy(bare, text, size);
	if (inet_pton(AF_INET6, bare, &work.address.v6.sin6_addr) != 1)
		quit(2, "--address: expected an IPv4 or IPv6 address, found '%.60s'", text);
	if (text[size]) {
		work.address.v6.sin6_scope_id = if_nametoindex(text + size + 1);
		if (!work.address.v6.sin6_scope_id)
			quit(2, "--address: no netdev '%.20s'", text + size + 1);
	}
	work.address.v6.sin6_family = AF_INET6;
	work.address.v6.sin6_port = htons(port);
	work.address_size = sizeof(work.address.v6);
}

static inline void read_option(const char *option, const char *value, unsigned long least_port)
{
	if (!strcmp(option, "--protocol")) {
		if (strcmp(value, "udp") && strcmp(value, "tcp"))
			quit(2, "--protocol: expected udp or tcp, found '%.40s'", value);
		work.tcp = !strcmp(value, "tcp");
	} else if (!strcmp(option, "--address")) {
		work.address_text = value;
	} else if (!strcmp(option, "--port")) {
		work.port = read_number(option, value, least_port, 65535);
	} else if (!strcmp(option, "--size")) {
		work.size = read_number(option, value, 1, LAB_MESSAGE_SIZE);
	} else if (!strcmp(option, "--count")) {
		work.count = read_number(option, value, 1, LAB_MESSAGE_COUNT);
	} else if (!strcmp(option, "--seed")) {
		read_seed(value);
	} else if (!strcmp(option, "--payload-masked")) {
		read_masked(value);
	} else if (!strcmp(option, "--idle-ms")) {
		work.idle_ms = read_number(option, value, 1, 600000);
	} else {
		quit(2, "%s: unknown argument", option);
	}
}

/* A receiver may ask for port 0: the system picks one, and `ready` says which. */
static inline void read_arguments(const char *role, int argc, char **argv)
{
	static const char *const needed[] = {
		"--protocol", "--address", "--port", "--size", "--count"
	};
	bool sender = !strcmp(role, "sender");
	unsigned int given = 0;
	size_t k;
	int i;

	work.role = role;
	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--connect")) {
			work.connected = true;
			continue;
		}
		for (k = 0; k < 5; k++)
			if (!strcmp(argv[i], needed[k]))
				given |= 1u << k;
		if (i + 1 == argc)
			quit(2, "%s: unknown, or its value is missing", argv[i]);
		read_option(argv[i], argv[i + 1], sender ? 1 : 0);
		i++;
	}
	for (k = 0; k < 5; k++)
		if (!(given & 1u << k))
			quit(2, "%s: missing", needed[k]);
	if (work.seeded && work.masked)
		quit(2, "--payload-masked: not together with --seed");
	if (sender && !work.seeded && !work.masked)
		quit(2, "--seed: missing (or --payload-masked)");
	read_address(work.address_text, work.port);
	work.slot_size = (work.size + SLOT_ALIGN - 1) & ~(SLOT_ALIGN - 1);
	work.slots = BUFFER_SIZE / work.slot_size;
	if (!work.slots)
		work.slots = 1;
	if (work.slots > work.count)
		work.slots = work.count;
}

/* ---- steps ------------------------------------------------------------ */

static char said[LINE_SIZE + 2];
static size_t said_size;

static inline size_t room(void)
{
	return LINE_SIZE - said_size;
}

static inline void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(said + said_size, room(), format, arguments);
	va_end(arguments);
	if (size < 0 || (size_t)size >= room())
		quit(1, "a step does not fit in %lu bytes", LINE_SIZE);
	said_size += size;
}

/* Straight into the line: the only place where message bytes become text. */
static inline void say_hex(const uint8_t *bytes, size_t size)
{
	static const char digits[] = "0123456789abcdef";
	const volatile uint8_t *byte = bytes;
	size_t i;

	for (i = 0; i < size && room() > 2; i++) {
		said[said_size++] = digits[byte[i] >> 4];
		said[said_size++] = digits[byte[i] & 15];
	}
}

static inline void say_text(const char *text)
{
	for (; *text && room() > 8; text++) {
		if (*text == '"' || *text == '\\')
			said[said_size++] = '\\';
		if ((unsigned char)*text < 0x20)
			say("\\u%04x", *text);
		else
			said[said_size++] = *text;
	}
}

static inline void finish_step(void)
{
	size_t at = 0;

	said[said_size++] = '\n';
	while (at < said_size) {
		ssize_t wrote = write(1, said + at, said_size - at);

		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote < 0)
			quit(1, "stdout: %s", strerror(errno));
		at += wrote;
	}
	said_size = 0;
}

static inline void wait_go(void)
{
	char text[16];
	size_t used = 0;

	for (;;) {
		char byte;
		ssize_t size = read(0, &byte, 1);

		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0)
			quit(1, "stdin: %s", strerror(errno));
		if (!size)
			quit(1, "stdin ended before the next go");
		if (byte == '\n')
			break;
		if (used < sizeof(text) - 1)
			text[used++] = byte;
	}
	text[used] = '\0';
	if (strcmp(text, "go"))
		quit(2, "stdin: expected go, found '%s'", text);
}

static inline void say_address(const union address *address)
{
	char text[INET6_ADDRSTRLEN] = "";

	if (address->any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &address->v4.sin_addr, text, sizeof(text));
		say("%s:%u", text, ntohs(address->v4.sin_port));
	} else if (address->any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &address->v6.sin6_addr, text, sizeof(text));
		say("[%s]:%u", text, ntohs(address->v6.sin6_port));
	}
}

static inline void say_local(void)
{
	union address address;
	socklen_t size = sizeof(address);

	memset(&address, 0, sizeof(address));
	if (getsockname(work.fd, &address.any, &size) == 0)
		say_address(&address);
}

/* ---- the buffer ------------------------------------------------------- */

/*
 * Locks what is mapped now.  All of it and not the buffer alone: locking a part
 * would split its mapping and the kernel would not call both parts [stack].
 */
static inline void lock_memory(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	(void)!mlockall(MCL_CURRENT);	/* refused without root and a small limit: then unlocked */
}

/* Memory of the heap, page aligned, every page there. */
static inline uint8_t *heap_buffer(size_t size)
{
	uintptr_t top = (uintptr_t)sbrk(0);
	size_t gap = -top & (PAGE_SIZE - 1), i;
	volatile uint8_t *buffer;

	if (sbrk(gap + size) == (void *)-1)
		quit(1, "no %zu bytes of heap: %s", size, strerror(errno));
	buffer = (uint8_t *)(top + gap);
	for (i = 0; i < size; i++)
		buffer[i] = 0;
	return (uint8_t *)buffer;
}

/* The line of /proc/self/maps that holds an address; empty when there is none. */
static inline void find_mapping(uintptr_t address, char *line, size_t room_for_it)
{
	static char text[16384];
	size_t used = 0;
	ssize_t size;
	char *at, *end;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	line[0] = '\0';
	if (fd < 0)
		return;
	while ((size = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
		used += size;
	close(fd);
	text[used] = '\0';
	for (at = text; *at; at = end + 1) {
		unsigned long from, to;

		end = strchr(at, '\n');
		if (!end)
			return;
		*end = '\0';
		from = strtoul(at, &at, 16);
		to = strtoul(at + 1, NULL, 16);
		if (from <= address && address < to) {
			for (at = end; at > text && at[-1] && at[-1] != '\n'; at--)
				;
			snprintf(line, room_for_it, "%s", at);
			return;
		}
	}
}

static inline const char *region_of(const char *mapping)
{
	const char *name = strpbrk(mapping, "[/");

	if (name && !strcmp(name, "[heap]"))
		return "heap";
	if (name && !strcmp(name, "[stack]"))
		return "stack";
	if (name && *name == '/')
		return "data";
	return *mapping ? "anonymous" : "unknown";
}

/* 0 when it is not to be had: no root (the kernel shows frame 0), or not present. */
static inline uint64_t physical_page(int pagemap, uintptr_t virtual)
{
	uint64_t entry;

	if (pagemap < 0 || pread(pagemap, &entry, sizeof(entry),
				 virtual / PAGE_SIZE * sizeof(entry)) != sizeof(entry))
		return 0;
	return entry >> 63 ? (entry & ((1ULL << 55) - 1)) * PAGE_SIZE : 0;
}

static inline void say_buffer(void)
{
	uintptr_t virtual = (uintptr_t)work.buffer, page = virtual & -PAGE_SIZE;
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char mapping[512];

	find_mapping(virtual, mapping, sizeof(mapping));
	say("\"buffer\":{\"virtual\":\"0x%lx\",\"size\":%zu,\"region\":\"%s\",", virtual,
	    buffer_size(), region_of(mapping));
	say("\"mapping\":\"");
	say_text(mapping);
	say("\",\"pages\":[");
	for (; page < virtual + buffer_size(); page += PAGE_SIZE)
		say("%s{\"virtual\":\"0x%lx\",\"physical\":\"0x%lx\"}",
		    page <= virtual ? "" : ",", page, physical_page(pagemap, page));
	say("]}");
	if (pagemap >= 0)
		close(pagemap);
}

static inline void say_ready(const union address *peer)
{
	say("ready {\"role\":\"%s\",\"pid\":%d,\"fd\":%d,\"protocol\":\"%s\",\"local\":\"",
	    work.role, getpid(), work.fd, work.tcp ? "tcp" : "udp");
	say_local();
	say("\",\"peer\":\"");
	if (peer)
		say_address(peer);
	say("\",\"size\":%zu,\"count\":%zu,\"slots\":%zu,\"slot_size\":%zu,", work.size, work.count,
	    work.slots, work.slot_size);
	say_buffer();
	say("}");
	finish_step();
}

/*
 * Of the messages before `end`, those that a slot still holds: digest of each
 * that finds room, the first bytes of the first ones, and one digest of all.
 */
static inline void say_done(size_t end, const uint32_t *sizes)
{
	size_t first = end > work.slots ? end - work.slots : 0, i;
	uint64_t all = LAB_DIGEST_START;

	say("done {\"messages\":[");
	for (i = first; i < end; i++) {
		size_t size = sizes ? sizes[i % work.slots] : work.size;

		all = lab_digest(all, slot(i), size);
		if (i - first >= LISTED || room() < 512)
			continue;
		say("%s{\"index\":%zu,\"slot\":%zu,\"digest\":\"%016lx\",\"hex\":\"",
		    i > first ? "," : "", i, i % work.slots,
		    lab_digest(LAB_DIGEST_START, slot(i), size));
		if (i - first < HEX_LISTED)
			say_hex(slot(i), size < HEX_SIZE ? size : HEX_SIZE);
		say("\"}");
	}
	say("],\"first\":%zu,\"held\":%zu,\"all\":\"%016lx\"}", first, end - first, all);
	finish_step();
}

static inline long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* True when it is readable; false when `milliseconds` have passed. */
static inline bool wait_readable(int fd, int milliseconds)
{
	long long until = now_ms() + milliseconds, left = milliseconds;

	for (;;) {
		struct pollfd polled = { .fd = fd, .events = POLLIN };
		int ready = poll(&polled, 1, left);

		if (ready > 0)
			return true;
		if (ready < 0 && errno != EINTR)
			quit(1, "poll: %s", strerror(errno));
		left = until - now_ms();
		if (left <= 0)
			return false;
	}
}

#endif
