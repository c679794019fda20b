"""Take every experiment that claims need: one bring-up for all of a topology."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lab import attempt, claims, crash, experiment, paths, playbook, rundir, spec, topology
from lab.errors import LabError, PlaybookError
from lab.journal import Journal
from lab.rundir.making import being_made

TRY_SOAK_S = 0.3
TRIES = 3  # of a run that lost records, as an interrupt in a probe makes the kernel skip others


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One experiment, whichever texts ask for it; `names` are TEXT/EXPERIMENT."""

    name: str  # of its place in the folder
    names: tuple[str, ...]
    asked: spec.Playbook  # of a module that is tried: a playbook of its kernel
    module: Path | None
    send: bool

    @property
    def topology(self) -> tuple[object, ...]:
        link = self.asked.link
        memory = (link.iommu, link.swiotlb or "", link.mrg_rxbuf, link.xdp or "")
        return str(self.asked.kernel), link.device, link.backend, *memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What came of one experiment."""

    state: str
    reason: str = ""
    run: str = ""
    seconds: float = 0.0


def wanted(texts: Sequence[claims.Text]) -> list[Wanted]:
    """Return the experiments that some test asks for, equal ones once.

    Raises `PlaybookError` for a playbook or module that is not there.
    """
    found: dict[object, Wanted] = {}
    places: set[str] = set()
    for text in texts:
        used = claims.used([text])
        for name, one in text.experiments.items():
            full = f"{text.name}/{name}"
            if full not in used:
                continue
            key = (replace(one, name=""), _module(text, one))
            if key in found:
                found[key] = replace(found[key], names=(*found[key].names, full))
                continue
            place = name if name not in places else f"{text.name}-{name}"
            places.add(place)
            found[key] = Wanted(
                name=place,
                names=(full,),
                asked=_playbook(text, one),
                module=_module(text, one),
                send=one.send,
            )
    return list(found.values())


def _playbook(text: claims.Text, one: claims.Experiment) -> spec.Playbook:
    name: str | Path = one.playbook or "loopback"
    if "/" in one.playbook:
        name = Path(text.path).parent / one.playbook
    options: dict[str, Any] = dict(one.options)
    if one.kernel:
        options["kernel"] = one.kernel
    try:
        asked = playbook.override(playbook.load(name), **options)
    except PlaybookError as error:
        error.args = (f"{text.path}: experiment {one.name}: {error}",)
        raise
    if asked.experiment not in experiment.KINDS:
        raise PlaybookError(
            f"{text.path}: experiment {one.name}: its playbook tries a module", hint="try: FILE.c"
        )
    return asked


def _module(text: claims.Text, one: claims.Experiment) -> Path | None:
    """Return the module's source: beside the claims file, or in our own kmod/."""
    if not one.module:
        return None
    for base in (Path(text.path).parent, paths.data() / "kmod"):
        if (base / one.module).exists():
            return base / one.module
    raise PlaybookError(
        f"{text.path}: experiment {one.name}: there is no module {one.module}",
        hint="a path beside the claims file, or below kmod/",
    )


def run(
    texts: Sequence[claims.Text],
    *,
    lab_name: str,
    journal: Journal,
    command: str,
    locked: bool = False,
    offline: bool = False,
) -> Path:
    """Take every experiment and return the folder; one that fails does not stop the others."""
    todo = wanted(texts)
    digest = hashlib.sha256(b"".join(text.source for text in texts)).hexdigest()
    folder = rundir.create(paths.runs(), "claims", digest, guests=(), last=False).path
    journal.to_file(folder / "journal.jsonl")
    with being_made(folder, called="claims"):
        for text in texts:
            (folder / f"{text.name}.yaml").write_bytes(text.source)
        results: dict[str, Taken] = {}
        for one in todo:
            link = one.asked.link
            if reason := playbook.why_not(one.asked) or topology.backend_absent(link.backend):
                results[one.name] = Taken(state=claims.UNAVAILABLE, reason=reason)
        rest = [one for one in todo if one.name not in results]
        # By kind, and modules that may crash last: what follows a socket or a module finds its
        # guest restored, without the probes that were pushed for a message.
        rest.sort(key=lambda one: (one.topology, one.module is not None, one.asked.experiment))
        for _, group in groupby(rest, key=lambda one: one.topology):
            station = _Station(
                lab_name=lab_name, journal=journal, command=command, folder=folder,
                locked=locked, offline=offline,
            )  # fmt: skip
            for one, result in station.take(list(group)):
                results[one.name] = result
                _tell(journal, len(results), len(todo), one, result)
                _keep(folder, todo, results, command)
        _keep(folder, todo, results, command)
        return folder


def again(texts: Sequence[claims.Text], folder: Path, *, journal: Journal) -> dict[str, str]:
    """Make of the runs in a folder again what they came to; return why not, by name.

    Results lie beside the evidence and may have been edited since: what they say is computed
    from the evidence, as `lab.report` does, before any of it is believed.
    """
    index = claims.taken_in(folder)
    told = [index[full] for full in sorted(claims.used(texts)) if full in index]
    names = {
        str(one.get("name"))
        for one in told
        if isinstance(one, dict) and one.get("state") == claims.DONE
    }
    trouble: dict[str, str] = {}
    with journal.step(f"{len(names)} runs, from their evidence"):
        for name in sorted(name for name in names if (folder / Path(name).name).is_dir()):
            run_dir = rundir.RunDir(folder / Path(name).name)
            try:
                if run_dir.is_attempt():
                    attempt.judge(run_dir)
                else:
                    experiment.analyse(run_dir, journal=Journal(stream=io.StringIO()))
            except LabError as error:
                trouble[name] = _one_line(error)
    return trouble


def _tell(journal: Journal, done: int, count: int, one: Wanted, result: Taken) -> None:
    said = f": {result.reason}" if result.reason else ""
    journal.say(f"{done:>4} of {count}  {one.name}: {result.state}{said}  {result.seconds:.1f} s")


def _keep(folder: Path, todo: Sequence[Wanted], results: Mapping[str, Taken], command: str) -> None:
    index = {
        full: {
            "name": one.name,
            "state": results[one.name].state,
            "reason": results[one.name].reason,
            "run": results[one.name].run,
            "seconds": round(results[one.name].seconds, 3),
        }
        for one in todo
        if one.name in results
        for full in one.names
    }
    rundir.RunDir(folder).write_json(
        claims.INDEX, {"schema": 1, "command": command, "experiments": index}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Station:
    """Where the experiments of one topology are taken."""

    lab_name: str
    journal: Journal
    command: str
    folder: Path
    locked: bool
    offline: bool

    def take(self, left: list[Wanted]) -> Iterator[tuple[Wanted, Taken]]:
        """Yield a result for each; after a failure the pair is brought up anew."""
        while left:
            before = len(left)
            try:
                setup, modules = experiment.setup_for(
                    left[0].asked, journal=self.journal, locked=self.locked, offline=self.offline
                )
                self._build(left, setup)
                with experiment.stand(
                    setup, modules, lab_name=self.lab_name, journal=self.journal
                ) as ready:
                    while left:
                        result = self._one(ready, left[0])
                        yield left.pop(0), result
                        if result.state != claims.DONE:
                            break
            except (LabError, OSError) as error:  # an image may be evicted under us, a disk be full
                if len(left) < before:  # the pair went after its last experiment did
                    continue
                yield left.pop(0), Taken(state=claims.FAILED, reason=_one_line(error))

    def _build(self, left: Sequence[Wanted], setup: Any) -> None:
        """Build all modules of a folder in one go: each alone takes two seconds."""
        sources = [one.module for one in left if one.module is not None and one.module.is_file()]
        for _, group in groupby(sorted(sources), key=lambda path: path.parent):
            crash.prepare_all(list(group), setup.image, journal=self.journal)

    def _one(self, ready: experiment.Stand, one: Wanted) -> Taken:
        start = time.monotonic()
        journal = Journal(stream=io.StringIO())
        name = ""
        try:
            run_dir = (
                self._try(ready, one, journal) if one.module else self._ask(ready, one, journal)
            )
            name = run_dir.name
            # So that an evidence id is a path below the folder.
            (self.folder / one.name).symlink_to(name)
        except (LabError, OSError) as error:
            return Taken(
                state=claims.FAILED, reason=_one_line(error), run=name,
                seconds=time.monotonic() - start,
            )  # fmt: skip
        return Taken(state=claims.DONE, run=name, seconds=time.monotonic() - start)

    def _ask(self, ready: experiment.Stand, one: Wanted, journal: Journal) -> rundir.RunDir:
        # What was expected of the playbook's own question is not asked here.
        asked = replace(one.asked, expect=spec.Expect(), not_judged=())
        kind = experiment.kind_of(asked.experiment)
        for left in reversed(range(TRIES)):
            run_dir = experiment.new_run(
                asked, ready.setup, self.folder, guests=kind.guests(asked), last=False
            )
            journal.to_file(run_dir.path / "journal.jsonl")
            kind.take(ready, asked, run_dir, journal=journal, command=self.command)
            if not kind.analyse(run_dir, asked.expect, journal=journal).lost:
                break
            if left:
                self.journal.say(f"{one.name}: {run_dir.name} lost records; measured again")
        return run_dir

    def _try(self, ready: experiment.Stand, one: Wanted, journal: Journal) -> rundir.RunDir:
        assert one.module is not None
        bench = attempt.Bench(pair=ready.pair, setup=ready.setup, was_pristine=False)
        trial = crash.Trial(workload=crash.SEND if one.send else None, soak_s=TRY_SOAK_S)
        result = attempt.run(
            bench, one.module, trial, journal=journal, command=self.command, base=self.folder
        )
        return result.run


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
