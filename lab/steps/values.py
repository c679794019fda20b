"""Arguments and members as people read them: numbers by their type, addresses by their struct."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from lab.calls import Value

SHORT = 1 << 16  # a number below is told in decimal


def shown(value: Value) -> str:
    """Return `name=value`; a pointer says what it points to."""
    text = number(value)
    if value.points_to and value.value:
        kind = "" if value.type.startswith(f"struct {value.points_to}") else value.points_to
        text += f" ({kind})" if kind else ""
    return f"{value.name}={text}" if value.name else text


def number(value: Value) -> str:
    """Return a register's content as its type means it."""
    if value.type == "bool":
        return "true" if value.value & 1 else "false"
    if value.type.endswith("*") or value.type == "?":
        return f"{value.value:#x}" if value.value else "NULL" if value.type != "?" else "0"
    found = value.value
    if value.signed:
        bits = 32 if found < 1 << 32 else 64
        found -= (found >> (bits - 1) & 1) << bits
    return str(found) if abs(found) < SHORT else f"{found:#x}"


def members(struct_name: str, held: Mapping[str, int]) -> str:
    """Return what a struct held, in a few words."""
    if struct_name == "sk_buff":
        linear = held["len"] - held["data_len"]
        text = f"head={held['head']:#x} data=head+{held['data'] - held['head']} len={held['len']}"
        return text + (f" (linear {linear})" if held["data_len"] else "")
    if struct_name == "sock":
        port = held["__sk_common.skc_dport"]
        return (
            f"skc_daddr={address(held['__sk_common.skc_daddr'])}"
            f" skc_dport={swapped(port)} skc_num={held['__sk_common.skc_num']}"
        )
    return " ".join(f"{name}={_plain(name, value)}" for name, value in held.items())


def changed(struct_name: str, before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Return `member old → new` for what differs; a packet's state in full."""
    if struct_name in ("sk_buff", "sock"):
        return members(struct_name, after)
    return " ".join(
        f"{name} {_plain(name, before.get(name, 0))} → {_plain(name, value)}"
        for name, value in after.items()
        if before.get(name) != value
    )


def _plain(name: str, value: int) -> str:
    if name == "state":
        return str(value)
    return str(value) if value < SHORT else f"{value:#x}"


def address(value: int) -> str:
    """Return an IPv4 address that was read as a little-endian number."""
    return socket.inet_ntoa(struct.pack("<I", value & 0xFFFFFFFF))


def swapped(port: int) -> int:
    """Return a port in host byte order that was read as the little-endian number it is not."""
    return (port & 0xFF) << 8 | port >> 8 & 0xFF
