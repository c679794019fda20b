"""The worksheet's own log lines, each held against our record of the same call."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from lab import capture, record
from lab.blocks import Block, paragraph, table
from lab.correlate.inputs import direction
from lab.record import Record
from lab.rundir import GuestDir, RunDir
from lab.rundir.fields import read_bytes
from lab.symbols import Symbols

SCHEMA = 1
GUEST = "sender"
LOG = "as_written.log"
PROGRAM = "as_written_sender"
RESULT = "as_written.json"
MESSAGE = b"HELLO_SEND_TRACE"
PORT = 9999
KINDS = ("COPY1", "COPY2", "COPY4")
PAGE = 4096
TCP_AT = 34  # where TCP begins behind Ethernet and an IPv4 header without options
COPY = re.compile(r"\[(COPY[14])\] PID=(\d+) comm=\S+ (?:dest|src)=([0-9a-f]+) len=(\d+)")
XMIT = re.compile(r"\[(COPY2)\] dev=(\S+) skb_data=([0-9a-f]+) skb_len=(\d+)")
ELF_MAGIC = b"\x7fELF"
PT_PHDR = b"\x06\0\0\0\x04\0\0\0"  # how a table of program headers begins: PT_PHDR, PF_R

# What a line was; `text` says it in more words.
MESSAGE_ITSELF, TERMINAL, PIPE = "message", "terminal", "pipe"
LIBRARY, RANDOM, TCP, UDP, OTHER = "library", "random", "tcp", "udp", "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line the worksheet's modules printed, and what it was."""

    log: str  # "sender/as_written.log#3"
    line: str
    kind: str  # COPY1, COPY2 or COPY4
    length: int
    address: str
    what: str  # "" where no record of ours is of the same call
    text: str
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """All lines of a run; complete when each has its record and nothing was lost."""

    lines: tuple[Line, ...]
    lost: int
    rodata: str  # where in the sender's file its message lies; "" where it was not found
    changes: tuple[str, ...] = ()  # of the run's files since it wrote them

    @property
    def trouble(self) -> tuple[str, ...]:
        found = [f"no record of ours is of the call of {one.log}" for one in self.lines
                 if not one.what]  # fmt: skip
        if self.lost:
            found.append(f"{self.lost} records were lost")
        seen = {one.kind for one in self.lines if one.what == MESSAGE_ITSELF}
        found += [f"no [{kind}] line is of the message" for kind in KINDS if kind not in seen]
        return (*self.changes, *found)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "complete": not self.trouble,
            "trouble": list(self.trouble),
            "lost": self.lost,
            "rodata": self.rodata,
            "lines": [asdict(one) for one in self.lines],
        }


def explain(run: RunDir) -> Explained:
    """Read what the worksheet's modules printed, and say what each line was."""
    guest = run.guest(GUEST)
    trace = record.read(guest.trace, guest=GUEST)
    symbols = Symbols(guest.symbols)
    unused = list(trace.records)
    text = read_bytes(guest.file(LOG)).decode("utf-8", "replace")
    lines = tuple(_lines(text, unused, symbols))
    return Explained(lines=lines, lost=trace.lost, rodata=_rodata(guest, lines, trace))


def _lines(text: str, unused: list[Record], symbols: Symbols) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        found = COPY.search(line) or XMIT.search(line)
        if found is None:
            continue
        kind, who, address, length = found.groups()
        match = next(
            (one for one in unused if _same(one, kind, who, int(address, 16), int(length))), None
        )
        what, words = "", "no record of ours is of this call"
        if match is not None:
            unused.remove(match)
            what, words = _what(kind, match, symbols)
        yield Line(
            log=f"{GUEST}/{LOG}#{number}",
            line=line[found.start() :],
            kind=kind,
            length=int(length),
            address=f"0x{address}",
            what=what,
            text=words,
            evidence="" if match is None else match.id,
        )


def _same(one: Record, kind: str, who: str, address: int, length: int) -> bool:
    if kind == "COPY2":
        return (one.hook, one.dev, one.data, one.skb_len) == (
            "__dev_queue_xmit", who, address, length,
        )  # fmt: skip
    hook, at = ("_copy_from_iter", one.dst) if kind == "COPY1" else ("_copy_to_iter", one.src)
    return (one.hook, one.pid, at, one.size) == (hook, int(who), address, length)


def _what(kind: str, one: Record, symbols: Symbols) -> tuple[str, str]:
    """Say what a call was, by its caller and by the bytes it moved."""
    if kind == "COPY2":
        return _packet(one)
    caller = symbols.show(one.caller).partition("+")[0]
    told = (
        (
            one.bytes == MESSAGE and caller in ("ip_generic_getfrag", "udp_recvmsg"),
            MESSAGE_ITSELF,
            f"the message, {direction(one.hook)}",
        ),
        ("tty" in caller, TERMINAL, f"{one.bytes.decode('utf-8', 'replace')!r} to the terminal"),
        (caller == "copy_page_from_iter", PIPE, f"{one.bytes[:16]!r} into a pipe"),
        (
            caller.startswith("get_random_bytes"),
            RANDOM,
            f"{one.ret} bytes for getrandom(), from the kernel's stack",
        ),
        (one.bytes.startswith(ELF_MAGIC), LIBRARY, "ld.so reads a library's ELF header"),
        (one.bytes.startswith(PT_PHDR), LIBRARY, "ld.so reads a library's program headers"),
        (True, OTHER, f"{one.ret} bytes"),
    )
    what, text = next((what, text) for fits, what, text in told if fits)
    return what, f"{text} ({caller or 'caller not known'})"


def _packet(one: Record) -> tuple[str, str]:
    headers = capture.parse(one.bytes)
    if headers is None:
        return OTHER, "a frame without IPv4 or IPv6"
    ports = f"port {headers.source_port} to {headers.target_port}"
    if headers.protocol == 17:
        # Of a frame the record has 64 bytes: all of this one.
        if headers.target_port == PORT and MESSAGE in one.bytes:
            return MESSAGE_ITSELF, f"the message's frame: 14 + 20 + 8 + {one.skb_len - 42} bytes"
        return UDP, f"another datagram, {ports}"
    if headers.protocol == 6 and headers.version == 4:
        # The frame is cut at 64 bytes, before the end of a header with options.
        data = one.skb_len - TCP_AT - (one.bytes[TCP_AT + 12] >> 4) * 4
        return TCP, f"a TCP segment of another program, {ports}, {data} bytes of data"
    return OTHER, f"IPv{headers.version} protocol {headers.protocol}"


def _rodata(guest: GuestDir, lines: Sequence[Line], trace: record.Trace) -> str:
    """Say where in the sender's .rodata its message lies, if that is where it was sent from."""
    sent = [one for one in lines if one.kind == "COPY1" and one.what == MESSAGE_ITSELF]
    if not sent or not guest.has(PROGRAM):
        return ""
    user = trace.records.numbered(int(sent[0].evidence.partition("#")[2])).user
    image = ELFFile(io.BytesIO(Path(guest.file(PROGRAM)).read_bytes()))
    section = image.get_section_by_name(".rodata")
    if section is None:
        return ""
    at = section.data().find(MESSAGE)
    # Where it is loaded is random, and a whole number of pages away from where it was linked.
    if at < 0 or (user - section["sh_addr"] - at) % PAGE:
        return ""
    return f"{GUEST}/{PROGRAM}#.rodata+0x{at:x}"


def told(found: Explained) -> list[Block]:
    """Return what report.txt says: every line, what it was, and the record that says so."""
    rows = [(one.kind, str(one.length), one.text, one.evidence or "-") for one in found.lines]
    state = "COMPLETE" if not found.trouble else f"INCOMPLETE: {'; '.join(found.trouble)}"
    head = (
        f"{state}: {len(found.lines)} lines of the worksheet's modules; "
        f"{sum(one.what == MESSAGE_ITSELF for one in found.lines)} are of the message."
    )
    return [
        *paragraph(head),
        "",
        *table(("LINE", "LEN", "WHAT IT WAS", "PROVEN BY"), rows),
        "",
        *paragraph(
            "Each line is what the worksheet's module printed (sender/as_written.log); what it "
            "was is told by our record of the same call: its caller, and the bytes it moved."
        ),
    ]
