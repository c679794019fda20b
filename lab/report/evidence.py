"""Evidence ids to what they name: the fields of a record, and its bytes with the message marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from lab import access, accesses, capture, clock, record
from lab.capture import Frame
from lab.errors import LabError
from lab.ledger import Message
from lab.record import Context, Flag, Record, Records
from lab.rundir import Descriptor, GuestDir, Queue, RingGate, RunDir
from lab.symbols import Symbols

ROW = 16  # bytes of a line of a hex dump
SHOWN_BYTES = 256
SHOWN_ACCESSES = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """One byte of a hex dump; `ours` where it is the message's."""

    hex: str
    text: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Dump:
    """Bytes by lines of 16; `left_out` are those not shown."""

    rows: tuple[tuple[int, tuple[Cell, ...]], ...]
    left_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What one evidence id names."""

    id: str
    title: str
    fields: tuple[tuple[str, str], ...] = ()
    dump: Dump | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What to mark in a dump: bytes of the message from `offset` on."""

    message: bytes
    offset: int
    size: int

    @property
    def bytes(self) -> bytes:
        return self.message[self.offset : self.offset + self.size]


NOTHING = Wanted(message=b"", offset=0, size=0)


class Shelf:
    """One guest's files, each read when something of it is asked for."""

    def __init__(self, folder: GuestDir) -> None:
        self.folder = folder

    @cached_property
    def trace(self) -> record.Trace | None:
        path = self.folder.trace
        if not path.is_file() or not path.stat().st_size:
            return None
        return record.read(path, guest=self.folder.name)

    @cached_property
    def programs(self) -> record.Trace | None:
        path = self.folder.bpf
        if not path.is_file() or not path.stat().st_size:
            return None
        return record.read(path, guest=self.folder.name)

    @cached_property
    def frames(self) -> list[Frame]:
        return capture.read(self.folder.wire) if self.folder.wire.is_file() else []

    @cached_property
    def log(self) -> access.AccessLog | None:
        path = self.folder.file("access.bin")
        return access.read(path, guest=self.folder.name) if path.is_file() else None

    @cached_property
    def clock(self) -> clock.ClockMap | None:
        return clock.fit(self.folder.tsc()) if self.folder.has("tsc.json") else None

    @cached_property
    def symbols(self) -> Symbols:
        sections = () if self.trace is None else self.trace.sections
        modules = {section.header.module_base: section.name for section in sections}
        return Symbols(self.folder.symbols, modules)


class Archive:
    """A run's files, looked up by evidence id."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._shelves: dict[str, Shelf] = {}
        self._records: dict[str, Record | None] = {}
        self._traces: dict[str, Records | None] = {}  # by file

    def shelf(self, guest: str) -> Shelf:
        if guest not in self._shelves:
            self._shelves[guest] = Shelf(self.run.guest(guest))
        return self._shelves[guest]

    def record(self, evidence: str) -> Record | None:
        """Return the record of a trace that an id names; None for any other id."""
        where, _, number = evidence.partition("#")
        guest, _, file = where.partition("/")
        if file not in ("trace.bin", "bpf.bin") or not number.isdigit():
            return None
        if evidence not in self._records:
            if where not in self._traces:
                shelf = self.shelf(guest)
                trace = shelf.trace if file == "trace.bin" else shelf.programs
                self._traces[where] = None if trace is None else trace.records
            records = self._traces[where]
            try:
                found = None if records is None else records.numbered(int(number))
            except KeyError:
                found = None
            self._records[evidence] = found
        return self._records[evidence]

    def card(self, evidence: str, wanted: Wanted) -> Card:
        """Return what an id names; a file that cannot be read is said in the card."""
        file = evidence.partition("#")[0].rpartition("/")[2]
        readers = {
            "trace.bin": self._of_record,
            "bpf.bin": self._of_record,
            "access.bin": self._of_access,
            "wire.pcap": self._of_frame,
            "rings.json": self._of_descriptor,
            "census.json": self._of_hit,
        }
        if file not in readers:
            return Card(id=evidence, title="what the program reported")
        try:
            return readers[file](evidence, wanted)
        except (LabError, ValueError, LookupError) as error:
            return Card(id=evidence, title=f"cannot be read: {error}")

    def descriptors(self, message: Message, movements: Sequence[int]) -> dict[str, str]:
        """Return in a few words what the descriptors of some movements say, by evidence id."""
        ids = (one for number in movements for one in message.movements[number].evidence)
        wanted = [one for one in ids if "/rings.json#" in one]
        return {one: dict(self.card(one, NOTHING).fields).get("says", "") for one in wanted}

    def touched(self, guest: str, start: int, size: int) -> list[str]:
        """Return who loaded and stored a physical range, as the emulator saw it."""
        shelf = self.shelf(guest)
        if shelf.log is None:
            return []
        found = accesses.touched(shelf.log, start, start + size, symbols=shelf.symbols)
        more = len(found) - SHOWN_ACCESSES
        rest = [f"… and {more} more: invoke lab.accesses"] if more > 0 else []
        return [line.strip() for line in found[:SHOWN_ACCESSES]] + rest

    # --- Each kind of file ------------------------------------------------------------------

    def _of_record(self, evidence: str, wanted: Wanted) -> Card:
        found = self.record(evidence)
        if found is None:
            return Card(id=evidence, title="no such record")
        shelf = self.shelf(found.guest)
        where = "inside" if found.kind is record.Kind.CALLSITE else found.kind.name.lower()
        return Card(
            id=evidence,
            title=f"{found.hook}, {where}, in {found.module}",
            fields=tuple(_fields(found, shelf)),
            dump=dump(found.bytes, wanted) if found.bytes and not _is_words(found) else None,
        )

    def _of_access(self, evidence: str, wanted: Wanted) -> Card:
        guest, name = _split(evidence)
        shelf = self.shelf(guest)
        number = int(name)
        found = next(a for a in (shelf.log.records if shelf.log else ()) if a.number == number)
        show = shelf.symbols.show
        callers = " ← ".join(show(caller) for caller in found.callers if caller)
        return Card(
            id=evidence,
            title="stores seen by the emulator" if found.store else "loads seen by the emulator",
            fields=(
                ("instruction", show(found.instruction)),
                ("called from", callers or "not known"),
                ("virtual", f"0x{found.virtual:x}"),
                ("physical", f"0x{found.physical:x}"),
                ("accesses", f"{found.count}, of {found.narrowest} to {found.widest} bytes"),
                ("vCPU", str(found.vcpu)),
            ),
            dump=dump(found.bytes, wanted),
        )

    def _of_frame(self, evidence: str, wanted: Wanted) -> Card:
        guest, name = _split(evidence)
        frame = self.shelf(guest).frames[int(name)]
        return Card(
            id=evidence,
            title=f"frame of {len(frame.data)} bytes, seen at the {guest}'s backend",
            fields=tuple((part, f"{size} bytes {text}") for part, size, text in rows(frame)),
            dump=dump(frame.data, wanted),
        )

    def _of_descriptor(self, evidence: str, _: Wanted) -> Card:
        guest, name = _split(evidence)
        gate, kind, number = name.split("/")
        rings = self.run.guest(guest).rings()
        for queue in rings.kind(kind):
            for moment in queue.gates:
                if moment.name != gate:
                    continue
                one = next(d for d in moment.descriptors if d.id == int(number))
                ways = "device writes" if one.flags & one.WRITE else "device reads"
                return Card(
                    id=evidence,
                    title=f"descriptor {one.id} of the {kind.upper()} ring, at gate '{gate}'",
                    fields=(
                        ("says", f"descriptor {one.id}: 0x{one.address:x} + {one.length}"),
                        *_behind(queue, moment, one),
                        ("length", f"{one.length} bytes"),
                        ("flags", f"{one.flags} ({ways})"),
                        ("the device's then", _posted(moment, one)),
                        ("ring", f"available {moment.avail_idx}, used {moment.used_idx}"),
                    ),
                )
        raise LookupError(f"no gate '{gate}' in {guest}/rings.json")

    def _of_hit(self, evidence: str, _: Wanted) -> Card:
        guest, name = _split(evidence)
        gate, number = name.rsplit("/", 1)
        census = self.run.guest(guest).census()
        moment = next(one for one in census.gates if one.name == gate)
        hit = moment.hits[int(number)]
        return Card(
            id=evidence,
            title=f"found in RAM by the host, at gate '{gate}'",
            fields=(
                ("physical", f"0x{hit.physical:x}"),
                ("size", f"{hit.size} bytes"),
                ("searched", f"{moment.scanned_bytes} bytes of RAM"),
            ),
        )


def _posted(gate: RingGate, one: Descriptor) -> str:
    posted = gate.posted()
    return "not recorded" if posted is None else "yes" if one.id in posted else "no"


def _behind(queue: Queue, gate: RingGate, one: Descriptor) -> list[tuple[str, str]]:
    if not queue.translated:
        return [("physical", f"0x{one.address:x}")]
    physical = gate.mapped(one.address)
    stood = "mapped to nothing by then" if physical is None else f"0x{physical:x}"
    return [("device address", f"0x{one.address:x}"), ("physical", stood)]


def _split(evidence: str) -> tuple[str, str]:
    """Return guest and what is named in the file."""
    where, _, name = evidence.partition("#")
    return where.partition("/")[0], name


def rows(frame: Frame) -> list[tuple[str, int, str]]:
    """Return a frame's headers and its payload's size, as a person reads them."""
    out = capture.describe(frame)
    if frame.payload:
        out.append(("payload", len(frame.payload), ""))
    return out


def dump(data: bytes, wanted: Wanted) -> Dump:
    """Return a hex dump in which the message's bytes are marked."""
    first, last = _ours(data, wanted.bytes)
    begin = 0
    if first > SHOWN_BYTES // 2:  # start close before the message
        begin = (first - ROW) // ROW * ROW
    shown = data[begin : begin + SHOWN_BYTES]
    lines = []
    for at in range(0, len(shown), ROW):
        cells = tuple(
            Cell(
                f"{byte:02x}",
                chr(byte) if 32 <= byte < 127 else "·",
                first <= begin + at + n < last,
            )
            for n, byte in enumerate(shown[at : at + ROW])
        )
        lines.append((begin + at, cells))
    return Dump(tuple(lines), len(data) - len(shown))


def _ours(data: bytes, message: bytes) -> tuple[int, int]:
    """Return where in `data` the message begins and ends; the data may end before it does."""
    for at in range(len(data) if message else 0):
        size = min(len(message), len(data) - at)
        if size < min(4, len(message)):
            break
        if data[at : at + size] == message[:size]:
            return at, at + size
    return 0, 0


def _fields(found: Record, shelf: Shelf) -> Iterator[tuple[str, str]]:
    yield "task", f"{found.comm}, pid {found.pid}, CPU {found.cpu}"
    yield "context", context(found.context)
    at = "" if shelf.clock is None else f", host {instant(shelf.clock, found.tsc)}"
    yield "TSC", f"{found.tsc}{at}"
    if found.caller:
        yield "called from", shelf.symbols.show(found.caller)
    if found.kind is record.Kind.CALLSITE:
        yield "instruction", shelf.symbols.show(found.aux)
    if found.args or found.barrier or found.socket:
        yield from _words(found, shelf)
        return
    mapped = found.hook.startswith(("dma_map_", "dma_unmap_"))
    for name, value in (
        ("device address", found.aux if mapped else 0),
        ("source", found.src),
        ("source, physical", found.src_phys),
        ("target", found.dst),
        ("target, physical", found.dst_phys),
        ("user address", found.user),
        ("skb", found.skb),
        ("skb->head", found.head),
        ("skb->data", found.data),
        ("sock", found.sk),
    ):
        if value:
            yield name, f"0x{value:x}"
    if found.flags & Flag.SKB:
        yield "skb->len", f"{found.skb_len}, of them {found.skb_data_len} in frags"
    if found.size:
        yield "size", f"{found.size} bytes"
    if found.kind is record.Kind.RETURN:
        yield "returned", str(found.ret)
    if found.dev:
        yield "netdev", found.dev


def _is_words(found: Record) -> bool:
    """Tell whether a record's bytes are registers and no memory."""
    return bool(found.flags & (Flag.ARGS | Flag.BARRIER))


def _words(found: Record, shelf: Shelf) -> Iterator[tuple[str, str]]:
    """Yield what a record of a socket has where others have bytes and an skb."""
    if (gate := found.barrier) is not None:
        yield "instruction", f"0x{found.user:x}: {found.aux.to_bytes(8, 'little')[:2].hex(' ')}"
        yield "RAX, number", str(gate.number)
        yield "RDI, RSI, RDX", f"0x{gate.di:x}, 0x{gate.si:x}, 0x{gate.dx:x}"
        yield "cs before, after", f"0x{gate.cs_before:x}, 0x{gate.cs_after:x}"
        yield "MSR_LSTAR", f"0x{gate.lstar:x} {shelf.symbols.show(gate.lstar)}"
    if (args := found.args) is not None:
        yield "argument registers", ", ".join(f"0x{one:x}" for one in args.arg)
        if found.kind is record.Kind.RETURN:
            yield "rax", f"0x{args.ret:x}"
        yield "signal pending", "yes" if args.signal_pending else "no"
    if (seen := found.socket) is not None:
        for name, value in (
            ("struct socket", seen.socket),
            ("socket->ops", seen.ops),
            ("socket->sk", seen.sk),
            ("socket->file", seen.socket_file),
            ("struct file", seen.file),
            ("file->private_data", seen.private_data),
            ("sk->sk_socket", seen.sk_socket),
            ("inode", seen.inode),
        ):
            if value:
                yield name, f"0x{value:x}"
        if seen.socket:
            yield "socket->state, type", f"{seen.state}, {seen.type}"
    if found.size:
        yield "signal", str(found.size)
    if found.ret and found.kind is record.Kind.ENTRY:
        yield "made it return", str(found.ret)


@cache
def context(value: Context) -> str:
    """Return in words what the CPU was doing."""
    words = {
        Context.SOFTIRQ: "softirq",
        Context.BH_OFF: "softirqs off",
        Context.IRQ_OFF: "interrupts off",
    }
    return ", ".join(word for flag, word in words.items() if flag in value) or "process"


def instant(line: clock.ClockMap, tsc: int) -> str:
    """Return host time and its bound."""
    at = line.host(tsc)
    return f"{at.ns / 1e9:.6f} s ± {at.bound_ns / 1000:.0f} µs"
