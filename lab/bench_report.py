"""How fast runs are read and reported: run directories of as many records as wanted.

What lies in them is what the probes leave of a burst over loopback (nine records of each message,
all sent before the first is received), so that the ledger of each is complete; and of a burst
as the lab takes one also what its census finds, which a report holds against every place.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab import compiled, experiment, fnv, message, record
from lab.errors import HostError
from lab.journal import Journal
from lab.record import Flag, Kind
from lab.rundir import RunDir

SIZE = 64  # bytes of a message
SEED = 0x10AB
REPORT_AT_LEAST = 50_000  # records per second, of a run of as many as a burst leaves
TRIES, OFTEN = 3, 100_000  # as often is a report of at most so many records measured
COMPILED, PYTHON = "compiled", "python"
CHILD = """\
import sys
from lab import compiled
compiled.use()
from lab import bench_report
bench_report.in_child(sys.argv[1], int(sys.argv[2]), census=sys.argv[3] == "census")
"""
LINEAR_WITHIN = 1.5  # times as long per record, from the first size to the last
BURST = 10_000  # messages

DIRECT_MAP = 0xFFFF_8880_0000_0000
SKBS, SKB_ROOM = 0x0400_0000, 1024  # physical memory of skbs, and how much of it each has
PAYLOAD = 44  # where a message is in an skb, behind the headroom, IPv4 and UDP
SLOTS = (1 << 20) // SIZE
BUFFERS = {"sender": (0x5555_5540_0000, 0x0100_0000), "receiver": (0x5555_5580_0000, 0x0200_0000)}
PIDS = {"sender": 145, "receiver": 144}
SECTION_MOST = record.CHUNKS * record.EVENTS_PER_CHUNK
HOOKS = {
    "send_trace": (
        "ip_generic_getfrag", "_copy_from_iter", "__dev_queue_xmit", "loopback_xmit", "__netif_rx",
    ),
    "recv_trace": (
        "__udp_enqueue_schedule_skb", "sock_def_readable", "_copy_to_iter", "skb_consume_udp",
    ),
}  # fmt: skip
EVENTS = sum(map(len, HOOKS.values()))  # of each message
COPIES = ("_copy_from_iter", "_copy_to_iter")

Event = dict[str, Any]


class Took(NamedTuple):
    """What a report took: by the clock, as its user waits, and of a CPU."""

    wall_s: float
    cpu_s: float


def measure(
    sizes: Sequence[int], *, by: str, journal: Journal, census: bool = False
) -> dict[str, dict[str, float]]:
    """Return for each number of messages how long a report takes; `per_s` is by the clock.

    `by` is COMPILED or PYTHON; with a `census` the records come with what searches of RAM find
    of such a burst. Each is measured in a process of its own, as what it runs is
    settled when it begins.
    """
    environ = {**os.environ, compiled.SWITCH: "no" if by == PYTHON else ""}
    out: dict[str, dict[str, float]] = {}
    for count in sizes:
        with (
            journal.step(f"report {count * EVENTS} records ({by}{', census' * census})"),
            tempfile.TemporaryDirectory(prefix="skblab-bench-") as folder,
        ):
            done = subprocess.run(
                [sys.executable, "-c", CHILD, folder, str(count), "census" * census],
                env=environ,
                cwd=Path(__file__).parent.parent,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode != 0:
            raise HostError(f"a report of {count} messages failed", log=done.stderr.strip())
        took = json.loads(done.stdout)
        if took.pop("by") != by:
            raise HostError(f"no report was made by {by} code", hint="invoke lab.compile")
        out[str(count * EVENTS)] = took
    return out


def in_child(folder: str, count: int, *, census: bool) -> None:
    """Print what a report of a cooked run takes: the best of three of those that are short."""
    records = count * EVENTS
    run = cook(Path(folder), count, census=census)
    tries = [report(run) for _ in range(TRIES if records <= OFTEN else 1)]
    wall, cpu = min(one.wall_s for one in tries), min(one.cpu_s for one in tries)
    told = {
        "by": COMPILED if fnv.COMPILED else PYTHON,
        "seconds": round(wall, 3),
        "per_s": round(records / wall),
        "cpu_s": round(cpu, 3),
        "per_cpu_s": round(records / cpu),
    }
    print(json.dumps(told))


def report(run: RunDir) -> Took:
    """Do all that `lab.report` does, and say what it took. The ledger must be complete."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = experiment.analyse(run, journal=Journal(stream=io.StringIO()))
    took = Took(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)
    if found.trouble:
        raise HostError(f"{run.name}: the ledger of a burst: {'; '.join(found.trouble)}")
    return took


def growth(found: dict[str, dict[str, float]]) -> float:
    """Return how many times as long a record takes in the largest run as in the smallest.

    Of a CPU: what else the host does meanwhile says nothing of proportion.
    """
    rates = [one["per_cpu_s"] for one in found.values()]
    return rates[0] / rates[-1]


# --- Cooking --------------------------------------------------------------------------------


def cook(path: Path, count: int, *, census: bool = False) -> RunDir:
    """Write the run directory of a burst of `count` messages."""
    folder = path / "sender"
    folder.mkdir()
    messages = message.Messages(seed=SEED, size=SIZE, count=count)
    with (folder / "trace.bin").open("wb") as out:
        for module, hooks in HOOKS.items():
            # The receiver reads when all were sent.
            turns = (hooks,) if module == "send_trace" else (hooks[:2], hooks[2:])
            events = (
                _event(hook, number, messages, _moment(module, hook, number, count))
                for turn in turns
                for number in range(count)
                for hook in turn
            )
            for section in _sections(module, hooks, events, count * len(hooks)):
                out.write(section)
    run = RunDir(path)
    run.write_json("sender/workload.json", [_told(role, messages) for role in BUFFERS])
    if census:
        run.write_json("sender/census.json", _census(messages))
    run.write_json("manifest.json", _manifest(count, census=census))
    return run


def _moment(module: str, hook: str, number: int, count: int) -> int:
    order = [*HOOKS["send_trace"], *HOOKS["recv_trace"]]
    late = module == "recv_trace" and hook in HOOKS[module][2:]
    return 1000 + (count if late else 0) * 1000 + number * 1000 + order.index(hook) * 10


def _sections(
    module: str, hooks: Sequence[str], events: Iterator[Event], total: int
) -> Iterator[bytes]:
    table = [record.Hook(hook, flags=record.HOOK_COPY * (hook in COPIES)) for hook in hooks]
    while total:
        part = min(total, SECTION_MOST)
        yield record.encode_section(
            [next(events) for _ in range(part)], name=module, hooks=table, capacity=part
        )
        total -= part


def _event(hook: str, number: int, messages: message.Messages, tsc: int) -> Event:
    at = SKBS + number * SKB_ROOM
    head, content = DIRECT_MAP + at, messages.bytes(number)
    skb = {"skb": DIRECT_MAP + at + 512, "head": head, "shinfo": head + 384, "flags": Flag.SKB}
    # What lies in front of the link's header, and how much of the skb is behind it.
    lengths = {"__netif_rx": (16, 28), "__dev_queue_xmit": (2, 42), "loopback_xmit": (2, 42)}
    own: Event
    if hook == "ip_generic_getfrag":
        own = {
            **skb, "data": head + 16, "skb_len": 28 + SIZE, "dst": head + PAYLOAD,
            "dst_phys": at + PAYLOAD, "size": SIZE,
        }  # fmt: skip
    elif hook in COPIES:
        role = "sender" if hook == COPIES[0] else "receiver"
        side = "dst" if hook == COPIES[0] else "src"
        own = {
            "kind": Kind.RETURN, "size": SIZE, "ret": SIZE, "bytes": content,
            "flags": Flag.SRC_USER if role == "sender" else Flag.DST_USER,
            "user": BUFFERS[role][0] + number % SLOTS * SIZE, side: head + PAYLOAD,
            f"{side}_phys": at + PAYLOAD, "tgid": PIDS[role],
        }  # fmt: skip
    elif hook == "sock_def_readable":
        own = {"sk": DIRECT_MAP + 0x300_0000}
    else:
        begins, before = lengths.get(hook, (PAYLOAD, 0))
        shown = (bytes(before) + content)[: record.BYTES_LEN]
        own = {
            **skb, "data": head + begins, "skb_len": before + SIZE, "bytes": shown,
            "src_phys": at + begins,
        }  # fmt: skip
    return {"hook": hook, "tsc": tsc, **own}


def _told(role: str, messages: message.Messages) -> dict[str, Any]:
    virtual, physical = BUFFERS[role]
    first = max(0, messages.count - SLOTS)
    digest = fnv.START
    for number in range(first, messages.count):
        digest = fnv.digest(messages.bytes(number), digest)
    pages = [
        {"virtual": hex(virtual + at), "physical": hex(physical + at)}
        for at in range(0, SLOTS * SIZE, 4096)
    ]
    said = "sent" if role == "sender" else "received"
    return {
        "role": role,
        "ready": {
            "role": role, "pid": PIDS[role], "size": SIZE, "count": messages.count,
            "slots": SLOTS, "slot_size": SIZE,
            "buffer": {
                "virtual": hex(virtual), "size": SLOTS * SIZE, "region": "heap", "pages": pages,
            },
        },
        said: {"messages": [], said: messages.count, "bytes": messages.count * SIZE},
        "done": {
            "messages": [], "first": first, "held": messages.count - first, "all": f"{digest:016x}",
        },
    }  # fmt: skip


def _census(messages: message.Messages) -> dict[str, Any]:
    """Return what searches of a guest's RAM find: each message in all three of its places.

    In the programs' buffers the last that were there, and in skbs all, freed ones too: their
    memory is not used again in so short a time.
    """
    last = range(max(0, messages.count - SLOTS), messages.count)
    held = {role: [(BUFFERS[role][1] + one % SLOTS * SIZE, one) for one in last] for role in PIDS}
    skbs = [(SKBS + one * SKB_ROOM + PAYLOAD, one) for one in range(messages.count)]
    gates = []
    for gate, roles, slab in (
        ("sent", ("sender",), "slab skbuff_small_head"),
        ("received", ("sender", "receiver"), "free"),
    ):
        found = [(at, one, slab) for at, one in skbs]
        found += [(at, one, "anonymous") for role in roles for at, one in held[role]]
        hits = [
            {"message": one, "offset": 0, "page": page, "physical": f"{at:#x}", "size": SIZE}
            for at, one, page in sorted(found)
        ]
        gates.append(
            {
                "gate": gate, "hits": hits, "hits_not_listed": 0, "fragments": 0,
                "scanned_bytes": 512 << 20, "seconds": 1.0,
            }
        )  # fmt: skip
    return {"needles": "tag", "gates": gates}


def _manifest(count: int, *, census: bool) -> dict[str, Any]:
    absent = ("access-log", "probe:bpf", "rings", "wire", *(() if census else ("census",)))
    present = ("probe:kmod", *(("census",) if census else ()))
    return {
        "experiment": "message", "playbook": "burst", "over": "loopback", "protocol": "udp",
        "size": SIZE, "count": count, "seed": f"{SEED:016x}", "guests": ["sender"],
        "accelerator": {"name": "none", "why": "cooked"}, "kernel": "cooked",
        "link": {"device": "virtio-net-pci", "backend": "dgram", "offloads": {}},
        "probes": {"kind": "kmod"}, "expect": {"complete": True, "guest_cpu_copies": 2},
        "witnesses": {
            **dict.fromkeys(present, "present"), **dict.fromkeys(absent, "absent: cooked"),
        },
    }  # fmt: skip
