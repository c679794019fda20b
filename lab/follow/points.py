"""The breakpoints of a window, found in the code of the functions that are entered."""

from __future__ import annotations

from collections.abc import Iterable

from lab.debugger import Debugger
from lab.follow.code import PASSED, THUNK, Symbol, Text, direct_targets, indirect_sites
from lab.kernel import Kernel

INTERRUPTS = r"asm_(sysvec_|common_int|exc_).*"  # where the CPU goes when nobody calls


class Points:
    """Where a held guest is to stop: entries, indirect calls, returns and interrupts.

    `triggers` stay set between windows; the others only while `armed`.
    """

    def __init__(
        self, debugger: Debugger, kernel: Kernel, text: Text, triggers: Iterable[int]
    ) -> None:
        self._debugger = debugger
        self._kernel = kernel
        self._text = text
        self._triggers = frozenset(triggers)
        self._scanned: set[int] = set()
        self.entries: dict[int, Symbol] = {}
        self.sites: dict[int, str] = {}  # address -> register that holds the target
        self.returns: set[int] = set()
        self.interrupts = {one.address: one for one in text.named(INTERRUPTS)}
        self.armed = False
        self.most = 0

    def arm(self) -> None:
        """Set all that are known."""
        self.armed = True
        for address in self._all():
            self._debugger.set(address)

    def disarm(self, *, but: Iterable[int] = ()) -> None:
        """Clear all but the triggers and `but`."""
        self.armed = False
        keep = set(but)
        for address in self._all():
            if address not in self._triggers and address not in keep:
                self._debugger.clear(address)
        for address in keep:
            self._debugger.set(address)

    def _all(self) -> set[int]:
        return {*self.entries, *self.sites, *self.returns, *self.interrupts}

    def scan(self, function: Symbol) -> None:
        """Set breakpoints at all that a function can call, the first time it is entered."""
        if function.address in self._scanned:
            return
        self._scanned.add(function.address)
        parts = [function]
        # What is seldom run the compiler puts elsewhere, under a name of its own.
        cold = self._text.values.get(f"{function.name}.cold")
        if cold is not None and (part := self._text.starting(cold)) is not None:
            parts.append(part)
        for part in parts:
            code = self._kernel.read(part.address, part.end - part.address)
            for target in direct_targets(code, part.address):
                if not part.address <= target < part.end:
                    self.reach(target)
            for site, register in indirect_sites(code, part.address):
                self.sites[site] = register
                self._set(site)

    def reach(self, target: int) -> None:
        """Set a breakpoint at what can be called, if it is the start of a function."""
        if target in self.entries or target in self.interrupts:
            return
        found = self._text.starting(target)
        if found is None:
            return
        thunk = THUNK.fullmatch(found.name)
        if thunk:
            self.sites[target] = thunk[1]
        elif PASSED.match(found.name):
            return
        else:
            self.entries[target] = found
        self._set(target)

    def expect(self, back: int) -> None:
        """Stop at a return address."""
        self.returns.add(back)
        self._set(back)

    def _set(self, address: int) -> None:
        self._debugger.set(address)
        self.most = max(self.most, len(self.entries) + len(self.sites) + len(self.returns))
