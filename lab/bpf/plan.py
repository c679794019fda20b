"""Which hooks a kernel has, by its symbols and by its text as it stands in guest RAM."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from errno import ECANCELED, EINVAL, ENOENT

from lab import drivers
from lab.bpf.hooks import ALIASES, HOOKS, Hook
from lab.record import HOOK_COPY, HOOK_LEFT_OUT

CALLS = b"\xe8\xe9"  # call, and jmp where a call is a function's last act
CALL_SIZE = 5
# A function begins with endbr64, or with what is left of one where no pointer leads to it.
LANDING = (b"\xf3\x0f\x1e\xfa", b"\x66\x0f\x1f\x00")
NOP = b"\x0f\x1f\x44\x00\x00"  # what a function's fentry call is while nobody traces it
TRACED = b"\xe8"
TYPED = ("fentry", "fexit")  # attached by the name alone
MOST_TEXT = 1 << 16  # a function of more is searched so far

Read = Callable[[int, int], bytes]  # (virtual address, size)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function of the running kernel; `size` reaches to the next symbol."""

    name: str
    module: str  # "" for the kernel itself
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Planned:
    """One line of a ring's table of hooks, and how it may be attached."""

    hook: Hook
    error: int = 0  # -errno where there is no way
    left_out: bool = False
    ways: tuple[str, ...] = ()
    module: str = ""
    offsets: tuple[int, ...] = ()  # of the calls in the function
    address: int = 0  # where others have its name; 0: the name is enough

    @property
    def line(self) -> str:
        """As the loader reads it, see bpf/loader.c."""
        hook = self.hook
        flags = HOOK_COPY * hook.copies | HOOK_LEFT_OUT * self.left_out
        offsets = ",".join(f"{offset:x}" for offset in self.offsets)
        at = f"@{self.address:x}" if self.address else ""
        return (
            f"hook {hook.id} {hook.name} {flags:x} {self.error} {','.join(self.ways) or '-'} "
            f"{hook.function}{at} {self.module or '-'} {offsets or '-'}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """All hooks of one ring, and where the kernel keeps its memory."""

    direct_map: int
    memory_map: int
    memory_end: int
    hooks: tuple[Planned, ...]

    @property
    def text(self) -> str:
        """The loader's PLAN file."""
        head = f"memory {self.direct_map:x} {self.memory_map:x} {self.memory_end:x}"
        return "\n".join([head, *(planned.line for planned in self.hooks)]) + "\n"


def make(
    kallsyms: bytes,
    read: Read,
    *,
    sides: int,
    without: Sequence[str] = (),
    ways: Iterable[str] | None = None,
) -> Plan:
    """Return the plan for a guest; `kallsyms` is /proc/kallsyms, `read` reads kernel memory.

    `ways` are those that may be taken, all by default.
    """
    symbols = find(kallsyms, _wanted())
    places = drivers.built_in(kallsyms, [f"{hook.module}:{hook.function}" for hook in HOOKS])
    allowed = None if ways is None else frozenset(ways)

    def value(name: str) -> int:
        return int(struct.unpack("<Q", read(symbols[name][0].address, 8))[0])

    return Plan(
        direct_map=value("page_offset_base"),
        memory_map=value("vmemmap_base"),
        memory_end=value("max_pfn") << 12,
        hooks=tuple(
            _plan(hook, symbols, read, places=places, without=without, allowed=allowed)
            for hook in HOOKS
            if hook.sides & sides
        ),
    )


def _wanted() -> set[str]:
    names = {"page_offset_base", "vmemmap_base", "max_pfn"}
    for hook in HOOKS:
        names |= {hook.function, *ALIASES.get(hook.callee, (hook.callee,))}
    return names - {""}


def find(kallsyms: bytes, names: Iterable[str]) -> dict[str, list[Symbol]]:
    """Return the symbols of these names, wherever they are."""
    wanted = {name.encode() for name in names}
    starts, found = [], []
    for line in kallsyms.split(b"\n"):
        words = line.split()
        if len(words) < 3:
            continue
        starts.append(words[0])
        if words[2] in wanted:
            module = words[3].decode().strip("[]") if len(words) > 3 else ""
            found.append((words[2].decode(), module, words[0]))
    starts.sort()  # of 16 digits each: as numbers
    out: dict[str, list[Symbol]] = {name: [] for name in names}
    for name, module, start in found:
        after = bisect_right(starts, start)
        end = int(starts[after], 16) if after < len(starts) else int(start, 16)
        out[name].append(Symbol(name, module, int(start, 16), end - int(start, 16)))
    return out


def _plan(
    hook: Hook,
    symbols: dict[str, list[Symbol]],
    read: Read,
    *,
    places: Mapping[str, drivers.Place],
    without: Sequence[str],
    allowed: frozenset[str] | None,
) -> Planned:
    if hook.name in without or hook.callee in without:
        return Planned(hook, error=-ECANCELED, left_out=True)
    found = places.get(f"{hook.module}:{hook.function}")
    alike = [
        one
        for one in symbols[hook.function]
        if hook.module in ("", one.module)
        or (found is not None and not one.module and one.address == found.address)
    ]
    if not alike:
        return Planned(hook, error=-ENOENT)
    place = alike[0]
    # By a name that others have the kernel finds any of them, and its types are of one.
    alone = found is None or found.unique
    text = _text(place, read)
    offsets: tuple[int, ...] = ()
    if hook.callee:
        names = ALIASES.get(hook.callee, (hook.callee,))
        targets = {one.address for name in names for one in symbols[name]}
        offsets = calls(text, place.address, targets)
        if not offsets:
            return Planned(hook, error=-ENOENT)
    # The kernel lets BPF attach to functions that begin with a fentry call and to nothing
    # else, kprobes included (CONFIG_KPROBE_EVENTS_ON_NOTRACE is off).
    ways = tuple(
        way
        for way in hook.ways
        if (way == "tp" or traceable(text))
        and (allowed is None or way in allowed)
        and (alone or way not in TYPED)
    )
    if not ways:
        return Planned(hook, error=-EINVAL)
    return Planned(
        hook,
        ways=ways,
        module=place.module,
        offsets=offsets,
        address=0 if alone else place.address,
    )


def _text(place: Symbol, read: Read) -> bytes:
    try:
        return read(place.address, min(place.size, MOST_TEXT))
    except ValueError:  # not mapped: the driver went
        return b""


def traceable(text: bytes) -> bool:
    """Tell whether a function begins with what tracers replace by a call."""
    start = 4 if text.startswith(LANDING) else 0
    return text.startswith((NOP, TRACED), start)


def calls(text: bytes, start: int, targets: Iterable[int]) -> tuple[int, ...]:
    """Return the offsets in `text`, which lies at `start`, of calls and tail jumps to `targets`.

    A chance match within an instruction does no harm: the kernel decodes a function from its
    start and refuses such a place.
    """
    wanted = set(targets)
    found = []
    for at in range(len(text) - CALL_SIZE + 1):
        if text[at] in CALLS:
            distance = int.from_bytes(text[at + 1 : at + CALL_SIZE], "little", signed=True)
            if start + at + CALL_SIZE + distance in wanted:
                found.append(at)
    return tuple(found)
