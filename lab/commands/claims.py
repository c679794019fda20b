"""Hold claims against measurements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.commands import Console, lab_name
from lab.errors import EvidenceError, PlaybookError

if TYPE_CHECKING:
    from lab.claims import Judged

MOST_TOLD = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line asks; "" is what is usual."""

    texts: tuple[str, ...] = ()
    on: str = ""
    only: str = ""
    markdown: str = ""
    locked: bool = False
    offline: bool = False


def claims(console: Console, lab: str, options: Options) -> None:
    from lab import claims as stated
    from lab import experiment, rundir, settle
    from lab.claims import table
    from lab.report.tables import WIDTH

    texts = [stated.load(name) for name in options.texts or stated.names()]
    wanted = frozenset(filter(None, options.only.replace(" ", "").split(",")))
    texts = [stated.narrowed(text, wanted) for text in texts] if wanted else texts
    if not any(text.claims for text in texts):
        raise PlaybookError(f"no claim is called {options.only}", hint="invoke lab.claims --json")
    command = experiment.describe_command()
    trouble: dict[str, str] = {}  # what was taken just now was analysed just now
    if options.on:
        folder = Path(options.on)
        if not (folder / stated.INDEX).is_file():
            raise PlaybookError(f"{folder} has no {stated.INDEX}", hint="a folder of lab.claims")
        trouble = settle.again(texts, folder, journal=console.journal)
    else:
        folder = settle.run(
            texts,
            lab_name=lab_name(lab),
            journal=console.journal,
            command=command,
            locked=options.locked,
            offline=options.offline,
        )
    judged = stated.judge(texts, folder, trouble=trouble)
    out = rundir.RunDir(folder)
    value = table.to_json(judged)
    out.write_json("claims.json", value)
    text = table.render(judged)
    out.write_text("claims.txt", f"{text}\n")
    if options.markdown:
        document = table.markdown(judged, conditions=table.conditions(folder))
        Path(options.markdown).write_text(document, encoding="utf-8")
    if console.width is not None:
        text = table.render(judged, width=min(console.width, WIDTH))
    console.result(f"{text}\n{folder}", value | {"folder": str(folder)})
    _undecided(judged, folder)


def _undecided(judged: tuple[Judged, ...], folder: Path) -> None:
    """Raise where a claim could not be judged that should have been: exit code 6."""
    from lab.claims import UNDECIDED

    open_ = [one for text in judged for one in text.verdicts if one.word == UNDECIDED]
    if open_:
        told = "; ".join(f"{one.claim.id}: {one.on}" for one in open_[:MOST_TOLD])
        more = f"; and {len(open_) - MOST_TOLD} more" if len(open_) > MOST_TOLD else ""
        raise EvidenceError(
            f"{len(open_)} claims could not be judged: {told}{more}",
            log=folder / "claims.json",
            hint=f"invoke lab.report {folder}/EXPERIMENT",
        )
