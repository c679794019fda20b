"""One experiment's run, read as measures ask; nothing of it is computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

from lab import access, calls, capture, record, steps
from lab.calls import Call, Calls
from lab.claims.types import NotHere
from lab.errors import EvidenceError
from lab.record import Record, Trace
from lab.rundir import GuestDir, RunDir, transport
from lab.symbols import Symbols

T = TypeVar("T")
Movement = Mapping[str, Any]
Place = Mapping[str, Any]
Sighting = Mapping[str, Any]


class Evidence:
    """A run directory; every look-up that finds nothing raises `EvidenceError`."""

    def __init__(self, name: str, run: RunDir) -> None:
        self.name = name
        self.run = run
        self._kept: dict[tuple[str, str], Any] = {}

    def _once(self, what: str, of: str, make: Callable[[], T]) -> T:
        if (what, of) not in self._kept:
            self._kept[what, of] = make()
        found: T = self._kept[what, of]
        return found

    # -- what ran ------------------------------------------------------------------

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return self._json("manifest.json")

    @cached_property
    def conditions(self) -> dict[str, str]:
        """Return the conditions of the run that a claim may depend on."""
        told = self.manifest
        link = told.get("link") or {}
        found = {"kernel": f"Linux {told.get('kernel')}".partition("+")[0]}
        if "over" in told:
            path = "loopback"
            if told["over"] == "link":
                path = f"{link.get('device')} over {link.get('backend')}"
            found |= {
                "path": path,
                "protocol": transport(
                    str(told.get("protocol", "")),
                    family=str(told.get("family", "")),
                    connected=told.get("connect") is True,
                ),
                "size": f"{told.get('size')} bytes",
            }
        if "module" in told:
            found["module"] = str(told["module"])
        return found

    def result(self, file: str) -> dict[str, Any]:
        """Return a result of the run, such as ledger.json or socket.json."""
        if not self.run.has(file):
            raise EvidenceError(f"{self.name} has no {file}", log=self.run.path)
        return self._once("result", file, lambda: self._json(file))

    def _json(self, file: str) -> dict[str, Any]:
        found = self.run.read_json(file)
        if not isinstance(found, dict):
            raise EvidenceError(f"{self.name}: {file} holds no object", log=self.run.path)
        return dict(found)

    # -- the ledger ----------------------------------------------------------------

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """Return the ledger; one that is not proven carries no verdict."""
        found = self.result("ledger.json")
        if not found["complete"]:
            why = found["incomplete"][0]["why"] if found["incomplete"] else "no reason given"
            raise EvidenceError(f"the ledger of {self.name} is incomplete: {why}")
        if found["disagreements"]:
            raise EvidenceError(
                f"witnesses of {self.name} disagree: {found['disagreements'][0]['text']}"
            )
        return found

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ledger["messages"][0]
        return found

    @property
    def places(self) -> list[Place]:
        return list(self.message["places"])

    def movements(self, kind: str) -> list[Movement]:
        return [one for one in self.message["movements"] if one["kind"] == kind]

    @property
    def copies(self) -> list[Movement]:
        found = self.movements("copy")
        if not found:
            raise EvidenceError(f"the ledger of {self.name} has no copy")
        return found

    def sightings(self) -> list[Sighting]:
        skb = self.message["skb"]
        return [*skb["sender"], *skb["receiver"]]

    def sighting(self, at: str) -> Sighting:
        """Return the first sighting at a hook, named with or without its module."""
        for one in self.sightings():
            if at in (one["at"], one["at"].partition(":")[2]):
                return one
        raise EvidenceError(f"{self.name} saw no skb of the message at {at}")

    def witness(self, name: str) -> None:
        """Raise `NotHere` where a witness of the ledger was absent, with its reason."""
        told = str(self.result("ledger.json")["witnesses"].get(name, "absent"))
        if told.startswith("absent"):  # one that lost accesses still saw the others
            raise NotHere(f"{name} is {told}")

    # -- records -------------------------------------------------------------------

    def trace(self, guest: str) -> Trace:
        path = self.run.guest(guest).trace
        if not path.is_file():
            raise EvidenceError(f"{self.name} has no trace of {guest}", log=self.run.path)
        return self._once("trace", guest, lambda: record.read(path, guest=guest))

    def record(self, evidence: str) -> Record:
        """Return the record an evidence id names."""
        file, _, number = evidence.partition("#")
        guest, _, name = file.partition("/")
        if name != "trace.bin" or not number.isdigit():
            raise EvidenceError(f"{self.name}: {evidence} names no record of a trace")
        return self.trace(guest).records.numbered(int(number))

    def record_of(self, movement: Movement) -> Record:
        """Return the probe's record of a movement."""
        for one in movement["evidence"]:
            if "/trace.bin#" in one:
                return self.record(one)
        raise EvidenceError(f"{self.name}: no probe recorded {movement['function']}")

    def records(self) -> Iterator[Record]:
        """Yield every record of every guest."""
        for guest in self.guests:
            yield from self._records(guest)

    def _records(self, guest: str) -> list[Record]:
        return self._once("records", guest, lambda: list(self.trace(guest).records))

    @property
    def guests(self) -> list[str]:
        return [str(name) for name in self.manifest.get("guests", ())]

    def guest(self, name: str) -> GuestDir:
        return self.run.guest(name)

    def symbols(self, guest: str) -> Symbols:
        path = self.run.guest(guest).symbols
        return self._once("symbols", guest, lambda: Symbols(path))

    def address_of(self, guest: str, symbol: str) -> int:
        """Return a symbol's address, as the guest's kallsyms had it."""
        path = self.run.guest(guest).symbols
        if not path.is_file():
            raise EvidenceError(f"{self.name} kept no symbols of {guest}", log=self.run.path)
        ending = f" {symbol}\n"
        with path.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.endswith(ending):
                    return int(line[:16], 16)
        raise EvidenceError(f"{guest} of {self.name} has no symbol {symbol}")

    def accesses(self, guest: str) -> access.AccessLog:
        path = self.run.guest(guest).file("access.bin")
        if not path.is_file():
            raise EvidenceError(f"{self.name} has no access log of {guest}", log=self.run.path)
        return self._once("accesses", guest, lambda: access.read(path, guest=guest))

    @cached_property
    def followed(self) -> list[tuple[Calls, Call]]:
        """Return the system calls that moved the message; an account with a fault has none."""
        told = self.result(steps.FILE)
        if told["trouble"]:
            raise EvidenceError(f"the steps of {self.name} are not proven: {told['trouble'][0]}")
        accounts = {
            name: calls.read(self.run.guest(name).file(calls.FILE)) for name in told["followed"]
        }
        return list(steps.windows(accounts).values())

    # -- wire and log --------------------------------------------------------------

    def frames(self, guest: str) -> list[capture.Frame]:
        path = self.run.guest(guest).wire
        return self._once("frames", guest, lambda: capture.read(path))

    def frame(self) -> tuple[capture.Frame, str]:
        """Return the first frame that carried the message, and its evidence id."""
        for place in self.places:
            if place["place"] == "wire":
                evidence = str(place["evidence"][0])
                guest, _, number = evidence.partition("/wire.pcap#")
                return self.frames(guest)[int(number)], evidence
        raise EvidenceError(f"no frame of {self.name} carries the message")

    def log(self) -> list[tuple[str, str]]:
        """Return (evidence id, text) of the kernel's lines while a module was tried."""
        found = []
        for name in self.guests:
            path = self.run.guest(name).file("kernel.log")
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                found += [
                    (f"{name}/kernel.log#{number}", line)
                    for number, line in enumerate(text.splitlines(), 1)
                ]
        return found

    @cached_property
    def postmortem(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run.read_bytes("postmortem.json"))
        return found
