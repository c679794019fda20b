// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chain: holds fd 3 as one kind of socket after the other, so that somebody can look at what
 * the kernel hangs on it.
 *
 *	chain --port PORT
 *
 * At each case it asks for the peer's address, which is when a probe looks, says
 *
 *	held {"case":"udp-unconnected","pid":N,"fd":3,"errno":107}
 *
 * (the error of getpeername(), 0: it has a peer) and waits for "go".  Before the second case
 * it sends one datagram.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ASIDE 10 /* lowest descriptor of what is not looked at */
#define BODY "chain"

static struct sockaddr_in peer = { .sin_family = AF_INET };

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "chain: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int made(int type)
{
	int fd = socket(AF_INET, type, 0);

	if (fd < 0)
		fail("socket");
	return fd;
}

static void hold(const char *name, int fd)
{
	struct sockaddr_in found;
	socklen_t size = sizeof(found);
	char line[16];
	int error;

	error = getpeername(fd, (struct sockaddr *)&found, &size) ? errno : 0;
	printf("held {\"case\":\"%s\",\"pid\":%d,\"fd\":%d,\"errno\":%d}\n", name, getpid(), fd,
	       error);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin) || strcmp(line, "go\n")) {
		fprintf(stderr, "chain: expected go\n");
		exit(2);
	}
}

/* Somebody to connect to, out of the way of fd 3. */
static void listen_aside(void)
{
	int fd = made(SOCK_STREAM);

	if (bind(fd, (struct sockaddr *)&peer, sizeof(peer)))
		fail("bind");
	if (listen(fd, 1))
		fail("listen");
	if (fcntl(fd, F_DUPFD, ASIDE) < 0)
		fail("F_DUPFD");
	close(fd);
}

static void connected(int fd)
{
	if (connect(fd, (struct sockaddr *)&peer, sizeof(peer)))
		fail("connect");
}

int main(int argc, char **argv)
{
	int fd;

	if (argc != 3 || strcmp(argv[1], "--port") || atoi(argv[2]) < 1 || atoi(argv[2]) > 65535) {
		fprintf(stderr, "chain: expected --port PORT\n");
		return 2;
	}
	peer.sin_port = htons(atoi(argv[2]));
	peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listen_aside();

	fd = made(SOCK_DGRAM);
	hold("udp-unconnected", fd);
	/* Nobody is bound to that port with UDP, which is of no matter here. */
	if (sendto(fd, BODY, strlen(BODY), 0, (struct sockaddr *)&peer, sizeof(peer)) < 0)
		fail("sendto");
	hold("udp-unconnected-sent", fd);
	connected(fd);
	hold("udp-connected", fd);
	close(fd);

	fd = made(SOCK_STREAM);
	hold("tcp-unconnected", fd);
	connected(fd);
	hold("tcp-connected", fd);
	return 0;
}
