"""What socket(2) did, from a run's records alone: the calls, the proofs, the lines, the report.

::

    run directory -- inputs --> Inputs -- calls --> Calls -- proofs --> Proofs -- build --> Findings
                                                                        render, log --> text
"""

from __future__ import annotations

from lab.rundir import RunDir
from lab.socket.both import compare
from lab.socket.calls import follow
from lab.socket.findings import Findings
from lab.socket.hooked import functions
from lab.socket.inputs import read
from lab.socket.log import lines
from lab.socket.page import page
from lab.socket.proofs import Proof, prove
from lab.socket.render import render, told

__all__ = ["Findings", "build", "lines", "page", "render", "told"]


def build(run: RunDir) -> Findings:
    """Return what a run shows; raises `TraceCorrupt` for files that are not whole."""
    inputs = read(run)
    calls = follow(inputs)
    agreement = compare(inputs)
    return Findings(
        inputs=inputs,
        calls=calls,
        functions=functions(inputs),
        proofs=(*_changes(run), *prove(inputs, calls, agreement)),
        agreement=agreement,
    )


def _changes(run: RunDir) -> tuple[Proof, ...]:
    """Return what fails before anything is looked at: the files are not those of the run."""
    return tuple(Proof(name="the files of the run", holds=False, says=why) for why in run.changes())
