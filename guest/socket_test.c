// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * socket_test: calls socket(2) as it is told, and says what it saw of the call itself.
 *
 * A line of stdin is a command, its answer one line of JSON (docs/internals.md):
 *
 *	call FAMILY TYPE PROTOCOL	one socket(2); its descriptor stays open
 *	close				closes it
 *	limit | unlimit			leaves no descriptor free, or gives them back
 *	watch				counts SIGUSR1 from here on, and where it came
 *	message				sendto(2) and recvfrom(2), to itself over loopback
 *	repeat COUNT FAMILY TYPE PROTOCOL	so many, each closed at once
 *	held				says what the kernel holds of sockets and files
 *
 * The system calls are made here, not in a library, so that the address of the
 * instruction is known and what it returns is the kernel's own number.
 */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <x86intrin.h>

#include "workload.h"

#define REPEATS_MOST	1000000
#define LENGTH		2	/* bytes of the syscall instruction */
#define SLABS		4
#define HIGH		64	/* descriptors of our own: socket(2) is to get the lowest */

struct call {
	long number;
	long args[6];
	long returned;
	const uint8_t *next;	/* the instruction after it */
	uint64_t before, after;	/* TSC */
};

static const char *const slabs[SLABS] = { "sock_inode_cache", "TCP", "filp", "dentry" };

static volatile sig_atomic_t signals;
static volatile uint64_t signal_ip, signal_ax, signal_tsc;
static struct rlimit most;

static void __attribute__((noinline)) make(struct call *call)
{
	register long a4 asm("r10") = call->args[3];
	register long a5 asm("r8") = call->args[4];
	register long a6 asm("r9") = call->args[5];
	const uint8_t *next;
	long returned;

	call->before = __rdtsc();
	asm volatile("leaq 1f(%%rip), %[next]\n\t"
		     "syscall\n"
		     "1:"
		     : "=a"(returned), [next] "=&r"(next)
		     : "0"(call->number), "D"(call->args[0]), "S"(call->args[1]),
		       "d"(call->args[2]), "r"(a4), "r"(a5), "r"(a6)
		     : "rcx", "r11", "memory");
	call->after = __rdtsc();
	call->returned = returned;
	call->next = next;
}

static void say_call(const struct call *call)
{
	say("{\"number\":%ld,\"args\":[%lu,%lu,%lu],\"returned\":%ld,", call->number,
	    call->args[0], call->args[1], call->args[2], call->returned);
	say("\"instruction\":\"0x%lx\",\"bytes\":\"", (unsigned long)call->next - LENGTH);
	say_hex(call->next - LENGTH, LENGTH);
	say("\",\"before\":%lu,\"after\":%lu}", call->before, call->after);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	const ucontext_t *was = context;

	(void)number;
	(void)info;
	signal_tsc = __rdtsc();
	signal_ip = was->uc_mcontext.gregs[REG_RIP];
	signal_ax = was->uc_mcontext.gregs[REG_RAX];
	signals++;
}

static void watch(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };

	if (sigaction(SIGUSR1, &action, NULL) < 0)
		quit(1, "sigaction: %s", strerror(errno));
	say("watched {}");
}

static void say_signal(int before)
{
	if (signals == before)
		return;
	say(",\"signal\":{\"count\":%d,\"ip\":\"0x%lx\",\"ax\":%ld,\"tsc\":%lu}",
	    signals - before, signal_ip, (long)signal_ax, signal_tsc);
}

static void call(const long *numbers)
{
	struct call made = { .number = SYS_socket };
	int before = signals;

	memcpy(made.args, numbers, 3 * sizeof(*numbers));
	make(&made);
	if (made.returned >= 0)
		work.fd = made.returned;
	say("called {\"call\":");
	say_call(&made);
	say_signal(before);
	say("}");
}

/* The lowest descriptor that is free is the one the next call would get. */
static void limit(void)
{
	struct rlimit less;
	int lowest = dup(0);

	if (lowest < 0 || getrlimit(RLIMIT_NOFILE, &most) < 0)
		quit(1, "limit: %s", strerror(errno));
	close(lowest);
	less = most;
	less.rlim_cur = lowest;
	if (setrlimit(RLIMIT_NOFILE, &less) < 0)
		quit(1, "limit: %s", strerror(errno));
	say("limited {\"descriptors\":%d}", lowest);
}

static void unlimit(void)
{
	if (most.rlim_max && setrlimit(RLIMIT_NOFILE, &most) < 0)
		quit(1, "unlimit: %s", strerror(errno));
	say("unlimited {}");
}

static void message(void)
{
	static char text[] = "one message", room_for_it[64];
	struct sockaddr_in me = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(me);
	struct call sent = { .number = SYS_sendto }, taken = { .number = SYS_recvfrom };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&me, size) < 0 ||
	    getsockname(fd, (struct sockaddr *)&me, &size) < 0)
		quit(1, "message: %s", strerror(errno));
	sent.args[0] = taken.args[0] = fd;
	sent.args[1] = (long)text;
	sent.args[2] = sizeof(text);
	sent.args[4] = (long)&me;
	sent.args[5] = size;
	taken.args[1] = (long)room_for_it;
	taken.args[2] = sizeof(room_for_it);
	make(&sent);
	make(&taken);
	close(fd);
	say("messaged {\"calls\":[");
	say_call(&sent);
	say(",");
	say_call(&taken);
	say("]}");
}

/* ---- what the kernel holds ------------------------------------------------ */

static int slab_file, stat_file;

/* Open throughout: while no descriptor is left, nothing can be opened. */
static int open_high(const char *path)
{
	int low = open(path, O_RDONLY | O_CLOEXEC);
	int high = fcntl(low, F_DUPFD_CLOEXEC, HIGH);

	if (low < 0 || high < 0)
		quit(1, "%s: %s", path, strerror(errno));
	close(low);
	return high;
}

static void read_again(int fd, char *text, size_t room_for_it)
{
	size_t used = 0;
	ssize_t size;

	lseek(fd, 0, SEEK_SET);
	while ((size = read(fd, text + used, room_for_it - 1 - used)) > 0)
		used += size;
	text[used] = '\0';
}

static void say_slab(const char *text, const char *name)
{
	const char *line = text;
	size_t length = strlen(name);
	unsigned long active, all, size;

	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, length) && line[length] == ' ' &&
		    sscanf(line + length, "%lu %lu %lu", &active, &all, &size) == 3) {
			say("\"%s\":{\"active\":%lu,\"objects\":%lu,\"size\":%lu},", name, active,
			    all, size);
			return;
		}
	}
}

static void say_held(void)
{
	static char text[1 << 16];
	int i;

	say("{\"slabs\":{");
	read_again(slab_file, text, sizeof(text));
	for (i = 0; i < SLABS; i++)
		say_slab(text, slabs[i]);
	read_again(stat_file, text, sizeof(text));
	said_size -= said[said_size - 1] == ',';
	say("},\"sockstat\":\"");
	say_text(text);
	say("\"}");
}

/* The answer lies in one static line, so the line begins before the first count. */
static void repeat(const long *numbers)
{
	long opened = 0, failed = 0, other = 0, error = 0, i;

	say("repeated {\"count\":%ld,\"before\":", numbers[0]);
	say_held();
	for (i = 0; i < numbers[0]; i++) {
		struct call made = { .number = SYS_socket };

		memcpy(made.args, numbers + 1, 3 * sizeof(*numbers));
		make(&made);
		if (made.returned >= 0) {
			close(made.returned);
			opened++;
			continue;
		}
		if (!error)
			error = made.returned;
		failed++;
		other += made.returned != error;
	}
	say(",\"after\":");
	say_held();
	say(",\"opened\":%ld,\"failed\":%ld,\"error\":%ld,\"other\":%ld}", opened, failed, error,
	    other);
}

/* ---- commands --------------------------------------------------------------- */

static bool read_command(char *text, size_t room_for_it)
{
	size_t used = 0;
	char byte;

	for (;;) {
		ssize_t size = read(0, &byte, 1);

		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0)
			return false;
		if (byte == '\n')
			break;
		if (used < room_for_it - 1)
			text[used++] = byte;
	}
	text[used] = '\0';
	return true;
}

static void read_numbers(const char *command, char *rest, long *numbers, int count)
{
	int i;

	for (i = 0; i < count; i++) {
		const char *start = rest;

		numbers[i] = strtol(start, &rest, 0);
		if (rest == start)
			quit(2, "%s: expected %d numbers", command, count);
	}
	if (*rest)
		quit(2, "%s: expected %d numbers, found '%.40s' after them", command, count, rest);
}

static void obey(char *command)
{
	long numbers[4];
	char *rest = strchr(command, ' ');

	if (rest)
		*rest++ = '\0';
	else
		rest = command + strlen(command);
	if (!strcmp(command, "call")) {
		read_numbers(command, rest, numbers, 3);
		call(numbers);
	} else if (!strcmp(command, "repeat")) {
		read_numbers(command, rest, numbers, 4);
		if (numbers[0] < 1 || numbers[0] > REPEATS_MOST)
			quit(2, "repeat: expected 1 to %d times", REPEATS_MOST);
		repeat(numbers);
	} else if (!strcmp(command, "close")) {
		say("closed {\"fd\":%d}", work.fd);
		close(work.fd);
		work.fd = -1;
	} else if (!strcmp(command, "limit")) {
		limit();
	} else if (!strcmp(command, "unlimit")) {
		unlimit();
	} else if (!strcmp(command, "watch")) {
		watch();
	} else if (!strcmp(command, "message")) {
		message();
	} else if (!strcmp(command, "held")) {
		say("holding ");
		say_held();
	} else {
		quit(2, "stdin: expected a command, found '%.40s'", command);
	}
	finish_step();
}

int main(void)
{
	char command[128], comm[16] = "";

	work.role = "socket_test";
	prctl(PR_GET_NAME, comm);
	slab_file = open_high("/proc/slabinfo");
	stat_file = open_high("/proc/net/sockstat");
	say("ready {\"pid\":%d,\"comm\":\"", getpid());
	say_text(comm);
	say("\"}");
	finish_step();
	while (read_command(command, sizeof(command)))
		obey(command);
	return 0;
}
