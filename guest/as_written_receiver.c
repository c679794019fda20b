// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The worksheet's receiver, written anew from its text: 64 bytes on the stack, one recv().
 * Linked dynamically, as gcc does it when nobody says otherwise: the loader's reads are
 * part of what its author saw.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(9999) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	char recv_buf[64] = { 0 };
	ssize_t got, i;

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		return 1;
	got = recv(fd, recv_buf, sizeof(recv_buf) - 1, 0);
	if (got < 0)
		return 1;
	printf("PID: %d\nrecv_buf VA: %p\nBytes received: %zd\nContent: \"%s\"\nHex:",
	       getpid(), (void *)recv_buf, got, recv_buf);
	for (i = 0; i < got; i++)
		printf(" %02x", (unsigned char)recv_buf[i]);
	printf("\n");
	return 0;
}
