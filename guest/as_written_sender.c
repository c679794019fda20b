// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The worksheet's sender, written anew from its text: a message in .rodata, one sendto(),
 * and words for whoever sits at the terminal.  Its own words are not in the worksheet, only
 * that they were 22, 1 and 37 bytes long; so are these.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char MESSAGE[] = "HELLO_SEND_TRACE";

int main(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9999) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	ssize_t sent;

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	printf("Sender PID: %-9d\n", getpid());
	printf("\n");
	sent = sendto(fd, MESSAGE, strlen(MESSAGE), 0, (struct sockaddr *)&to, sizeof(to));
	printf("Sent %zd bytes to 127.0.0.1 port 9999\n", sent);
	return sent < 0;
}
