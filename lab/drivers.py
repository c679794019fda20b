"""Functions of a driver that is built into the kernel: which of several of one name are its.

A module's functions are named with it (`virtio_net:receive_buf`).  Built in, they are static
functions of the kernel, and those of other files may have the same names.  But a linker keeps
what comes of one file together, and most names of a driver are its own: what lies between them
is the driver's as well.

::

    …  tty_ldisc_receive_buf  receive_buf  tty_port_default_receive_buf  …
    …  virtnet_remove  page_to_skb  receive_buf  virtnet_poll  …
       own                         this one     own
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Driver -> what its own names begin with.
OWN: Mapping[str, bytes] = {"virtio_net": b"virtnet_", "e1000e": b"e1000e_"}
TEXT = (b"t", b"T")
# One in so many at least of what lies between them are names of its own: of virtio_net's four of
# five (6.12 and 6.1), and two of five of e1000e's, whose files are linked one after the other.
SPREAD = 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where a driver's function lies."""

    address: int
    unique: bool  # no other function of the kernel has its name


def built_in(kallsyms: bytes, functions: Iterable[str]) -> dict[str, Place]:
    """Return where "driver:function" lies, for drivers that are built into the kernel.

    `kallsyms` is the guest's /proc/kallsyms.  A function is left out that its driver does not
    have, or has twice.
    """
    wanted: dict[str, set[str]] = {}
    for hook in functions:
        driver, _, function = hook.partition(":")
        if driver in OWN and f"[{driver}]".encode() not in kallsyms and OWN[driver] in kallsyms:
            wanted.setdefault(driver, set()).add(function)
    if not wanted:
        return {}
    text = sorted(_functions(kallsyms))
    often = Counter(name for _, name in text)
    starts = [address for address, _ in text]
    out: dict[str, Place] = {}
    for driver, names in wanted.items():
        own = [one for one, name in text if name.startswith(OWN[driver]) and often[name] == 1]
        if not own:
            continue
        between = text[bisect_left(starts, own[0]) : bisect_right(starts, own[-1])]
        if len(between) > SPREAD * len(own):
            continue  # not together in this kernel: what lies between may be anybody's
        there = Counter(name for _, name in between)
        for address, name in between:
            function = name.decode("ascii", "replace")
            if function in names and there[name] == 1:
                out[f"{driver}:{function}"] = Place(address, unique=often[name] == 1)
    return out


def _functions(kallsyms: bytes) -> Iterable[tuple[int, bytes]]:
    """Yield address and name of the kernel's own functions, as its text holds them."""
    first, last = 0, 1 << 64
    found = []
    for line in kallsyms.split(b"\n"):
        words = line.split()
        if len(words) != 3 or words[1] not in TEXT:  # a fourth is the module
            continue
        if words[2] in (b"_stext", b"_etext"):
            first, last = (
                (int(words[0], 16), last) if words[2] == b"_stext" else (first, int(words[0], 16))
            )
        # What the compiler found unlikely lies elsewhere, under the name of what it is of;
        # __pfx_ is the padding in front of a function.
        elif b".cold" not in words[2] and not words[2].startswith(b"__pfx_"):
            found.append((int(words[0], 16), words[2]))
    return [one for one in found if first <= one[0] < last]
