// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The sender: sends known messages from a known place when it is told to.
 *
 *	sender --protocol udp|tcp --address A --port P --size N --count N
 *	       (--seed HEX | --payload-masked HEX) [--connect] [--idle-ms N]
 *
 * Its steps are in docs/internals.md.  TCP connects before `ready`; UDP uses
 * sendto() unless --connect.  A send that makes no progress for --idle-ms ends
 * with EAGAIN, so that a receiver that is held back cannot hold us forever.
 */
#define _GNU_SOURCE
#include "workload.h"

struct result {
	uint32_t size;
	ssize_t returned;
	int error;
};

static struct result results[LISTED];

static void open_socket(void)
{
	struct timeval limit = { work.idle_ms / 1000, work.idle_ms % 1000 * 1000 };
	int size = SOCKET_BUFFER;

	work.fd = socket(work.address.any.sa_family,
			 (work.tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
	if (work.fd < 0)
		quit(1, "socket: %s", strerror(errno));
	if (setsockopt(work.fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(work.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (setsockopt(work.fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0)
		quit(1, "SO_SNDTIMEO: %s", strerror(errno));
	if ((work.tcp || work.connected) &&
	    connect(work.fd, &work.address.any, work.address_size) < 0)
		quit(1, "connect %s port %lu: %s", work.address_text, work.port, strerror(errno));
}

static void derive(size_t message)
{
	if (work.masked)
		lab_message_unmask(slot(message), work.masked, work.masked_length, work.size);
	else
		lab_message_derive(slot(message), work.seed, message, work.size);
}

/* TCP may take a message in parts; `returned` is their sum, or -1 when it took nothing. */
static struct result send_message(size_t message)
{
	struct result result = { .size = work.size };
	size_t sent = 0;

	while (sent < work.size) {
		ssize_t size;

		if (work.tcp || work.connected)
			size = send(work.fd, slot(message) + sent, work.size - sent, 0);
		else
			size = sendto(work.fd, slot(message), work.size, 0, &work.address.any,
				      work.address_size);
		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0) {
			result.error = errno;
			break;
		}
		sent += size;
		if (!work.tcp)
			break;
	}
	result.returned = sent || !result.error ? (ssize_t)sent : -1;
	return result;
}

/* Returns how many messages were tried: a TCP stream that broke takes no more. */
static size_t send_all(void)
{
	size_t sent = 0, failed = 0, listed, i;
	unsigned long long bytes = 0;

	for (i = 0; i < work.count; i++) {
		struct result result;

		if (i >= work.slots)
			derive(i);
		result = send_message(i);
		if (i < LISTED)
			results[i] = result;
		if (result.returned > 0)
			bytes += result.returned;
		if (result.returned == (ssize_t)work.size)
			sent++;
		else
			failed++;
		if (work.tcp && result.error) {
			i++;
			break;
		}
	}
	say("sent {\"messages\":[");
	for (listed = 0; listed < i && listed < LISTED && room() > 256; listed++)
		say("%s{\"index\":%zu,\"slot\":%zu,\"size\":%u,\"returned\":%zd,\"errno\":%d}",
		    listed ? "," : "", listed, listed % work.slots, results[listed].size,
		    results[listed].returned, results[listed].error);
	say("],\"sent\":%zu,\"failed\":%zu,\"bytes\":%llu}", sent, failed, bytes);
	finish_step();
	return i;
}

int main(int argc, char **argv)
{
	size_t end, i;

	signal(SIGPIPE, SIG_IGN);
	read_arguments("sender", argc, argv);
	open_socket();
	work.buffer = heap_buffer(buffer_size());
	lock_memory();
	for (i = 0; i < work.slots; i++)
		derive(i);
	say_ready(&work.address);
	wait_go();
	end = send_all();
	wait_go();
	/* Slots not sent from hold the messages they were made for. */
	say_done(end < work.slots ? work.slots : end, NULL);
	return 0;
}
