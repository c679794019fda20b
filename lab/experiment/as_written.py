"""The worksheet's measurement as its author took it, with our probes beside his."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import build, crash, explained, paths, probe, rundir, spec
from lab.deadline import Deadline
from lab.errors import LabError, ProbeRejected
from lab.experiment.outcome import Outcome, tell
from lab.experiment.stand import Stand, common_manifest, keep_logs, keep_symbols
from lab.guest import Guest
from lab.journal import Journal

OURS = ("send_trace", "recv_trace")
HIS = ("send_trace_hw", "recv_trace_hw")
GUEST = explained.GUEST
PUSH_S = 20.0
SHELF = """\
set -e
mkdir -p /run/shelf
chmod 755 /run/as-written/*
# His libc lay on a file system that is read through the page cache; the guest's root is not.
mount -t ramfs shelf /run/shelf
cp -L /usr/lib/x86_64-linux-gnu/libc.so.6 /run/shelf/libc.so.6
mount --bind /run/shelf/libc.so.6 /usr/lib/x86_64-linux-gnu/libc.so.6
"""
# He had a sleep between the two, and a machine on which other programs talked meanwhile.
RUN = """\
cd /run/as-written
./receiver > /dev/ttyS0 & receiver=$!
until grep -qi ':270F ' /proc/net/udp; do usleep 10000; done
./sender > /dev/ttyS0
wait $receiver
nc -l -p 7777 < /dev/null > /dev/null & other=$!
until cat /proc/net/tcp /proc/net/tcp6 | grep -qi ':1E61 '; do usleep 10000; done
echo hello | nc 127.0.0.1 7777 > /dev/null
wait $other
"""
TIDY = """\
umount -l /usr/lib/x86_64-linux-gnu/libc.so.6
umount -l /run/shelf
"""


def guests(asked: spec.Playbook) -> tuple[str, ...]:
    """Name the guest that takes part: he had one machine."""
    del asked
    return (GUEST,)


def take(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    *,
    journal: Journal,
    command: str,
) -> None:
    """Load our probes and his, run programs like his at a terminal, keep the log."""
    manifest = common_manifest(ready, asked, guests=guests(asked), command=command)
    run_dir.write_manifest(manifest)
    guest = ready.pair.guests[GUEST]
    try:
        _measure(ready, asked, run_dir, manifest, journal=journal)
    finally:
        keep_logs(run_dir, [guest])
    manifest["files"] = run_dir.digests(guests(asked))
    run_dir.write_manifest(manifest)


def _measure(
    ready: Stand,
    asked: spec.Playbook,
    run_dir: rundir.RunDir,
    manifest: dict[str, Any],
    *,
    journal: Journal,
) -> None:
    deadline = Deadline.of_run(asked.deadline_s)
    ready.pair.touch()
    ready.pair.attach(GUEST, deadline=deadline.within(10.0))
    guest = ready.pair.guests[GUEST]
    shell, folder = guest.require_shell(), run_dir.guest(GUEST)
    programs = build.build_guest_programs(journal=journal)
    shutil.copyfile(programs[explained.PROGRAM], folder.file(explained.PROGRAM))
    keep_symbols(ready, guest, folder.symbols, journal=journal, deadline=deadline)
    with journal.step("load our probes"):
        loaded = probe.load(
            guest,
            {name: ready.modules[name] for name in OURS},
            asked.probes,
            nonce=secrets.token_bytes(16),
            records=probe.RECORDS_BESIDE * 2,
            pushed=ready.pushed.setdefault(GUEST, set()),
            deadline=deadline,
        )
        manifest["probes"] = {"kind": "kmod", "hooks": {GUEST: probe.hooks(loaded)}}
    with journal.step("load his probes"):
        _load_his(ready, guest, journal=journal, deadline=deadline)
    with journal.step("run his programs"):
        shell.run("mkdir -p /run/as-written", deadline=deadline)
        for name in sorted(build.PUSHED):
            # By the names he gave them: a kernel takes the comm from the path.
            own = name.removeprefix("as_written_")
            shell.put(programs[name], f"/run/as-written/{own}", deadline=deadline.within(PUSH_S))
        shell.run(SHELF, deadline=deadline)
        try:
            shell.run(RUN, deadline=deadline)
        finally:
            with contextlib.suppress(LabError):
                shell.run(TIDY, deadline=Deadline(5.0))
    with journal.step("read his log"):
        said = shell.run("dmesg | grep -F '[COPY'", deadline=deadline).stdout
        folder.file(explained.LOG).write_text(said, encoding="utf-8")
        shell.run(f"rmmod {' '.join(HIS)}", deadline=deadline)
    with journal.step("read out our traces"):
        probe.finish(loaded, deadline=deadline)
        folder.trace.write_bytes(probe.drain(loaded))
        probe.unload(loaded, deadline=deadline)
    manifest["witnesses"] = {"probe:kmod": "present"}


def _load_his(ready: Stand, guest: Guest, *, journal: Journal, deadline: Deadline) -> None:
    base = paths.data() / "claims" / "as_written"
    sources = [base / f"{name}.c" for name in HIS]
    crash.prepare_all(sources, ready.setup.image, journal=journal)
    shell = guest.require_shell()
    shell.run("dmesg -c > /dev/null", deadline=deadline)
    for source in sources:
        made = crash.prepare(source, ready.setup.image, journal=journal)
        shell.put(Path(made.ko), f"/run/{made.name}.ko", deadline=deadline.within(PUSH_S))
        try:
            shell.run(f"insmod /run/{made.name}.ko", deadline=deadline)
        except LabError as error:
            raise ProbeRejected(
                f"{guest.name}: the kernel refused {made.name}: {error}", log=guest.folder.console
            ) from error


def analyse(run_dir: rundir.RunDir, expect: spec.Expect, *, journal: Journal) -> Outcome:
    """Say what every line of his log was, and whether that is all of it."""
    with journal.step("explain his lines"):
        found = replace(explained.explain(run_dir), changes=run_dir.changes())
        value = found.to_json()
        run_dir.write_json(explained.RESULT, value)
        told = tell(run_dir, explained.told(found), good=not found.trouble)
    trouble = found.trouble if expect.complete is not False else ()
    return Outcome(
        run=run_dir,
        result=explained.RESULT,
        value=value,
        trouble=trouble,
        hint=f"invoke lab.lines {rundir.called(run_dir)}",
        told=told,
    )
