/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What access.c uses of QEMU's TCG plugin interface, declared by ourselves: Debian ships
 * no header for it.  Only functions whose form did not change between version 1 of the
 * interface (QEMU 7.2) and the versions of QEMU 10.0 are used, so that one source serves
 * both.  QEMU refuses a plugin whose qemu_plugin_version it does not know.
 *
 * Not used, on purpose: instruction bytes (their function changed its form in version 3),
 * registers (none in version 1) and values of accesses (version 4; read from the RAM file
 * instead).
 */
#ifndef LAB_PLUGIN_ABI_H
#define LAB_PLUGIN_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef LAB_PLUGIN_API
#error "LAB_PLUGIN_API: 1 for QEMU 7 and 8, 2 for QEMU 9 and 10"
#endif

#define LAB_EXPORT __attribute__((visibility("default")))

/* Passed by value where a callback is registered: only their numbers matter. */
enum {
	LAB_CB_NO_REGS = 0,
	LAB_MEM_READ = 1,
	LAB_MEM_WRITE = 2,
	LAB_MEM_BOTH = LAB_MEM_READ | LAB_MEM_WRITE,
};

typedef uint64_t lab_plugin_id;
typedef uint32_t lab_meminfo;

struct lab_tb;
struct lab_insn;
struct lab_hwaddr;

/* The start of what install() is told; the rest is not looked at. */
struct lab_info {
	const char *target_name;
	int api_min;
	int api_now;
	bool system_emulation;
};

typedef void (*lab_simple_cb)(lab_plugin_id id);
typedef void (*lab_vcpu_cb)(lab_plugin_id id, unsigned int vcpu);
typedef void (*lab_trans_cb)(lab_plugin_id id, struct lab_tb *tb);
typedef void (*lab_mem_cb)(unsigned int vcpu, lab_meminfo info, uint64_t virtual, void *data);

/* What QEMU looks up in the plugin. */
extern LAB_EXPORT int qemu_plugin_version;
LAB_EXPORT int qemu_plugin_install(lab_plugin_id id, const struct lab_info *info, int argc,
				   char **argv);

/* What the plugin looks up in QEMU. */
void qemu_plugin_reset(lab_plugin_id id, lab_simple_cb done);
void qemu_plugin_register_vcpu_idle_cb(lab_plugin_id id, lab_vcpu_cb callback);
void qemu_plugin_register_vcpu_resume_cb(lab_plugin_id id, lab_vcpu_cb callback);
void qemu_plugin_register_vcpu_tb_trans_cb(lab_plugin_id id, lab_trans_cb callback);
size_t qemu_plugin_tb_n_insns(const struct lab_tb *tb);
struct lab_insn *qemu_plugin_tb_get_insn(const struct lab_tb *tb, size_t index);
size_t qemu_plugin_insn_size(const struct lab_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct lab_insn *insn);
void qemu_plugin_register_vcpu_mem_cb(struct lab_insn *insn, lab_mem_cb callback, int flags,
				      int direction, void *data);
unsigned int qemu_plugin_mem_size_shift(lab_meminfo info);
bool qemu_plugin_mem_is_store(lab_meminfo info);
struct lab_hwaddr *qemu_plugin_get_hwaddr(lab_meminfo info, uint64_t virtual);
bool qemu_plugin_hwaddr_is_io(const struct lab_hwaddr *address);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct lab_hwaddr *address);

#endif
