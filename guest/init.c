// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PID 1 of a lab guest: mounts, modules, the two netdevs, the agent; then it reaps.
 *
 * All by system calls, for under TCG a fork and exec costs more than everything it would do.
 * Nothing here may leave a frame on the lab link: the snapshot is taken right after, and a
 * measurement must find the link silent.  So no ARP, no DAD, no router solicitation.
 *
 * Kernel command line:
 *	lab.name=sender  lab.mac.lab=52:54:00:…  lab.mac.ssh=52:54:00:…
 *	lab.address=192.168.29.100/24  lab.peer=192.168.29.158  lab.peermac=52:54:00:…
 *	lab.modules=e1000e,…
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONSOLE		"/dev/console"
#define AGENT		"/sbin/lab-agent"
#define HOST_KEY	"/etc/dropbear/hostkey"
#define SSH_ADDRESS	"10.0.2.15/24"	/* what QEMU's user netdev expects of its guest */
#define NETDEV_WAIT_MS	5000		/* the netdevs are there in 10 ms where they exist at all */
#define QUEUE_PACKETS		16384	/* the longest burst of a playbook has 10,000 messages */
#define RESPAWN_WAIT_MS	200		/* an agent that dies at once must not eat the CPU */

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	int size;

	va_start(args, format);
	size = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (size < 0)
		return;
	if (size > (int)sizeof(line) - 2)
		size = sizeof(line) - 2;
	line[size++] = '\n';
	/* One write, so that kernel messages do not fall into the middle of the line. */
	if (write(STDERR_FILENO, line, size) < 0)
		return;
}

static void sleep_ms(long milliseconds)
{
	struct timespec wait = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	nanosleep(&wait, NULL);
}

/* Write one value to a file of /proc or /sys; an absent file is said and no more. */
static void set(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		say("skblab: %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* Return the text of a small file without its last newline, or NULL; the caller frees it. */
static char *slurp(const char *path)
{
	size_t room = 4096, used = 0;
	char *text = malloc(room);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = -1;

	while (fd >= 0 && text && (got = read(fd, text + used, room - used - 1)) > 0) {
		used += got;
		if (used + 1 == room) {
			char *larger = realloc(text, room *= 2);

			if (!larger)
				break;
			text = larger;
		}
	}
	if (fd >= 0)
		close(fd);
	if (got < 0 || !text) {
		free(text);
		return NULL;
	}
	while (used > 0 && text[used - 1] == '\n')
		used--;
	text[used] = '\0';
	return text;
}

/* ---- file systems ---- */

static void attach(const char *type, const char *path, unsigned long flags, const char *options)
{
	mkdir(path, 0755);
	if (mount(type, path, type, flags, options) < 0)
		say("skblab: mount %s on %s: %s", type, path, strerror(errno));
}

static void mount_all(void)
{
	const unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	attach("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	attach("proc", "/proc", plain, NULL);
	attach("sysfs", "/sys", plain, NULL);
	attach("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666");
	attach("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	attach("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	attach("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	attach("debugfs", "/sys/kernel/debug", plain, NULL);
	attach("tracefs", "/sys/kernel/tracing", plain, NULL);
	attach("bpf", "/sys/fs/bpf", plain, "mode=0700");
	if (symlink("/proc/self/fd", "/dev/fd") < 0 || symlink("fd/0", "/dev/stdin") < 0 ||
	    symlink("fd/1", "/dev/stdout") < 0 || symlink("fd/2", "/dev/stderr") < 0)
		say("skblab: links in /dev: %s", strerror(errno));
}

/* ---- modules ---- */

static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
		say("skblab: %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void load_list(const char *path)
{
	char *text = slurp(path), *rest = text, *line;

	if (!text) {
		say("skblab: %s: %s", path, strerror(errno));
		return;
	}
	while ((line = strsep(&rest, "\n")))
		if (*line)
			load_module(line);
	free(text);
}

/* `names`: comma-separated, each with its own list of what it needs, in order. */
static void load_more(char *names)
{
	char path[256], *name;

	while ((name = strsep(&names, ","))) {
		if (!*name || strchr(name, '/'))
			continue;
		snprintf(path, sizeof(path), "/etc/lab/modules.d/%s", name);
		load_list(path);
	}
}

/* ---- netdevs ---- */

struct address {
	struct in_addr four;
	struct in6_addr six;	/* fd29::<last octet of four> */
	int prefix;
};

static bool parse_address(const char *text, struct address *address)
{
	char copy[INET_ADDRSTRLEN + 4], *slash;

	memset(address, 0, sizeof(*address));
	if (!text || strlen(text) >= sizeof(copy))
		return false;
	strcpy(copy, text);
	slash = strchr(copy, '/');
	address->prefix = 32;
	if (slash) {
		*slash = '\0';
		address->prefix = atoi(slash + 1);
	}
	if (inet_pton(AF_INET, copy, &address->four) != 1)
		return false;
	address->six.s6_addr[0] = 0xfd;
	address->six.s6_addr[1] = 0x29;
	address->six.s6_addr[15] = ntohl(address->four.s_addr) & 0xff;
	return true;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
	return text && sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2],
			      &mac[3], &mac[4], &mac[5]) == 6;
}

struct request {
	struct nlmsghdr head;
	char body[256];
};

static void add_attribute(struct request *request, int type, const void *data, size_t size)
{
	struct rtattr *attribute = (void *)((char *)request + NLMSG_ALIGN(request->head.nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attribute), data, size);
	request->head.nlmsg_len = NLMSG_ALIGN(request->head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

static void *start_request(struct request *request, int type, size_t size)
{
	memset(request, 0, sizeof(*request));
	request->head.nlmsg_type = type;
	request->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
	request->head.nlmsg_len = NLMSG_LENGTH(size);
	return request->body;
}

/* Send a request and wait for the kernel's verdict on it. */
static void ask(int netlink, struct request *request, const char *what)
{
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		char room[512];
	} answer;

	if (send(netlink, request, request->head.nlmsg_len, 0) < 0 ||
	    recv(netlink, &answer, sizeof(answer), 0) < (ssize_t)NLMSG_LENGTH(sizeof(int)))
		say("skblab: %s: %s", what, strerror(errno));
	else if (answer.head.nlmsg_type == NLMSG_ERROR && answer.error.error)
		say("skblab: %s: %s", what, strerror(-answer.error.error));
}

static void add_address(int netlink, int index, int family, const void *bytes, int prefix)
{
	size_t size = family == AF_INET ? 4 : 16;
	struct request request;
	struct ifaddrmsg *address = start_request(&request, RTM_NEWADDR, sizeof(*address));

	address->ifa_family = family;
	address->ifa_prefixlen = prefix;
	address->ifa_flags = family == AF_INET6 ? IFA_F_NODAD : 0;
	address->ifa_index = index;
	add_attribute(&request, IFA_LOCAL, bytes, size);
	add_attribute(&request, IFA_ADDRESS, bytes, size);
	if (family == AF_INET) {
		struct in_addr broadcast;

		memcpy(&broadcast, bytes, size);
		broadcast.s_addr |= htonl(prefix < 32 ? ~0u >> prefix : 0);
		add_attribute(&request, IFA_BROADCAST, &broadcast, sizeof(broadcast));
	}
	ask(netlink, &request, "address");
}

static void add_neighbour(int netlink, int index, int family, const void *bytes, const uint8_t *mac)
{
	struct request request;
	struct ndmsg *neighbour = start_request(&request, RTM_NEWNEIGH, sizeof(*neighbour));

	neighbour->ndm_family = family;
	neighbour->ndm_ifindex = index;
	neighbour->ndm_state = NUD_PERMANENT;
	add_attribute(&request, NDA_DST, bytes, family == AF_INET ? 4 : 16);
	add_attribute(&request, NDA_LLADDR, mac, 6);
	ask(netlink, &request, "neighbour");
}

static void rename_link(int netlink, int index, const char *name)
{
	uint32_t queue = QUEUE_PACKETS;
	struct request request;
	struct ifinfomsg *link = start_request(&request, RTM_NEWLINK, sizeof(*link));

	request.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	link->ifi_index = index;
	add_attribute(&request, IFLA_IFNAME, name, strlen(name) + 1);
	add_attribute(&request, IFLA_TXQLEN, &queue, sizeof(queue));
	ask(netlink, &request, name);
}

static void set_flags(int netlink, int index, unsigned int flags)
{
	struct request request;
	struct ifinfomsg *link = start_request(&request, RTM_NEWLINK, sizeof(*link));

	request.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	link->ifi_index = index;
	link->ifi_flags = link->ifi_change = flags;
	ask(netlink, &request, "link up");
}

/* Return the index of the netdev with this MAC, waiting for it to appear, or 0. */
static int find_netdev(const char *mac)
{
	for (int waited = 0; waited <= NETDEV_WAIT_MS; waited += 10) {
		DIR *folder = opendir("/sys/class/net");
		struct dirent *entry;
		int index = 0;

		while (folder && !index && (entry = readdir(folder))) {
			char path[300], *found;

			if (entry->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/sys/class/net/%s/address", entry->d_name);
			found = slurp(path);
			if (found && strcasecmp(found, mac) == 0)
				index = if_nametoindex(entry->d_name);
			free(found);
		}
		if (folder)
			closedir(folder);
		if (index)
			return index;
		sleep_ms(10);
	}
	say("skblab: no netdev has the address %s", mac);
	return 0;
}

static void set_up_network(const char *lab_mac, const char *ssh_mac, const char *own,
			   const char *peer, const char *peer_mac)
{
	int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct address address, other;
	uint8_t mac[6];
	int index;

	if (netlink < 0) {
		say("skblab: netlink: %s", strerror(errno));
		return;
	}
	/*
	 * The kernel's default, fq_codel, drops what waited too long, and under emulation all
	 * does: a burst of messages would lose some between __dev_queue_xmit and the driver.
	 * Before the links are up: they take it then.
	 */
	set("/proc/sys/net/core/default_qdisc", "pfifo");
	set_flags(netlink, if_nametoindex("lo"), IFF_UP);
	if (lab_mac && (index = find_netdev(lab_mac))) {
		rename_link(netlink, index, "lab0");
		/*
		 * NOARP for good: the neighbours below are all there are, and it keeps an IPv6
		 * address out of its solicited-node group, which the kernel would report on the
		 * link at once and again up to a second later.
		 */
		set_flags(netlink, index, IFF_UP | IFF_NOARP);
		if (parse_address(own, &address)) {
			add_address(netlink, index, AF_INET, &address.four, address.prefix);
			add_address(netlink, index, AF_INET6, &address.six, 64);
		} else {
			say("skblab: lab.address: expected A.B.C.D/N, found %s", own ? own : "none");
		}
		if (parse_address(peer, &other) && parse_mac(peer_mac, mac)) {
			add_neighbour(netlink, index, AF_INET, &other.four, mac);
			add_neighbour(netlink, index, AF_INET6, &other.six, mac);
		} else {
			say("skblab: no lab.peer and lab.peermac");
		}
	}
	if (ssh_mac && (index = find_netdev(ssh_mac))) {
		rename_link(netlink, index, "ssh0");
		set_flags(netlink, index, IFF_UP);
		if (parse_address(SSH_ADDRESS, &address))
			add_address(netlink, index, AF_INET, &address.four, address.prefix);
	}
	close(netlink);
}

/* Before any netdev exists: each takes its own copy of these as it appears. */
static void silence_ipv6(void)
{
	set("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
	set("/proc/sys/net/ipv6/conf/default/dad_transmits", "0");
	set("/proc/sys/net/ipv6/conf/default/accept_ra", "0");
	set("/proc/sys/net/ipv6/conf/default/router_solicitations", "0");
	set("/proc/sys/net/ipv6/conf/default/autoconf", "0");
	set("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1");
}

/* ---- children ---- */

/* `quiet`: its output goes nowhere. */
static pid_t spawn(char *const argv[], const sigset_t *mask, bool quiet)
{
	pid_t pid = fork();

	if (pid == 0) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);

		setsid();
		if (null >= 0) {
			dup2(null, STDIN_FILENO);
			if (quiet) {
				dup2(null, STDOUT_FILENO);
				dup2(null, STDERR_FILENO);
			}
		}
		sigprocmask(SIG_SETMASK, mask, NULL);
		execv(argv[0], argv);
		say("skblab: %s: %s", argv[0], strerror(errno));
		_exit(127);
	}
	if (pid < 0)
		say("skblab: fork: %s", strerror(errno));
	return pid;
}

static pid_t start_agent(const sigset_t *mask)
{
	char *argv[] = { AGENT, NULL };

	return spawn(argv, mask, false);
}

static pid_t make_host_key(const sigset_t *mask)
{
	char *argv[] = { "/usr/bin/dropbearkey", "-t", "ed25519", "-f", HOST_KEY, NULL };

	return spawn(argv, mask, true);
}

/* Reap for ever; start the agent again when it ends; stop when busybox's tools say so. */
static void __attribute__((noreturn)) serve(const sigset_t *signals, const sigset_t *before,
					    pid_t agent, pid_t key)
{
	for (;;) {
		int status, number = sigwaitinfo(signals, NULL);
		pid_t pid;

		if (number == SIGUSR2 || number == SIGUSR1)
			reboot(RB_POWER_OFF);
		if (number == SIGTERM)
			reboot(RB_AUTOBOOT);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			if (pid == key && status)
				say("skblab: no SSH host key, dropbearkey: status 0x%x", status);
			if (pid != agent)
				continue;
			if (WIFSIGNALED(status))
				say("skblab: agent killed by signal %d, started again",
				    WTERMSIG(status));
			else
				say("skblab: agent exited with %d, started again",
				    WEXITSTATUS(status));
			sleep_ms(RESPAWN_WAIT_MS);
			agent = start_agent(before);
		}
	}
}

int main(void)
{
	char *name = "guest", *lab_mac = NULL, *ssh_mac = NULL, *own = NULL, *peer = NULL;
	char *peer_mac = NULL, *modules = NULL, *line, *rest, *word;
	const struct {
		const char *key;
		char **value;
	} words[] = {
		{ "lab.name=", &name },		{ "lab.mac.lab=", &lab_mac },
		{ "lab.mac.ssh=", &ssh_mac },	{ "lab.address=", &own },
		{ "lab.peer=", &peer },		{ "lab.peermac=", &peer_mac },
		{ "lab.modules=", &modules },
	};
	sigset_t signals, before;
	pid_t agent, key;

	if (getpid() != 1) {
		say("skblab: init: must be process 1 of a guest");
		return 1;
	}
	/* Children get their signals as they were; ours wait for sigwaitinfo(). */
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGUSR2);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, &before);
	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	unsetenv("TERM");
	umask(022);

	mount_all();
	line = rest = slurp("/proc/cmdline");
	while (rest && (word = strsep(&rest, " \n")))
		for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
			if (strncmp(word, words[i].key, strlen(words[i].key)) == 0)
				*words[i].value = word + strlen(words[i].key);
	if (!line)
		say("skblab: /proc/cmdline: %s", strerror(errno));
	if (sethostname(name, strlen(name)) < 0)
		say("skblab: hostname %s: %s", name, strerror(errno));

	set("/proc/sys/kernel/panic_on_oops", "0");
	set("/proc/sys/kernel/kptr_restrict", "0");
	set("/proc/sys/kernel/perf_event_paranoid", "-1");
	silence_ipv6();

	load_list("/etc/lab/modules");
	if (modules)
		load_more(modules);
	set_up_network(lab_mac, ssh_mac, own, peer, peer_mac);

	agent = start_agent(&before);
	say("skblab: init done %s", name);
	key = make_host_key(&before);
	/* Where the image has it: not where the kernel would run it all through its boot. */
	set("/proc/sys/kernel/modprobe", "/usr/bin/modprobe");
	serve(&signals, &before, agent, key);
}
