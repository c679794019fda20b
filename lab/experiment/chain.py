"""The lookup chain: what hangs on fd 3 for one kind of socket after the other."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab import chain, debugger, follow, kernel, lookup, probe, rundir, spec
from lab.chain import render
from lab.deadline import Deadline
from lab.errors import GuestError
from lab.experiment.outcome import Outcome, tell
from lab.experiment.stand import Stand, common_manifest, keep_logs, keep_symbols
from lab.guest import Guest
from lab.journal import Journal

PROGRAM = "chain"
MODULE = "lookup_chain"
PORT = 9999
CASES = 5
RECORDS = 256
ASKED_FIRST = "udp-unconnected"  # after it the program sends


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guests that take part: one."""
    del asked
    return ("sender",)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Hold fd 3 as each kind of socket, and look at it from inside and from outside."""
    deadline = Deadline.of_run(asked.deadline_s)
    manifest: dict[str, Any] = common_manifest(ready, asked, guests=guests(asked), command=command)
    run_dir.write_manifest(manifest)
    guest = ready.pair.guests["sender"]
    try:
        ready.pair.touch()
        ready.pair.attach("sender", deadline=deadline.within(10.0))
        folder = run_dir.guest("sender")
        keep_symbols(ready, guest, folder.symbols, journal=journal, deadline=deadline)
        with journal.step("load the probe"):
            loaded = probe.load(
                guest,
                {MODULE: ready.modules[MODULE]},
                spec.Probes(comm=PROGRAM),
                nonce=secrets.token_bytes(16),
                records=RECORDS,
                pushed=ready.pushed.setdefault("sender", set()),
                deadline=deadline,
            )
        with journal.step("look at fd 3"):
            folder.write_json(chain.LOOKED, _look(guest, folder.symbols.read_bytes(), deadline))
        probe.finish(loaded, deadline=deadline)
        folder.trace.write_bytes(probe.drain(loaded))
        probe.unload(loaded, deadline=deadline)
        manifest["probes"] = {"kind": "kmod", "modules": {"sender": [MODULE]}}
    finally:
        keep_logs(run_dir, [guest])
    manifest["files"] = run_dir.digests(guests(asked))
    run_dir.write_manifest(manifest)


def _look(guest: Guest, kallsyms: bytes, deadline: Deadline) -> dict[str, Any]:
    agent = guest.require_agent()
    text = follow.Text(kallsyms)
    cases = []
    name: dict[str, object] = {}
    with guest.memory() as memory:
        found = kernel.find(memory)
        view = lookup.Lookup(found, found.types(text.values), text.values)
        agent.start(PROGRAM, f"/usr/bin/{PROGRAM}", "--port", str(PORT), deadline=deadline)
        for _ in range(CASES):
            held = json.loads(agent.wait_said(PROGRAM, "held", deadline=deadline))
            cases.append({**held, "chain": view.chain(int(held["pid"]), int(held["fd"]))})
            if held["case"] == ASKED_FIRST:
                name = _look_at_send(guest, view, text, deadline=deadline)
            else:
                agent.tell(PROGRAM, "go", deadline=deadline)
        agent.wait_exit(PROGRAM, deadline=deadline)
    return {"cases": cases, "name": name}


def _look_at_send(
    guest: Guest, view: lookup.Lookup, text: follow.Text, *, deadline: Deadline
) -> dict[str, object]:
    """Let the program send, hold the guest as it enters udp_sendmsg(), and look at RAM."""
    send = text.values["udp_sendmsg"]

    def stop_and_look() -> dict[str, object]:
        port.stopped(deadline.within(10.0))
        at = port.registers()
        if at.rip != send:
            raise GuestError(guest.name, f"expected a stop at udp_sendmsg, found {at.rip:#x}")
        found = view.name(at["rsi"])
        port.close()
        return found

    # The guest may be held before its agent has said that it told the program.
    with debugger.Debugger(guest) as port, ThreadPoolExecutor(1) as beside:
        port.set(send)
        port.resume()
        looked = beside.submit(stop_and_look)
        guest.require_agent().tell(PROGRAM, "go", deadline=deadline)
        return looked.result()


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Compare the accounts and draw the chains, from the run's directory alone."""
    del expect
    with journal.step("chains"):
        found = chain.build(run_dir)
        run_dir.write_text(chain.FILE, found.to_json())
        told = tell(run_dir, render.told(found), good=not found.trouble)
    return Outcome(
        run=run_dir,
        result=chain.FILE,
        value=json.loads(found.to_json()),
        trouble=found.trouble,
        hint=f"look at {run_dir.name}/sender/{chain.LOOKED}",
        told=told,
    )
