"""Try a crash-prone module: build, clean guest, load, watch, verdict, clean guest again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lab
from lab import (
    accelerator,
    crash,
    image,
    message,
    paths,
    postmortem,
    qemu,
    report,
    rundir,
    snapshot,
    spec,
    topology,
    workload,
)
from lab.deadline import Deadline, wait_until
from lab.errors import (
    DeadlineExceeded,
    EvidenceError,
    GuestError,
    LabError,
    ProbeBuildFailed,
    ProbeRejected,
    SnapshotError,
)
from lab.journal import Journal
from lab.rundir import prune
from lab.rundir.making import being_made

GUEST, PEER = "receiver", "sender"
KILL_S = 1.0
KEPT_RAM = 5  # runs of which the RAM is kept: at most 512 MiB each, and as much for a core
KEPT_RUNS = 50  # of one lab.watch
ATTACH_S = 10.0
FOR_EVER_S = 365 * 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A lab whose receiver may be crashed, and what it is restored from."""

    pair: topology.Lab
    setup: topology.Setup
    was_pristine: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of one attempt."""

    run: rundir.RunDir
    found: postmortem.Postmortem
    seconds: float


@contextlib.contextmanager
def bench(
    lab_name: str,
    *,
    kernel: spec.AnyKernel,
    journal: Journal,
    extra: str = "",
    locked: bool = False,
    offline: bool = False,
) -> Iterator[Bench]:
    """Yield the lab that is up if its kernel is the one asked for, else a lab of our own.

    `extra` are words for the kernel's command line; with any it is always one of our own.
    """
    rundir.usable(paths.runs())
    built = image.ensure(kernel, journal=journal, locked=locked, offline=offline)
    image.require(built, "lab.try")
    setup = topology.Setup(image=built, accelerator=accelerator.choose(built, journal=journal))
    if not extra and lab_name in topology.names():
        with topology.opened(lab_name) as pair:
            state = pair.state
            peers = [guest for name, guest in pair.guests.items() if name != GUEST]
            if (
                state is not None
                and state.image == built.digest
                and all(guest.alive for guest in peers)
                and _stored(state) is not None
            ):
                setup = replace(setup, device=state.device, owner=state.owner)
                yield Bench(pair=pair, setup=setup, was_pristine=state.pristine)
                return
        journal.say(f"lab '{lab_name}' is not what is asked for: using a pair of its own")
    own = f"try-{os.getpid()}"
    setup = replace(setup, owner=os.getpid(), extra=extra)
    with topology.opened(own, create=True) as pair:
        pair.bring_up(setup, journal=journal)
        try:
            yield Bench(pair=pair, setup=setup, was_pristine=True)
        finally:
            pair.bring_down()


def _stored(state: topology.LabState) -> snapshot.Snapshot | None:
    """Return what a lab was restored from, None where that is gone, evicted or garbled."""
    with contextlib.suppress(SnapshotError):
        return snapshot.load(state.snapshot)
    return None


def run(
    on: Bench,
    path: Path,
    trial: crash.Trial,
    *,
    journal: Journal,
    command: str,
    module: str | None = None,
    base: Path | None = None,
    playbook: spec.Playbook | None = None,
) -> Result:
    """Try the module at `path` and return the verdict; the run directory is kept.

    It lies in `base`, which is not one of the user's own runs; else among those.  With
    `playbook` it has that one's name and bytes.
    """
    crash.require(path)  # what is no module leaves no run directory
    start = time.monotonic()
    digest = hashlib.sha256(f"{path}{time.time_ns()}".encode()).hexdigest()
    title = f"try-{path.stem}" if playbook is None else playbook.name
    run_dir = rundir.create(base or paths.runs(), title, digest, guests=(GUEST,), last=base is None)
    journal.to_file(run_dir.path / "journal.jsonl")
    with being_made(run_dir.path):
        manifest = _manifest(on, path, trial, command) | {"playbook": title}
        if playbook is not None:
            (run_dir.path / "playbook.yaml").write_bytes(playbook.source)
            manifest["expect"] = {"verdict": playbook.expect.verdict, "at": playbook.expect.at}
        run_dir.write_manifest(manifest)
        try:
            try:
                made = crash.prepare(path, on.setup.image, journal=journal, name=module)
            except ProbeBuildFailed as error:
                run_dir.write_text("build.log", f"{error}\n{error.log or ''}\n")
                list_files(run_dir)
                return judge(run_dir, start)
            keep_module(made, run_dir)
            if trial.keep_ram:
                _make_room(run_dir.path.parent, journal)
            _attempt(on, made, trial, run_dir=run_dir, journal=journal)
            list_files(run_dir)
        except LabError as error:
            error.log = error.log or run_dir.path / "journal.jsonl"
            error.add_note(f"run: {run_dir.path}")
            raise
        return judge(run_dir, start)


def _make_room(base: Path, journal: Journal) -> None:
    """Bound what kept RAM takes of the disk: the oldest goes, its run stays."""
    removed = prune.drop_ram(base, keep=KEPT_RAM - 1)
    if removed.paths:
        journal.say(f"kept RAM of older runs removed: {', '.join(removed.paths)}")


def list_files(run_dir: rundir.RunDir) -> None:
    """Write the digests of an attempt's files to its manifest; nothing is added to it later."""
    run_dir.write_manifest(run_dir.manifest_json() | {"files": run_dir.attempt_digests()})


def judge(run_dir: rundir.RunDir, start: float | None = None) -> Result:
    """Make the post-mortem of a run from its directory alone; `start` is when it began."""
    start = time.monotonic() if start is None else start
    found = postmortem.analyse(run_dir)
    run_dir.write_json("postmortem.json", found.as_json())
    run_dir.write_text("postmortem.txt", postmortem.render(found))
    run_dir.write_text("report.html", report.crash_page(run_dir))
    return Result(run=run_dir, found=found, seconds=time.monotonic() - start)


def _attempt(
    on: Bench,
    made: crash.Module,
    trial: crash.Trial,
    *,
    run_dir: rundir.RunDir,
    journal: Journal,
) -> None:
    pair = on.pair
    state, stored = _ready(on, journal)
    guest = pair.guests[GUEST]
    # Another lab may have made the snapshot anew meanwhile: by the same name, with other addresses.
    other = state.guests[GUEST].nonce != stored.guests[GUEST].nonce
    if other or not state.pristine or not guest.alive:
        with journal.step("restore", guest=GUEST):
            pair.restore_guest(GUEST, on.setup)
    pair.touch()
    over_link = trial.workload is not None and trial.workload.over == "link"
    try:
        pair.attach(*([PEER] if over_link else []), GUEST, deadline=Deadline(ATTACH_S))
        crash.attempt(
            guest,
            made,
            trial,
            stored=stored,
            image=on.setup.image,
            folder=run_dir.guest(GUEST),
            journal=journal,
            trigger=None if trial.workload is None else partial(_exchange, pair, trial.workload),
        )
    finally:
        _clean(on, journal, peer_used=over_link)


def _ready(on: Bench, journal: Journal) -> tuple[topology.LabState, snapshot.Snapshot]:
    """Return what the pair is and what it is restored from; booted anew where that is gone."""
    state = on.pair.state
    stored = None if state is None else _stored(state)
    if state is None or stored is None:
        journal.say("the snapshot is gone from the cache: bringing the pair up anew")
        state = _anew(on, journal)
        stored = snapshot.load(state.snapshot)
    if stored is None:
        raise SnapshotError(f"lab '{on.pair.name}' has no snapshot to restore {GUEST} from")
    return state, stored


def _anew(on: Bench, journal: Journal) -> topology.LabState:
    with contextlib.suppress(GuestError):
        on.pair.bring_down()
    return on.pair.bring_up(on.setup, journal=journal)


def _exchange(pair: topology.Lab, asked: spec.Workload, deadline: Deadline) -> None:
    """Send and receive while the module is loaded; what programs it leaves are the peer's."""
    sender = pair.guests[PEER if asked.over == "link" else GUEST]
    try:
        workload.run(
            asked,
            sender=sender,
            receiver=pair.guests[GUEST],
            seed=secrets.randbits(64),
            gate=lambda _: None,
            deadline=deadline,
        )
    except LabError:
        with contextlib.suppress(LabError):
            sender.require_agent().ask(
                "kill sender KILL", expect="ok kill", deadline=Deadline(KILL_S)
            )
        raise


def _clean(on: Bench, journal: Journal, *, peer_used: bool) -> None:
    """Put the crashed guest back; its peer goes on, unless this one cannot be restored."""
    pair = on.pair
    try:
        with journal.step("restore", guest=GUEST):
            pair.restore_guest(GUEST, on.setup)
        if on.was_pristine and not peer_used:
            pair.untouch()
    except (GuestError, SnapshotError) as error:
        journal.say(f"{GUEST} could not be restored alone ({error}): restoring the pair")
        _anew(on, journal)


def keep_module(made: crash.Module, run_dir: rundir.RunDir) -> None:
    """Keep what a post-mortem needs of a module: debug information, sources, instructions."""
    folder = run_dir.path / "module"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(made.debug, folder / f"{made.name}.ko.debug")
    if made.sources is not None:
        shutil.copytree(made.sources, folder / "src", dirs_exist_ok=True)
    (folder / f"{made.name}.dis").write_text(made.disassembly, encoding="utf-8")
    if made.log:
        run_dir.write_text("build.log", made.log)


def _manifest(on: Bench, path: Path, trial: crash.Trial, command: str) -> dict[str, Any]:
    setup = on.setup
    return {
        "playbook": f"try-{path.stem}",
        "kind": "try",
        "module": path.name,
        "kernel": setup.image.release,
        "kernel_from": setup.image.origin,
        "accelerator": {"name": setup.accelerator.name, "why": setup.accelerator.why},
        "cmdline": setup.extra,
        "trial": {
            "parameters": list(trial.parameters),
            "command": trial.command,
            "workload": None if trial.workload is None else _plain(trial.workload),
            "soak_s": trial.soak_s,
            "deadline_s": trial.deadline_s,
            "unload": trial.unload,
            "kfence": trial.kfence,
            "knobs": dict(trial.knobs),
        },
        "versions": {"skblab": lab.__version__, "qemu": qemu.installed().version},
        "digests": {"image": setup.image.digest, "kernel": setup.image.kernel_sha256},
        "command": command,
        "guests": [GUEST],
    }


def _plain(asked: spec.Workload) -> dict[str, Any]:
    payload = None if asked.payload is None else message.mask(asked.payload)
    return {**asdict(asked), "payload": payload}


def trial_of(asked: spec.Playbook) -> crash.Trial:
    """Return what a playbook of the kind `crash` does with its module."""
    module = asked.module
    assert module is not None, "the reader of playbooks sees to it"
    return crash.Trial(
        parameters=module.params,
        workload=asked.trigger,
        soak_s=module.soak_s,
        deadline_s=asked.deadline_s,
        unload=module.unload,
        kfence=module.kfence,
    )


def failure(found: postmortem.Postmortem, verdict: str | None, at: str | None) -> LabError | None:
    """Return the error that an attempt ends with, None where it went as it should.

    Without an expectation only `loaded` is right; of files that were changed nothing is.
    """
    if found.changes:
        return EvidenceError("; ".join(found.changes), log=found.run)
    if verdict is not None or at is not None:
        wrong = postmortem.matches(found, verdict, at)
        if not wrong:
            return None
        return GuestError(GUEST, f"expected {'; '.join(wrong)}", log=found.run)
    word, why = found.verdict.word, found.verdict.why
    place = f" at {found.at}" if found.at else ""
    if word == "loaded":
        return None
    plain: dict[str, type[LabError]] = {
        "build-failed": ProbeBuildFailed,
        "refused": ProbeRejected,
        "deadline": DeadlineExceeded,
    }
    if word in plain:
        return plain[word](f"{found.module}: {why}{place}", log=found.run)
    return GuestError(GUEST, f"{word}{place}", log=found.run, hint=f"--expect {word}")


def watch(
    on: Bench,
    path: Path,
    trial: crash.Trial,
    *,
    journal: Journal,
    command: str,
    module: str | None = None,
) -> Iterator[Result]:
    """Try the module now and at every change, until the caller has enough.

    Of its runs the newest are kept, so that a day of saving does not fill the disk.
    """
    mine: deque[Path] = deque()
    while True:
        before = _stamp(path)
        result = run(on, path, trial, journal=journal, command=command, module=module)
        mine.append(result.run.path)
        if len(mine) > KEPT_RUNS:
            shutil.rmtree(mine.popleft(), ignore_errors=True)
        yield result
        _wait_changed(path, before)


def _wait_changed(path: Path, before: object) -> None:
    wait_until(
        lambda: _stamp(path) not in (before, None),
        what=f"{path} to change",
        deadline=Deadline(FOR_EVER_S),
        interval_s=0.05,
    )


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...] | None:
    """Return what changes when a source is saved; None while an editor is replacing it."""
    files = sorted(path.rglob("*.[chS]")) + sorted(path.glob("Makefile")) if path.is_dir() else []
    try:
        facts = [(file, file.stat()) for file in files or [path]]
    except FileNotFoundError:
        return None
    return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in facts)


def vmcore(run_dir: rundir.RunDir) -> tuple[Path, int, str]:
    """Make a core of a run's kept RAM; return it, its bytes on disk, and what has its types."""
    folder = run_dir.guest(GUEST)
    ram = folder.file("ram")
    for change in run_dir.attempt_changes(ram=True):
        if change.startswith(f"{GUEST}/{ram.name} "):
            raise EvidenceError(
                f"{run_dir.name}: {change}",
                log=run_dir.path,
                hint=f"that of the newest {KEPT_RAM} is kept" if not ram.is_file() else None,
            )
    if not ram.is_file():
        raise EvidenceError(f"{run_dir.name} kept no RAM", hint="lab.try … --keep-ram")
    target = folder.file("vmcore")
    size = crash.write_core(ram, target)
    manifest = run_dir.read_json("manifest.json")
    values = manifest if isinstance(manifest, dict) else {}
    if values.get("kernel_from", image.PINNED) != image.PINNED:
        return target, size, "the vmlinux of the kernel's build tree"
    return target, size, f"linux-image-{values.get('kernel')}-dbg"
