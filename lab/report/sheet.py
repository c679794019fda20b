"""A page of blocks: what a terminal is told, for people who are shown it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lab.blocks import Block, Heading, Lines, Table
from lab.report.cells import sentence
from lab.report.page import environment
from lab.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading."""

    id: str
    title: str
    evidence: str
    blocks: list[Block] = field(default_factory=list)


def sheet(run: RunDir, told: Sequence[Block], *, good: bool) -> str:
    """Return a page: the first block is the verdict, each heading begins a section."""
    manifest = run.manifest()
    first, *rest = [_text(block) for block in _until_heading(told)] or [""]
    return environment().get_template("sheet.html.j2").render(
        run=run.name,
        playbook=manifest.playbook or manifest.experiment,
        kernel=manifest.kernel,
        word=first.partition(":")[0],
        sentences=[first],
        good=good,
        said=[text for text in rest if text],
        sections=sections(told),
        conditions=[
            ("kernel", manifest.kernel),
            ("accelerator", f"{manifest.accelerator}: {manifest.accelerator_why}"),
            *(("drifted", one) for one in manifest.drifted),
            ("command", str(manifest.values.get("command") or "not known")),
        ],
    )  # fmt: skip


def sections(told: Sequence[Block]) -> list[Section]:
    """Return blocks by their headings; what stands before the first, without the paragraphs."""
    found = [Section("found", "", "")]
    for block in told:
        if isinstance(block, Heading):
            name = f"part-{len(found)}"
            found.append(Section(name, sentence(block.text), block.evidence))
        elif block != "" and (len(found) > 1 or isinstance(block, Table | Lines)):
            found[-1].blocks.append(block)
    if len(found[0].blocks):
        # Before the first table nothing has a heading; behind it text is about the table.
        start = next(n for n, block in enumerate(told) if isinstance(block, Table | Lines))
        end = next((n for n, b in enumerate(told) if isinstance(b, Heading)), len(told))
        found[0].blocks[:] = [block for block in told[start:end] if block != ""]
    return [section for section in found if section.blocks]


def _until_heading(told: Sequence[Block]) -> list[Block]:
    """Return the text before the first heading or table."""
    end = next((n for n, b in enumerate(told) if isinstance(b, Heading | Table | Lines)), len(told))
    return [block for block in told[:end] if block != ""]


def _text(block: Block) -> str:
    return block if isinstance(block, str) else getattr(block, "text", "")
