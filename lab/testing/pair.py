"""Both guests in the hands of a test, and the measurements between them."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab import (
    __version__,
    build,
    experiment,
    ledger,
    paths,
    playbook,
    qemu,
    rundir,
    snapshot,
    topology,
)
from lab.deadline import Deadline
from lab.errors import LedgerIncomplete, PlaybookError, SnapshotError
from lab.experiment import message
from lab.journal import Journal
from lab.testing.guest import Crash, Guest

ATTACH_S = 10.0


class Lab:
    """Two guests joined by a link, as a test sees them."""

    def __init__(self, pair: topology.Lab, setup: topology.Setup, *, journal: Journal) -> None:
        self.pair = pair
        self.setup = setup
        self.journal = journal
        self.test = "no test"  # for whom things are done, and what is found is named after
        self.beside = Path()  # the folder of that test: its files are looked for there first
        self.crashes: list[Crash] = []
        self._news: list[tuple[str, object]] = []
        self.guests = {name: Guest(machine, self) for name, machine in pair.guests.items()}

    def __repr__(self) -> str:
        return f"<lab '{self.pair.name}': {self.kernel}, {self.accelerator}>"

    def guest(self, name: str) -> Guest:
        """Return "sender" or "receiver"."""
        return self.guests[name]

    @property
    def kernel(self) -> str:
        """The release both guests run, such as 6.12.43+deb12-amd64."""
        return self.setup.image.release

    @property
    def accelerator(self) -> str:
        """Either "kvm" or "tcg"; `setup.accelerator.why` has the reason."""
        return self.setup.accelerator.name

    def measure(
        self,
        what: str | Path,
        *,
        size: int | None = None,
        count: int | None = None,
        family: str | None = None,
        protocol: str | None = None,
        connect: bool | None = None,
        payload: str | bytes | None = None,
        without: Sequence[str] | None = None,
        probes: str | None = None,
        check: bool = True,
    ) -> ledger.Ledger:
        """Run a playbook, by name or path, on these guests as they stand; return the ledger.

        The kernel is the guests', whatever the playbook says.  With `check` a ledger that is
        incomplete or not what the playbook expects raises `LedgerIncomplete`.
        """
        __tracebackhide__ = True
        asked = playbook.override(
            playbook.load(self._playbook(what)),
            size=size,
            count=count,
            family=family,
            protocol=protocol,
            connect=connect,
            payload=payload,
            without=without,
            probes=probes,
            kernel=self.setup.image.asked,
        )
        if asked.experiment != "message":
            raise PlaybookError(f"'{asked.name}' is no message, so it has no ledger")
        if asked.link.device != self.setup.device:
            raise PlaybookError(
                f"'{asked.name}' needs a link of {asked.link.device}",
                hint=f'@pytest.mark.lab_link("{asked.link.device}")',
            )
        if asked.link.backend != self.setup.backend:
            raise PlaybookError(f"'{asked.name}' needs a link of {asked.link.backend}")
        if experiment.of_link(self.setup, asked.link) != self.setup:
            raise PlaybookError(
                f"'{asked.name}' needs a link device with options; run it by lab.run"
            )
        image, journal = self.setup.image, self.journal
        modules = build.build_modules(image, journal=journal) if asked.probes.kind == "kmod" else {}
        pristine = self.pair.require_up().pristine
        for guest in self.guests.values():
            guest.used = True
        ready = experiment.Stand(
            pair=self.pair,
            setup=self.setup,
            modules=modules,
            how=f"lent to {self.test}",
            restored=pristine,
        )
        run_dir = experiment.new_run(
            asked, self.setup, paths.runs(), guests=message.guests(asked), last=False
        )
        self._news.append(("lab-run", str(run_dir.path.resolve())))
        message.take(ready, asked, run_dir, journal=journal, command=_command())
        answer = message.answer(run_dir, asked.expect, journal=journal)
        if check and answer.trouble:
            raise LedgerIncomplete("; ".join(answer.trouble), log=run_dir.path / "ledger.json")
        return answer.ledger

    def _playbook(self, what: str | Path) -> str | Path:
        """Return what `playbook.load` takes: a name of the lab's, or a file beside the test."""
        if what in playbook.names():
            return what
        found = self.find(what)
        return found if found.is_file() else what  # which is refused, with a guess

    def find(self, path: str | Path) -> Path:
        """Return where `path` is: beside the test, else as seen from the current folder."""
        beside = self.beside / path
        return beside if beside.exists() else Path(path)

    def ways_in(self) -> str:
        """Return how a person reaches the guests while they are up."""
        state = self.pair.state
        lines = [f"lab '{self.pair.name}': kernel {self.kernel}, {self.accelerator}"]
        if state is None:
            return f"{lines[0]}, not up"
        known = self.pair.base / "known_hosts"
        known.write_text(
            "".join(f"[127.0.0.1]:{g.port} {g.hostkey}\n" for g in state.guests.values()),
            encoding="ascii",
        )
        key = paths.cache() / "id_ed25519"
        for name, facts in state.guests.items():
            guest = self.guests[name]
            crashed = f"   (crashed in {guest.spent})" if guest.spent else ""
            ssh = f"ssh -F none -i {key} -o UserKnownHostsFile={known}"
            lines.append(f"  {name}: {ssh} -p {facts.port} root@127.0.0.1{crashed}")
            lines.append(f"    console {guest.machine.folder.console}")
        lines.append("  down again: pytest --lab-down")
        return "\n".join(lines)

    def take_news(self) -> list[tuple[str, object]]:
        """Return what was found since this was last asked, as (name, value) for a report."""
        news, self._news = self._news, []
        return news

    # -- what guests ask -------------------------------------------------------------------

    def use(self, guest: Guest) -> None:
        """Note that something is being done in `guest`, and open the lines to it."""
        self.pair.touch()
        guest.used = True
        self.pair.attach(guest.name, deadline=Deadline(ATTACH_S))

    def stored(self) -> snapshot.Snapshot:
        """Return what the guests were restored from."""
        stored = snapshot.load(self.pair.require_up().snapshot)
        if stored is None:
            raise SnapshotError(f"the snapshot of lab '{self.pair.name}' is gone")
        return stored

    def stale(self, guest: str) -> bool:
        """Say whether another lab made the snapshot anew since a guest was restored from it.

        By the same name: the kernel in it lies elsewhere.
        """
        state = self.pair.require_state()
        stored = snapshot.load(state.snapshot)
        return stored is not None and stored.guests[guest].nonce != state.guests[guest].nonce

    def note(self, crash: Crash) -> None:
        """Remember a crash, and name its artefacts for the report."""
        self.crashes.append(crash)
        path = crash.run.path.resolve()
        self._news += [
            (f"lab-crash-{crash.guest}", crash.verdict),
            ("lab-crash-at", crash.at),
            ("lab-crash-fingerprint", crash.found.fingerprint),
            ("lab-crash-run", str(path)),
            ("lab-crash-postmortem", str(path / "postmortem.txt")),
        ]

    def new_run(self, guest: str, *, modules: Sequence[str]) -> rundir.RunDir:
        """Make the run directory of a crash, with its manifest."""
        digest = hashlib.sha256(f"{self.test}{time.time_ns()}".encode()).hexdigest()
        name = self.test.rpartition("::")[2] or "test"
        run_dir = rundir.create(paths.runs(), f"test-{name[:40]}", digest, guests=(guest,))
        image, speed = self.setup.image, self.setup.accelerator
        run_dir.write_manifest(
            {
                "playbook": f"test-{name}",
                "kind": "test",
                "test": self.test,
                "module": ", ".join(modules) or "none",
                "kernel": image.release,
                "accelerator": {"name": speed.name, "why": speed.why},
                "versions": {"skblab": __version__, "qemu": qemu.installed().version},
                "digests": {"image": image.digest},
                "command": _command(),
                "guests": [guest],
            }
        )
        return run_dir


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
