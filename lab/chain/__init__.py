"""What hangs on a descriptor, told twice: by a probe inside, and by guest RAM from outside.

Both accounts were taken while the program was held; they must agree in every link.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab import record
from lab.errors import TraceCorrupt
from lab.record import Record
from lab.rundir import RunDir, to_json

FILE = "chain.json"
LOOKED = "lookup.json"  # of the guest: what was read out of RAM
SCHEMA = 1
# Link -> the record's field that holds it (kmod/lookup_chain_main.c).
LINKS: Mapping[str, str] = {
    "task": "skb",
    "files": "head",
    "fdt": "data",
    "slot": "src",
    "slot_physical": "src_phys",
    "fd_array": "dst",
    "file": "aux",
    "socket": "shinfo",
    "state": "ret",
    "sock": "sk",
    "skc_daddr": "skb_len",
    "skc_dport": "skb_data_len",
    "skc_num": "size",
    "skc_family": "frags",
}
NAME_LINKS: Mapping[str, str] = {
    "msg": "aux",
    "msg_name": "src",
    "msg_name_physical": "src_phys",
    "msg_namelen": "size",
}
CONNECTED = frozenset({"udp-connected", "tcp-connected"})
STATES = ("SS_FREE", "SS_UNCONNECTED", "SS_CONNECTING", "SS_CONNECTED", "SS_DISCONNECTING")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of socket as fd 3; links are addresses and numbers."""

    name: str
    fd: int
    pid: int
    error: int  # of getpeername(), 0: it has a peer
    inside: Mapping[str, int]
    outside: Mapping[str, int]
    bytes: str  # the first of the sock, in hexadecimal, by RAM
    address_at: int  # of skc_daddr in it
    port_at: int  # of skc_dport
    evidence: str
    differences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Name:
    """Where an unconnected sendto() has its destination: the msghdr on the kernel's stack."""

    inside: Mapping[str, int]
    outside: Mapping[str, int]
    bytes: str  # of the socket address, in hexadecimal, by RAM
    evidence: str
    differences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chains:
    """All cases of a run, and what is wrong with them."""

    run: str
    kernel: str
    cases: tuple[Case, ...]
    name: Name
    trouble: tuple[str, ...]

    def to_json(self) -> str:
        """Return chain.json."""
        return to_json({"schema": SCHEMA, **asdict(self)})


def build(run: RunDir) -> Chains:
    """Hold the two accounts of a run against each other."""
    guest = run.guest("sender")
    looked = guest.file(LOOKED)
    trace = record.read(guest.trace, guest="sender")
    inside = [one for one in trace.records if one.hook == "__sys_getpeername"]
    named = [one for one in trace.records if one.hook == "udp_sendmsg"]
    try:
        data: Any = run.read_json(f"sender/{LOOKED}")
        held = list(data["cases"])
        if len(inside) != len(held) or len(named) != 1:
            raise TraceCorrupt(
                f"{looked}: expected a record for each of {len(held)} cases and one of the send,"
                f" found {len(inside)} and {len(named)}"
            )
        cases = tuple(_case(one, seen) for one, seen in zip(held, inside, strict=True))
        name = _name(data["name"], named[0])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceCorrupt(f"{looked}: expected what lab.run-chain writes: {error!r}") from error
    return Chains(
        run=run.name,
        kernel=run.manifest().kernel,
        cases=cases,
        name=name,
        trouble=(*run.changes(), *_trouble(cases, name)),
    )


def _case(held: Mapping[str, Any], seen: Record) -> Case:
    outside: Mapping[str, Any] = held["chain"]
    within = {link: int(getattr(seen, source)) for link, source in LINKS.items()}
    numbers = {key: int(value) for key, value in outside.items() if not isinstance(value, str)}
    differences = _differences(within, numbers)
    raw = seen.bytes.hex()
    if not raw or not str(outside["bytes"]).startswith(raw):
        differences.append(f"the sock's bytes: inside {raw}, outside {outside['bytes']}")
    return Case(
        name=str(held["case"]),
        fd=int(held["fd"]),
        pid=int(held["pid"]),
        error=int(held["errno"]),
        inside=within,
        outside=numbers,
        bytes=str(outside["bytes"]),
        address_at=numbers["daddr_offset"],
        port_at=numbers["dport_offset"],
        evidence=seen.id,
        differences=tuple(differences),
    )


def _name(held: Mapping[str, Any], seen: Record) -> Name:
    within = {link: int(getattr(seen, source)) for link, source in NAME_LINKS.items()}
    numbers = {key: int(value) for key, value in held.items() if not isinstance(value, str)}
    differences = _differences(within, numbers)
    if seen.bytes.hex() != held["bytes"]:
        differences.append(f"its bytes: inside {seen.bytes.hex()}, outside {held['bytes']}")
    return Name(
        inside=within,
        outside=numbers,
        bytes=str(held["bytes"]),
        evidence=seen.id,
        differences=tuple(differences),
    )


def _differences(inside: Mapping[str, int], outside: Mapping[str, int]) -> list[str]:
    return [
        f"{link}: inside {value:#x}, outside {outside[link]:#x}"
        for link, value in inside.items()
        if outside[link] != value
    ]


def _trouble(cases: tuple[Case, ...], name: Name) -> list[str]:
    out = [f"{one.name}: {difference}" for one in cases for difference in one.differences]
    out += [f"sendto: {difference}" for difference in name.differences]
    for one in cases:
        links = one.outside
        if not links["f_op_is_socket"]:
            out.append(f"{one.name}: the file of fd {one.fd} is no socket's")
        if links["socket_file"] != links["file"] or links["sk_socket"] != links["socket"]:
            out.append(f"{one.name}: the links back do not lead back")
        if (one.name in CONNECTED) != (one.error == 0):
            out.append(f"{one.name}: getpeername() said error {one.error}")
        if (one.name in CONNECTED) != bool(links["skc_daddr"] and links["skc_dport"]):
            out.append(
                f"{one.name}: skc_daddr {links['skc_daddr']:#x} skc_dport {links['skc_dport']}"
            )
    return out


def address(case: Case) -> str:
    """Return the destination's address from the sock's bytes."""
    raw = bytes.fromhex(case.bytes)[case.address_at : case.address_at + 4]
    return str(ipaddress.IPv4Address(raw))


def port(case: Case) -> tuple[str, int, int]:
    """Return the destination port's two bytes, their value, and their value if misread."""
    raw = bytes.fromhex(case.bytes)[case.port_at : case.port_at + 2]
    return raw.hex(" "), int.from_bytes(raw, "big"), int.from_bytes(raw, "little")
