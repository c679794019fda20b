"""What a guest said of its end of the link (`ethtool.txt`), as words."""

from __future__ import annotations

# Features of `ethtool -k` that decide which functions copy.
FEATURES = {
    "tx-checksumming": "tx-checksum",
    "rx-checksumming": "rx-checksum",
    "scatter-gather": "scatter-gather",
    "tcp-segmentation-offload": "tso",
    "generic-receive-offload": "gro",
}


def offloads(text: str) -> dict[str, str]:
    """Return the features that decide how bytes are copied, from what the guest said."""
    return {FEATURES[key]: value.split()[0] for key, value in _said(text) if key in FEATURES}


def as_found(text: str) -> dict[str, str]:
    """Return MTU, copybreak, queueing discipline and program, from what the guest said."""
    told = ("mtu", "copybreak", "qdisc", "xdp")
    return {key: value for key, value in _said(text) if key in told}


def driver(text: str) -> str:
    """Return the driver of the link's device, "" where the guest did not say."""
    return dict(_said(text)).get("driver", "")


def _said(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs if value.strip()]
