"""The chains drawn as the worksheet's block 2.5 has them, with the addresses of the run."""

from __future__ import annotations

import ipaddress

from lab.blocks import Block, Heading, paragraph, table
from lab.chain import CONNECTED, STATES, Case, Chains, Name, address, port

TITLES = {
    "udp-unconnected": "UDP, before anything was sent",
    "udp-unconnected-sent": "UDP, after a sendto() with an address",
    "udp-connected": "UDP, connected",
    "tcp-unconnected": "TCP, before connect()",
    "tcp-connected": "TCP, connected",
}
NO_PEER = "  both are zero: this socket does not know where to send"


def told(found: Chains) -> list[Block]:
    """Return what report.txt says, to be shown at any width."""
    verdict = "DISAGREEMENT" if found.trouble else "AGREED"
    out: list[Block] = [
        *paragraph(
            f"{verdict}: what hangs on fd 3, by a probe inside and by guest RAM from outside,"
            f" Linux {found.kernel}"
        ),
        *(block for one in found.trouble for block in paragraph(f"! {one}")),
    ]
    for case in found.cases:
        out += ["", *_case(case)]
        if case.name == "udp-unconnected":
            out += ["", *_name(found.name)]
    return out


def _case(case: Case) -> list[Block]:
    links = case.outside
    same = "is" if links["slot"] == links["fd_array"] else "is not"
    text, value, misread = port(case)
    state = STATES[links["state"]] if links["state"] < len(STATES) else str(links["state"])
    chain = (
        ("task_struct", links["task"], f"pid {case.pid}"),
        ("->files", links["files"], "files_struct"),
        ("->fdt", links["fdt"], "fdtable"),
        (f"->fd + {case.fd}", links["slot"], f"{same} &files->fd_array[{case.fd}]"),
        ("file", links["file"], "f_op is socket_file_ops"),
        ("->private_data", links["socket"], f"struct socket, {state}, its file leads back"),
        ("->sk", links["sock"], "struct sock, its sk_socket leads back"),
    )
    rows = [(name, f"{at:#018x}", note) for name, at, note in chain]
    raw = bytes.fromhex(case.bytes)[case.address_at : case.address_at + 4].hex(" ")
    number, own = links["skc_daddr"], "if the CPU reads it as its own"
    rows += [
        ("skc_daddr", raw, f"{address(case)} as bytes; {number:#010x} {own}"),
        ("skc_dport", text, f"{value} in network order; {misread} {own}"),
        ("skc_num", str(links["skc_num"]), "the local port, in the CPU's order"),
        ("getpeername()", f"error {case.error}" if case.error else "succeeded", ""),
    ]
    return [
        Heading(f"{case.name}: {TITLES.get(case.name, '')}", case.evidence),
        *table((), rows),
        *(() if case.name in CONNECTED else (NO_PEER,)),
        _agreement(case.differences),
    ]


def _name(name: Name) -> list[Block]:
    raw = bytes.fromhex(name.bytes)
    family = int.from_bytes(raw[:2], "little")
    where = ipaddress.IPv4Address(raw[4:8]) if len(raw) >= 8 else "nothing"
    links = name.outside
    rows = (
        ("msghdr", f"{links['msg']:#018x}", "on the kernel's stack of that call"),
        ("->msg_name", f"{links['msg_name']:#018x}", f"{links['msg_namelen']} bytes"),
        ("", raw.hex(" "), ""),
        ("", "", f"family {family}, port {int.from_bytes(raw[2:4], 'big')}, {where}"),
    )
    return [
        Heading("where its sendto() has the address: in the call, not the socket", name.evidence),
        *table((), rows),
        _agreement(name.differences),
    ]


def _agreement(differences: tuple[str, ...]) -> str:
    if differences:
        return f"✗ inside and outside DIFFER: {'; '.join(differences)}"
    return "✓ inside and outside agree in every link"
