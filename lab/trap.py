"""The trap as guest RAM shows it: what a probe puts into kernel text, and onto a stack.

Pure: reads what `lab.experiment.trap` wrote down, and says what it is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab.blocks import Block, paragraph, table
from lab.rundir import Manifest, RunDir
from lab.rundir.fields import read_json
from lab.symbols import Symbols

SEEN = "trap.json"  # in the guest's folder: bytes and addresses as they were read
BREAKPOINT, CALL, JUMP = 0xCC, 0xE8, 0xE9  # x86: int3; call and jmp with a 32-bit distance
NEAR = 5  # bytes of a call or a jump
KINDS = {CALL: "fentry call", BREAKPOINT: "breakpoint (int3)", JUMP: "optimised jump"}
AS_BUILT = "as built"
TRAMPOLINE = "rethook_trampoline", "kretprobe_trampoline"  # ends of its name, by kernel
BEFORE, ARMED, LATER, AFTER = "before", "armed", "later", "after"


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What stood at one place in kernel text at one moment."""

    moment: str
    place: str  # "__sys_socket", "__sys_socket+0x9"
    address: int
    physical: int
    found: str  # hex
    kind: str
    target: str  # of a call or a jump, "" for others


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A return address on the kernel stack of a program that waits inside the function."""

    moment: str
    program: str
    address: int
    physical: int
    value: int
    symbol: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Trap:
    """What a run of `trap` saw."""

    text: tuple[Text, ...]
    stack: tuple[Slot, ...]
    function: str  # the one that is waited in
    changes: tuple[str, ...] = ()  # of the run's files since it wrote them

    @property
    def trouble(self) -> tuple[str, ...]:
        """What is not as a trap should be, one line each."""
        out = [*self.changes]
        for place in dict.fromkeys(one.place for one in self.text):
            by = {one.moment: one for one in self.text if one.place == place}
            if by[ARMED].kind == AS_BUILT:
                out.append(f"{place}: armed, and its bytes are as built")
            if by[AFTER].kind != AS_BUILT:
                out.append(f"{place}: its bytes are not what they were before: {by[AFTER].kind}")
        held = {slot.moment: slot for slot in self.stack}
        if not all(moment in held for moment in (BEFORE, ARMED)):
            return (*out, f"no return address of {self.function} was found on a stack")
        if held[BEFORE].symbol.partition("+")[0].endswith(TRAMPOLINE):
            out.append(f"a trampoline lay on the stack before {self.function} was probed")
        if not held[ARMED].symbol.partition("+")[0].endswith(TRAMPOLINE):
            out.append(f"the kretprobe holds no return address: {held[ARMED].symbol} lies there")
        return tuple(out)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"trouble": list(self.trouble)}


def look(run: RunDir) -> Trap:
    """Read a run of `trap`."""
    folder = run.only_guest()
    seen: Any = read_json(folder.file(SEEN))
    names = Symbols(folder.symbols)
    built = {one["place"]: bytes.fromhex(one["found"]) for one in seen["text"]
             if one["moment"] == BEFORE}  # fmt: skip
    text = tuple(_text(one, built[one["place"]], names) for one in seen["text"])
    stack = tuple(Slot(symbol=names.show(one["value"]), **one) for one in seen["stack"])
    return Trap(text=text, stack=stack, function=seen["function"], changes=run.changes())


def _text(seen: Mapping[str, Any], built: bytes, names: Symbols) -> Text:
    found, address = bytes.fromhex(seen["found"]), int(seen["address"])
    kind, target = what(address, found, built, names)
    return Text(**{**seen, "kind": kind, "target": target})


def what(address: int, found: bytes, built: bytes, names: Symbols) -> tuple[str, str]:
    """Return what was put over `built` at `address`, and where it leads."""
    at = next((at for at in range(len(found)) if found[at] != built[at]), None)
    if at is None:
        return AS_BUILT, ""
    # The first byte that differs is an opcode: each of these stands in another one's place.
    target = ""
    if found[at] in (CALL, JUMP) and at + NEAR <= len(found):
        (distance,) = struct.unpack_from("<i", found, at + 1)
        where = (address + at + NEAR + distance) & (1 << 64) - 1
        target = names.name(where) or f"code made for it at {where:#x}"
    return KINDS.get(found[at], "other"), target


def told(trap: Trap, manifest: Manifest) -> list[Block]:
    """Return what report.txt says, to be shown at any width."""
    trouble = trap.trouble
    verdict = (
        f"DISAGREEMENT: {trouble[0]}"
        if trouble
        else ("COMPLETE: the traps are in guest RAM while armed, and gone after.")
    )
    out = [*paragraph(verdict), f"trap, Linux {manifest.kernel}, {manifest.accelerator}", ""]
    rows = [
        (one.moment, one.place, f"{one.physical:#x}", one.found, one.kind, one.target or "-")
        for one in trap.text
    ]
    out += table(("MOMENT", "KERNEL TEXT", "PHYSICAL", "BYTES", "WHAT IT IS", "LEADS TO"), rows)
    slots = [
        (one.moment, one.program, f"{one.address:#x}", f"{one.physical:#x}", one.symbol)
        for one in trap.stack
    ]
    head = ("MOMENT", f"STACK OF, IN {trap.function}", "SLOT", "PHYSICAL", "RETURNS TO")
    out += ["", *table(head, slots)]
    out += ["", *paragraph("All read from the RAM file by the host; the guest was asked nothing.")]
    return out
