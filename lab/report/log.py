"""The worksheet's log lines, made from records."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lab import clock, record
from lab.correlate.copies import BETWEEN_SKBS
from lab.correlate.inputs import direction
from lab.record import Flag, Record
from lab.rundir import GuestDir, RunDir


def lines(run: RunDir, grep: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield evidence id and worksheet's log line of each record, in the order of host time.

    Each line ends with the id of its record; `grep` keeps those that contain a text.
    """
    for entry in _in_time(run):
        text = f"{_line(entry)}  {entry.id}"
        if grep is None or grep in text:
            yield entry.id, text


def cited(run: RunDir) -> frozenset[str] | None:
    """Return the records a run's ledger cites for its messages; None without a ledger."""
    if not run.has("ledger.json"):
        return None
    text = run.file("ledger.json").read_text(encoding="utf-8", errors="replace")
    return frozenset(re.findall(r'"([\w-]+/trace\.bin#\d+)"', text)) or None


def _in_time(run: RunDir) -> list[Record]:
    keyed: list[tuple[int, str, int, Record]] = []
    for guest in run.guests():
        if not guest.trace.is_file():
            continue
        to_host = _host_clock(guest)
        for entry in record.read(guest.trace, guest=guest.name).records:
            at = entry.tsc if to_host is None else to_host.host(entry.tsc).ns
            keyed.append((at, guest.name, entry.number, entry))
    keyed.sort(key=lambda key: key[:3])
    return [entry for *_, entry in keyed]


def _host_clock(guest: GuestDir) -> clock.ClockMap | None:
    return clock.fit(guest.tsc()) if guest.has("tsc.json") else None


def _line(entry: Record) -> str:
    who = f"PID={entry.pid} comm={entry.comm}"
    if entry.flags & Flag.SRC_USER:
        return f"[COPY1] {who} dest={entry.dst:x} len={entry.ret} {entry.hook}"
    if entry.flags & Flag.DST_USER:
        return f"[COPY4] {who} src={entry.src:x} len={entry.ret} {entry.hook}"
    if entry.hook == "__dev_queue_xmit":
        return f"[COPY2] dev={entry.dev} skb_data={entry.data:x} skb_len={entry.skb_len}"
    if (
        entry.hook in ("loopback_xmit", "virtio_net:receive_buf", *BETWEEN_SKBS)
        or ">" in entry.hook
    ):
        return f"[COPY3] {entry.function}{_fields(entry)}"
    if "_iter" in entry.hook:  # within the kernel: no user memory at either end
        way = "COPY1" if direction(entry.hook) == "out of user memory" else "COPY4"
        return f"[{way}] {who} {entry.hook}{_fields(entry)} len={entry.ret}"
    return f"[SKB] {entry.function}{_fields(entry)}"


def _fields(entry: Record) -> str:
    out = f" dev={entry.dev}" if entry.dev else ""
    if entry.skb:
        out += f" skb={entry.skb:x} head={entry.head:x} skb_data={entry.data:x}"
        out += f" skb_len={entry.skb_len}"
    out += f" src={entry.src:x}" if entry.src else ""
    out += f" dest={entry.dst:x}" if entry.dst else ""
    out += f" size={entry.size}" if entry.src or entry.dst else ""
    out += f" sk={entry.sk:x}" if entry.sk and not entry.skb else ""
    return out
