"""The access log: the plugin against a fake QEMU, its file, its switch, its filter."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab import access, paths, witness
from lab.access import Control, Flag, State, encode_log, switch
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, GuestLost, HostError, TraceCorrupt
from lab.guest import Guest
from lab.message import Messages

WITNESS = paths.data() / "witness"
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{WITNESS}"]
PLUGIN_FLAGS = [*FLAGS, "-fPIC", "-shared", "-fvisibility=hidden"]
MESSAGES = Messages(seed=0x29, size=40, count=2)
TEXTS = [MESSAGES.bytes(index) for index in range(2)]
DIRECT = 0xFFFF_8881_0000_0000  # where cooked addresses lie; physical is the low 28 bits

# Knows the functions of QEMU that the plugin calls, and does what its stdin says.
FAKE_QEMU = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include "plugin_abi.h"

struct lab_insn { uint64_t ip; size_t size; };
struct lab_tb { struct lab_insn insn; };
struct lab_hwaddr { uint64_t phys; bool io; };
static lab_vcpu_cb idle;
static lab_trans_cb translate;
static lab_mem_cb on_memory;
static void *on_memory_data;
static unsigned int vcpu;

void qemu_plugin_reset(lab_plugin_id id, lab_simple_cb done)
{
	idle = NULL;
	translate = NULL;
	done(id);
}
void qemu_plugin_register_vcpu_idle_cb(lab_plugin_id id, lab_vcpu_cb cb) { (void)id; idle = cb; }
void qemu_plugin_register_vcpu_resume_cb(lab_plugin_id id, lab_vcpu_cb cb) { (void)id; (void)cb; }
void qemu_plugin_register_vcpu_tb_trans_cb(lab_plugin_id id, lab_trans_cb cb)
{ (void)id; translate = cb; }
size_t qemu_plugin_tb_n_insns(const struct lab_tb *tb) { (void)tb; return 1; }
struct lab_insn *qemu_plugin_tb_get_insn(const struct lab_tb *tb, size_t index)
{ (void)index; return (struct lab_insn *)&tb->insn; }
size_t qemu_plugin_insn_size(const struct lab_insn *insn) { return insn->size; }
uint64_t qemu_plugin_insn_vaddr(const struct lab_insn *insn) { return insn->ip; }
void qemu_plugin_register_vcpu_mem_cb(struct lab_insn *insn, lab_mem_cb cb, int flags,
	int direction, void *data)
{ (void)insn; (void)flags; (void)direction; on_memory = cb; on_memory_data = data; }
unsigned int qemu_plugin_mem_size_shift(lab_meminfo info) { return info >> 8; }
bool qemu_plugin_mem_is_store(lab_meminfo info) { return info & 1; }
struct lab_hwaddr *qemu_plugin_get_hwaddr(lab_meminfo info, uint64_t virt)
{
	static struct lab_hwaddr address;

	address.phys = virt & 0xfffffff;
	address.io = info & 2;
	return info & 4 ? NULL : &address;
}
bool qemu_plugin_hwaddr_is_io(const struct lab_hwaddr *a) { return a->io; }
uint64_t qemu_plugin_hwaddr_phys_addr(const struct lab_hwaddr *a) { return a->phys; }

int main(int argc, char **argv)
{
	struct lab_info info = { "x86_64", LAB_PLUGIN_API, LAB_PLUGIN_API, true };
	int (*install)(lab_plugin_id, const struct lab_info *, int, char **);
	void *plugin = dlopen(argv[1], RTLD_NOW);
	int fd = open(argv[2], O_RDWR);
	uint8_t *ram = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unsigned long long virt, ip;
	unsigned int length, what, shift;
	char line[4096], hex[2048];

	if (!plugin)
		return fprintf(stderr, "%s\n", dlerror()), 2;
	if (*(int *)dlsym(plugin, "qemu_plugin_version") != LAB_PLUGIN_API)
		return 3;
	*(void **)&install = dlsym(plugin, "qemu_plugin_install");
	if (install(7, &info, argc - 3, argv + 3))
		return 4;
	while (fgets(line, sizeof(line), stdin)) {
		hex[0] = 0;
		if (!strncmp(line, "idle", 4)) {
			idle(7, vcpu);
			printf("%s\n", translate ? "armed" : "asleep");
			fflush(stdout);
		} else if (sscanf(line, "vcpu %u", &vcpu) == 1) {
		} else if (sscanf(line, "at %llx %u %llx %u %u %2047s", &ip, &length, &virt, &shift,
			&what, hex) >= 5) {
			struct lab_tb tb = { { ip, length } };

			for (unsigned int i = 0; hex[2 * i]; i++)
				sscanf(hex + 2 * i, "%2hhx", ram + (virt & 0xfffff) + i);
			on_memory = NULL;
			if (translate)
				translate(7, &tb);
			if (on_memory)
				on_memory(vcpu, shift << 8 | what, virt, on_memory_data);
		}
	}
	return 0;
}
"""


def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


@pytest.fixture(scope="module", params=[1, 2])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the plugin and the fake QEMU, for one version of the interface."""
    folder = tmp_path_factory.mktemp("witness")
    api = f"-DLAB_PLUGIN_API={request.param}"
    (folder / "fake.c").write_text(FAKE_QEMU)
    for argv in (
        [*PLUGIN_FLAGS, api, "-o", "access.so", str(WITNESS / "access.c")],
        [*FLAGS, "-rdynamic", api, "-o", "fake", "fake.c", "-ldl"],
    ):
        subprocess.run([compiler(), *argv], cwd=folder, check=True, timeout=60)
    return folder


class FakeQemu:
    """A process with the plugin in it, told which instruction accesses what."""

    def __init__(self, built: Path, folder: Path) -> None:
        self.ram = folder / "ram"
        self.ram.write_bytes(bytes(1 << 20))
        self.path = folder / "log"
        self.control = Control.create(self.path)
        argument = access.plugin_argument(built / "access.so", log=self.path, ram=self.ram)
        so, *given = argument.split(",")
        self.process = subprocess.Popen(
            [built / "fake", so, self.ram, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: self.control.state is not State.ABSENT, what="it", deadline=Deadline(10))

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def idle(self) -> str:
        """Let the vCPU idle; return what the plugin is then."""
        assert self.process.stdout is not None
        self.say("idle")
        return self.process.stdout.readline().strip()

    def arm(self) -> None:
        self.control.arm(deadline=Deadline(10), poke=self.idle)

    def disarm(self) -> access.AccessLog:
        self.idle()  # it has done all it was told by now
        self.control.disarm(deadline=Deadline(10), poke=self.idle)
        target = self.path.with_suffix(".raw")
        target.write_bytes(self.control.raw())
        return access.read(target, guest="g")

    def at(self, ip: int, length: int, virt: int, data: bytes, *, store: bool = False) -> None:
        """Access `data`: loads find it there."""
        shift = len(data).bit_length() - 1
        self.say(f"at {ip:x} {length} {virt:x} {shift} {int(store)} {data.hex()}")

    def call(self, ip: int, slot: int) -> None:
        self.at(ip, 5, slot, struct.pack("<Q", ip + 5), store=True)

    def ret(self, ip: int, slot: int, back: int) -> None:
        self.at(ip, 1, slot, struct.pack("<Q", back))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()
        self.control.close()


@pytest.fixture
def qemu(built: Path, tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(built, tmp_path)
    try:
        yield fake
    finally:
        fake.close()


# --- The plugin -----------------------------------------------------------------------------


def test_asleep_it_asks_for_nothing_and_logs_nothing(qemu: FakeQemu) -> None:
    qemu.at(0x1000, 3, DIRECT, b"12345678")

    assert "asleep" == qemu.idle()
    assert 0 == qemu.control.header().accesses


def test_a_bytewise_copy_is_one_run_of_loads_and_one_of_stores(qemu: FakeQemu) -> None:
    qemu.arm()
    for at in range(16):
        qemu.at(0x1000, 2, DIRECT + 0x100 + at, TEXTS[0][at : at + 1])
        qemu.at(0x1000, 2, DIRECT + 0x2100 + at, TEXTS[0][at : at + 1], store=True)
    load, store = qemu.disarm().records

    assert (TEXTS[0][:16], False, 16, 1, 31) == (
        load.bytes, load.store, load.count, load.first, load.last
    )  # fmt: skip
    assert (TEXTS[0][:16], True, 16, 2, 32) == (
        store.bytes, store.store, store.count, store.first, store.last
    )  # fmt: skip
    assert (0x100, 0x2100) == (load.physical, store.physical)
    assert (1, 1) == (load.narrowest, load.widest)


def test_a_run_grows_downwards_and_over_bytes_that_agree(qemu: FakeQemu) -> None:
    qemu.arm()
    for at in (16, 8, 12, 0):
        qemu.at(0x1000, 3, DIRECT + at, TEXTS[0][at : at + 8])
    (run,) = qemu.disarm().records

    assert (TEXTS[0][:24], 4) == (run.bytes, run.count)


def test_a_byte_that_changed_begins_a_run_of_its_own(qemu: FakeQemu) -> None:
    qemu.arm()
    qemu.at(0x1000, 3, DIRECT, b"before..")
    qemu.at(0x1000, 3, DIRECT, b"after...")
    records = qemu.disarm().records

    assert [b"before..", b"after..."] == [record.bytes for record in records]


def test_an_access_across_pages_is_two_records(qemu: FakeQemu) -> None:
    qemu.arm()
    qemu.at(0x1000, 3, DIRECT + 0xFFD, b"abcdefgh")
    left, right = qemu.disarm().records

    assert (b"abc", 0xFFD, 1) == (left.bytes, left.physical, left.count)
    assert (b"defgh", 0x1000, 0) == (right.bytes, right.physical, right.count)
    assert Flag.SPLIT in right.flags


def test_a_device_register_and_foreign_memory_have_no_bytes(qemu: FakeQemu) -> None:
    qemu.arm()
    qemu.say(f"at 1000 3 {DIRECT:x} 2 2")  # I/O
    qemu.say(f"at 1000 3 {DIRECT + 0xFF0_0000:x} 2 0")  # beyond the 1 MiB of RAM
    qemu.say(f"at 1000 3 {DIRECT:x} 2 4")  # QEMU knows no address
    records = qemu.disarm().records

    assert [Flag.IO, Flag.OUTSIDE, Flag.OUTSIDE] == [record.flags for record in records]
    assert [b"", b"", b""] == [record.bytes for record in records]


def test_callers_are_named_until_they_are_returned_to(qemu: FakeQemu) -> None:
    stack = DIRECT + 0x8000
    qemu.arm()
    qemu.call(0x1000, stack + 0x100)  # 0x1000 calls outer, which calls inner twice
    qemu.call(0x2000, stack + 0x80)
    qemu.at(0x3000, 4, DIRECT, b"in inner")
    qemu.ret(0x3010, stack + 0x80, 0x2005)
    qemu.at(0x2010, 4, DIRECT + 0x100, b"in outer")
    qemu.call(0x2020, stack + 0x80)
    qemu.at(0x3000, 4, DIRECT + 8, b"in inner")
    log = qemu.disarm()
    first, outer, second = log.records

    assert (0x2005, 0x1005, 0) == first.callers
    assert (0x1005, 0, 0) == outer.callers
    assert (0x2025, 0x1005, 0) == second.callers
    assert 3 == len({first.call, outer.call, second.call})  # so they were not merged
    assert 4 == log.header.calls


def test_a_stack_that_was_cut_back_forgets_its_callers(qemu: FakeQemu) -> None:
    stack = DIRECT + 0x8000
    qemu.arm()
    qemu.call(0x1000, stack + 0x100)
    qemu.call(0x2000, stack + 0x80)
    qemu.at(0x3000, 1, stack + 0x90, struct.pack("<Q", 0))  # a pop above the inner slot
    qemu.at(0x3001, 4, DIRECT, b"where am")
    *_, record = sorted(qemu.disarm().records, key=lambda record: record.first)

    assert (0x1005, 0, 0) == record.callers


def test_looking_at_a_return_address_is_no_return(qemu: FakeQemu) -> None:
    stack = DIRECT + 0x8000
    qemu.arm()
    qemu.call(0x1000, stack + 0x100)
    qemu.at(0x2000, 4, stack + 0x100, struct.pack("<Q", 0x1005))  # mov (%rsp),%rdi
    qemu.at(0x2004, 4, DIRECT, b"still in")
    look, inside = qemu.disarm().records

    assert struct.pack("<Q", 0x1005) == look.bytes
    assert (0x1005, 0, 0) == inside.callers


def test_an_interrupt_between_does_not_end_the_call_it_came_into(qemu: FakeQemu) -> None:
    stack = DIRECT + 0x8000
    qemu.arm()
    qemu.call(0x1000, stack + 0x100)
    qemu.at(0x2000, 4, DIRECT, b"01234567")
    qemu.at(0x2000, 4, stack + 0xC0, struct.pack("<Q", 0x2004), store=True)  # pushed by the CPU
    qemu.call(0x9000, stack + 0xA8)
    qemu.at(0x9100, 4, DIRECT + 0x800, b"handler.")
    qemu.ret(0x9110, stack + 0xA8, 0x9005)
    qemu.at(0x9010, 2, stack + 0xC0, struct.pack("<Q", 0x2004))  # iretq
    qemu.at(0x2004, 4, DIRECT + 8, b"89abcdef")
    run, handler = qemu.disarm().records

    assert b"0123456789abcdef" == run.bytes
    assert (0x9005, 0x2004, 0x1005) == handler.callers


KERNEL = 0xFFFF_FFFF_8100_0000


@pytest.mark.parametrize("emulated", [True, False])
def test_a_call_that_a_probe_makes_in_its_place_is_one(qemu: FakeQemu, *, emulated: bool) -> None:
    """A kprobe on a call: its handler stores the return address, iretq goes to who is called."""
    stack, slot = DIRECT + 0x8000, DIRECT + 0x80F8
    back, called = KERNEL + 0x2005, KERNEL + 0x5000
    frame = stack + 0x98
    qemu.arm()
    qemu.call(KERNEL, stack + 0x100)  # of the caller, which holds a probed call at 0x2000
    qemu.at(KERNEL + 0x2000, 3, frame, struct.pack("<Q", KERNEL + 0x2001), store=True)  # int3
    qemu.call(KERNEL + 0x9000, stack + 0x90)
    if emulated:
        qemu.at(KERNEL + 0x9100, 4, slot, struct.pack("<Q", back), store=True)
    qemu.ret(KERNEL + 0x9110, stack + 0x90, KERNEL + 0x9005)
    for at, word in enumerate((called, 0x10, 0x202, slot, 0x18)):
        qemu.at(KERNEL + 0x9010, 2, frame + 8 * at, struct.pack("<Q", word))
    qemu.at(called, 4, DIRECT, b"memcpy()")
    if emulated:
        qemu.ret(called + 4, slot, back)
    qemu.at(back, 4, DIRECT + 0x100, b"goes on.")
    # Loads are written out as their run ends: by place, since the frame's words are in between.
    by_place = {one.physical: one.callers for one in qemu.disarm().records}

    outer = (KERNEL + 5, 0, 0)
    assert ((back, KERNEL + 5, 0) if emulated else outer) == by_place[DIRECT & 0xFFFFFFF]
    assert outer == by_place[(DIRECT + 0x100) & 0xFFFFFFF]


def test_a_return_address_that_a_probe_replaces_is_no_call(qemu: FakeQemu) -> None:
    """A kretprobe: its handler, at the function's first byte, puts its own address there."""
    slot = DIRECT + 0x80F8
    qemu.arm()
    qemu.call(KERNEL, slot + 0x40)
    qemu.call(KERNEL + 0x100, slot)
    qemu.at(KERNEL + 0x9100, 4, slot, struct.pack("<Q", KERNEL + 0xABCD), store=True)
    for at, word in enumerate((KERNEL + 0x5001, 0x10, 0x202, slot, 0x18)):
        qemu.at(KERNEL + 0x9010, 2, slot - 0x60 + 8 * at, struct.pack("<Q", word))
    qemu.at(KERNEL + 0x5001, 4, DIRECT, b"memcpy()")
    callers = {one.physical: one.callers for one in qemu.disarm().records}

    assert (KERNEL + 0x105, KERNEL + 5, 0) == callers[DIRECT & 0xFFFFFFF]


def test_vcpus_do_not_share_runs(qemu: FakeQemu) -> None:
    qemu.arm()
    qemu.at(0x1000, 3, DIRECT, b"01234567")
    qemu.say("vcpu 1")
    qemu.at(0x1000, 3, DIRECT + 8, b"89abcdef")
    records = qemu.disarm().records

    assert [(0, b"01234567"), (1, b"89abcdef")] == [(r.vcpu, r.bytes) for r in records]


def test_what_finds_no_room_is_counted(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.access.switch.RECORDS", 3)
    fake = FakeQemu(built, tmp_path)
    try:
        fake.arm()
        for at in range(5):
            fake.at(0x1000, 3, DIRECT + 0x100 * at, b"01234567")
        log = fake.disarm()
    finally:
        fake.close()

    assert (3, 2, 5) == (len(log.records), log.lost, log.header.accesses)
    assert not log.complete


def test_a_second_window_begins_empty(qemu: FakeQemu) -> None:
    qemu.arm()
    qemu.at(0x1000, 3, DIRECT, b"first...")
    assert 1 == len(qemu.disarm().records)
    qemu.arm()
    log = qemu.disarm()

    assert () == log.records
    assert log.complete
    assert "asleep" == qemu.idle()


def test_its_memory_can_be_given_back(qemu: FakeQemu) -> None:
    qemu.arm()
    qemu.at(0x1000, 3, DIRECT, b"01234567")
    qemu.disarm()
    assert qemu.path.stat().st_blocks * 512 > access.HEADER_SIZE
    try:
        qemu.control.release()
    except OSError:
        pytest.skip("needs a file system with holes that can be made, as tmpfs")

    assert access.HEADER_SIZE >= qemu.path.stat().st_blocks * 512
    assert State.ASLEEP is qemu.control.state


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log={log}"], "expected log=FILE and ram=FILE"),
        (["log={log}", "ram={ram}", "speed=1"], "expected log=FILE or ram=FILE"),
        (["log={log}", "ram={log}x"], "No such file"),
        (["log={ram}", "ram={ram}"], "not a log of this version"),
        (["log={short}", "ram={ram}"], "smaller than it says"),
    ],
)
def test_it_refuses_what_it_cannot_use(
    built: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    names = {"log": tmp_path / "log", "ram": tmp_path / "ram", "short": tmp_path / "short"}
    Control.create(names["log"]).close()
    names["ram"].write_bytes(bytes(1 << 20))
    names["short"].write_bytes(access.encode_header(capacity=9, content_capacity=9) + bytes(100))
    given = [argument.format(**names) for argument in arguments]
    done = subprocess.run(
        [built / "fake", built / "access.so", names["ram"], *given],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )

    assert 4 == done.returncode
    assert said in done.stderr


# --- The layout -----------------------------------------------------------------------------


def test_the_header_file_says_the_same(tmp_path: Path) -> None:
    constants = {
        "LAB_ACCESS_MAGIC": access.MAGIC,
        "LAB_ACCESS_VERSION": access.VERSION,
        "LAB_ACCESS_HEADER_SIZE": access.HEADER_SIZE,
        "LAB_ACCESS_ARM": 1,
        **{f"LAB_ACCESS_{state.name}": state.value for state in State},
        **{f"LAB_ACCESS_{flag.name}": flag.value for flag in Flag},
        "sizeof(struct lab_access_header)": access.HEADER_LAYOUT.size,
        "sizeof(struct lab_access)": access.RECORD_LAYOUT.size,
    }
    for name, fields in (
        ("lab_access_header", access.HEADER_FIELDS),
        ("lab_access", access.RECORD_FIELDS),
    ):
        at = 0
        for field, code in fields:
            constants[f"offsetof(struct {name}, {field})"] = at
            constants[f"sizeof(((struct {name} *)0)->{field})"] = struct.calcsize("<" + code)
            at += struct.calcsize("<" + code)
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        '#include "access_log.h"',
        "int main(void) {",
        *(f'printf("{code}=%llu\\n", (unsigned long long)({code}));' for code in constants),
        "return 0; }",
    ]
    (tmp_path / "layout.c").write_text("\n".join(lines))
    argv = [compiler(), *FLAGS, "-Wpadded", "-o", "layout", "layout.c"]
    subprocess.run(argv, cwd=tmp_path, check=True, timeout=60)
    done = subprocess.run(
        [tmp_path / "layout"], check=True, capture_output=True, text=True, timeout=10
    )
    found = {
        key: int(value) for key, value in (x.rsplit("=", 1) for x in done.stdout.split("\n") if x)
    }

    assert constants == found


@pytest.mark.parametrize(
    ("version", "api"),
    [("7.2.22 (Debian 1:7.2+dfsg-7)", 1), ("8.2.0", 1), ("9.0.1", 2), ("10.0.2 (Debian)", 2)],
)
def test_the_interface_follows_qemus_version(version: str, api: int) -> None:
    assert api == access.plugin_api(version)


@pytest.mark.parametrize("version", ["7.1.0", "5.2", "11.0.0", "unknown"])
def test_a_qemu_nobody_tried_is_refused_with_a_reason(version: str) -> None:
    with pytest.raises(HostError, match=version.partition(".")[0]):
        access.plugin_api(version)


def test_a_path_with_a_comma_is_refused() -> None:
    with pytest.raises(HostError, match="a,b"):
        access.plugin_argument("x.so", log=Path("a,b"), ram=Path("ram"))


# --- Reading --------------------------------------------------------------------------------


def record(virt: int, data: bytes, *, store: bool = False, **more: Any) -> dict[str, Any]:
    return {"virt": DIRECT + virt, "bytes": data, "store": store, **more}


GOOD = encode_log([record(0x10, b"01234567"), record(0x2010, b"01234567", store=True)])


def read(folder: Path, data: bytes) -> access.AccessLog:
    path = folder / "access.bin"
    path.write_bytes(data)
    return access.read(path, guest="receiver")


def test_a_log_is_read_as_written(tmp_path: Path) -> None:
    log = read(tmp_path, GOOD)
    load, store = log.records

    assert (0x10, DIRECT + 0x10, b"01234567", False) == (
        load.physical, load.virtual, load.bytes, load.store
    )  # fmt: skip
    assert store.store
    assert "receiver/access.bin#1" == store.id
    assert log.complete
    assert [store] == list(log.touching(0x2017, 0x2018))
    assert [] == list(log.touching(0x2018, 0x3000))


def test_a_tsc_becomes_host_time(tmp_path: Path) -> None:
    log = read(tmp_path, GOOD)

    assert [500, 500_500, 250_500] == [log.host_ns(tsc) for tsc in (1000, 1_001_000, 501_000)]


@pytest.mark.parametrize("size", [0, 100, 4095, 4096, 4096 + 88, 4096 + 175, len(GOOD) - 1])
def test_a_log_cut_short_is_corrupt(tmp_path: Path, size: int) -> None:
    with pytest.raises(TraceCorrupt, match=r"receiver/access.bin: offset \d+: .*expected.*found"):
        read(tmp_path, GOOD[:size])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("magic", 1),
        ("version", 2),
        ("header_size", 100),
        ("record_size", 80),
        ("state", 3),
        ("records", 3),
        ("content", 17),
        ("logged", 1),
        ("accesses", 1),
    ],
)
def test_a_header_that_no_plugin_writes_is_corrupt(tmp_path: Path, field: str, value: int) -> None:
    at = access.OFFSETS[field]
    code = dict(access.HEADER_FIELDS)[field]
    data = GOOD[:at] + struct.pack("<" + code, value) + GOOD[at + struct.calcsize(code) :]

    with pytest.raises(TraceCorrupt, match=f"{field}|content"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"flags": 16}, "flags"),
        ({"size": 0}, "size"),
        ({"virt": DIRECT + 0xFFC, "phys": 0xFFC}, "size"),
        ({"first": 0, "last": 3}, "first"),
        ({"first": 9, "last": 3}, "first"),
        ({"count": 0}, "count"),
        ({"phys": 0x11}, "phys"),
        ({"content": 1}, "content"),
    ],
)
def test_a_record_that_no_plugin_writes_is_corrupt(
    tmp_path: Path, fault: dict[str, Any], named: str
) -> None:
    with pytest.raises(TraceCorrupt, match=f"offset 4096: {named}: expected .* found"):
        read(tmp_path, encode_log([{**record(0x10, b"01234567"), **fault}]))


def test_garbage_is_corrupt_and_never_another_error(tmp_path: Path) -> None:
    chance = random.Random(4)
    for _ in range(300):
        data = bytearray(GOOD)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read(tmp_path, bytes(data[: chance.randint(0, len(data))]))
        except TraceCorrupt:
            continue


def test_a_window_that_is_open_or_lossy_is_not_complete(tmp_path: Path) -> None:
    for fault in ({"state": State.ARMED}, {"slept_ns": 0}, {"lost": 1}, {"left_out": 1}):
        assert not read(tmp_path, encode_log([], **fault)).complete


# --- Filtering ------------------------------------------------------------------------------


def kept(folder: Path, records: list[dict[str, Any]], **more: Any) -> list[access.Access]:
    texts = more.pop("texts", TEXTS)
    needle = more.pop("needle", MESSAGES.needle())
    return list(
        read(folder, access.keep(encode_log(records), texts, needle=needle, **more)).records
    )


def test_a_run_that_holds_a_message_is_kept_whole(tmp_path: Path) -> None:
    header = b"HEADERS!"
    found = kept(
        tmp_path,
        [
            record(0x10, b"nothing of ours"),
            record(0x1000, header + TEXTS[1], ip=0x77, caller=(1, 2)),
        ],
    )

    assert [(header + TEXTS[1], 0x77, (1, 2, 0))] == [
        (r.bytes, r.instruction, r.callers) for r in found
    ]


@pytest.mark.parametrize("needle", [MESSAGES.needle(), None])
@pytest.mark.parametrize("at", [0, 3, 8, 11, 24, 32])
def test_eight_bytes_in_a_row_are_enough(tmp_path: Path, at: int, needle: bytes | None) -> None:
    found = kept(tmp_path, [record(0x1000, TEXTS[0][at : at + 8])], needle=needle)

    assert 1 == len(found)


@pytest.mark.parametrize("at", [0, 3, 8, 33])
def test_seven_are_not(tmp_path: Path, at: int) -> None:
    assert [] == kept(tmp_path, [record(0x1000, TEXTS[0][at : at + 7])])


def test_bytes_of_two_records_are_no_hit(tmp_path: Path) -> None:
    """Content lies back to back: the needle may seem to run from one record into the next."""
    found = kept(
        tmp_path, [record(0x1000, b"....." + TEXTS[0][:3]), record(0x5000, TEXTS[0][3:8] + b"...")]
    )

    assert [] == found


def test_all_that_touched_where_a_message_lay_is_kept(tmp_path: Path) -> None:
    found = kept(
        tmp_path,
        [
            record(0x1020, b"zeroes..", store=True),  # before
            record(0x1000, TEXTS[0]),
            record(0x1008, b"later...", store=True),
            record(0x1028, b"beside it", call=2),
        ],
    )

    assert [b"zeroes..", TEXTS[0], b"later..."] == [r.bytes for r in found]


def test_the_rest_of_a_run_that_a_page_cut_off_is_kept(tmp_path: Path) -> None:
    parts = [
        record(0x1FE0, TEXTS[0][:32]),
        record(0x2000, TEXTS[0][32:36], phys=0x9000),
        record(0x2000, b"other", phys=0x9000, call=2),
    ]

    assert 2 == len(kept(tmp_path, parts))


def test_a_listed_place_is_kept_whatever_it_holds(tmp_path: Path) -> None:
    records = [record(0x5008, b"ring"), record(0x500C, b"ring"), record(0x5004, b"ring")]
    records += [record(0x5008, b"", size=4, flags=Flag.IO)]

    found = kept(tmp_path, records, ranges=[(0x5008, 0x500C)])

    assert [0x5008] == [r.physical for r in found]


def test_the_log_is_bounded_and_says_what_it_left_out(tmp_path: Path) -> None:
    # The listed come second, so it is them that find no room.
    records = [record(0x5000 + 8 * at, b"listed..") for at in range(3)]
    records += [record(0x1000, TEXTS[0])]
    limit = access.HEADER_SIZE + 2 * access.RECORD_LAYOUT.size + len(TEXTS[0]) + 8
    data = access.keep(
        encode_log(records),
        TEXTS,
        needle=MESSAGES.needle(),
        ranges=[(0x5000, 0x6000)],
        limit=limit,
    )
    log = read(tmp_path, data)

    assert len(data) <= limit
    assert [b"listed..", TEXTS[0]] == [r.bytes for r in log.records]
    assert (2, 4, False) == (log.lost, log.header.raw_records, log.complete)


def take_out(data: bytes, number: int) -> bytes:
    """Return a kept log without one record, its counts made right again."""
    header = access.parse_header(data)
    count = header.records - 1
    start = access.HEADER_SIZE + number * access.RECORD_LAYOUT.size
    rest = data[access.HEADER_SIZE : start] + data[start + access.RECORD_LAYOUT.size :]
    head = bytearray(access.encode_header(header, records=count, capacity=count))
    at = access.OFFSETS["digest"]
    head[at : at + 16] = header.digest
    return bytes(head) + rest


def test_a_record_taken_out_of_a_kept_log_is_noticed_by_the_log_itself(tmp_path: Path) -> None:
    records = [record(0x1000 * at, TEXTS[0]) for at in (1, 2, 3)]
    data = access.keep(encode_log(records), TEXTS, needle=MESSAGES.needle())
    assert 3 == len(read(tmp_path, data).records)

    without = take_out(data, 1)
    with pytest.raises(TraceCorrupt, match=r"digest: expected .* it is not as it was kept"):
        read(tmp_path, without)
    # Nothing else in it tells: of a log without a digest, as there were, it would go unnoticed.
    at = access.OFFSETS["digest"]
    assert 2 == len(read(tmp_path, without[:at] + bytes(16) + without[at + 16 :]).records)
    for place in (access.OFFSETS["left_out"], access.HEADER_SIZE, len(data) - 1):
        one = bytearray(data)
        one[place] ^= 1
        with pytest.raises(TraceCorrupt, match="digest: expected"):
            read(tmp_path, bytes(one))
    with pytest.raises(TraceCorrupt, match="digest: expected"):
        read(tmp_path, data + b"more")


def test_a_short_message_is_followed_by_address(tmp_path: Path) -> None:
    """Four bytes are everywhere; only those tied to a known place are kept."""
    text = b"\x01\x02\x03\x04"
    found = kept(
        tmp_path,
        [
            record(0x9000, text, call=9),  # by chance
            record(0x1000, text, call=1),  # from the known buffer
            record(0x2004, text, store=True, call=1),
            record(0x2000, b"head", store=True, call=8),
            record(0x2000, b"head" + text, call=2),
            record(0x3000, b"head" + text, store=True, call=2),
            record(0x3004, text, call=3),
            record(0x4000, text, store=True, call=3),
            record(0x5000, text[:3], store=True, call=3),  # other bytes
        ],
        texts=[text],
        needle=None,
        sources=[(0x1000, 0x1004)],
    )

    assert [0x1000, 0x2004, 0x2000, 0x3000, 0x3004, 0x4000] == [r.physical for r in found]


def test_the_last_bytes_of_a_message_are_kept_with_who_carried_them_on(tmp_path: Path) -> None:
    """And with all who stored to where they went, before or after."""
    text = Messages(seed=0x29, size=43, count=1).bytes(0)
    records = [
        record(0x1028, text[40:], call=1),
        record(0x7000, text[40:], store=True, call=1),
        record(0x7000, b"new", store=True, call=2),
    ]

    assert 3 == len(kept(tmp_path, records, texts=[text], sources=[(0x1000, 0x102B)]))
    assert 1 == len(kept(tmp_path, records, texts=[text], ranges=[(0x1000, 0x102B)]))


def test_odd_bytes_that_a_copy_stores_last_are_followed(tmp_path: Path) -> None:
    """As memcpy_orig() does with 67: a run of 65, and one of the two that come before its end."""
    frame = bytes(range(1, 67)) + b"4"
    found = kept(
        tmp_path,
        [
            record(0x1000, frame, call=1),
            record(0x2000, frame[:65], store=True, call=1),
            record(0x2041, frame[65:], store=True, call=1),
            record(0x2042, b"4", call=2),
            record(0x3000, b"4", store=True, call=2),
        ],
        texts=[b"4"],
        needle=None,
        sources=[(0x1000, 0x1043)],
    )

    assert [0x1000, 0x2000, 0x2041, 0x2042, 0x3000] == [r.physical for r in found]


def test_a_short_message_is_followed_out_of_a_frame_that_was_filled_up(tmp_path: Path) -> None:
    frame = bytes(range(1, 43)) + b"4" + bytes(17)
    found = kept(
        tmp_path,
        [
            record(0x1000, frame, call=1),
            record(0x2000, frame, store=True, call=1),
            record(0x202A, b"4", call=2),
            record(0x3000, b"4", store=True, call=2),
        ],
        texts=[b"4"],
        needle=None,
        sources=[(0x1000, 0x103C)],
    )

    assert [0x1000, 0x2000, 0x202A, 0x3000] == [r.physical for r in found]


def test_what_is_no_end_of_a_message_is_not_followed(tmp_path: Path) -> None:
    """A page of a buffer holds much else, and zeros are everywhere."""
    records = [record(0x1000, TEXTS[0], call=1)]
    for at in range(300):
        records += [
            record(0x1800 + 8 * (at % 200), bytes(8), call=at + 2),
            record(0x10_0000 + 64 * at, bytes(8), store=True, call=at + 2),
            record(0x10_0000 + 64 * at, bytes(8), call=at + 1000),
            record(0x20_0000 + 64 * at, bytes(8), store=True, call=at + 1000),
        ]

    found = kept(tmp_path, records, sources=[(0x1000, 0x2000)])

    assert not [r for r in found if r.physical >= 0x20_0000]


def test_filtering_a_corrupt_log_says_where(tmp_path: Path) -> None:
    with pytest.raises(TraceCorrupt, match="offset 4096: phys"):
        access.keep(encode_log([record(0x10, TEXTS[0], phys=0x11)]), TEXTS)
    with pytest.raises(TraceCorrupt, match="offset 0"):
        access.keep(b"short", TEXTS)


# --- The switch -----------------------------------------------------------------------------


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    with Control.create(tmp_path / "log") as made:
        yield made


def answering(control: Control, state: State, *, done: threading.Event) -> Callable[[], None]:
    """Return a poke after which the plugin has obeyed."""

    def poke() -> None:
        asked = control.header().asked
        struct.pack_into("<I", control._map, access.OFFSETS["state"], state)
        struct.pack_into("<I", control._map, access.OFFSETS["answered"], asked)
        done.set()

    return poke


def load(control: Control) -> None:
    struct.pack_into("<I", control._map, access.OFFSETS["state"], State.ASLEEP)


def test_arming_waits_for_the_plugin(control: Control) -> None:
    load(control)
    poked = threading.Event()
    control.arm(deadline=Deadline(5), poke=answering(control, State.ARMED, done=poked))

    assert poked.is_set()
    assert (1, 1, State.ARMED) == (
        control.header().command, control.header().answered, control.state
    )  # fmt: skip


def test_a_plugin_that_does_not_obey_is_not_waited_for_for_ever(control: Control) -> None:
    load(control)
    with pytest.raises(DeadlineExceeded, match="armed"):
        control.arm(deadline=Deadline(0.05))


def test_an_answer_to_another_command_is_none(control: Control) -> None:
    load(control)
    struct.pack_into("<I", control._map, access.OFFSETS["state"], State.ARMED)
    with pytest.raises(DeadlineExceeded):
        control.arm(deadline=Deadline(0.05))


def test_without_a_plugin_there_is_nothing_to_arm(control: Control) -> None:
    with pytest.raises(HostError, match="no QEMU has loaded the plugin"):
        control.arm(deadline=Deadline(5))


def test_a_guest_that_dies_meanwhile_ends_the_wait(control: Control) -> None:
    def check() -> None:
        raise GuestLost("receiver", "gone")

    load(control)
    with pytest.raises(GuestLost):
        control.disarm(deadline=Deadline(5), check=check)


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    for content in (b"short", bytes(access.HEADER_SIZE)):
        (tmp_path / "log").write_bytes(content)
        with pytest.raises(TraceCorrupt):
            Control(tmp_path / "log")


def test_a_fresh_log_takes_no_room(control: Control) -> None:
    facts = control.path.stat()

    assert access.SIZE == facts.st_size
    assert facts.st_blocks * 512 <= 2 * access.HEADER_SIZE
    assert 0o600 == facts.st_mode & 0o777


@pytest.mark.parametrize("asked", ["0", "17", "x", "-1", "", "nan", "9" * 5000])
def test_the_room_of_the_log_is_a_small_number(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_ACCESS_ROOM", asked)
    with pytest.raises(HostError, match="LAB_ACCESS_ROOM is"):
        switch._room()


def test_more_room_is_asked_for_by_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_ACCESS_ROOM", "8")
    assert 8 == switch._room()
    monkeypatch.delenv("LAB_ACCESS_ROOM")
    assert 1 == switch._room()


# --- The switch, as a run turns it ------------------------------------------------------------


class Agent:
    """A guest's agent that answers when its vCPU has had its turn, or finds the guest dead."""

    def __init__(self, qemu: FakeQemu, *, dead: bool = False) -> None:
        self.qemu = qemu
        self.dead = dead
        self.given: list[float] = []

    def ping(self, *, deadline: Deadline) -> None:
        self.given.append(deadline.seconds)
        if self.dead:
            raise GuestLost("sender", "QEMU was killed by signal 9")
        self.qemu.idle()


def watched(agent: Agent) -> witness.AccessLog:
    guest = SimpleNamespace(
        access_log=agent.qemu.path, check=lambda: None, require_agent=lambda: agent
    )
    return witness.AccessLog(cast("Guest", guest))


def test_a_slow_guest_has_until_the_run_s_deadline_to_be_armed(qemu: FakeQemu) -> None:
    agent = Agent(qemu)
    deadline = Deadline(180)
    log = watched(agent)
    log.arm(deadline=deadline)
    log.disarm(deadline=deadline)
    log.close()

    assert {180} == set(agent.given)


def test_arming_a_dead_guest_ends_at_once(qemu: FakeQemu) -> None:
    log = watched(Agent(qemu, dead=True))
    deadline = Deadline(180)

    with pytest.raises(GuestLost, match="signal 9"):
        log.arm(deadline=deadline)
    assert deadline.elapsed < 5
    log.close()
