"""The artefacts of one run as correlation reads them, and which witnesses they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

from lab import capture, clock
from lab import record as records
from lab.capture import Frame
from lab.clock import ClockMap
from lab.correlate.hooks import DMA_MAP, DMA_UNMAP
from lab.correlate.identity import Identity
from lab.errors import TraceCorrupt
from lab.record import Hook, Record, Trace
from lab.rundir import Census, GuestDir, HeldAt, Manifest, Rings, RunDir, Workload
from lab.symbols import Symbols

SENDER, RECEIVER = "sender", "receiver"  # roles of the workload
ENOENT = 2
KMOD, BPF = "probe:kmod", "probe:bpf"  # witnesses whose accounts are records
ACCESS_LOG = "access-log"  # the one whose account is loads and stores
# A device's address, the physical one it stood for, how many bytes on, and the evidence.
Mapping = tuple[int, int, int, str]
MOST_MESSAGES = 120_000  # twelve times what a playbook may ask for


@dataclass(frozen=True, kw_only=True)
class GuestInputs:
    """What one guest left; None where it left nothing of a kind."""

    name: str
    folder: GuestDir
    trace: Trace | None
    frames: tuple[Frame, ...] | None
    workloads: tuple[Workload, ...]
    census: Census | None
    rings: Rings | None
    clock: ClockMap | None
    symbols: Symbols
    bpf: Trace | None = None  # what BPF programs left; `trace` where no module did
    witness: str = KMOD  # whose account the records are
    held_at: tuple[HeldAt, ...] = ()  # when the host held the programs, by its own clock

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """All records in the order they were taken."""
        if self.trace is None:
            return ()
        return tuple(sorted(self.trace.records, key=attrgetter("tsc")))  # the file is by number

    @cached_property
    def distances(self) -> Counter[int]:
        """How often each distance between a virtual and its physical address is in the records.

        The most frequent is the start of the direct map (its place is random: never a
        constant of ours).
        """
        records = self.records
        found = Counter([one.src - one.src_phys for one in records if one.src and one.src_phys])
        found.update([one.dst - one.dst_phys for one in records if one.dst and one.dst_phys])
        return found

    @cached_property
    def direct_map(self) -> int | None:
        """Where the direct map begins, as the records say; None where none says so."""
        return self.distances.most_common(1)[0][0] if self.distances else None

    @cached_property
    def blamed(self) -> dict[str | None, str]:
        """What `blame` has said of this guest, by direction."""
        return {}

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What addresses of a device stood for, as the DMA API's records say."""
        return tuple(
            (record.aux, record.src_phys, record.size, record.id)
            for record in self.records
            if record.hook in (DMA_MAP, DMA_UNMAP) and record.aux and record.src_phys
        )

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return () if self.trace is None else self.trace.hooks

    def hook(self, name: str) -> Hook | None:
        return next((hook for hook in self.hooks if hook.name == name), None)

    def role(self, role: str) -> Workload | None:
        return next((work for work in self.workloads if work.role == role), None)

    def evidence(self, file: str, number: object) -> str:
        return f"{self.name}/{file}#{number}"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One run, read."""

    manifest: Manifest
    identity: Identity
    guests: tuple[GuestInputs, ...]

    @property
    def loopback(self) -> bool:
        return self.manifest.over == "loopback"

    def with_role(self, role: str) -> GuestInputs | None:
        return next((guest for guest in self.guests if guest.role(role) is not None), None)


def load(run: RunDir) -> Inputs:
    """Read a run; raise `TraceCorrupt` for a file that is there and not readable."""
    manifest = run.manifest()
    try:
        identity = Identity(
            seed=manifest.seed,
            payload=manifest.payload,
            size=manifest.size,
            count=min(manifest.count, MOST_MESSAGES + 1),
        )
    except ValueError as error:
        raise TraceCorrupt(f"{run.path / 'manifest.json'}: {error}", log=run.path) from error
    if identity.count > MOST_MESSAGES:
        raise TraceCorrupt(
            f"{run.path / 'manifest.json'}: count: expected at most {MOST_MESSAGES},"
            f" found {manifest.count}",
            log=run.path,
        )
    guests = tuple(_guest(folder) for folder in run.guests())
    return Inputs(manifest=manifest, identity=identity, guests=guests)


def _guest(folder: GuestDir) -> GuestInputs:
    trace, bpf = _trace(folder, folder.trace), _trace(folder, folder.bpf)
    sections = () if trace is None else trace.sections
    modules = {section.header.module_base: section.name for section in sections}
    return GuestInputs(
        name=folder.name,
        folder=folder,
        trace=bpf if trace is None else trace,
        bpf=bpf,
        witness=BPF if trace is None and bpf is not None else KMOD,
        frames=tuple(capture.read(folder.wire)) if folder.wire.is_file() else None,
        workloads=folder.workloads() if folder.has("workload.json") else (),
        census=folder.census() if folder.has("census.json") else None,
        rings=folder.rings() if folder.has("rings.json") else None,
        clock=clock.fit(folder.tsc()) if folder.has("tsc.json") else None,
        held_at=folder.held_at() if folder.has("tsc.json") else (),
        symbols=Symbols(folder.symbols, modules),
    )


def _trace(folder: GuestDir, path: Path) -> Trace | None:
    if not path.is_file() or path.stat().st_size == 0:
        return None
    return records.read(path, guest=folder.name)


# --- Hooks ----------------------------------------------------------------------------------


def direction(hook: str) -> str:
    """Say which way the copies of a hook go: out of user memory, into it, or within."""
    if "from_iter" in hook:
        return "out of user memory"
    if "to_iter" in hook:
        return "into user memory"
    return "within the kernel"


def _of_absent_driver(hook: Hook, hooks: Sequence[Hook]) -> bool:
    """Tell whether a hook is in a module of which this guest has nothing: another link's driver."""
    module, colon, _ = hook.name.partition(":")
    alike = [one for one in hooks if one.name.startswith(f"{module}:")]
    return bool(colon) and all(one.error == -ENOENT and not one.left_out for one in alike)


def blame(guest: GuestInputs | None, way: str | None) -> str:
    """Say why a movement may have gone unseen, hooks left out first.

    `way` is a direction as above; None means any copy.
    """
    if guest is None:
        return "the guest is not in the run directory"
    if guest.witness == ACCESS_LOG:
        return f"{guest.name}/access.bin shows no copy that brought them"
    if guest.trace is None:
        return f"{guest.name} has no trace"
    if way not in guest.blamed:  # once, and not for each of a hundred thousand messages
        guest.blamed[way] = _suspects(guest, guest.trace, way)
    return guest.blamed[way]


def _suspects(guest: GuestInputs, trace: Trace, way: str | None) -> str:
    suspects = [
        hook
        for hook in guest.hooks
        if hook.copies
        and (way is None or direction(hook.name) == way)
        and not _of_absent_driver(hook, guest.hooks)
    ]
    reasons = [f"{hook.name} was left out" for hook in suspects if hook.left_out]
    for hook in suspects:
        if hook.error and not hook.left_out:
            word = "is not in this kernel" if hook.error == -ENOENT else "could not be attached"
            reasons.append(f"{hook.name} {word} (error {hook.error})")
        elif hook.missed:
            reasons.append(f"{hook.name} missed {hook.missed}")
    if trace.dropped:
        reasons.append(f"{trace.dropped} records were dropped")
    if trace.skipped:
        reasons.append(f"{trace.skipped} records of other comms were skipped")
    return "; ".join(reasons) or "no hook that is attached saw what brought them"
