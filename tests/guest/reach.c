// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a guest's kernel may send, sent: to reach anything that is not its link.
 *
 *	reach tcp ADDRESS PORT		connects; exit code 0: somebody answered
 *	reach udp ADDRESS PORT		sends a datagram with the mark, waits for an answer
 *	reach raw INTERFACE ADDRESS PORT	sends frames made by hand, to every station
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MARK	"skblab-reach-out"
#define WAIT_MS	1500

static int answered(int fd, short events)
{
	struct pollfd poller = { .fd = fd, .events = events };
	int err = 0;
	socklen_t len = sizeof(err);

	if (poll(&poller, 1, WAIT_MS) <= 0)
		return 0;
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
	return err == 0 && !(poller.revents & (POLLERR | POLLHUP));
}

static int plain(int type, const char *address, const char *port)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET,
		.sin_port = htons(atoi(port)),
		.sin_addr.s_addr = inet_addr(address),
	};
	int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS)
		return 1;
	if (type == SOCK_STREAM)
		return !answered(fd, POLLOUT);
	if (send(fd, MARK, strlen(MARK), 0) < 0)
		return 1;
	return !answered(fd, POLLIN);
}

static uint16_t sum(const uint8_t *data, size_t len)
{
	uint32_t total = 0;
	size_t i;

	for (i = 0; i + 1 < len; i += 2)
		total += data[i] << 8 | data[i + 1];
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return ~total;
}

/* Ethernet, IPv4 and UDP (17), TCP SYN (6) or ICMP echo (1), with the mark behind. */
static size_t make(uint8_t *frame, const uint8_t *station, uint8_t protocol, in_addr_t to, int port)
{
	uint8_t *ip = frame + 14, *body = ip + 20;
	size_t header = protocol == 6 ? 20 : 8, len = header + strlen(MARK);
	uint16_t check;

	memset(frame, 0, 14 + 20 + len);
	memcpy(frame, station, 6);
	memcpy(frame + 6, "\x52\x54\x00\x29\x01\x64", 6);
	memcpy(frame + 12, "\x08\x00", 2);
	ip[0] = 0x45;
	ip[2] = (20 + len) >> 8;
	ip[3] = 20 + len;
	ip[8] = 64;
	ip[9] = protocol;
	memcpy(ip + 12, "\x0a\x00\x02\x0f", 4);
	memcpy(ip + 16, &to, 4);
	check = sum(ip, 20);
	ip[10] = check >> 8;
	ip[11] = check;
	if (protocol == 1) {
		body[0] = 8;
	} else {
		body[0] = body[1] = 0x77;
		body[2] = port >> 8;
		body[3] = port;
		if (protocol == 17)
			body[5] = len;
		else
			memcpy(body + 12, "\x50\x02\xff\xff", 4);
	}
	memcpy(body + header, MARK, strlen(MARK));
	return 14 + 20 + len;
}

static int raw(const char *interface, const char *address, const char *port)
{
	static const uint8_t stations[][6] = {
		{ 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
		{ 0x52, 0x55, 0x0a, 0x00, 0x02, 0x02 },	/* slirp's gateway */
		{ 0x52, 0x54, 0x00, 0x12, 0x34, 0x56 },
		{ 0x01, 0x80, 0xc2, 0x00, 0x00, 0x00 },	/* bridges */
	};
	static const uint8_t protocols[] = { 1, 6, 17 };
	struct sockaddr_ll to = { .sll_family = AF_PACKET };
	uint8_t frame[256];
	unsigned int i, j, sent = 0;
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

	to.sll_ifindex = if_nametoindex(interface);
	for (i = 0; i < sizeof(stations) / 6; i++)
		for (j = 0; j < sizeof(protocols); j++) {
			size_t len = make(frame, stations[i], protocols[j], inet_addr(address),
					  atoi(port));

			if (sendto(fd, frame, len, 0, (struct sockaddr *)&to, sizeof(to)) > 0)
				sent++;
		}
	printf("%u\n", sent);
	return sent == 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "tcp"))
		return plain(SOCK_STREAM, argv[2], argv[3]);
	if (argc == 4 && !strcmp(argv[1], "udp"))
		return plain(SOCK_DGRAM, argv[2], argv[3]);
	if (argc == 5 && !strcmp(argv[1], "raw"))
		return raw(argv[2], argv[3], argv[4]);
	return 2;
}
