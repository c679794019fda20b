"""The arrival experiment: a message, what it passes through as it comes in, and whose socket it is.

The hooks for that are there in these runs only: no other pays for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab import arrival, follow, kernel, lookup, rundir, spec, workload
from lab.experiment import message
from lab.experiment.outcome import Later, Outcome
from lab.experiment.stand import Stand
from lab.guest import Guest
from lab.journal import Journal

MODULE = "arrival_trace"


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guests that take part: one on loopback, two on the link."""
    return message.guests(asked)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Send a message with the hooks of its arrival on; look behind the receiver's descriptor."""
    looking = Looking(run_dir, journal)
    message.take(
        ready, asked, run_dir, journal=journal, command=command, beside=looking, also=(MODULE,)
    )


class Looking:
    """Follows the receiver's descriptor through guest RAM while the message waits in its socket."""

    stops = False

    def __init__(self, run_dir: rundir.RunDir, journal: Journal) -> None:
        self._run = run_dir
        self._journal = journal

    def armed(self, guests: Sequence[Guest]) -> None:
        del guests

    def sent(self, receiver: workload.Side) -> None:
        guest, ready = receiver.guest, receiver.said["ready"]
        folder = self._run.guest(guest.name)
        pid, fd = int(ready["pid"]), int(ready["fd"])
        with self._journal.step("look behind the receiver's fd"), guest.memory() as memory:
            found = kernel.find(memory)
            values = follow.Text(folder.symbols.read_bytes()).values
            chain = lookup.Lookup(found, found.types(values), values).chain(pid, fd)
        folder.write_json(arrival.LOOKED, {"pid": pid, "fd": fd, "chain": chain})

    def received(self) -> None:
        pass

    def close(self) -> None:
        pass


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Compute the ledger, and the order in which the message arrived."""
    proven = message.answer(run_dir, expect, journal=journal)
    with journal.step("arrival"):
        found = arrival.build(run_dir, proven.ledger)
        run_dir.write_text(arrival.FILE, found.to_json())
        ledger = run_dir.read_bytes("report.txt").decode()
        run_dir.write_text("report.txt", f"{arrival.render(found)}\n{ledger}")
    return Outcome(
        run=run_dir,
        result=arrival.FILE,
        value=Later(found.as_json),
        trouble=(*found.trouble, *proven.trouble),
        hint=f"invoke lab.lines {rundir.called(run_dir)}",
    )
