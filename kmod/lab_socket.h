/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the hooks on the way of socket(2) record. */
#ifndef LAB_SOCKET_H
#define LAB_SOCKET_H

#include "lab_probe.h"

/* Calls of one task do not nest; the rest is for tasks that are skipped meanwhile. */
#define SOCKET_CALLS_AT_ONCE	32

/* The arguments as they were at entry, what came back, and whether a signal is pending. */
void lab_fill_args(struct lab_event *event, const struct lab_args *args);
/* A socket, its sock, and the sock's way back. */
void lab_fill_socket(struct lab_event *event, u64 socket);
/* A file, and the socket that its private_data is. */
void lab_fill_file(struct lab_event *event, u64 file);

/* Fill functions: the arguments and no more. */
bool lab_args_only(struct lab_event *event, struct lab_args *args);

#endif /* LAB_SOCKET_H */
