"""What one value of a playbook or an option may be, and which values contradict each other."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import cast, get_args

from lab.errors import did_you_mean
from lab.message import NEEDLE_SIZE, SEARCHABLE_SIZE, from_payload
from lab.spec import (
    BPF_HOOKS,
    HOOKS,
    RECORDS_AT_MOST,
    SECTIONS,
    SPECIAL,
    AnyKernel,
    Backend,
    Device,
    Expect,
    Experiment,
    Family,
    Known,
    Link,
    Over,
    OwnKernel,
    Playbook,
    Probes,
    Protocol,
    Workload,
)

KERNELS = ("6.12", "6.1")
COUNT_LIMIT = 10_000
PAYLOAD_LIMIT = 16 * 1024  # travels as hex in one line to the agent, which ends at 65,536 bytes
SIZE_LIMIT = {
    ("udp", "ipv4"): 65_507,  # 65,535 of an IPv4 packet less 20 of its header and 8 of UDP's
    ("udp", "ipv6"): 65_527,  # the length in an IPv6 header does not count that header
    ("tcp", "ipv4"): 65_536,
    ("tcp", "ipv6"): 65_536,
}
CARRIES = {
    ("udp", "ipv4"): "a UDP message on IPv4",
    ("udp", "ipv6"): "a UDP message on IPv6",
    ("tcp", "ipv4"): "a TCP message of a playbook",
    ("tcp", "ipv6"): "a TCP message of a playbook",
}
# A page without the room for a program in front, for skb_shared_info behind, and Ethernet.
MOST_MTU_OF_XDP = 3506
MOST_MTU_OF_TAP = 65_521  # 65,535 and Ethernet
LEAST_MTU_OF_IPV6 = 1280  # RFC 8200, section 5: Linux takes IPv6 off a link with less


class Fault(Exception):
    """What is wrong with one value; whoever asked knows where it stands."""


# Readers of one scalar's text.


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([KM]?)", text)
    if found is None:
        raise Fault(f"expected a size such as 512 or 64K; found {shown(text)}")
    return int(found[1]) * {"": 1, "K": 1024, "M": 1024 * 1024}[found[2]]


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number between two others."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise Fault(f"expected a whole number from {low} to {high}; found {shown(text)}")
        return int(text)

    return read


def switch(text: str) -> bool:
    """Read a boolean; only these four words, so that nothing depends on a YAML version."""
    if text not in ("on", "yes", "off", "no"):
        raise Fault(f"expected on or off, yes or no; found {shown(text)}")
    return text in ("on", "yes")


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Return what reads one of some words."""

    def read(text: str) -> str:
        if text not in choices:
            mean = did_you_mean(text, choices)
            raise Fault(f"expected one of {', '.join(choices)}; found {shown(text)}{mean}")
        return text

    return read


def _kernel(text: str) -> str:
    if text not in KERNELS and "/" in text:
        raise Fault("a kernel of your own is {image: FILE, modules: FOLDER}")
    return one_of(KERNELS)(text)


def kernel(image: str, modules: str = "", headers: str = "") -> AnyKernel:
    """Return the kernel that --kernel, --modules and --headers name together."""
    if not image:
        raise Fault(f"--{'modules' if modules else 'headers'}: and --kernel BZIMAGE is missing")
    if image in KERNELS:
        if modules or headers:
            option = "--modules" if modules else "--headers"
            raise Fault(f"{option}: goes with a kernel of your own, --kernel BZIMAGE")
        return image
    if "/" not in image and not modules:
        mean = did_you_mean(image, KERNELS)
        words = f"expected one of {', '.join(KERNELS)}, or a bzImage of your own with --modules"
        raise Fault(f"--kernel: {words}; found {shown(image)}{mean}")
    if not modules:
        raise Fault(
            f"--kernel: {shown(image)} is no series of ours, and --modules FOLDER is missing"
        )
    return OwnKernel(image=image, modules=modules, headers=headers)


def _seconds(text: str) -> float:
    """Return a duration in seconds, -1 for what is none."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m)", text)
    return float(found[1]) * {"ms": 0.001, "s": 1, "m": 60}[found[2]] if found else -1


def _duration(text: str) -> float:
    seconds = _seconds(text)
    if not 1 <= seconds <= 3600:
        raise Fault(f"expected a duration from 1s to 60m such as 60s; found {shown(text)}")
    return seconds


def _delay(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,4})(ms|s)", text)
    seconds = float(found[1]) * {"ms": 0.001, "s": 1}[found[2]] if found else -1.0
    if not 0 <= seconds <= 10:
        raise Fault(f"expected a delay from 0ms to 10s such as 20ms; found {shown(text)}")
    return seconds


def _percent(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%", text)
    if found is None or float(found[1]) > 100:
        raise Fault(f"expected a share from 0% to 100% such as 1.5%; found {shown(text)}")
    return float(found[1])


def _soak(text: str) -> float:
    seconds = _seconds(text)
    if not 0 <= seconds <= 600:
        raise Fault(f"expected a duration from 0s to 10m such as 500ms; found {shown(text)}")
    return seconds


def _path(text: str) -> str:
    if not text or not text.isprintable():
        raise Fault(f"expected a .c file, a folder or a .ko; found {shown(text)}")
    return text


def _file(text: str) -> str:
    if not text or not text.isprintable():
        raise Fault(f"expected a path; found {shown(text)}")
    return text


def _parameter(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]+(=[!-~]*)?", text):
        raise Fault(f"expected a parameter such as count=3; found {shown(text)}")
    return text


def _module_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,55}", text):
        raise Fault(f"expected the name of a module; found {shown(text)}")
    return text


def _slub_debug(text: str) -> str:
    if not re.fullmatch(r"[FZPUA]{1,5}", text):
        raise Fault(f"expected letters of F, Z, P, U and A such as FZPU; found {shown(text)}")
    return text


def _place(text: str) -> str:
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise Fault(f"expected a place such as null_write.c:20; found {shown(text)}")
    return text


def _payload(text: str) -> bytes:
    payload = text.encode("utf-8", "surrogateescape")
    if not payload:
        raise Fault("the payload is empty; leave it out and the lab makes one up")
    if len(payload) > PAYLOAD_LIMIT:
        raise Fault(f"a payload has at most {PAYLOAD_LIMIT} bytes; found {len(payload)}")
    return payload


def _hook(text: str) -> str:
    if text in HOOKS or text in BPF_HOOKS:
        return text
    # As a report names it, without the module.
    full = [hook for hook in HOOKS if hook.partition(":")[2] == text]
    if len(full) == 1:
        return full[0]
    names = dict.fromkeys(hook.rpartition(":")[2] for hook in (*HOOKS, *BPF_HOOKS))
    if not (mean := did_you_mean(text, (*HOOKS, *names))):
        near = difflib.get_close_matches(text[:80], names, n=3, cutoff=0.0)
        mean = f"; the nearest of {len(names)} are {', '.join(near)} (all: docs/internals.md)"
    raise Fault(f"unknown hook {shown(text)}{mean}")


def _hooks(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_hook(name.strip()) for name in text.split(",")))


FOREIGN = (".c", ".ko", ".bpf.o", ".bt")


def _foreign(text: str) -> str:
    if text.endswith(".bpf.c"):
        raise Fault(f"expected what clang makes of {shown(text)}, a .bpf.o (docs/probes.md)")
    if not text.endswith(FOREIGN) or not re.fullmatch(r"[A-Za-z0-9_./+-]+", text):
        raise Fault(f"expected a probe of your own, *{', *'.join(FOREIGN)}; found {shown(text)}")
    return text


def _comm(text: str) -> str:
    # A comm ends at 15 bytes (TASK_COMM_LEN less its NUL); the rest keeps it one module parameter.
    if not re.fullmatch(r"[A-Za-z0-9_.:/+@-]{1,15}", text):
        raise Fault(f"expected a comm of 1 to 15 letters, digits or _.:/+@-; found {shown(text)}")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", text):
        raise Fault(
            f"expected a name of at most 40 small letters, digits and '-'; found {shown(text)}"
        )
    return text


def _question(text: str) -> str:
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise Fault("expected a question in one line of 1 to 200 characters")
    return text


# Where a field's type does not say it all: what reads it, by its place in the file.
READERS: dict[str, Callable[[str], object]] = {
    "playbook": _name,
    "question": _question,
    "kernel": _kernel,
    "kernel.image": _file,
    "kernel.modules": _file,
    "kernel.headers": _file,
    "deadline": _duration,
    "link.copybreak": whole(0, 4096),
    "link.delay": _delay,
    "link.loss": _percent,
    "module.path": _path,
    "module.target": _module_name,
    "module.params": _parameter,
    "module.soak": _soak,
    "module.slub-debug": _slub_debug,
    "expect.at": _place,
    "link.mtu": whole(68, 65_535),  # RFC 791's least; the device's most
    "probes.without": _hook,
    "probes.comm": _comm,
    "probes.foreign": _foreign,
    "probes.records": whole(1, RECORDS_AT_MOST),
    # Of fewer the few hundred objects that slab caches keep by themselves would be a leak.
    "calls.repeats": whole(3000, 1_000_000),  # the most is what guest/socket_test.c takes
    "calls.control": whole(1, 1_000_000),
    "workload.size": _size,
    "workload.count": whole(1, COUNT_LIMIT),
    "workload.payload": _payload,
    "workload.port": whole(1, 65_535),
    "known.copies": whole(0, 32),
    "known.size": whole(8, 4096),  # as much as edu has room for
    "known.transfers": whole(0, 32),
    "sweep.kernel": one_of(KERNELS),
    "sweep.over": one_of(get_args(Over)),
    "sweep.device": one_of(get_args(Device)),
    "sweep.backend": one_of(get_args(Backend)),
    "sweep.family": one_of(get_args(Family)),
    "sweep.protocol": one_of(get_args(Protocol)),
    "sweep.connect": switch,
    "sweep.size": _size,
    "sweep.repeat": whole(1, 1000),
}

# A trigger is a workload.
READERS |= {
    key.replace("workload.", "trigger."): read
    for key, read in READERS.items()
    if key.startswith("workload.")
}

OF_CRASHES = ("kernel", "deadline")  # options that change an experiment `crash`
OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "size": ("workload.size", _size),
    "count": ("workload.count", READERS["workload.count"]),
    "payload": ("workload.payload", _payload),
    "family": ("workload.family", one_of(get_args(Family))),
    "protocol": ("workload.protocol", one_of(("udp", "tcp"))),
    "without": ("probes.without", _hooks),
    "comm": ("probes.comm", _comm),
    "probes": ("probes.kind", one_of(("kmod", "bpf", "both", "none"))),
    "kernel": ("kernel", _kernel),
    "deadline": ("deadline", _duration),
}

# Which option is at fault when the one a rule names was not given.
PARTNERS: dict[str, tuple[str, ...]] = {
    "size": ("payload", "protocol", "family"),
    "payload": ("size",),
    "without": ("probes",),
    "comm": ("probes",),
}

# The keys of which `contradictions` compares several.
ENTANGLED = frozenset(
    {
        *("copies", "transfers", "hidden"),
        *("family", "protocol", "size", "payload", "kind", "without", "comm", "records"),
        *("backend", "copybreak", "device", "iommu", "swiotlb", "mrg_rxbuf", "mtu", "xdp"),
    }
)


def why_not(playbook: Playbook) -> str | None:
    """Say why a playbook that is well formed cannot be run here; None when it can."""
    faults = contradictions(playbook.workload) + contradictions(playbook)
    return faults[0][1] if faults else None


def contradictions(part: object) -> list[tuple[str, str]]:
    """Return the faults no single value of a section has: (key or option, message)."""
    out = []
    if isinstance(part, Workload):
        out += _of_workload(part)
    if isinstance(part, Known):
        out += _of_known(part)
    if isinstance(part, Link):
        out += _of_link(part)
    if isinstance(part, Playbook):
        on_link = part.workload.over == "link" and part.workload.family == "ipv6"
        if on_link and part.link.mtu < LEAST_MTU_OF_IPV6:
            least = f"a link that carries IPv6 has an MTU of at least {LEAST_MTU_OF_IPV6}"
            out.append(("family", f"{least}; found {part.link.mtu}"))
    if isinstance(part, Probes) and part.kind == "none":
        if part.without:
            out.append(("without", "hooks cannot be left out where probes are none"))
        if part.comm is not None:
            out.append(("comm", "a comm cannot be picked where probes are none"))
        if part.records is not None:
            out.append(("records", "there is no ring to have room where probes are none"))
    return out


def _of_workload(asked: Workload) -> list[tuple[str, str]]:
    out = []
    way = asked.protocol, asked.family
    most = SIZE_LIMIT[way]
    if not 1 <= asked.size <= most:
        out.append(("size", f"{CARRIES[way]} has 1 to {most} bytes; found {asked.size}"))
    if asked.payload is None or asked.size < 1:
        return out
    if asked.size < len(asked.payload):
        found = f"{len(asked.payload)} bytes of payload"
        out.append(("payload", f"{found} do not fit a size of {asked.size}"))
    elif asked.size >= SEARCHABLE_SIZE and not any(
        from_payload(asked.payload, min(asked.size, NEEDLE_SIZE))
    ):
        # To search for it finds most of memory, and takes minutes.
        out.append(("payload", "it begins with zeros alone, as most of memory does"))
    return out


def _of_known(known: Known) -> list[tuple[str, str]]:
    out = []
    if not known.copies and not known.transfers:
        out.append(("copies", "nothing is moved: no copies and no transfers"))
    if not known.copies and known.hidden:
        out.append(("hidden", "of no copies none can be hidden"))
    return out


def _of_link(link: Link) -> list[tuple[str, str]]:
    out = []
    if link.copybreak is not None and link.device != "e1000e":
        out.append(("copybreak", "only the driver of e1000e has a copybreak"))
    if link.swiotlb is not None and link.iommu:
        out.append(("swiotlb", "behind an IOMMU nothing is bounced"))
    if not link.mrg_rxbuf and link.device != "virtio-net-pci":
        out.append(("mrg_rxbuf", "only a virtio device has mergeable receive buffers"))
    elif not link.mrg_rxbuf and link.backend == "tap":
        # With its offloads the driver takes chains of pages (big_packets).
        out.append(("mrg_rxbuf", "over taps a frame would lie in pages that are not followed"))
    elif not link.mrg_rxbuf and link.mtu > Link().mtu:
        out.append(("mtu", f"without mrg_rxbuf a buffer has room for {Link().mtu} bytes"))
    if link.xdp is not None and link.device != "virtio-net-pci":
        out.append(("xdp", "only a virtio device's driver takes an XDP program here"))
    elif link.xdp is not None and link.mtu > MOST_MTU_OF_XDP:
        out.append(("mtu", f"with an XDP program it is at most {MOST_MTU_OF_XDP}"))
    if link.backend == "tap" and link.mtu > MOST_MTU_OF_TAP:
        out.append(("mtu", f"over taps it is at most {MOST_MTU_OF_TAP}"))
    return out


def misplaced(
    kind: str, given: Iterable[str], *, expect: object, probes: Probes
) -> list[tuple[str, str]]:
    """Return what a kind of experiment lacks and what it does not have: (section, message).

    Where `expect` is no `Expect`, nothing is said of it.
    """
    sections = SECTIONS[cast("Experiment", kind)]
    present = set(given)
    other = (SPECIAL - {*sections.needs, *sections.may}) | {*sections.lacks}
    out = [(key, f"missing key '{key}'") for key in sections.needs if key not in present]
    out += [(key, f"an experiment '{kind}' has no '{key}'") for key in sorted(present & other)]
    if probes.kind not in sections.probes:
        out.append(("probes", f"an experiment '{kind}' needs probes; found '{probes.kind}'"))
    if probes.records is not None and kind != "message":
        out.append(("probes", f"an experiment '{kind}' has rings of its own size, no 'records'"))
    if probes.foreign and not sections.foreign:
        out.append(("probes", f"an experiment '{kind}' loads no probes of yours (foreign)"))
    if not isinstance(expect, Expect):
        return out
    asked = {line for line, value in dataclasses.asdict(expect).items() if value is not None}
    out += [
        ("expect", f"an experiment '{kind}' expects a '{line}'")
        for line in sections.must
        if line not in asked
    ]
    for line in sorted(asked - {*sections.expects}):
        named = line.replace("_", "-")
        out.append(("expect", f"an experiment '{kind}' says no '{named}'"))
    return out


def shown(text: str) -> str:
    """Return a value as messages quote it: short, escaped."""
    short = text if len(text) <= 40 else f"{text[:37]}..."
    return repr(short) if short else "nothing"
