"""Brings guests up, lends them, puts them back, takes them down."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from lab import accelerator, image, qemu, topology
from lab.errors import (
    GuestError,
    HostError,
    LabError,
    NeedUnmet,
    SnapshotError,
    ToolMissing,
    UncleanStop,
)
from lab.guest import PAIR
from lab.journal import Journal
from lab.spec import AnyKernel
from lab.testing.pair import Lab

GUESTS = tuple(me.name for me in PAIR)


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a test asks of its guests; "" asks for nothing."""

    kernel: AnyKernel = image.DEFAULT_SERIES
    device: str = "virtio-net-pci"
    accelerator: str = ""


class Bench:
    """One pair of guests at a time, of whatever kind is asked for, in a lab called `name`."""

    def __init__(self, name: str, *, journal: Journal, keep: bool = False) -> None:
        self.name = name
        self.journal = journal
        self.keep = keep  # leave the guests up at the end
        self.lab: Lab | None = None
        self._of: tuple[AnyKernel, str] | None = None  # kernel and device of what is up
        self._setups: dict[tuple[AnyKernel, str], topology.Setup] = {}
        self._holders: Counter[str] = Counter()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the guests down, or leave them up where they are to be kept."""
        lab = self.lab
        self.lab = self._of = None
        try:
            if lab is not None:
                for guest in lab.guests.values():
                    guest.forget()
                if not self.keep:
                    with contextlib.suppress(UncleanStop):  # it is gone, and that is the point
                        lab.pair.bring_down()
        finally:
            self._held.close()

    @property
    def lending(self) -> bool:
        """Whether a guest is in somebody's hands."""
        return self._holders.total() > 0

    @contextlib.contextmanager
    def lent(self, needs: Needs, *guests: str) -> Iterator[Lab]:
        """Yield the lab with these guests (default: both) as their snapshot has them.

        A guest that somebody holds already is lent as it stands: it is restored when the
        last holder has given it back.  `NeedUnmet` where this host has not what is needed.
        """
        wanted = guests or GUESTS
        lab = self._ready(needs)
        self._restore(lab, [name for name in wanted if self._holders[name] == 0])
        self._holders.update(wanted)
        try:
            yield lab
        finally:
            self._holders.subtract(wanted)

    # -- up ---------------------------------------------------------------------------

    def _ready(self, needs: Needs) -> Lab:
        setup = self._setup(needs)
        wanted = (needs.kernel, needs.device)
        if self.lab is not None and self._of == wanted:
            return self.lab
        if self.lending:
            words = " and ".join(str(one) for one in wanted)
            raise HostError(
                f"guests with {words} were asked for, and others are in use",
                hint="ask for one kind in all that a fixture of wider scope spans",
            )
        if self.lab is None:
            pair = self._held.enter_context(topology.opened(self.name, create=True))
        else:
            pair = self.lab.pair
            for guest in self.lab.guests.values():
                guest.forget()
            pair.bring_down()
            self.lab = None
        try:
            pair.bring_up(setup, journal=self.journal)
        except BaseException:
            self._held.close()  # who asks next finds no lab in use, and may be luckier
            raise
        self.lab, self._of = Lab(pair, setup, journal=self.journal), wanted
        return self.lab

    def _setup(self, needs: Needs) -> topology.Setup:
        of = (needs.kernel, needs.device)
        if of not in self._setups:
            try:
                qemu.installed()
                built = image.ensure(needs.kernel, journal=self.journal)
                speed = accelerator.choose(built, journal=self.journal)
            except ToolMissing as error:
                raise NeedUnmet("lab", str(error), hint=error.hint) from error
            self._setups[of] = replace(
                topology.standard(built, speed, journal=self.journal, device=needs.device),
                owner=0 if self.keep else os.getpid(),
            )
        setup = self._setups[of]
        speed = setup.accelerator
        if needs.accelerator not in ("", speed.name):
            raise NeedUnmet(needs.accelerator, f"guests run under {speed.name} here: {speed.why}")
        return setup

    # -- restore ------------------------------------------------------------------------

    def _restore(self, lab: Lab, names: list[str]) -> None:
        """Put back those that were used; a guest that cannot be alone is with its peer."""
        asked = [lab.guests[name] for name in names]
        used = [
            guest
            for guest in asked
            if guest.used or not guest.machine.alive or lab.stale(guest.name)
        ]
        for guest in used:
            guest.forget()
            try:
                with self.journal.step("restore", guest=guest.name):
                    lab.pair.restore_guest(guest.name, lab.setup)
            except (GuestError, SnapshotError) as error:
                if self.lending:
                    raise
                self.journal.say(f"{guest.name} could not be restored alone: {error}")
                self._anew(lab)
                break
        if not any(guest.used for guest in lab.guests.values()):
            lab.pair.untouch()

    def _anew(self, lab: Lab) -> None:
        for guest in lab.guests.values():
            guest.forget()
        with contextlib.suppress(GuestError):
            lab.pair.bring_down()
        lab.pair.bring_up(lab.setup, journal=self.journal)


def take_down(prefix: str) -> list[str]:
    """Take down the labs whose names begin with `prefix` and that nobody works on."""
    gone = []
    for name in topology.names():
        if name.startswith(prefix):
            with contextlib.suppress(LabError), topology.opened(name) as pair:
                with contextlib.suppress(UncleanStop):
                    pair.bring_down()
                gone.append(name)
    return gone
