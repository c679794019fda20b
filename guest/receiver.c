// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The receiver: takes messages out of its socket when it is told to.
 *
 *	receiver --protocol udp|tcp --address A --port P --size N --count N
 *		 [--idle-ms N]
 *
 * Its steps are in docs/internals.md.  The sender's other arguments are taken
 * and not used.  Every wait for data ends after --idle-ms without any; that is
 * said in the step, not an error.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#define STACK_SIZE	65536UL		/* a buffer up to this size lies on the stack */
#define SETTLE_MS	100		/* a TCP message came whole, or nothing came for so long */

struct result {
	ssize_t returned;
	int error;
	union address peer;
};

static struct result results[LISTED];
static uint32_t sizes[SLOTS];		/* bytes received, by slot */
static union address peer;		/* TCP's */

static void open_socket(void)
{
	int size = SOCKET_BUFFER, on = 1;

	work.fd = socket(work.address.any.sa_family,
			 (work.tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
	if (work.fd < 0)
		quit(1, "socket: %s", strerror(errno));
	if (setsockopt(work.fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(work.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	if (work.tcp && setsockopt(work.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		quit(1, "SO_REUSEADDR: %s", strerror(errno));
	if (bind(work.fd, &work.address.any, work.address_size) < 0)
		quit(1, "bind %s port %lu: %s", work.address_text, work.port, strerror(errno));
	if (work.tcp && listen(work.fd, 1) < 0)
		quit(1, "listen: %s", strerror(errno));
}

/* Takes the place of the listening socket by its connection; false when none came. */
static bool take_connection(void)
{
	socklen_t size = sizeof(peer);
	int fd;

	if (!wait_readable(work.fd, work.idle_ms))
		return false;
	fd = accept4(work.fd, &peer.any, &size, SOCK_CLOEXEC);
	if (fd < 0)
		quit(1, "accept: %s", strerror(errno));
	close(work.fd);
	work.fd = fd;
	return true;
}

static int queued_bytes(void)
{
	int bytes = 0;

	return ioctl(work.fd, SIOCINQ, &bytes) < 0 ? 0 : bytes;
}

/* A TCP message arrives in segments: let it come whole, as far as it comes. */
static int settled_bytes(void)
{
	struct timespec pause = { 0, 2000000 };
	int bytes = queued_bytes(), now;
	long long since = now_ms();

	while (work.tcp && (size_t)bytes < work.size && now_ms() - since < SETTLE_MS) {
		nanosleep(&pause, NULL);
		now = queued_bytes();
		if (now != bytes)
			since = now_ms();
		bytes = now;
	}
	return bytes;
}

/* Nothing is read here.  Returns whether something is there to read. */
static bool wait_queued(void)
{
	bool there = (!work.tcp || take_connection()) && wait_readable(work.fd, work.idle_ms);

	if (there)
		say("queued {\"first\":%d}", settled_bytes());
	else
		say("queued {\"first\":0,\"timed_out\":true}");
	finish_step();
	return there;
}

/*
 * One message into its slot: a datagram (`returned` is its whole size, even if
 * the slot is smaller), or `size` bytes of the stream.  Returns false when
 * nothing came in time or the stream ended, with what came until then.
 */
static bool receive(size_t message, int wait_ms, struct result *result, bool *timed_out)
{
	size_t got = 0;

	memset(result, 0, sizeof(*result));
	result->peer = peer;
	while (got < work.size) {
		socklen_t size_of_peer = sizeof(result->peer);
		ssize_t size;

		if (!wait_readable(work.fd, wait_ms)) {
			*timed_out = true;
			break;
		}
		if (work.tcp)
			size = recv(work.fd, slot(message) + got, work.size - got, MSG_DONTWAIT);
		else
			size = recvfrom(work.fd, slot(message), work.size, MSG_DONTWAIT | MSG_TRUNC,
					&result->peer.any, &size_of_peer);
		if (size < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (size < 0) {
			result->error = errno;
			result->returned = got ? (ssize_t)got : -1;
			return false;
		}
		result->returned += size;
		got += size;
		if (!work.tcp)
			return true;
		if (!size)
			break;
	}
	return got == work.size;
}

/* Returns how many slots were filled, one after the other, the last perhaps in part. */
static size_t receive_all(bool something)
{
	unsigned long long bytes = 0;
	size_t received = 0, listed, i;
	bool timed_out = false, more = true;

	/* After a `queued` that timed out only what is there by now is taken. */
	for (i = 0; i < work.count && more; i++) {
		struct result result;

		if (work.tcp && !peer.any.sa_family) {
			timed_out = true;
			break;
		}
		more = receive(i, something || i ? work.idle_ms : 0, &result, &timed_out);
		if (!more && !result.returned)
			break;
		if (i < LISTED)
			results[i] = result;
		sizes[i % work.slots] = result.returned < 0 ? 0 :
			(size_t)result.returned < work.size ? (size_t)result.returned : work.size;
		bytes += result.returned < 0 ? 0 : result.returned;
		received += more;
	}
	say("received {\"messages\":[");
	for (listed = 0; listed < i && listed < LISTED && room() > 256; listed++) {
		say("%s{\"index\":%zu,\"slot\":%zu,\"returned\":%zd,\"errno\":%d,\"peer\":\"",
		    listed ? "," : "", listed, listed % work.slots, results[listed].returned,
		    results[listed].error);
		say_address(&results[listed].peer);
		say("\"}");
	}
	say("],\"received\":%zu,\"bytes\":%llu,\"timed_out\":%s}", received, bytes,
	    timed_out ? "true" : "false");
	finish_step();
	return i;
}

/* The steps; `buffer` is NULL or room on the stack below us. */
static void run(uint8_t *buffer)
{
	volatile uint8_t *byte = buffer;
	size_t filled, i;
	bool something;

	if (buffer)
		for (i = 0; i < buffer_size(); i++)
			byte[i] = 0;
	work.buffer = buffer ? buffer : heap_buffer(buffer_size());
	lock_memory();
	say_ready(NULL);
	wait_go();
	something = wait_queued();
	wait_go();
	filled = receive_all(something);
	wait_go();
	say_done(filled, sizes);
}

static __attribute__((noinline)) void run_on_stack(void)
{
	uint8_t buffer[STACK_SIZE] __attribute__((aligned(64)));

	run(buffer);
	__asm__ volatile("" : : "r"(buffer) : "memory");
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	read_arguments("receiver", argc, argv);
	open_socket();
	if (buffer_size() <= STACK_SIZE)
		run_on_stack();
	else
		run(NULL);
	return 0;
}
