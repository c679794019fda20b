// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The agent: does in a guest what must be quick or quiet.
 *
 * One process, one thread, one poll loop, one line protocol (docs/internals.md)
 * on the virtio-serial port "lab.agent", or on stdin and stdout with --stdio,
 * which is how it is tested on a host.  It never blocks: what cannot be said at
 * once waits in a bounded queue, and a port without a host drops it.
 *
 *	agent [--stdio] [--root DIR] [--scrub-max BYTES] [--key-wait-ms N]
 *
 * --root is put before /etc/lab/ssh-start and /etc/dropbear/hostkey; the start
 * of the SSH server waits --key-wait-ms for the latter.  With --stdio the agent
 * changes nothing of the machine: clock and entropy are refused, and scrub only
 * zeroes up to --scrub-max bytes.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL	1
#define LINE_SIZE	65536			/* bytes of a line, newline included */
#define QUEUE_SIZE	(256 * 1024)		/* bytes waiting for the host */
#define GET_SIZE	(24 * 1024)		/* bytes of a file that `get` shows */
#define TELL_SIZE	4096			/* PIPE_BUF: written whole or not at all */
#define NAME_SIZE	32
#define TEXT_SIZE	(LINE_SIZE - NAME_SIZE - 8)	/* of a program's, encoded, in one line */
#define NONCE_SIZE	129
#define WORDS		512			/* words of one command */
#define CHILDREN	16			/* started by the host */
#define HELPERS		4			/* started by the agent for itself */
#define SCRUB_MARGIN	(24ULL << 20)		/* bytes left to the kernel */
#define SCRUB_CHUNK	(8ULL << 20)
#define PORT_RETRY_MS	50
#define HOST_RETRY_MS	500			/* SIGIO tells sooner; this is the net below it */
#define KEY_RETRY_MS	50
#define KEY_WAIT_MS	10000
#define PORT_NAME	"lab.agent"
#define HOSTKEY		"/etc/dropbear/hostkey"
#define SSH_START	"/etc/lab/ssh-start"

enum kind { FREE, STARTED, SCRUB, KEY, SSH };

/* Bytes of a stream that do not make a line yet. */
struct lines {
	char *bytes;
	size_t used;
	size_t encoded;		/* bytes that they take, encoded */
	bool cut;		/* inside a line that was too long */
};

struct child {
	enum kind kind;
	char name[NAME_SIZE];
	pid_t pid;
	bool ended;		/* waited for; its last words may still be in the pipes */
	int status;
	int in, out, err;	/* our ends of its pipes, -1 when closed */
	struct lines out_lines, err_lines;
};

static struct {
	bool stdio;
	const char *root;
	unsigned long long scrub_max, key_wait_ms;
	int in, out;		/* the port, or stdin and stdout; -1: not open */
	bool connected;
	bool hello_due;
	bool ended;		/* stdin is at its end */
	int signals;
	long long retry_at;	/* ms: when to look at the port again */

	struct lines input;
	char queue[QUEUE_SIZE];
	size_t queue_start, queue_end;
	unsigned long long dropped;

	char nonce[NONCE_SIZE];
	long long beat_ms, beat_at;
	unsigned long long beats;
	long long ssh_until;	/* ms: a start that waits for the host key, or 0 */
	bool ssh_running;
	volatile unsigned long long *scrubbed;	/* shared with the scrubbing child */
	struct child children[CHILDREN + HELPERS];
} agent = { .root = "", .key_wait_ms = KEY_WAIT_MS, .in = -1, .out = -1 };

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static unsigned long long tsc(void)
{
	unsigned int low, high;

	__asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
	return (unsigned long long)high << 32 | low;
}

/* ---- saying something ------------------------------------------------- */

static char line[LINE_SIZE];
static size_t line_used;

static void add_bytes(const char *bytes, size_t size)
{
	/* One byte is kept for the newline. */
	if (size > LINE_SIZE - 1 - line_used)
		size = LINE_SIZE - 1 - line_used;
	memcpy(line + line_used, bytes, size);
	line_used += size;
}

static void add(const char *text)
{
	add_bytes(text, strlen(text));
}

/* Returns how many of the bytes found room, encoded. */
static bool is_plain(unsigned char byte)
{
	return byte > 0x20 && byte < 0x7f && byte != '%';
}

static size_t add_encoded(const char *bytes, size_t size)
{
	static const char digits[] = "0123456789ABCDEF";
	size_t i;

	for (i = 0; i < size; i++) {
		unsigned char byte = bytes[i];

		if (LINE_SIZE - 1 - line_used < 3)
			break;
		if (is_plain(byte)) {
			line[line_used++] = byte;
		} else {
			line[line_used++] = '%';
			line[line_used++] = digits[byte >> 4];
			line[line_used++] = digits[byte & 15];
		}
	}
	return i;
}

static void add_hex(const unsigned char *bytes, size_t size)
{
	static const char digits[] = "0123456789abcdef";
	size_t i;

	for (i = 0; i < size && LINE_SIZE - 1 - line_used >= 2; i++) {
		line[line_used++] = digits[bytes[i] >> 4];
		line[line_used++] = digits[bytes[i] & 15];
	}
}

static void __attribute__((format(printf, 1, 2))) begin(const char *format, ...)
{
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(line, LINE_SIZE - 1, format, arguments);
	va_end(arguments);
	if (size < 0)
		size = 0;
	line_used = size < LINE_SIZE - 1 ? (size_t)size : LINE_SIZE - 2;
}

static void host_lost(void)
{
	agent.connected = false;
	if (agent.queue_end > agent.queue_start)
		agent.dropped++;
	agent.queue_start = agent.queue_end = 0;
	agent.input.used = 0;
	agent.input.cut = false;
	agent.retry_at = now_ms() + HOST_RETRY_MS;
}

static void port_lost(void)
{
	host_lost();
	if (agent.stdio) {
		agent.ended = true;
	} else if (agent.in >= 0) {
		close(agent.in);
		agent.retry_at = now_ms() + PORT_RETRY_MS;
	}
	agent.in = agent.out = -1;
}

static void flush_queue(void)
{
	while (agent.connected && agent.queue_start < agent.queue_end) {
		ssize_t wrote = write(agent.out, agent.queue + agent.queue_start,
				      agent.queue_end - agent.queue_start);

		if (wrote > 0) {
			agent.queue_start += wrote;
		} else if (wrote < 0 && errno == EINTR) {
			continue;
		} else if (wrote < 0 && errno == EAGAIN) {
			return;
		} else {
			port_lost();
			return;
		}
	}
	agent.queue_start = agent.queue_end = 0;
}

static size_t queue_room(void)
{
	return QUEUE_SIZE - (agent.queue_end - agent.queue_start);
}

/* Ends the line and queues it whole, or drops it whole. */
static void end(void)
{
	line[line_used++] = '\n';
	if (!agent.connected || queue_room() < line_used) {
		agent.dropped++;
		return;
	}
	if (QUEUE_SIZE - agent.queue_end < line_used) {
		memmove(agent.queue, agent.queue + agent.queue_start,
			agent.queue_end - agent.queue_start);
		agent.queue_end -= agent.queue_start;
		agent.queue_start = 0;
	}
	memcpy(agent.queue + agent.queue_end, line, line_used);
	agent.queue_end += line_used;
	flush_queue();
}

static void __attribute__((format(printf, 3, 4)))
fault(const char *command, int error, const char *format, ...)
{
	char text[256];
	size_t size = strlen(command);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	begin("error ");
	add_encoded(*command ? command : "-", !size ? 1 : size < 32 ? size : 32);
	snprintf(line + line_used, 16, " %d ", error);
	line_used += strlen(line + line_used);
	add_encoded(text, strlen(text));
	end();
}

static void fault_errno(const char *command, const char *what)
{
	int error = errno;

	fault(command, error, "%s: %s", what, strerror(error));
}

/* ---- reading words ---------------------------------------------------- */

static int nibble(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	if (digit >= 'a' && digit <= 'f')
		return digit - 'a' + 10;
	if (digit >= 'A' && digit <= 'F')
		return digit - 'A' + 10;
	return -1;
}

/* Decodes in place; returns the size, or -1 when it is not hex. */
static ssize_t unhex(char *text)
{
	size_t i, size = strlen(text);

	if (size % 2)
		return -1;
	for (i = 0; i < size / 2; i++) {
		int high = nibble(text[2 * i]), low = nibble(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return -1;
		text[i] = high << 4 | low;
	}
	return size / 2;
}

/* Decodes %XX in place; false when it is malformed or hides a NUL. */
static bool unpercent(char *text)
{
	char *to = text;

	for (; *text; text++, to++) {
		int high, low;

		if (*text != '%') {
			*to = *text;
			continue;
		}
		high = nibble(text[1]);
		low = high < 0 ? -1 : nibble(text[2]);
		if (low < 0 || (high == 0 && low == 0))
			return false;
		*to = high << 4 | low;
		text += 2;
	}
	*to = '\0';
	return true;
}

static bool number(const char *text, unsigned long long most, unsigned long long *value)
{
	char *rest;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	*value = strtoull(text, &rest, 10);
	return !errno && !*rest && *value <= most;
}

static bool is_name(const char *text)
{
	size_t size = strlen(text);

	return size > 0 && size < NAME_SIZE &&
	       strspn(text, "abcdefghijklmnopqrstuvwxyz"
			    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == size;
}

/* ---- children --------------------------------------------------------- */

static struct child *find_child(const char *name)
{
	int i;

	for (i = 0; i < CHILDREN + HELPERS; i++)
		if (agent.children[i].kind == STARTED && !strcmp(agent.children[i].name, name))
			return &agent.children[i];
	return NULL;
}

static struct child *new_child(enum kind kind, const char *name)
{
	int from = kind == STARTED ? 0 : CHILDREN;
	int to = kind == STARTED ? CHILDREN : CHILDREN + HELPERS;
	int i;

	for (i = from; i < to; i++) {
		struct child *child = &agent.children[i];

		if (child->kind != FREE)
			continue;
		memset(child, 0, sizeof(*child));
		child->kind = kind;
		child->in = child->out = child->err = -1;
		strncpy(child->name, name, NAME_SIZE - 1);
		return child;
	}
	return NULL;
}

static bool is_busy(enum kind kind)
{
	int i;

	for (i = 0; i < CHILDREN + HELPERS; i++)
		if (agent.children[i].kind == kind)
			return true;
	return false;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void free_child(struct child *child)
{
	close_fd(&child->in);
	close_fd(&child->out);
	close_fd(&child->err);
	free(child->out_lines.bytes);
	free(child->err_lines.bytes);
	memset(child, 0, sizeof(*child));
}

/* Best effort: every use of it is one. */
static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	(void)!write(fd, text, strlen(text));
	close(fd);
}

static void clean_signals(void)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
}

static void run_child(const int pipes[3][2], char **argv, enum kind kind, int tell)
{
	int null, error;

	clean_signals();
	setsid();
	if (kind != SSH)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!agent.stdio)
		write_file("/proc/self/oom_score_adj", "0");
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (kind == STARTED) {
		dup2(pipes[0][0], 0);
		dup2(pipes[1][1], 1);
		dup2(pipes[2][1], 2);
	} else {
		dup2(null, 0);
		dup2(kind == KEY ? pipes[1][1] : 2, 1);
	}
	execvp(argv[0], argv);
	error = errno;
	(void)!write(tell, &error, sizeof(error));
	_exit(127);
}

/* Starts argv for a child from new_child(); on failure errno is set and the child is free again. */
static bool spawn(struct child *child, char **argv)
{
	int pipes[3][2] = { { -1, -1 }, { -1, -1 }, { -1, -1 } }, told[2] = { -1, -1 };
	int error = 0, i;
	ssize_t size;

	child->out_lines.bytes = malloc(LINE_SIZE);
	child->err_lines.bytes = malloc(LINE_SIZE);
	if (!child->out_lines.bytes || !child->err_lines.bytes || pipe2(told, O_CLOEXEC) < 0)
		goto failed;
	for (i = 0; i < 3; i++)
		if (pipe2(pipes[i], O_CLOEXEC) < 0)
			goto failed;
	child->pid = fork();
	if (child->pid < 0)
		goto failed;
	if (!child->pid)
		run_child((const int (*)[2])pipes, argv, child->kind, told[1]);
	close_fd(&told[1]);
	close_fd(&pipes[0][0]);
	close_fd(&pipes[1][1]);
	close_fd(&pipes[2][1]);
	/* Ends at the exec, which closes the other end. */
	do
		size = read(told[0], &error, sizeof(error));
	while (size < 0 && errno == EINTR);
	if (size == sizeof(error)) {
		waitpid(child->pid, NULL, 0);
		errno = error;
		goto failed;
	}
	close_fd(&told[0]);
	child->in = pipes[0][1];
	child->out = pipes[1][0];
	child->err = pipes[2][0];
	for (i = 0; i < 3; i++) {
		int fd = i == 0 ? child->in : i == 1 ? child->out : child->err;

		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	}
	return true;
failed:
	error = errno;
	for (i = 0; i < 2; i++) {
		close_fd(&told[i]);
		close_fd(&pipes[0][i]);
		close_fd(&pipes[1][i]);
		close_fd(&pipes[2][i]);
	}
	free_child(child);
	errno = error;
	return false;
}

/* Says what is there: a line, or a part of one that more may follow. */
static void say_lines(struct child *child, struct lines *lines, const char *stream, bool whole)
{
	begin("%s%s %s ", stream, whole ? "" : "+", child->name);
	add_encoded(lines->bytes, lines->used);
	end();
	lines->used = lines->encoded = 0;
}

/* Takes apart what was read; a line that finds no room in one of ours is said in parts. */
static void take(struct child *child, struct lines *lines, const char *stream,
		 const char *bytes, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++) {
		size_t more = is_plain(bytes[i]) ? 1 : 3;

		if (bytes[i] == '\n') {
			say_lines(child, lines, stream, true);
			continue;
		}
		if (lines->encoded + more > TEXT_SIZE)
			say_lines(child, lines, stream, false);
		lines->bytes[lines->used++] = bytes[i];
		lines->encoded += more;
	}
}

/* A read may bring lines that grow threefold; wait for the host when they might not fit. */
static bool may_read_children(void)
{
	return !agent.connected || queue_room() >= QUEUE_SIZE / 4 * 3;
}

static void read_child(struct child *child, int *fd, struct lines *lines, const char *stream)
{
	char bytes[2048];
	ssize_t size;

	while (*fd >= 0 && may_read_children()) {
		size = read(*fd, bytes, sizeof(bytes));
		if (size > 0 && child->kind == STARTED) {
			take(child, lines, stream, bytes, size);
		} else if (size > 0) {
			/* A helper's output is read when it has ended. */
			if ((size_t)size > LINE_SIZE - lines->used)
				size = LINE_SIZE - lines->used;
			memcpy(lines->bytes + lines->used, bytes, size);
			lines->used += size;
		} else if (size < 0 && errno == EINTR) {
			continue;
		} else if (size < 0 && errno == EAGAIN) {
			return;
		} else {
			close_fd(fd);
		}
	}
}

static void key_ended(struct child *child, int status)
{
	char *text = child->out_lines.bytes, *rest = NULL, *word;

	if (child->out_lines.used == LINE_SIZE)
		child->out_lines.used--;
	text[child->out_lines.used] = '\0';
	for (word = strtok_r(text, "\n", &rest); word; word = strtok_r(NULL, "\n", &rest)) {
		char type[64], key[2048];

		if (strncmp(word, "ssh-", 4) && strncmp(word, "ecdsa-", 6))
			continue;
		if (sscanf(word, "%63s %2047s", type, key) != 2)
			continue;
		begin("hostkey %s ", type);
		add_encoded(key, strlen(key));
		end();
		return;
	}
	fault("hostkey", EIO, "dropbearkey ended with %d and showed no key", status);
}

static void child_ended(struct child *child, int status)
{
	int code = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);

	switch (child->kind) {
	case STARTED:
		/* Whatever it still had to say and did not end by a newline. */
		if (child->out_lines.used)
			say_lines(child, &child->out_lines, "out", false);
		if (child->err_lines.used)
			say_lines(child, &child->err_lines, "err", false);
		begin("exit %s %d", child->name, code);
		end();
		break;
	case SCRUB:
		if (code) {
			fault("scrub", ENOMEM, "ended with %d after %llu bytes", code,
			      *agent.scrubbed);
			break;
		}
		begin("ok scrub %llu", *agent.scrubbed);
		end();
		break;
	case KEY:
		key_ended(child, code);
		break;
	case SSH:
		/* 0: it went into the background, as servers do. */
		agent.ssh_running = !code;
		if (code)
			fault("ssh-start", ECHILD, "the server ended with %d", code);
		break;
	case FREE:
		break;
	}
	free_child(child);
}

static void reap(void)
{
	int status, i;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (i = 0; i < CHILDREN + HELPERS; i++) {
			struct child *child = &agent.children[i];

			if (child->kind != FREE && !child->ended && child->pid == pid) {
				child->ended = true;
				child->status = status;
			}
		}
	for (i = 0; i < CHILDREN + HELPERS; i++) {
		struct child *child = &agent.children[i];

		if (child->kind == FREE)
			continue;
		read_child(child, &child->out, &child->out_lines, "out");
		read_child(child, &child->err, &child->err_lines, "err");
		/* Room for its last words, so all it said was read: `exit` comes after them. */
		if (child->ended && may_read_children())
			child_ended(child, child->status);
	}
}

/* ---- commands --------------------------------------------------------- */

static void say_hello(void)
{
	struct utsname name;

	if (uname(&name) < 0)
		strcpy(name.release, "unknown");
	begin("hello %d ", PROTOCOL);
	add_encoded(name.release, strlen(name.release));
	end();
}

static void do_hello(char **words)
{
	(void)words;
	say_hello();
}

static void do_ping(char **words)
{
	unsigned long long n;

	if (!number(words[1], ULLONG_MAX, &n)) {
		fault("ping", EINVAL, "N: expected a number, found '%s'", words[1]);
		return;
	}
	begin("pong %llu %llu", n, tsc());
	end();
}

static void do_nonce_set(char **words)
{
	size_t size = strlen(words[1]);

	if (size == 0 || size >= NONCE_SIZE ||
	    strspn(words[1], "0123456789abcdefABCDEF") != size) {
		fault("nonce-set", EINVAL, "HEX: expected 1 to %d hex digits", NONCE_SIZE - 1);
		return;
	}
	memcpy(agent.nonce, words[1], size + 1);
	begin("ok nonce-set");
	end();
}

static void do_nonce_get(char **words)
{
	(void)words;
	begin("nonce %s", agent.nonce[0] ? agent.nonce : "-");
	end();
}

static void do_clock(char **words)
{
	unsigned long long seconds, nanoseconds;
	struct timespec time;

	if (!number(words[1], LONG_MAX, &seconds) || !number(words[2], 999999999, &nanoseconds)) {
		fault("clock", EINVAL, "expected SECONDS NANOSECONDS, found '%s %s'", words[1],
		      words[2]);
		return;
	}
	if (agent.stdio) {
		fault("clock", EPERM, "not with --stdio: this may be a host");
		return;
	}
	time.tv_sec = seconds;
	time.tv_nsec = nanoseconds;
	if (clock_settime(CLOCK_REALTIME, &time) < 0) {
		fault_errno("clock", "clock_settime");
		return;
	}
	begin("ok clock");
	end();
}

static void do_entropy(char **words)
{
	static union {
		struct rand_pool_info info;
		char room[sizeof(struct rand_pool_info) + 512];
	} pool;
	ssize_t size = unhex(words[1]);
	int fd;

	if (size < 1 || size > 512) {
		fault("entropy", EINVAL, "HEX: expected 1 to 512 bytes");
		return;
	}
	if (agent.stdio) {
		fault("entropy", EPERM, "not with --stdio: this may be a host");
		return;
	}
	fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		fault_errno("entropy", "/dev/urandom");
		return;
	}
	pool.info.entropy_count = size * 8;
	pool.info.buf_size = size;
	memcpy(pool.info.buf, words[1], size);
	if (ioctl(fd, RNDADDENTROPY, &pool) < 0)
		fault_errno("entropy", "RNDADDENTROPY");
	else if (ioctl(fd, RNDRESEEDCRNG) < 0)
		fault_errno("entropy", "RNDRESEEDCRNG");
	else {
		begin("ok entropy");
		end();
	}
	memset(&pool, 0, sizeof(pool));
	close(fd);
}

static bool write_whole(int fd, const char *bytes, size_t size)
{
	while (size) {
		ssize_t wrote = write(fd, bytes, size);

		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote < 0)
			return false;
		bytes += wrote;
		size -= wrote;
	}
	return true;
}

static void make_parents(const char *path)
{
	char folder[PATH_MAX];
	char *slash;

	snprintf(folder, sizeof(folder), "%s", path);
	for (slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		mkdir(folder, 0755);
		*slash = '/';
	}
}

/* Through a second file and a rename, so that no reader sees half of it; not in /proc and /sys. */
static bool put_file(const char *path, mode_t mode, const char *bytes, size_t size)
{
	bool kernel = !strncmp(path, "/proc/", 6) || !strncmp(path, "/sys/", 5);
	char temporary[PATH_MAX];
	int fd, error;

	if (kernel) {
		fd = open(path, O_WRONLY | O_CLOEXEC);
	} else {
		make_parents(path);
		snprintf(temporary, sizeof(temporary), "%s.lab-put", path);
		unlink(temporary);
		fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	}
	if (fd < 0)
		return false;
	if (write_whole(fd, bytes, size) &&
	    (kernel || (!fchmod(fd, mode) && !rename(temporary, path)))) {
		close(fd);
		return true;
	}
	error = errno;
	close(fd);
	if (!kernel)
		unlink(temporary);
	errno = error;
	return false;
}

static void do_put(char **words)
{
	char *mode_end, *hex = words[3] ? words[3] : "";
	unsigned long mode = strtoul(words[1], &mode_end, 8);
	ssize_t size;

	if (!isdigit((unsigned char)*words[1]) || *mode_end || mode > 07777) {
		fault("put", EINVAL, "MODE: expected an octal mode, found '%s'", words[1]);
		return;
	}
	if (!unpercent(words[2]) || words[2][0] != '/' || strlen(words[2]) > PATH_MAX - 16) {
		fault("put", EINVAL, "PATH: expected an absolute path");
		return;
	}
	size = *hex ? unhex(hex) : 0;
	if (size < 0) {
		fault("put", EINVAL, "HEX: expected pairs of hex digits");
		return;
	}
	if (!put_file(words[2], mode, hex, size)) {
		fault_errno("put", words[2]);
		return;
	}
	begin("ok put ");
	add_encoded(words[2], strlen(words[2]));
	end();
}

/* Files of /proc say size 0: read until the end, or until nothing is there now. */
static ssize_t read_some(const char *path, char *bytes, size_t room)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	size_t used = 0;
	int error = 0;

	if (fd < 0)
		return -1;
	while (used < room) {
		ssize_t size = read(fd, bytes + used, room - used);

		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0 && errno != EAGAIN)
			error = errno;
		if (size <= 0)
			break;
		used += size;
	}
	close(fd);
	errno = error;
	return error ? -1 : (ssize_t)used;
}

static void do_get(char **words)
{
	static char bytes[GET_SIZE];
	ssize_t size;

	if (!unpercent(words[1]) || words[1][0] != '/') {
		fault("get", EINVAL, "PATH: expected an absolute path");
		return;
	}
	size = read_some(words[1], bytes, sizeof(bytes));
	if (size < 0) {
		fault_errno("get", words[1]);
		return;
	}
	begin("file ");
	add_encoded(words[1], strlen(words[1]));
	add(" ");
	add_hex((unsigned char *)bytes, size);
	end();
}

static const char *rooted(const char *path)
{
	static char full[PATH_MAX];

	snprintf(full, sizeof(full), "%s%s", agent.root, path);
	return full;
}

static void do_hostkey(char **words)
{
	char *argv[] = { "dropbearkey", "-y", "-f", (char *)rooted(HOSTKEY), NULL };
	struct child *child;

	(void)words;
	if (access(argv[3], R_OK) < 0) {
		fault_errno("hostkey", argv[3]);
		return;
	}
	if (is_busy(KEY)) {
		fault("hostkey", EBUSY, "asked already");
		return;
	}
	child = new_child(KEY, "hostkey");
	if (!spawn(child, argv))
		fault_errno("hostkey", argv[0]);
}

static void start_ssh(void)
{
	static char text[4096];
	char *argv[64], *word, *rest = NULL;
	ssize_t size;
	int count = 0;

	agent.ssh_until = 0;
	size = read_some(rooted(SSH_START), text, sizeof(text) - 1);
	if (size < 0) {
		fault_errno("ssh-start", SSH_START);
		return;
	}
	text[size] = '\0';
	for (word = strtok_r(text, "\n", &rest); word && count < 63;
	     word = strtok_r(NULL, "\n", &rest))
		argv[count++] = word;
	argv[count] = NULL;
	if (!count) {
		fault("ssh-start", EINVAL, "%s is empty", SSH_START);
		return;
	}
	if (!spawn(new_child(SSH, "ssh"), argv)) {
		fault_errno("ssh-start", argv[0]);
		return;
	}
	agent.ssh_running = true;
	begin("ok ssh-start");
	end();
}

static void check_ssh(void)
{
	if (!agent.ssh_until)
		return;
	if (!access(rooted(HOSTKEY), R_OK))
		start_ssh();
	else if (now_ms() >= agent.ssh_until) {
		agent.ssh_until = 0;
		fault("ssh-start", ENOENT, "no %s after %llu ms", HOSTKEY, agent.key_wait_ms);
	}
}

static void do_ssh_start(char **words)
{
	(void)words;
	if (agent.ssh_until) {
		fault("ssh-start", EBUSY, "waiting for the host key already");
		return;
	}
	if (agent.ssh_running) {
		begin("ok ssh-start");
		end();
		return;
	}
	agent.ssh_until = now_ms() + agent.key_wait_ms;
	check_ssh();
}

static unsigned long long available(void)
{
	char text[4096];
	ssize_t size = read_some("/proc/meminfo", text, sizeof(text) - 1);
	char *found;

	if (size < 0)
		return 0;
	text[size] = '\0';
	found = strstr(text, "MemAvailable:");
	return found ? strtoull(found + 13, NULL, 10) << 10 : 0;
}

/* The kernel zeroes what it hands out and keeps the zeroes when it is freed (init_on_alloc). */
static void scrub_memory(void)
{
	unsigned long long left, most = agent.stdio ? agent.scrub_max : ULLONG_MAX;

	clean_signals();
	/* Should memory run out all the same, this process goes and no other. */
	write_file("/proc/self/oom_score_adj", "1000");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (!agent.stdio) {
		sync();
		write_file("/proc/sys/vm/drop_caches", "3");
		write_file("/proc/sys/vm/compact_memory", "1");
	}
	while ((left = available()) > SCRUB_MARGIN && *agent.scrubbed < most) {
		unsigned long long size = left - SCRUB_MARGIN, i;
		char *memory;

		if (size > SCRUB_CHUNK)
			size = SCRUB_CHUNK;
		if (size > most - *agent.scrubbed)
			size = most - *agent.scrubbed;
		size &= ~4095ULL;
		if (!size)
			break;
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);
		if (memory == MAP_FAILED)
			break;
		for (i = 0; i < size; i += 4096) {
			*(volatile char *)(memory + i) = 0;
			*agent.scrubbed += 4096;
		}
	}
	_exit(0);
}

static void do_scrub(char **words)
{
	struct child *child;

	(void)words;
	if (agent.stdio && !agent.scrub_max) {
		fault("scrub", EPERM, "not with --stdio: this may be a host");
		return;
	}
	if (is_busy(SCRUB)) {
		fault("scrub", EBUSY, "at it already");
		return;
	}
	child = new_child(SCRUB, "scrub");
	*agent.scrubbed = 0;
	child->pid = fork();
	if (!child->pid)
		scrub_memory();
	if (child->pid < 0) {
		fault_errno("scrub", "fork");
		free_child(child);
	}
}

static void do_start(char **words)
{
	struct child *child;
	int i;

	if (!is_name(words[1])) {
		fault("start", EINVAL, "NAME: expected letters, digits, '.', '_', '-'");
		return;
	}
	if (find_child(words[1])) {
		fault("start", EEXIST, "%s is running", words[1]);
		return;
	}
	for (i = 2; words[i]; i++) {
		if (!unpercent(words[i])) {
			fault("start", EINVAL, "ARG%d: not percent-encoded", i - 2);
			return;
		}
	}
	child = new_child(STARTED, words[1]);
	if (!child) {
		fault("start", EAGAIN, "%d children are running", CHILDREN);
		return;
	}
	if (!spawn(child, words + 2)) {
		fault_errno("start", words[2]);
		return;
	}
	begin("ok start %s %d", child->name, child->pid);
	end();
}

static void do_tell(char **words)
{
	struct child *child = find_child(words[1]);
	char text[TELL_SIZE];
	size_t size;

	if (!child) {
		fault("tell", ESRCH, "no child '%.40s'", words[1]);
		return;
	}
	if (words[2] && !unpercent(words[2])) {
		fault("tell", EINVAL, "TEXT: not percent-encoded");
		return;
	}
	size = words[2] ? strlen(words[2]) : 0;
	if (size + 1 > sizeof(text)) {
		fault("tell", EMSGSIZE, "TEXT: at most %d bytes", TELL_SIZE - 1);
		return;
	}
	if (size)
		memcpy(text, words[2], size);
	text[size++] = '\n';
	/* At most PIPE_BUF bytes: all or nothing. */
	if (write(child->in, text, size) < 0) {
		fault_errno("tell", words[1]);
		return;
	}
	begin("ok tell %s", child->name);
	end();
}

static int signal_number(const char *text)
{
	unsigned long long value;
	int i;

	if (number(text, 64, &value))
		return value ? (int)value : -1;
	if (!strncmp(text, "SIG", 3))
		text += 3;
	for (i = 1; i < 32; i++)
		if (!strcmp(sigabbrev_np(i) ? sigabbrev_np(i) : "", text))
			return i;
	return -1;
}

static void do_kill(char **words)
{
	struct child *child = find_child(words[1]);
	int wanted = signal_number(words[2]);

	if (wanted < 0) {
		fault("kill", EINVAL, "SIGNAL: expected a number or a name, found '%.40s'",
		      words[2]);
		return;
	}
	if (!child) {
		fault("kill", ESRCH, "no child '%.40s'", words[1]);
		return;
	}
	/* Its session was made for it: its own children go with it. */
	if (child->ended) {
		fault("kill", ESRCH, "%s has ended", words[1]);
		return;
	}
	if (kill(-child->pid, wanted) < 0 && kill(child->pid, wanted) < 0) {
		fault_errno("kill", words[1]);
		return;
	}
	begin("ok kill %s", child->name);
	end();
}

static void do_beat(char **words)
{
	unsigned long long interval;

	if (!number(words[1], 3600000, &interval)) {
		fault("beat", EINVAL, "MILLISECONDS: expected 0 to 3600000, found '%.40s'",
		      words[1]);
		return;
	}
	agent.beat_ms = interval;
	agent.beat_at = now_ms() + interval;
	agent.beats = 0;
	begin("ok beat");
	end();
}

static void do_stats(char **words)
{
	(void)words;
	begin("stats dropped %llu", agent.dropped);
	end();
}

static const struct {
	const char *name;
	int least, most;	/* words after the name */
	void (*run)(char **words);
} commands[] = {
	{ "hello", 0, 0, do_hello },
	{ "ping", 1, 1, do_ping },
	{ "nonce-set", 1, 1, do_nonce_set },
	{ "nonce-get", 0, 0, do_nonce_get },
	{ "clock", 2, 2, do_clock },
	{ "entropy", 1, 1, do_entropy },
	{ "put", 2, 3, do_put },
	{ "get", 1, 1, do_get },
	{ "hostkey", 0, 0, do_hostkey },
	{ "ssh-start", 0, 0, do_ssh_start },
	{ "scrub", 0, 0, do_scrub },
	{ "start", 2, WORDS, do_start },
	{ "tell", 1, 2, do_tell },
	{ "kill", 2, 2, do_kill },
	{ "beat", 1, 1, do_beat },
	{ "stats", 0, 0, do_stats },
};

static void obey(char *text, size_t size)
{
	static char *words[WORDS + 2];
	int count = 0;
	size_t i;
	char *at;

	if (!size)
		return;
	text[size] = '\0';
	if (strlen(text) != size) {
		fault("", EINVAL, "a NUL in a line");
		return;
	}
	for (at = text; at && count <= WORDS; at = strchr(at, ' ')) {
		if (count)
			*at++ = '\0';
		words[count++] = at;
	}
	words[count] = NULL;
	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(words[0], commands[i].name))
			continue;
		if (at)
			fault(words[0], E2BIG, "more than %d words", WORDS);
		else if (count - 1 < commands[i].least || count - 1 > commands[i].most)
			fault(words[0], EINVAL, "expected %d to %d words after it, found %d",
			      commands[i].least, commands[i].most, count - 1);
		else
			commands[i].run(words);
		return;
	}
	fault(words[0], ENOSYS, "unknown command");
}

static void take_input(const char *bytes, size_t size)
{
	struct lines *input = &agent.input;
	size_t i;

	for (i = 0; i < size; i++) {
		if (bytes[i] == '\n') {
			if (!input->cut)
				obey(input->bytes, input->used);
			input->used = 0;
			input->cut = false;
		} else if (input->cut) {
			continue;
		} else if (input->used == LINE_SIZE - 1) {
			input->bytes[input->used] = '\0';
			input->bytes[strcspn(input->bytes, " ")] = '\0';
			fault(input->bytes, EMSGSIZE, "a line of more than %d bytes", LINE_SIZE);
			input->cut = true;
		} else {
			input->bytes[input->used++] = bytes[i];
		}
	}
}

static void read_input(void)
{
	char bytes[4096];
	int rounds;

	/* Bounded, so that children and beats get their turn. */
	for (rounds = 0; rounds < 16 && agent.in >= 0; rounds++) {
		ssize_t size = read(agent.in, bytes, sizeof(bytes));

		if (size > 0) {
			take_input(bytes, size);
		} else if (size < 0 && errno == EINTR) {
			continue;
		} else if (size < 0 && errno == EAGAIN) {
			return;
		} else if (size == 0 && !agent.stdio) {
			host_lost();	/* a port reads 0 while no host is there */
			return;
		} else if (size == 0) {
			agent.ended = true;
			agent.in = -1;
		} else {
			port_lost();
		}
	}
}

/* ---- the port --------------------------------------------------------- */

/* By udev's name, or by what the kernel says where there is no udev. */
static int open_port(void)
{
	char path[PATH_MAX], name[64];
	struct dirent *entry;
	DIR *folder;
	int fd;

	fd = open("/dev/virtio-ports/" PORT_NAME, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	folder = opendir("/sys/class/virtio-ports");
	if (!folder)
		return -1;
	while (fd < 0 && (entry = readdir(folder))) {
		ssize_t size;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%.64s/name", entry->d_name);
		size = read_some(path, name, sizeof(name) - 1);
		if (size <= 0)
			continue;
		name[size] = '\0';
		name[strcspn(name, "\n")] = '\0';
		if (strcmp(name, PORT_NAME))
			continue;
		snprintf(path, sizeof(path), "/dev/%.64s", entry->d_name);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(folder);
	return fd;
}

/*
 * A port without a host polls as readable and hung up all the time, so it is
 * left out of the poll until a host is there; the kernel sends SIGIO then.
 */
static void check_port(void)
{
	struct pollfd port;

	if (agent.stdio || agent.connected)
		return;
	if (agent.in < 0) {
		agent.in = agent.out = open_port();
		if (agent.in < 0) {
			agent.retry_at = now_ms() + PORT_RETRY_MS;
			return;
		}
		fcntl(agent.in, F_SETOWN, getpid());
		fcntl(agent.in, F_SETFL, fcntl(agent.in, F_GETFL) | O_ASYNC);
		agent.hello_due = true;
	}
	agent.retry_at = now_ms() + HOST_RETRY_MS;
	port.fd = agent.in;
	port.events = POLLIN | POLLOUT;
	port.revents = 0;
	if (poll(&port, 1, 0) < 0 || port.revents & (POLLHUP | POLLERR | POLLNVAL))
		return;
	agent.connected = true;
	if (agent.hello_due)
		say_hello();
	agent.hello_due = false;
}

/* ---- the loop --------------------------------------------------------- */

static void sooner(long long *timeout, long long at)
{
	long long left = at - now_ms();

	if (left < 0)
		left = 0;
	if (*timeout < 0 || left < *timeout)
		*timeout = left;
}

static void check_beat(void)
{
	long long now = now_ms();

	if (!agent.beat_ms || now < agent.beat_at)
		return;
	begin("heartbeat %llu %llu", ++agent.beats, tsc());
	end();
	/* After a pause (a stopped or restored guest) go on from now. */
	agent.beat_at += agent.beat_ms;
	if (agent.beat_at < now)
		agent.beat_at = now + agent.beat_ms;
}

static void wait_events(void)
{
	struct pollfd polled[3 + 2 * (CHILDREN + HELPERS)];
	bool waiting = agent.queue_start < agent.queue_end;
	long long timeout = -1;
	int count = 0, i;

	polled[count++] = (struct pollfd){ .fd = agent.signals, .events = POLLIN };
	if (agent.connected && agent.in >= 0)
		polled[count++] = (struct pollfd){ .fd = agent.in, .events = POLLIN };
	if (agent.connected && waiting)
		polled[count++] = (struct pollfd){ .fd = agent.out, .events = POLLOUT };
	for (i = 0; i < CHILDREN + HELPERS && may_read_children(); i++) {
		struct child *child = &agent.children[i];

		if (child->kind == FREE)
			continue;
		if (child->out >= 0)
			polled[count++] = (struct pollfd){ .fd = child->out, .events = POLLIN };
		if (child->err >= 0)
			polled[count++] = (struct pollfd){ .fd = child->err, .events = POLLIN };
	}
	if (agent.beat_ms)
		sooner(&timeout, agent.beat_at);
	if (agent.ssh_until)
		sooner(&timeout, now_ms() + KEY_RETRY_MS);
	if (!agent.stdio && !agent.connected)
		sooner(&timeout, agent.retry_at);
	poll(polled, count, timeout);
}

static void turn(void)
{
	struct signalfd_siginfo info;
	bool look = false;

	wait_events();
	while (read(agent.signals, &info, sizeof(info)) == sizeof(info))
		look = true;
	if (look || now_ms() >= agent.retry_at)
		check_port();
	flush_queue();
	if (agent.connected && agent.in >= 0)
		read_input();
	reap();
	check_ssh();
	check_beat();
}

/* With --stdio the end of stdin is the end: say what is left, take the children along. */
static void finish(void)
{
	long long until = now_ms() + 1000;
	int i;

	for (i = 0; i < CHILDREN + HELPERS; i++)
		if (agent.children[i].kind != FREE && !agent.children[i].ended) {
			kill(-agent.children[i].pid, SIGKILL);
			kill(agent.children[i].pid, SIGKILL);
		}
	while (agent.connected && agent.queue_start < agent.queue_end && now_ms() < until) {
		struct pollfd out = { .fd = agent.out, .events = POLLOUT };

		poll(&out, 1, 50);
		flush_queue();
	}
}

static void set_up(void)
{
	sigset_t ours;

	sigemptyset(&ours);
	sigaddset(&ours, SIGCHLD);
	sigaddset(&ours, SIGIO);
	sigprocmask(SIG_BLOCK, &ours, NULL);
	signal(SIGPIPE, SIG_IGN);
	agent.signals = signalfd(-1, &ours, SFD_NONBLOCK | SFD_CLOEXEC);
	agent.input.bytes = malloc(LINE_SIZE);
	agent.scrubbed = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			      -1, 0);
	if (agent.signals < 0 || !agent.input.bytes || agent.scrubbed == MAP_FAILED) {
		perror("agent");
		exit(1);
	}
	if (!agent.stdio) {
		write_file("/proc/self/oom_score_adj", "-1000");
		check_port();
		return;
	}
	agent.in = 0;
	agent.out = 1;
	agent.connected = true;
	fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
	fcntl(1, F_SETFL, fcntl(1, F_GETFL) | O_NONBLOCK);
	say_hello();
}

static bool read_option(const char *option, const char *value)
{
	if (!value)
		return false;
	if (!strcmp(option, "--scrub-max"))
		return number(value, ULLONG_MAX, &agent.scrub_max);
	if (!strcmp(option, "--key-wait-ms"))
		return number(value, 600000, &agent.key_wait_ms);
	agent.root = value;
	return !strcmp(option, "--root");
}

int main(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--stdio")) {
			agent.stdio = true;
		} else if (!read_option(argv[i], argv[i + 1])) {
			fprintf(stderr,
				"agent: %s: unknown argument, or its value is missing or wrong\n",
				argv[i]);
			return 2;
		} else {
			i++;
		}
	}
	set_up();
	while (!agent.ended)
		turn();
	finish();
	return 0;
}
