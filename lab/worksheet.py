"""The worksheet's exercises E01 to E08, answered from what one run recorded.

An answer has its evidence, or says what the run lacks.  Where the worksheet's hint is wrong
the answer says what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab import calls, ledger
from lab.calls import Call
from lab.errors import EvidenceError
from lab.ledger import Ledger, Message
from lab.rundir import GuestDir, RunDir

XMIT = "__dev_queue_xmit"
PROBED = "_copy_from_iter"  # its probe reads the destination from RDI
HEADERS = {
    "ipv4": {"Ethernet": 14, "IPv4": 20, "UDP": 8},
    "ipv6": {"Ethernet": 14, "IPv6": 40, "UDP": 8},
}
CHECKED = ("E01", "E02", "E03", "E04", "E05", "E06", "E07")
BLANK = "___"
UNKNOWN = "unknown"
LINE = re.compile(r"\s*(E0[1-8])\s*=\s*(.*?)\s*")
QUESTIONS = {
    "E01": "From 013: your socket's file descriptor",
    "E02": "From 035: your user buffer's virtual address",
    "E03": "From 047: the kernel virtual address that copy #1 wrote to",
    "E04": "From 061: skb->data at the device's queue (copy #2 in the worksheet)",
    "E05": "From 064: the packet's size in bytes",
    "E06": "Why 66 instead of 58 bytes? Here: how many bytes of padding were added",
    "E07": "From 074: the register that holds the first argument on x86-64",
    "E08": "From 087: one sentence: why RDMA is faster than send()",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One exercise; `value` is "" where the run cannot tell."""

    id: str
    value: str
    note: str
    evidence: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        return QUESTIONS[self.id]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What somebody filled in, and whether that is what was measured; None: nobody can say."""

    id: str
    given: str
    right: bool | None
    expected: str

    @property
    def word(self) -> str:
        if self.right is None:
            return "blank" if _is_blank(self.given) else UNKNOWN
        return "right" if self.right else "WRONG"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Packet:
    data: int
    length: int
    evidence: str


def answers(run: RunDir) -> list[Answer]:
    """Answer all eight of a run's first message; `EvidenceError` for a run of another kind."""
    account = ledger.build(run)
    if not account.messages:
        raise EvidenceError(f"run {run.name} sent no message", hint="invoke lab.run-loopback")
    message = account.messages[0]
    sender = run.guest("sender")
    packet = _packet(message, sender)
    headers = HEADERS.get(run.manifest().family, HEADERS["ipv4"])
    return [
        *_sender(sender),
        _copy(message),
        _data(packet),
        _size(packet, message, headers),
        _padding(packet, message, headers),
        _register(sender, message),
        _sentence(account, message),
    ]


def blank() -> str:
    """Return a file to fill in."""
    lines = ["# The worksheet's exercises; lab.worksheet RUN --check=FILE compares E01 to E07."]
    for name, question in QUESTIONS.items():
        lines += [f"# {question}", f"{name} = {BLANK}"]
    return "\n".join(lines) + "\n"


def render(found: Sequence[Answer]) -> str:
    """Return the filled-in sheet, each answer with its note and its evidence."""
    lines = []
    for one in found:
        lines += [f"# {one.question}", f"{one.id} = {one.value or BLANK}"]
        lines += [f"#   {one.note}"] if one.note else []
        lines += [f"#   evidence: {', '.join(one.evidence)}"] if one.evidence else []
    return "\n".join(lines) + "\n"


def to_json(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return the answers as `--json` prints them."""
    return [{**asdict(one), "question": one.question} for one in found]


def check(found: Sequence[Answer], text: str) -> list[Checked]:
    """Compare a filled-in sheet with what was measured; E08 is nobody's to mark."""
    given: dict[str, str] = {}
    for line in text.splitlines():
        hit = LINE.fullmatch(line)
        if hit:
            given[hit[1]] = hit[2]
    if not given:
        raise EvidenceError("nothing is filled in: expected lines such as 'E01 = 3'")
    known = {one.id: one.value for one in found}
    return [
        Checked(
            id=name,
            given=given.get(name, ""),
            right=_right(name, given.get(name, ""), known[name]),
            expected=known[name],
        )
        for name in CHECKED
    ]


def _right(name: str, given: str, expected: str) -> bool | None:
    if _is_blank(given) or not expected:
        return None
    if name == "E07":
        return given.strip("% ").lower() == expected.lower()
    return _number(given, hexadecimal=name in ("E02", "E03", "E04")) == _number(expected)


def _is_blank(given: str) -> bool:
    """Tell whether nothing was filled in: the worksheet's own blanks are `___`, and `___ bytes`."""
    return not given.strip("_ ") or given.startswith("__")


def _number(text: str, *, hexadecimal: bool = False) -> int | None:
    word = text.split(maxsplit=1)[0]
    try:
        return int(word, 16 if hexadecimal else 0)
    except ValueError:
        return None


def marks(checked: Sequence[Checked]) -> str:
    """Return a line for each exercise."""
    return "\n".join(
        f"{one.id}  {one.word:<7} {one.given or BLANK}"
        + (f"   measured: {one.expected}" if one.right is False else "")
        + ("   (this run cannot tell)" if one.word == UNKNOWN else "")
        for one in checked
    )


# --- Each answer ----------------------------------------------------------------------------


def _sender(sender: GuestDir) -> list[Answer]:
    work = next((one for one in sender.workloads() if one.role == "sender"), None)
    if work is None:
        raise EvidenceError("the run has no sender", log=sender.path)
    evidence = ("sender/workload.json#sender/ready",)
    return [
        Answer(id="E01", value=str(work.ready.fd), note="as the program said", evidence=evidence),
        Answer(
            id="E02",
            value=f"{work.ready.buffer.virtual:#x}",
            note=f"{work.ready.buffer.region}, as the program said",
            evidence=evidence,
        ),
    ]


def _copy(message: Message) -> Answer:
    for move in message.movements:
        source, target = message.places[move.source], message.places[move.target]
        if move.kind == "copy" and source.guest == "sender" and source.place == "user":
            return Answer(
                id="E03",
                value=f"{target.at(move.offset):#x}",
                note=f"{move.function} wrote {move.payload_size} bytes to physical"
                f" {target.physical:#x}; {move.certainty}",
                evidence=move.evidence,
            )
    return Answer(id="E03", value="", note="no copy out of the sender's buffer was recorded")


def _packet(message: Message, sender: GuestDir) -> _Packet | None:
    """Return the packet at the device's queue: from a probe, else from the calls followed."""
    for seen in message.skb.sender:
        if seen.at == XMIT:
            return _Packet(data=seen.data, length=seen.len, evidence=seen.evidence)
    if sender.has(calls.FILE):
        for call in calls.read(sender.file(calls.FILE)).calls:
            if call.function == XMIT and "skb" in call.before:
                held = call.before["skb"]
                evidence = f"sender/{calls.FILE}#{call.number}"
                return _Packet(data=held["data"], length=held["len"], evidence=evidence)
    return None


def _data(packet: _Packet | None) -> Answer:
    if packet is None:
        return Answer(id="E04", value="", note=f"nobody looked at {XMIT}")
    return Answer(
        id="E04",
        value=f"{packet.data:#x}",
        note="skb->data is the Ethernet header there, in front of what copy #1 wrote; no copy"
        " was made at this place",
        evidence=(packet.evidence,),
    )


def _size(packet: _Packet | None, message: Message, headers: Mapping[str, int]) -> Answer:
    if packet is None:
        return Answer(id="E05", value="", note=f"nobody looked at {XMIT}")
    note = f"skb->len at {XMIT}"
    if message.protocol == "udp":
        parts = " + ".join(f"{size} {name}" for name, size in headers.items())
        total = sum(headers.values()) + message.size
        note += f"; {parts} + {message.size} payload = {total}"
        if packet.length != 66:
            note += "; the worksheet's 66 is not this packet's size"
    return Answer(id="E05", value=str(packet.length), note=note, evidence=(packet.evidence,))


def _padding(packet: _Packet | None, message: Message, headers: Mapping[str, int]) -> Answer:
    if packet is None or message.protocol != "udp":
        why = f"nobody looked at {XMIT}" if packet is None else "asked of a UDP packet"
        return Answer(id="E06", value="", note=why)
    padding = packet.length - sum(headers.values()) - message.size
    note = f"{packet.length} bytes are headers and payload"
    if padding == 0:
        note += (
            ": nothing was padded, so the hint (an Ethernet minimum of 64) explains nothing here;"
            " 66 = 14 + 20 + 32 is a TCP segment with timestamps and no data, another packet"
        )
    return Answer(id="E06", value=str(padding), note=note, evidence=(packet.evidence,))


def _register(sender: GuestDir, message: Message) -> Answer:
    """Name the register that held a first argument, if it was recorded and known otherwise."""
    work = next(one for one in sender.workloads() if one.role == "sender")
    if sender.has(calls.FILE):
        for call in calls.read(sender.file(calls.FILE)).calls:
            held = _saved(call)
            if held and held.get("di") == work.ready.fd:
                return Answer(
                    id="E07",
                    value="RDI",
                    note=f"RDI was {held['di']} as sendto() was entered, the descriptor of E01;"
                    f" RSI {held['si']:#x}, RDX {held['dx']}",
                    evidence=(f"sender/{calls.FILE}#{call.number}",),
                )
    for move in message.movements:
        if move.function == PROBED and {"probe:kmod", "access-log"} <= set(move.confirmed_by):
            return Answer(
                id="E07",
                value="RDI",
                note=f"the probe took {PROBED}'s first argument from RDI, and it is the address at"
                " which the emulator saw the CPU store the bytes",
                evidence=move.evidence,
            )
    return Answer(
        id="E07", value="", note="this run recorded no registers; invoke lab.run-steps does"
    )


def _saved(call: Call) -> dict[str, int] | None:
    if call.function != "__x64_sys_sendto":
        return None
    return next((dict(held) for held in call.before.values() if "di" in held), None)


def _sentence(account: Ledger, message: Message) -> Answer:
    totals = message.totals
    copies = [move for move in message.movements if move.kind == "copy"]
    by = ", ".join(dict.fromkeys(move.function for move in copies))
    least, most = totals.spread("guest_cpu_copies")
    often = str(most) if least == most else f"{least} to {most}"
    return Answer(
        id="E08",
        value=f"send() had guest CPUs copy these {message.size} bytes"
        f" {often} times ({by}) and devices move them"
        f" {totals.device_reads + totals.device_writes} times, where"
        " RDMA lets the NIC read the sender's buffer and write the receiver's: no copy by a CPU.",
        note="the counts are this run's; that RDMA makes none is the worksheet's, nothing here ran"
        " RDMA" + ("" if account.complete else "; the ledger is incomplete"),
        evidence=tuple(dict.fromkeys(one for move in copies for one in move.evidence[:1])),
    )
