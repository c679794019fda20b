"""Which lines of `expect:` a command line's options leave no answer to, and why."""

from __future__ import annotations

from collections.abc import Iterator

from lab.message import SEARCHABLE_SIZE
from lab.spec import EXPECTABLE, Playbook

OF_SKBS = ("same_object", "same_head", "skb_len_at_xmit")
OF_MOVES = ("guest_cpu_copies", "device_reads", "device_writes")
OF_ALL = ("complete", "unexplained")  # whatever is sent


def not_judged(before: Playbook, after: Playbook) -> dict[str, str]:
    """Return each line that was asked in the file, and that of `after` cannot be asked."""
    out: dict[str, str] = {}
    for lines, why in _reasons(before, after):
        asked = (line for line in lines if getattr(after.expect, line) is not None)
        out |= {line: why for line in asked if line not in out}
    return out


def _reasons(before: Playbook, after: Playbook) -> Iterator[tuple[tuple[str, ...], str]]:
    was, now = before.workload, after.workload
    if before.probes.kind != "none" and after.probes.kind == "none":
        # The access log sees bytes move; what an skb is only a probe can say.
        yield OF_SKBS, "only a probe sees an skb: --probes none"
    if now.size < SEARCHABLE_SIZE:
        yield ("unexplained",), f"{now.size} bytes are too few to search RAM for"
    if was.protocol != now.protocol:
        # It copies elsewhere, in other skbs.
        others = tuple(line for line in EXPECTABLE if line not in OF_ALL)
        yield others, f"asked of the playbook's own protocol, {was.protocol}"
    for name in ("size", "family"):
        own = getattr(was, name)
        if own == getattr(now, name):
            continue
        # Over the link length decides how a driver takes a message in.
        moves = OF_MOVES if now.over == "link" else ()
        yield ("skb_len_at_xmit", *moves), f"asked of the playbook's own {name}, {own}"
