"""A run of socket(2) made from scratch, to be spoiled by the tests in one thing at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab import record
from lab.record import WORDS, Flag, Hook, Kind
from lab.rundir import RunDir

PID = 142
TEXT = 0xFFFF_FFFF_9000_0000
LSTAR = TEXT + 0xE0_0080
OPS = TEXT + 0x100_0000
SOCKET, SK, FILE = 0xFFFF_8880_0100_0000, 0xFFFF_8880_0200_0000, 0xFFFF_8880_0300_0000
INODE = SOCKET + 0x80
AT = 0x7FA7_7230_A2B4  # the program's syscall instruction
REPEATS, CONTROL = 20, 4
SYMBOLS = {
    "_text": TEXT,
    "entry_SYSCALL_64": LSTAR,
    "__sys_socket": TEXT + 0x1000,
    "sock_create": TEXT + 0x2000,
    "sock_release": TEXT + 0x3000,
}
BOTH = ("__sys_socket", "__sock_create", "sock_alloc", "inet_create", "get_unused_fd_flags",
        "sock_alloc_file", "fd_install")  # fmt: skip
ONE = ("__x64_sys_socket", "__x64_sys_sendto", "__x64_sys_recvfrom", "sock_create", "sock_release",
       "__sock_release", "inet_release", "iput")  # fmt: skip
ARGUMENTS = {"__sys_socket": 3, "__sock_create": 6, "inet_create": 4, "sock_alloc_file": 3,
             "fd_install": 2, "iput": 1}  # fmt: skip
Event = dict[str, Any]


@dataclass
class Cooked:
    """The parts of a run; `serve` writes them."""

    path: Path
    now: int = 1_000_000
    latency: list[Event] = field(default_factory=list)
    chain: list[Event] = field(default_factory=list)
    fault: list[Event] = field(default_factory=list)
    cases: list[Event] = field(default_factory=list)
    repeats: list[Event] = field(default_factory=list)
    kernels: dict[str, list[str]] = field(
        default_factory=lambda: {
            "sender": [hex(TEXT)] * 2,
            "receiver": [hex(TEXT + 0x20_0000)],
        }
    )
    symbols: dict[str, int] = field(default_factory=lambda: {**SYMBOLS, **_addresses()})
    returns: dict[str, str] = field(default_factory=lambda: {"fd_install": "void"})
    injected: int = REPEATS  # failures recorded while it was repeated
    dropped: int = 0
    programs: list[Event] | None = None  # of BPF; None: they did not watch
    module_watched: bool = True

    def at(self, hook: str, kind: Kind, nth: int = 0) -> Event:
        """Return the nth record of a hook of the chain, to be spoiled."""
        return [e for e in self.chain if (e["hook"], e["kind"]) == (hook, kind)][nth]

    def tick(self) -> int:
        self.now += 100
        return self.now

    def answer(self, case: str) -> Event:
        """Return what the program answered to the call of a case."""
        return next(
            one["answer"]
            for one in self.cases
            if one["name"] == case and {"call", "calls"} & one["answer"].keys()
        )

    def serve(self) -> RunDir:
        """Write the run and return it."""
        folder = self.path / "sender"
        folder.mkdir(parents=True, exist_ok=True)
        hooks = [Hook(name) for name in ONE]
        for name in BOTH:
            hooks += [Hook(name), Hook(name, flags=32 << record.HOOK_ACTIVE_SHIFT)]
        hooks += [Hook(name, error=-2) for name in ("__sys_socket_create", "sock_map_fd")]
        hooks.append(Hook("get_signal", flags=32 << record.HOOK_ACTIVE_SHIFT))
        entered = [one for one in self.latency if one["kind"] in (Kind.ENTRY, Kind.SKIPPED)]
        tables = [Hook("__sys_socket", hits=len(entered)), Hook("__sys_socket")]
        acts = [Hook("alloc_file_pseudo")]
        failure = {"hook": "alloc_file_pseudo", "kind": Kind.ENTRY, "ret": -23, "pid": PID}
        many = [{**failure, "tsc": self.now + number} for number in range(self.injected)]
        few = [{**failure, "tsc": self.now + number} for number in range(CONTROL)]
        encode = record.encode_section
        sections = [
            encode(self.latency, name="socket_latency_probe", hooks=tables),
            *(
                [encode(self.chain, name="socket_chain_probe", hooks=hooks, dropped=self.dropped)]
                if self.module_watched
                else []
            ),
            encode(self.fault, name="socket_fault", hooks=acts),
            encode(many, name="socket_fault", hooks=acts),
            encode(few, name="socket_fault", hooks=acts),
        ]
        (folder / "trace.bin").write_bytes(b"".join(sections))
        (folder / "bpf.bin").unlink(missing_ok=True)
        if self.programs is not None:
            ways = [replace(one, flags=0x20 if one.flags else 0x10) for one in hooks]
            (folder / "bpf.bin").write_bytes(encode(self.programs, name="bpf", hooks=ways))
        lines = [f"{at:016x} T {name}\n" for name, at in self.symbols.items()]
        (folder / "symbols").write_text("".join(lines))
        samples = [{"before_ns": t, "tsc": t, "after_ns": t + 10} for t in (0, self.now)]
        (folder / "tsc.json").write_text(json.dumps({"samples": samples}))
        calls = {
            "program": {"pid": PID, "comm": "socket_test"},
            "cases": self.cases,
            "repeats": self.repeats,
            "unloaded": [{"socket_latency_probe": True}, {"socket_chain_probe": True}],
        }
        (folder / "calls.json").write_text(json.dumps(calls))
        (self.path / "kernels.json").write_text(
            json.dumps({"text": self.kernels, "returns": self.returns, "arguments": ARGUMENTS})
        )
        manifest = {
            "experiment": "socket",
            "playbook": "socket",
            "kernel": "6.12.1",
            "accelerator": {"name": "tcg", "why": "asked for"},
            "link": {"device": "virtio-net-pci", "backend": "dgram", "offloads": {}},
            "probes": {"kind": "kmod", "comm": "socket_test"},
            "guests": ["sender"],
            "expect": {"complete": True},
        }
        (self.path / "manifest.json").write_text(json.dumps(manifest))
        return RunDir(self.path)

    def watch_by_programs(self) -> None:
        """Have BPF programs leave the records of the chain too, in their own way."""
        self.programs = copy.deepcopy(self.chain)
        for event in self.programs:
            if event["flags"] & Flag.BARRIER:  # neither its cs nor an MSR can be read
                event["bytes"] = WORDS.pack(*WORDS.unpack(event["bytes"])[:6], 0, 0)
            event["tsc"] += 3  # by another clock

    # -- how a call goes -----------------------------------------------------------------

    def call(self, case: str, arguments: tuple[int, int, int], returned: int,
             ways: Callable[[], None]) -> None:  # fmt: skip
        """Make one call: `ways` leaves the records between its way in and its way out."""
        before = self.tick()
        self.barrier("__x64_sys_socket", 41, arguments)
        rax = returned & 0xFFFF_FFFF
        for into in (self.latency, self.chain):
            self.step("__sys_socket", Kind.ENTRY, arguments, into=into)
        ways()
        for into in (self.latency, self.chain):
            self.step("__sys_socket", Kind.RETURN, arguments, rax=rax, into=into)
        self.case(case, 41, arguments, returned, before)

    def case(self, name: str, number: int, arguments: tuple[int, int, int], returned: int,
             before: int) -> None:  # fmt: skip
        answer = {
            "number": number,
            "args": list(arguments),
            "returned": returned,
            "instruction": hex(AT),
            "bytes": "0f05",
            "before": before,
            "after": self.tick(),
        }
        call = {"name": name, "command": "call", "answer": {"call": answer}}
        self.cases.append(call)

    def step(
        self,
        hook: str,
        kind: Kind,
        arguments: tuple[int, ...] = (),
        *,
        rax: int = 0,
        signal: bool = False,
        into: list[Event] | None = None,
        seen: Mapping[str, int] | None = None,
    ) -> None:
        """Leave one record; `seen` are fields of `record.Socket`."""
        places = {"socket": "skb", "ops": "head", "inode": "data", "state": "skb_len",
                  "type": "skb_data_len", "socket_file": "src", "file": "dst",
                  "private_data": "src_phys", "sk_socket": "dst_phys", "sk": "sk",
                  "size": "size", "ret": "ret"}  # fmt: skip
        words = WORDS.pack(*(*arguments, 0, 0, 0, 0, 0, 0)[:6], rax, int(signal))
        event = {
            "hook": hook, "kind": kind, "tsc": self.tick(), "pid": PID, "comm": "socket_test",
            "bytes": words, "flags": Flag.ARGS | (Flag.SOCKET if seen else 0),
            **{places[name]: value for name, value in (seen or {}).items()},
        }  # fmt: skip
        (self.chain if into is None else into).append(event)

    def barrier(self, hook: str, number: int, arguments: tuple[int, int, int]) -> None:
        words = WORDS.pack(*arguments, number, AT + 2, 0x33, 0x10, LSTAR)
        self.chain.append(
            {"hook": hook, "kind": Kind.ENTRY, "tsc": self.tick(), "pid": PID, "user": AT,
             "comm": "socket_test", "aux": 0x050F, "bytes": words, "flags": Flag.BARRIER}
        )  # fmt: skip

    def create(self) -> None:
        """Go through __sock_create: a socket, and its sock."""
        empty = {"socket": SOCKET, "inode": INODE, "state": 1}
        linked = {**empty, "sk": SK, "ops": OPS, "sk_socket": SOCKET}
        self.step("__sock_create", Kind.ENTRY, (1, 2, 1, 0))
        self.step("sock_alloc", Kind.ENTRY)
        self.step("sock_alloc", Kind.RETURN, rax=SOCKET, seen=empty)
        self.step("inet_create", Kind.ENTRY, (1, SOCKET), seen=empty)
        self.step("inet_create", Kind.RETURN, (1, SOCKET), seen=linked)
        self.step("__sock_create", Kind.RETURN, (1, 2, 1, 0), seen=linked)

    def install(self, *, signal: bool = False) -> None:
        """Go on to the descriptor."""
        whole = {"socket": SOCKET, "inode": INODE, "state": 1, "sk": SK, "ops": OPS,
                 "sk_socket": SOCKET, "socket_file": FILE, "file": FILE,
                 "private_data": SOCKET}  # fmt: skip
        self.step("get_unused_fd_flags", Kind.ENTRY)
        self.step("get_unused_fd_flags", Kind.RETURN, rax=3)
        self.step("sock_alloc_file", Kind.ENTRY, (SOCKET,), seen={"socket": SOCKET})
        if signal:
            self.step("alloc_file_pseudo", Kind.ENTRY, (INODE,), seen={"size": 10}, signal=True,
                      into=self.fault)  # fmt: skip
        self.step("sock_alloc_file", Kind.RETURN, (SOCKET,), rax=FILE, seen=whole)
        self.step("fd_install", Kind.ENTRY, (3, FILE), signal=signal, seen=whole)
        self.step("fd_install", Kind.RETURN, (3, FILE), signal=signal, seen=whole)

    def release(self) -> None:
        self.step("__sock_release", Kind.ENTRY, (SOCKET,), seen={"socket": SOCKET})
        self.step("inet_release", Kind.ENTRY, (SOCKET,), seen={"socket": SOCKET})
        self.step("iput", Kind.ENTRY, (INODE,), seen={"inode": INODE})


def _addresses() -> dict[str, int]:
    return {
        name: TEXT + 0x10_0000 + 0x1000 * n
        for n, name in enumerate((*BOTH, *ONE, "get_signal"))
        if name not in SYMBOLS
    }


def held(*, used: int = 2, inodes: int = 40) -> Event:
    """Return what the kernel holds, as the program tells it."""
    stat = f"sockets: used {used}\nTCP: inuse 2 orphan 0 tw 0 alloc {used} mem 0\n"
    return {"sockstat": stat, "slabs": {"sock_inode_cache": {"objects": inodes}}}


def repeat(name: str, count: int, *, error: int = 0, left: int = 0) -> Event:
    """Return the answer of one repeat that lost `left` sockets."""
    answer = {
        "count": count, "opened": 0 if error else count, "failed": count if error else 0,
        "error": error, "other": 0, "before": held(), "after": held(used=2 + left),
        "settled": held(used=2 + left, inodes=40 + left),
    }  # fmt: skip
    return {"name": name, "command": "repeat", "answer": answer}


def cook(path: Path) -> Cooked:
    """Return a run in which all holds."""
    run = Cooked(path)

    def whole() -> None:
        run.create()
        run.install()

    def interrupted() -> None:
        run.create()
        run.install(signal=True)

    def alloc_fails() -> None:
        run.create()
        run.release()

    run.call("timed", (2, 1, 0), 3, whole)
    run.chain.clear()  # that probe was not there yet
    run.call("plain", (2, 1, 0), 3, whole)
    before = run.tick()
    run.latency.append({"hook": "__sys_socket", "kind": Kind.SKIPPED, "tsc": run.tick(),
                        "pid": 7, "comm": "ping"})  # fmt: skip
    answer = {"pid": 7, "exit": 0, "before": before, "after": run.tick()}
    run.cases.append({"name": "ping", "command": "/bin/ping", "answer": answer})
    run.call("bad family", (255, 1, 0), -97, lambda: None)
    run.call("bad type", (2, 11, 0), -22, lambda: None)
    run.call("bad protocol", (2, 1, 17), -93, alloc_fails)
    run.call("no descriptor", (2, 1, 0), -24, alloc_fails)
    for hook, number in (("__x64_sys_sendto", 44), ("__x64_sys_recvfrom", 45)):
        before = run.tick()
        run.barrier(hook, number, (3, 0x7FA7_0000_0000, 12))
        run.case("message", number, (3, 0x7FA7_0000_0000, 12), 12, before)
    run.call("injected", (2, 1, 0), -23, alloc_fails)
    run.call("signal", (2, 1, 0), 3, interrupted)
    run.at("__sys_socket", Kind.RETURN, -1)["bytes"] = WORDS.pack(2, 1, 0, 0, 0, 0, 3, 1)
    last = run.answer("signal")["call"]
    run.step("get_signal", Kind.RETURN, rax=1, seen={"size": 10})
    came = {"count": 1, "ip": hex(AT + 2), "ax": 3, "tsc": run.tick()}
    run.answer("signal")["signal"] = came
    last["after"] = run.tick()
    run.repeats = [
        repeat("plain", REPEATS),
        repeat("no descriptor", REPEATS, error=-24),
        repeat("injected", REPEATS, error=-23),
        repeat("control", CONTROL, error=-23, left=CONTROL),
    ]
    return copy.deepcopy(run)
