"""The lookup chain on cooked accounts: agreement, and every way not to agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab import chain, report, spec
from lab.btf import Btf, Field
from lab.chain import LINKS, NAME_LINKS, render
from lab.errors import EvidenceError, TraceCorrupt
from lab.experiment import chain as experiment
from lab.journal import Journal
from lab.kernel import Kernel
from lab.lookup import Lookup
from lab.record import encode_section
from lab.rundir import RunDir
from tests.unit import cooked

AT = 0xFFFF_8880_0000_0000
CASES = (
    ("udp-unconnected", 107),
    ("udp-unconnected-sent", 107),
    ("udp-connected", 0),
    ("tcp-unconnected", 107),
    ("tcp-connected", 0),
)
PEER = bytes.fromhex("7f000001")
Change = Callable[[dict[str, Any]], None]


def sock_bytes(connected: bool) -> bytes:  # noqa: FBT001
    raw = bytearray(24)
    if connected:
        raw[0:4], raw[12:14] = PEER, bytes.fromhex("270f")
    raw[14:16], raw[16:18] = b"\x39\x30", b"\x02\0"
    return bytes(raw)


def links(number: int, connected: bool) -> dict[str, Any]:  # noqa: FBT001
    raw = sock_bytes(connected)
    places = {name: AT + 0x1000 * place for place, name in enumerate(LINKS, 1)}
    return places | {
        "slot_physical": 0x5000,
        "state": 1,
        "skc_daddr": int.from_bytes(raw[:4], "little"),
        "skc_dport": int.from_bytes(raw[12:14], "little"),
        "skc_num": 12345,
        "skc_family": 2,
        "slot": AT + 8 * number,
        "fd_array": AT + 8 * number,
        "f_op_is_socket": True,
        "socket_file": places["file"],
        "sk_socket": places["socket"],
        "bytes": raw.hex(),
        "daddr_offset": 0,
        "dport_offset": 12,
    }


def cook(tmp_path: Path, change: Change = lambda _: None, *, cases: int = 5) -> RunDir:
    """Write a run whose accounts agree, then change what was seen from outside."""
    run = cooked.loopback(tmp_path).serve()
    name_bytes = (b"\x02\0\x27\x0f" + PEER).ljust(16, b"\0")
    name = {
        "msg": AT,
        "msg_name": AT + 64,
        "msg_namelen": 16,
        "msg_name_physical": 0x9000,
        "bytes": name_bytes.hex(),
    }
    held = [
        {"case": case, "pid": 9, "fd": 3, "errno": error, "chain": links(n, error == 0)}
        for n, (case, error) in enumerate(CASES)
    ]
    events: list[dict[str, Any]] = []
    for one in held[:cases]:
        seen = cast("dict[str, Any]", one["chain"])
        fields = {source: seen[link] for link, source in LINKS.items()}
        events.append(
            {**fields, "hook": "__sys_getpeername", "user": 3, "flags": 0}
            | {"bytes": bytes.fromhex(seen["bytes"])}
        )
    fields = {source: name[link] for link, source in NAME_LINKS.items()}
    events.append({**fields, "hook": "udp_sendmsg", "bytes": name_bytes, "flags": 0})
    data: dict[str, Any] = {"cases": held, "name": name}
    change(data)
    guest = run.guest("sender")
    guest.trace.write_bytes(encode_section(events, name="lookup_chain"))
    guest.write_json(chain.LOOKED, data)
    return run


def test_accounts_that_agree(tmp_path: Path) -> None:
    found = chain.build(cook(tmp_path))
    assert found.trouble == ()
    by_name = {one.name: one for one in found.cases}
    assert chain.address(by_name["udp-connected"]) == "127.0.0.1"
    assert chain.port(by_name["tcp-connected"]) == ("27 0f", 9999, 3879)
    assert chain.port(by_name["tcp-unconnected"]) == ("00 00", 0, 0)
    text = "\n".join(report.plain(render.told(found)))
    assert text.startswith("AGREED")
    assert text.count("both are zero: this socket does not know where to send") == 3
    assert "family 2, port 9999, 127.0.0.1" in text
    assert "is &files->fd_array[3]" in text
    assert json.loads(found.to_json())["cases"][0]["evidence"] == "sender/trace.bin#0"


def first(data: dict[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", data["cases"][0]["chain"])


CONNECTED = 2
CHANGES: dict[str, tuple[Change, str]] = {
    "another sock": (lambda d: first(d).update(sock=7), "sock: inside"),
    "another port": (lambda d: first(d).update(skc_dport=9), "skc_dport: inside 0x0, outside 0x9"),
    "other bytes": (lambda d: first(d).update(bytes="ff" * 24), "the sock's bytes"),
    "no socket's file": (lambda d: first(d).update(f_op_is_socket=False), "is no socket's"),
    "no way back": (lambda d: first(d).update(sk_socket=1), "links back"),
    "a peer that should not be": (lambda d: d["cases"][0].update(errno=0), "error 0"),
    "no peer": (lambda d: d["cases"][CONNECTED].update(errno=107), "error 107"),
    "another name": (lambda d: d["name"].update(msg_name=1), "sendto: msg_name"),
    "another address": (lambda d: d["name"].update(bytes="00" * 16), "sendto: its bytes"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_agree_is_trouble(tmp_path: Path, what: str) -> None:
    change, said = CHANGES[what]
    run = cook(tmp_path, change)
    outcome = experiment.analyse(run, spec.Expect(), journal=Journal())
    assert any(said in one for one in outcome.trouble), outcome.trouble
    assert run.file("report.txt").read_text().startswith("DISAGREEMENT")


def test_a_case_without_a_record_is_a_corrupt_run(tmp_path: Path) -> None:
    with pytest.raises(TraceCorrupt, match="expected a record for each of 5 cases"):
        chain.build(cook(tmp_path, cases=4))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("name"),
        lambda d: d["cases"][0].pop("chain"),
        lambda d: first(d).pop("sock"),
        lambda d: first(d).update(file="x"),
    ],
)
def test_a_file_nobody_wrote(tmp_path: Path, change: Change) -> None:
    with pytest.raises(TraceCorrupt):
        chain.build(cook(tmp_path, change))


# --- The walk through RAM -------------------------------------------------------------------

TASK, FILES, FDT, FILE, SOCKET, SOCK, INIT = (AT + 0x1_0000 * place for place in range(1, 8))
LAYOUT = {
    "task_struct.tasks": (0x10, 8),
    "task_struct.pid": (0x20, 4),
    "task_struct.files": (0x28, 8),
    "files_struct.fdt": (0x8, 8),
    "files_struct.fd_array": (0x40, 8),
    "fdtable.fd": (0x8, 8),
    "fdtable.max_fds": (0, 4),
    "file.private_data": (0x18, 8),
    "file.f_op": (0x20, 8),
    "socket.state": (0, 4),
    "socket.file": (0x10, 8),
    "socket.sk": (0x18, 8),
    "sock.sk_socket": (0x80, 8),
    "sock.__sk_common.skc_daddr": (0, 4),
    "sock.__sk_common.skc_dport": (12, 2),
    "sock.__sk_common.skc_num": (14, 2),
    "sock.__sk_common.skc_family": (16, 2),
}


class Ram:
    """Sparse guest memory by virtual address."""

    release = "6.12"

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        words = {
            INIT + 0x10: TASK + 0x10,
            TASK + 0x10: INIT + 0x10,
            TASK + 0x20: 9,
            TASK + 0x28: FILES,
            FILES + 0x8: FDT,
            FDT: 64,
            FDT + 0x8: FILES + 0x40,
            FILES + 0x40 + 24: FILE,
            FILE + 0x18: SOCKET,
            FILE + 0x20: 0x77,
            SOCKET: 1,
            SOCKET + 0x10: FILE,
            SOCKET + 0x18: SOCK,
            SOCK + 0x80: SOCKET,
            INIT + 0x20: 0,
        }
        for at, value in words.items():
            self.put(at, value.to_bytes(8, "little"))
        self.put(SOCK, sock_bytes(connected=True))

    def put(self, at: int, data: bytes) -> None:
        self.bytes |= {at + place: byte for place, byte in enumerate(data)}

    def read(self, at: int, size: int) -> bytes:
        if at < AT:
            raise ValueError(f"{at:#x} is not mapped")
        return bytes(self.bytes.get(at + place, 0) for place in range(size))

    def physical(self, at: int) -> int:
        return at - AT


def walk(ram: Ram) -> Lookup:
    types = SimpleNamespace(
        offset=lambda path: LAYOUT[path][0],
        field=lambda path: Field(*LAYOUT[path], 0),
        size=lambda _: 24,
    )
    symbols = {"init_task": INIT, "socket_file_ops": 0x77}
    return Lookup(cast("Kernel", ram), cast("Btf", types), symbols)


def test_the_walk_from_a_task_to_its_peer() -> None:
    found = walk(Ram()).chain(9, 3)
    assert found["slot"] == found["fd_array"] == FILES + 0x40 + 24
    assert (found["sock"], found["skc_dport"], found["skc_daddr"]) == (SOCK, 0x0F27, 0x0100007F)
    assert found["f_op_is_socket"]
    assert found["slot_physical"] == FILES + 0x40 + 24 - AT


def test_walks_that_lead_nowhere() -> None:
    with pytest.raises(EvidenceError, match="no task 5"):
        walk(Ram()).chain(5, 3)
    with pytest.raises(EvidenceError, match="no descriptor 64"):
        walk(Ram()).chain(9, 64)
    ram = Ram()
    ram.put(SOCKET + 0x18, bytes(8))
    with pytest.raises(EvidenceError, match="is cut"):
        walk(ram).chain(9, 3)


@pytest.mark.parametrize("name", ["trace.bin", chain.LOOKED])
def test_files_that_are_not_those_of_the_run_are_trouble(tmp_path: Path, name: str) -> None:
    run = cook(tmp_path)
    told = json.loads(run.file("manifest.json").read_text())
    digests = {
        f"sender/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.guest("sender").path.iterdir()
    }
    run.write_json("manifest.json", told | {"files": digests})
    assert () == chain.build(run).trouble

    run.write_json("manifest.json", told | {"files": digests | {f"sender/{name}": "0"}})
    assert (f"sender/{name} was changed since the run",) == chain.build(run).trouble
