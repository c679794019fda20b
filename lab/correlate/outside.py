"""The same walk without any probe: by what the emulator saw the guests' CPUs load and store.

Copies found in the access logs are put into the form of records, so that one walk serves
both accounts; the two flows are then held against each other, byte by byte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TypeAlias

from lab import access, accesses, correlate
from lab.access import AccessLog
from lab.accesses import Accesses, CopySeen, Hold
from lab.accesses.types import Extents
from lab.correlate.devices import arrivals, buffer_parts, header_in_front
from lab.correlate.hooks import DESCRIBED
from lab.correlate.identity import Identity
from lab.correlate.inputs import ACCESS_LOG, SENDER, GuestInputs, Inputs, Mapping
from lab.correlate.naming import Names, names
from lab.correlate.rings import RingWitness
from lab.correlate.spans import Index, missing
from lab.correlate.types import Disagreement, Flow, Kind, Movement, PlaceKind, Unexplained
from lab.errors import TraceCorrupt
from lab.record import Context, Flag, Hook, Record
from lab.record import Kind as At

WITNESS = ACCESS_LOG
# Intel VT-d, an entry of a second-level page table: read and write, and what page it maps.
IOMMU_ENTRY = 8
IOMMU_ALLOWED = 3
IOMMU_ADDRESS = 0x000F_FFFF_FFFF_F000
Act: TypeAlias = tuple[tuple[str, ...], Extents, Extents]  # evidence; from, to
Moved: TypeAlias = tuple[int, int, int]  # a byte's offset in its message; from, to: physical
MOST_EVIDENCE = 8  # ids of one movement; a byte-wise copy of 64 KiB has more

# Functions that only copy, for whoever calls them: the caller says what the copy was for.
LEAVES = (
    *("memcpy", "memmove", "rep_movs", "copy_user", "raw_copy"),
    *("csum_partial_copy", "csum_and_copy_from_user", "csum_and_copy_to_user"),
)


@dataclass(frozen=True, kw_only=True)
class OutsideGuest(GuestInputs):
    """A guest as the access log knows it: copies in place of records, no hooks."""

    seen: Accesses
    identity: Identity
    probes: frozenset[str]  # the modules that watched, as functions of theirs are named
    entered: tuple[Mapping, ...]  # in the IOMMU's tables
    handed: tuple[Record, ...]  # to the device, in the form of the hook that would say so

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The copies of the log in the form of records, in order.

        A probe that reads message bytes for its record stores them masked, and of one byte
        that is the same byte once in 256 runs: what probes store is no part of the way.
        A copy of several messages at once is found once for each, and is one act.
        """
        acts: dict[Act, CopySeen] = {}
        for copy in sorted(self.seen.copies, key=lambda copy: copy.first):
            act = (copy.evidence, copy.source, copy.target)
            if act not in acts or _shown_to(copy) > _shown_to(acts[act]):
                acts[act] = copy
        copies = (_record(self, copy) for copy in acts.values() if copy.function not in self.probes)
        return tuple(sorted([*copies, *self.handed], key=lambda record: record.seq))

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        return self.entered

    @cached_property
    def owners(self) -> dict[int, int]:
        """Page of a workload's buffer -> the workload's pid."""
        out: dict[int, int] = {}
        for work in self.workloads:
            buffer = work.ready.buffer
            for _, physical, size in buffer.extents(buffer.virtual, buffer.size):
                if physical is not None:
                    for page in range(physical >> 12, (physical + size + 4095) >> 12):
                        out.setdefault(page, work.ready.pid)
        return out

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """What the access logs of a run say; `lost` counts accesses nobody wrote down."""

    inputs: Inputs
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not any(self.lost.values())

    @property
    def guests(self) -> tuple[OutsideGuest, ...]:
        return tuple(guest for guest in self.inputs.guests if isinstance(guest, OutsideGuest))


def look(inputs: Inputs) -> Outside | None:
    """Read the access logs of a run; None unless every guest has one.

    Raises `TraceCorrupt` for a log that is there and cannot be read.
    """
    logs: dict[str, AccessLog] = {}
    for guest in inputs.guests:
        path = guest.folder.file("access.bin")
        if not path.is_file():
            return None
        log = access.read(path, guest=guest.name)
        logs[guest.name] = _without_notes(inputs, guest, log)
    # The sender first: what its device read says which bytes a frame carries.
    made: dict[str, GuestInputs] = {}
    for guest in sorted(inputs.guests, key=lambda guest: guest.role(SENDER) is None):
        holds = _sent_from(guest, inputs.identity)
        if guest.role(SENDER) is None:
            sender = next((one for one in made.values() if one.role(SENDER) is not None), None)
            so_far = replace(inputs, guests=tuple(made.values()))
            holds += _received_into(guest, logs[guest.name], so_far, sender)
        made[guest.name] = _outside(guest, logs[guest.name], inputs.identity, holds)
    guests = tuple(made[guest.name] for guest in inputs.guests)
    lost = {
        f"{name}/access.bin": log.lost + (0 if log.complete else int(log.lost == 0))
        for name, log in logs.items()
    }
    return Outside(inputs=replace(inputs, guests=guests), lost=lost)


def _outside(
    guest: GuestInputs, log: AccessLog, identity: Identity, holds: list[Hold]
) -> OutsideGuest:
    seen = accesses.analyse(
        log, identity.messages, symbols=guest.symbols, present=_present(guest), holds=holds
    )
    sections = () if guest.trace is None else guest.trace.sections
    known = {one.name: getattr(guest, one.name) for one in fields(GuestInputs)}
    # The log's TSC is the host's: the guest's clock says nothing of it.
    known |= {"trace": None, "bpf": None, "clock": None, "witness": WITNESS}
    return OutsideGuest(
        **known,
        seen=seen,
        identity=identity,
        probes=frozenset(f"[{section.name}]" for section in sections),
        entered=tuple(_entered(guest, log)),
        handed=tuple(_handed(guest, log)),
    )


def _handed(guest: GuestInputs, log: AccessLog) -> Iterator[Record]:
    """Yield what CPUs were seen to give a device that reads its descriptors in RAM."""
    for queue in guest.rings.kind("tx") if guest.rings is not None else ():
        if queue.translated or not queue.at:
            continue
        for one in (
            access.given(log, table=queue.at, offered=queue.offered, size=queue.size)
            if queue.offered
            else access.given_e1000e(log, table=queue.at, size=queue.size)
        ):
            # The queue lies in the direct map, as what it points at does.
            direct_map = one.stored.virtual - one.stored.physical
            for number, piece in enumerate(one.pieces):
                yield _blank(
                    guest.name,
                    piece.stored.number,
                    tsc=one.stored.tsc,
                    seq=one.stored.last,
                    hook=DESCRIBED,
                    src=direct_map + piece.physical,
                    src_phys=piece.physical,
                    size=piece.size,
                    frags=number,
                )


def _entered(guest: GuestInputs, log: AccessLog) -> Iterator[Mapping]:
    """Yield what CPUs were seen to store in the entries of the IOMMU's tables."""
    queues = guest.rings.queues if guest.rings is not None else ()
    entries = {
        entry for queue in queues for gate in queue.gates for entry in gate.entries
    }  # of addresses that were mapped no longer at a gate
    for page, at in sorted(entries):
        for one in log.touching(at, at + IOMMU_ENTRY):
            value = one.bytes[at - one.physical :][:IOMMU_ENTRY] if one.store else b""
            entry = int.from_bytes(value, "little") if len(value) == IOMMU_ENTRY else 0
            if entry & IOMMU_ALLOWED:
                yield page, entry & IOMMU_ADDRESS, 1 << 12, one.id


def _without_notes(inputs: Inputs, guest: GuestInputs, log: AccessLog) -> AccessLog:
    # A BPF program can read memory only into memory: what it stores in the pages of its own
    # ring, and masks there, is the trace and no copy of a message.
    text = dict(inputs.manifest.notes).get(guest.name, "")
    if not text:
        return log
    try:
        notes = sorted((int(a, 16), int(b, 16)) for a, _, b in _dashed(text))
    except ValueError as error:
        raise TraceCorrupt(f"manifest.json: probes: notes: {error}") from error
    starts = [start for start, _ in notes]

    def mine(one: access.Access) -> bool:
        at = bisect_right(starts, one.physical) - 1
        return at >= 0 and one.physical < notes[at][1]

    return replace(log, records=tuple(one for one in log.records if not mine(one)))


def _dashed(text: str) -> Iterator[tuple[str, str, str]]:
    return (word.partition("-") for word in text.split())


def _present(guest: GuestInputs) -> list[tuple[int, int]]:
    # The sender makes its messages before the window opens.
    work = guest.role(SENDER)
    if work is None:
        return []
    buffer = work.ready.buffer
    return [
        (physical, physical + size)
        for _, physical, size in buffer.extents(buffer.virtual, buffer.size)
        if physical is not None
    ]


def _sent_from(guest: GuestInputs, identity: Identity) -> list[Hold]:
    # Which message bytes the sender's pages hold, where each message has a slot of its own.
    work = guest.role(SENDER)
    if work is None or identity.count > work.ready.slots:
        return []
    out = []
    for index in range(identity.count):
        offset = 0
        for _, physical, size in work.ready.buffer.extents(work.ready.slot(index), identity.size):
            if physical is not None:
                out.append((physical, physical + size, index, offset))
            offset += size
    return out


def _received_into(
    guest: GuestInputs, log: AccessLog, inputs: Inputs, sender: GuestInputs | None
) -> list[Hold]:
    """Return which message bytes lie in the buffers that the receiver's device filled.

    The ring says which buffers and how long; that it was this frame, its bytes, as CPUs saw
    them there.
    """
    if sender is None:
        return []
    wire = correlate.walk_to_wire(sender, inputs)
    filled = [one for one in RingWitness(guest).filled() if one.physical is not None]
    out: list[Hold] = []
    for arrival in arrivals(wire, guest, sender):
        data = arrival.frame.data
        for found in filled:
            header = 0 if found.used is None else header_in_front(found.used, arrival.frame)
            start = found.physical or 0
            if header is not None and _shown(log, start + header, data):
                out += [
                    (start + part.at, start + part.at + part.size, part.message, part.offset)
                    for part in buffer_parts(arrival, header, 0, found.used or len(data))
                ]
                filled.remove(found)
                break
    return out


def _shown(log: AccessLog, start: int, data: bytes) -> bool:
    """Tell whether a CPU saw `data`, or eight bytes of it or more, at physical `start`."""
    for one in log.touching(start, start + len(data)):
        low, high = max(start, one.physical), min(start + len(data), one.end)
        seen = one.bytes[low - one.physical : high - one.physical]
        if (
            not one.store
            and high - low >= access.LEAST
            and seen == data[low - start : high - start]
        ):
            return True
    return False


# --- Copies as records -----------------------------------------------------------------------


def _record(guest: OutsideGuest, copy: CopySeen) -> Record:
    user = copy.source_virtual if copy.from_user else copy.target_virtual
    pages = copy.source if copy.from_user else copy.target
    flags = Flag.SRC_USER if copy.from_user else 0
    flags |= Flag.DST_USER if copy.to_user else 0
    pid = _owner(guest, pages) if flags else 0
    return _blank(
        guest.name,
        int(copy.evidence[0].rpartition("#")[2]),
        tsc=copy.tsc,
        seq=copy.first,
        hook=name_of(copy),
        pid=pid,
        src=0 if copy.from_user else copy.source_virtual,
        dst=0 if copy.to_user else copy.target_virtual,
        src_phys=0 if copy.from_user else copy.source[0][0],
        dst_phys=0 if copy.to_user else copy.target[0][0],
        size=copy.size,
        user=user if flags else 0,
        aux=copy.instructions[0],
        flags=flags,
        shown=copy.bytes[: _shown_to(copy)],
    )


def _blank(
    guest: str,
    number: int,
    *,
    tsc: int,
    seq: int,
    hook: str,
    size: int,
    src: int = 0,
    dst: int = 0,
    src_phys: int = 0,
    dst_phys: int = 0,
    pid: int = 0,
    user: int = 0,
    aux: int = 0,
    flags: int = 0,
    frags: int = 0,
    shown: bytes = b"",
) -> Record:
    """Return a record of the log with what the log knows, and nothing else."""
    return Record(
        id=f"{guest}/access.bin#{number}",
        number=number,
        module=WITNESS,
        tsc=tsc,
        seq=seq,
        cpu=0,
        pid=pid,
        tgid=pid,
        hook=hook,
        kind=At.CALLSITE,
        context=Context(0),
        comm="",
        skb=0,
        head=0,
        data=0,
        skb_len=0,
        skb_data_len=0,
        src=src,
        dst=dst,
        src_phys=src_phys,
        dst_phys=dst_phys,
        size=size,
        ret=0,
        user=user,
        sk=0,
        caller=0,
        dev="",
        aux=aux,
        shinfo=0,
        flags=flags,
        iter_type=0,
        frags=frags,
        bytes=shown,
    )


def _shown_to(copy: CopySeen) -> int:
    return copy.payload_at + copy.payload_size


def name_of(copy: CopySeen) -> str:
    """Return what a copy is called: "caller>leaf" where a function only copies for others."""
    if copy.function.startswith(LEAVES) or "memcpy" in copy.function:
        for caller in copy.callers:
            outer = caller.partition("+")[0]
            if outer and not outer.startswith((*LEAVES, "0x", "user")):
                return f"{outer}>{copy.function}"
    return copy.function


def _owner(guest: OutsideGuest, extents: Iterable[tuple[int, int]]) -> int:
    """Return the pid of the workload whose buffer lies in these pages, 0 for nobody's."""
    return next((guest.owners[at >> 12] for at, _ in extents if at >> 12 in guest.owners), 0)


# --- The two accounts held against each other ----------------------------------------------------


def named(inputs: Inputs, log: Outside) -> dict[str, Names]:
    """Return, by guest, what names and sizes of the two accounts are compared by."""
    probes = inputs.manifest.values.get("probes")
    foreign = isinstance(probes, dict) and "foreign" in probes
    logs = {guest.name: guest.seen.copies for guest in log.guests}
    return {
        guest.name: names(guest, logs.get(guest.name, ()), foreign=foreign)
        for guest in inputs.guests
    }


def agree(
    inside: Flow,
    outside: Flow,
    identity: Identity,
    by_guest: dict[str, Names],
    *,
    lossy: Collection[str] = (),
) -> tuple[tuple[Disagreement, ...], tuple[str, ...]]:
    """Confirm each movement the other account has too; return what only one has, and notes.

    What probes of the `lossy` guests, which lost records, did not report is a note alone.

    Compared are copies by guest CPUs: for each byte of a message, from which physical
    address to which, and how often; then what each account calls them.  What a device did is
    confirmed where the log shows that no CPU did.
    """
    mine, theirs = by_message(inside), by_message(outside)
    found: list[Disagreement] = []
    for movement in _copies(inside):
        twins = same_copies(movement, theirs)
        if twins:
            found += [
                lonely(movement, f"a probe reports a copy {unlike}: ")
                for unlike in by_guest[movement.guest].unlike(movement, twins)
            ]
            movement.confirmed_by.add(WITNESS)
            ids = [one for twin in twins for one in twin.evidence]
            movement.evidence += [one for one in ids if one not in movement.evidence][
                :MOST_EVIDENCE
            ]
        elif comparable(movement) and _decidable(movement, outside, identity):
            found.append(lonely(movement, "a probe reports a copy that no CPU was seen to make: "))
    unreported = [
        lonely(movement, "a copy was made that no probe reported: ")
        for movement in _copies(outside)
        if not same_copies(movement, mine) and comparable(movement)
    ]
    found += [
        lonely(movement, "a probe reports once more than CPUs were seen to make it, a copy: ")
        for movement in _surplus(_by_function(inside), theirs)
        if _decidable(movement, outside, identity)
    ]
    unreported += [
        lonely(movement, "a copy was made once more than probes reported it: ")
        for movement in _surplus([*theirs.values()], mine)
    ]
    found += [one for one in unreported if one.guest not in lossy]
    silent = Counter(one.guest for one in unreported if one.guest in lossy)
    _confirm_devices(inside, outside)
    return tuple(found), tuple(
        f"{guest}: the access log has {count} copies of which the probes, which lost records, "
        "have none"
        for guest, count in silent.items()
    )


def _by_function(flow: Flow) -> list[list[Movement]]:
    # Two hooks may see one copy, an outer and an inner function: one function's alone are acts.
    out: dict[tuple[str, int, str], list[Movement]] = defaultdict(list)
    for movement in _copies(flow):
        out[*_key(movement), movement.function].append(movement)
    return [*out.values()]


def _surplus(
    accounts: Iterable[list[Movement]], others: dict[tuple[str, int], list[Movement]]
) -> Iterator[Movement]:
    """Yield the copies of bytes that the other account has too, and not as often.

    Each of `accounts` is of one guest and message.
    """
    for movements in accounts:
        often: Counter[Moved] = Counter()
        known: Counter[Moved] | None = None
        for movement, moved in _acts(movements):
            often.update(moved)
            again = [one for one in moved if often[one] > 1]
            if again and known is None:
                known = Counter(one for other in others[_key(movement)] for one in _moved(other))
            if known is not None and any(often[one] > known[one] > 0 for one in again):
                yield movement


def _acts(movements: list[Movement]) -> Iterator[tuple[Movement, set[Moved]]]:
    # Not a copy that a fault broke off, and that its function began again from its first byte:
    # a probe that is told of no byte copied by then reports one, and the log has two.
    every = [(movement, _moved(movement)) for movement in movements]
    for number, (movement, moved) in enumerate(every):
        if not any(
            later.function == movement.function
            and later.offset == movement.offset
            and moved < whole
            for later, whole in every[number + 1 :]
        ):
            yield movement, moved


def without_spills(flow: Flow, outside: Outside | None) -> tuple[Unexplained, ...]:
    """Return what a census found and nobody explains: a spill explains what it left behind."""
    if outside is None:
        return flow.unexplained
    spilled = {
        guest.name: [
            (start, start + size) for spill in guest.seen.spills for start, size in spill.target
        ]
        for guest in outside.guests
    }
    return tuple(
        hit
        for hit in flow.unexplained
        if missing([(hit.physical, hit.physical + hit.size)], spilled.get(hit.guest, []))
    )


def _copies(flow: Flow) -> Iterator[Movement]:
    return (movement for movement in flow.movements if movement.kind is Kind.COPY)


def _bytes(movement: Movement, *, source: bool) -> Iterator[tuple[int, int]]:
    place = movement.source if source else movement.target
    offset = place.offset
    first, end = movement.offset, movement.offset + movement.payload_size
    for start, size in place.extents:
        for at in range(max(first - offset, 0), min(end - offset, size)):
            yield offset + at, start + at
        offset += size


def _key(movement: Movement) -> tuple[str, int]:
    return movement.guest, movement.message


def by_message(flow: Flow) -> dict[tuple[str, int], list[Movement]]:
    """Return the copies of an account by guest and message."""
    out: dict[tuple[str, int], list[Movement]] = defaultdict(list)
    for movement in _copies(flow):
        out[_key(movement)].append(movement)
    return out


def _same_bytes(left: Movement, right: Movement) -> bool:
    return (
        left.offset < right.offset + right.payload_size
        and right.offset < left.offset + left.payload_size
    )


def same_copies(
    movement: Movement, others: dict[tuple[str, int], list[Movement]]
) -> list[Movement]:
    """Return the other account's movements that together are this one; [] where they are not."""
    wanted = _moved(movement)
    twins = []
    known: set[Moved] = set()
    for other in others[_key(movement)]:
        if _same_bytes(movement, other):
            moved = _moved(other) & wanted
            if moved:
                known |= moved
                twins.append(other)
    return twins if wanted and known == wanted else []


def _moved(movement: Movement) -> set[Moved]:
    """Return what became of each byte."""
    source = dict(_bytes(movement, source=True))
    target = dict(_bytes(movement, source=False))
    return {(at, source[at], target[at]) for at in source.keys() & target.keys()}


def comparable(movement: Movement) -> bool:
    """Tell whether it is known where in memory a copy began and ended."""
    return bool(movement.source.extents and movement.target.extents)


def _decidable(movement: Movement, outside: Flow, identity: Identity) -> bool:
    """Tell whether the log would show a copy: of a few bytes only where it knew the source.

    Fewer than eight are followed by address, from where it is known that they lie, where they
    are the last of a message; zeros are everywhere, and are not.
    """
    if movement.payload_size >= access.LEAST:
        return True
    end = movement.offset + movement.payload_size
    if end < identity.size:
        return False
    text = identity.bytes_of(movement.message)[movement.offset : end]
    return any(text) and any(
        place.guest == movement.guest
        and place.message == movement.message
        and any(
            start < at + size and at < start + length
            for start, length in place.extents
            for at, size in movement.source.extents
        )
        for place in outside.places
    )


def lonely(movement: Movement, text: str) -> Disagreement:
    """Return the disagreement about a movement that one account has alone."""
    where = f"{movement.function} of {movement.payload_size} bytes"
    if movement.caller:
        where += f", called from {movement.caller}"
    from_, to = movement.source.physical, movement.target.physical
    return Disagreement(
        what="copy",
        guest=movement.guest,
        message=movement.message,
        text=f"{text}{where}, from physical {from_:#x} to {to:#x}",
        evidence=tuple(movement.evidence[:MOST_EVIDENCE]),
    )


def _confirm_devices(inside: Flow, outside: Flow) -> None:
    """Confirm device writes where the other walk found no CPU that brought the bytes."""
    stored: dict[str, list[tuple[int, int, None]]] = defaultdict(list)
    for movement in _copies(outside):
        for start, size in movement.target.extents:
            stored[movement.guest].append((start, start + size, None))
    by_address = {guest: Index(ranges) for guest, ranges in stored.items()}
    for movement in inside.movements:
        place = movement.target
        if movement.kind is not Kind.DMA_WRITE or place.kind is PlaceKind.WIRE:
            continue
        index = by_address.get(place.guest)
        touched = index is not None and any(
            any(index.touching(at, at + size)) for at, size in place.extents
        )
        if place.extents and not touched:
            movement.confirmed_by.add(WITNESS)
