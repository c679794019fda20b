"""What a guest said of its end of the link (`ethtool.txt`), as words."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Features of `ethtool -k` that decide which functions copy.
FEATURES = {
    "tx-checksumming": "tx-checksum",
    "rx-checksumming": "rx-checksum",
    "scatter-gather": "scatter-gather",
    "tcp-segmentation-offload": "tso",
    "generic-receive-offload": "gro",
}
USUAL = {"mtu": "1500", "copybreak": "256"}  # bytes; of Ethernet, and of the driver e1000e
NETEM = re.compile(r"\b(delay|loss) (\d\S*)")
COUNTED = re.compile(r"Sent \d+ bytes (\d+) pkt \(dropped (\d+),")
QDISC = "qdisc.txt"  # what `tc` counted before the probes were loaded, and after they were read
READINGS = 2


def offloads(text: str) -> dict[str, str]:
    """Return the features that decide how bytes are copied, from what the guest said."""
    return {FEATURES[key]: value.split()[0] for key, value in _said(text) if key in FEATURES}


def as_found(text: str) -> dict[str, str]:
    """Return MTU, copybreak, queueing discipline and program, from what the guest said."""
    told = ("mtu", "copybreak", "qdisc", "xdp")
    return {key: value for key, value in _said(text) if key in told}


def set_otherwise(link: Mapping[str, object], *, device: str) -> dict[str, str]:
    """Return what of a manifest's link is not as a link is that nothing was asked of."""
    said = {name: value for name, value in link.items() if isinstance(value, str)}
    out = {
        name: said[name]
        for name, usual in USUAL.items()
        if said.get(name, usual) != usual and (name != "copybreak" or device == "e1000e")
    }
    # `tc` says more of it, and a handle that is another each time.
    return out | dict(NETEM.findall(said.get("qdisc", "")))


def dropped(text: str) -> tuple[int, int] | None:
    """Return the frames that netem dropped and let go between two readings of `tc -s qdisc`."""
    found = [(int(gone), int(sent)) for sent, gone in COUNTED.findall(text)]
    if len(found) != READINGS or NETEM.search(text) is None:
        return None
    (gone, sent), (gone_after, sent_after) = found
    return gone_after - gone, sent_after - sent


def driver(text: str) -> str:
    """Return the driver of the link's device, "" where the guest did not say."""
    return dict(_said(text)).get("driver", "")


def _said(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs if value.strip()]
