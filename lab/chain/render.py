"""The chains drawn as the worksheet's block 2.5 has them, with the addresses of the run."""

from __future__ import annotations

import ipaddress

from lab.chain import CONNECTED, STATES, Case, Chains, Name, address, port

TITLES = {
    "udp-unconnected": "UDP, before anything was sent",
    "udp-unconnected-sent": "UDP, after a sendto() with an address",
    "udp-connected": "UDP, connected",
    "tcp-unconnected": "TCP, before connect()",
    "tcp-connected": "TCP, connected",
}


def render(found: Chains) -> str:
    """Return report.txt."""
    verdict = "DISAGREEMENT" if found.trouble else "AGREED"
    lines = [
        (
            f"{verdict}  what hangs on fd 3, by a probe inside and by guest RAM from outside,"
            f" Linux {found.kernel}"
        ),
        *(f"trouble: {one}" for one in found.trouble),
    ]
    for case in found.cases:
        lines += ["", *_case(case)]
        if case.name == "udp-unconnected":
            lines += ["", *_name(found.name)]
    return "\n".join(lines) + "\n"


def _case(case: Case) -> list[str]:
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
    lines = [f"{case.name}: {TITLES.get(case.name, '')}   evidence {case.evidence}"]
    lines += [f"  {name:<16}{at:#018x}  {note}" for name, at, note in chain]
    raw = bytes.fromhex(case.bytes)[case.address_at : case.address_at + 4].hex(" ")
    number, own = links["skc_daddr"], "if the CPU reads it as its own"
    lines += [
        f"  {'skc_daddr':<16}{raw:<18}  {address(case)} as bytes; {number:#010x} {own}",
        f"  {'skc_dport':<16}{text:<18}  {value} in network order; {misread} {own}",
        f"  {'skc_num':<16}{links['skc_num']:<18}  the local port, in the CPU's order",
    ]
    if case.name not in CONNECTED:
        lines.append("  both are zero: this socket does not know where to send")
    lines.append(
        f"  getpeername()   error {case.error}" if case.error else "  getpeername()   succeeded"
    )
    lines.append(_agreement(case.differences))
    return lines


def _name(name: Name) -> list[str]:
    raw = bytes.fromhex(name.bytes)
    family = int.from_bytes(raw[:2], "little")
    where = ipaddress.IPv4Address(raw[4:8]) if len(raw) >= 8 else "nothing"
    links = name.outside
    return [
        f"  where its sendto() has the address: in the call, not the socket   {name.evidence}",
        f"  {'msghdr':<16}{links['msg']:#018x}  on the kernel's stack of that call",
        f"  {'->msg_name':<16}{links['msg_name']:#018x}  {links['msg_namelen']} bytes",
        f"  {'':<16}{raw.hex(' ')}",
        f"  {'':<16}family {family}, port {int.from_bytes(raw[2:4], 'big')}, {where}",
        _agreement(name.differences),
    ]


def _agreement(differences: tuple[str, ...]) -> str:
    if differences:
        return f"  inside and outside DIFFER: {'; '.join(differences)}"
    return "  inside and outside agree in every link"
