"""Why bytes did not arrive, with what the run knows of it besides the walk: waits, and netem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lab.correlate import Inputs
from lab.correlate.audit import NEVER_GIVEN, NO_FRAME, WAIT_ENDED
from lab.correlate.inputs import RECEIVER
from lab.correlate.types import Gap
from lab.rundir import conditions

REST = "the rest of its datagram did not come, and no program is given a part"


class Reasons:
    """Says of each gap of a run why it is one."""

    def __init__(self, inputs: Inputs, gaps: Iterable[Gap]) -> None:
        self._inputs = inputs
        self._whys: dict[int | None, set[str]] = defaultdict(set)
        for gap in gaps:
            self._whys[gap.message].add(gap.why)

    def of(self, gap: Gap) -> str:
        """Return the walk's reason, and what else is known of it."""
        udp = self._inputs.manifest.protocol == "udp"
        if gap.why == WAIT_ENDED:
            lost = self._whys[gap.message] - {WAIT_ENDED}
            return REST if udp and lost else f"{WAIT_ENDED}{self._wait(', ')}"
        if gap.why not in (NO_FRAME, NEVER_GIVEN):
            return gap.why
        why = gap.why
        if not udp and gap.why == NO_FRAME and self._timed_out():
            # TCP would have sent them once more.
            why = f"{NO_FRAME}; the receiver's wait for them ended{self._wait(' ')}"
        return why + self._dropped(gap.guest)

    def _timed_out(self) -> bool:
        guest = self._inputs.with_role(RECEIVER)
        work = None if guest is None else guest.role(RECEIVER)
        return work is not None and work.timed_out

    def _wait(self, before: str) -> str:
        limit = self._inputs.manifest.values.get("idle_ms")  # not in runs of before
        if not isinstance(limit, int):
            return ""
        return (
            f"{before}after {limit / 1000:g} s with nothing to read (no playbook makes it longer)"
        )

    def _dropped(self, name: str) -> str:
        guest = next((one for one in self._inputs.guests if one.name == name), None)
        if guest is None or not guest.folder.has(conditions.QDISC):
            return ""
        text = guest.folder.file(conditions.QDISC).read_text(encoding="utf-8", errors="replace")
        counts = conditions.dropped(text)
        if counts is None or not counts[0]:
            return ""
        gone, sent = counts
        frames = "1 frame" if gone == 1 else f"{gone} frames"
        return f"; netem there dropped {frames} and let {sent} go ({name}/{conditions.QDISC})"
