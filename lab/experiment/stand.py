"""A pair of guests that stands ready, and what every run on it does alike."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lab
from lab import (
    accelerator,
    bpf,
    build,
    image,
    iommu,
    process,
    qemu,
    rundir,
    snapshot,
    spec,
    topology,
)
from lab.deadline import Deadline
from lab.errors import HostError, LabNotUp
from lab.guest import Guest
from lab.image import Image
from lab.image.needs import Part
from lab.journal import Journal

REACH_S = 10.0
# A teaching device that does real DMA; its own mask would be 28 bits.
EDU = "edu,addr=06.0,dma_mask=0xffffffff"
# Interrupts as without it: under KVM remapping them needs another interrupt controller.
IOMMU = f"intel-iommu,id={iommu.ID},intremap=off"


@dataclass(slots=True)
class Stand:
    """A pair that stands ready for runs, and what need be asked of it only once."""

    pair: topology.Lab
    setup: topology.Setup
    modules: dict[str, Path]
    how: str  # it came to be as it is
    restored: bool  # its memory is the snapshot's, as a nonce proves
    pushed: dict[str, set[str]] = field(default_factory=dict)  # guest -> modules it has
    ethtool: dict[str, str] = field(default_factory=dict)
    symbols: dict[str, Path] = field(default_factory=dict)


def setup_for(
    asked: spec.Playbook, *, journal: Journal, locked: bool = False, offline: bool = False
) -> tuple[topology.Setup, dict[str, Path]]:
    """Return what a pair for this playbook is made of, and the modules that watch it."""
    kernel = image.ensure(asked.kernel, journal=journal, locked=locked, offline=offline)
    kind = asked.probes.kind
    image.require(kernel, *_parts(asked))
    if kind in ("bpf", "both"):
        bpf.require_tools()
    # Whoever watches socket(2), modules time it and make it fail; a module moves what is known.
    built = kind in ("kmod", "both") or asked.experiment in ("socket", "known")
    modules = build.build_modules(kernel, journal=journal) if built else {}
    foreign_files(asked, kernel, journal=journal)  # what does not compile is told before a boot
    speed = accelerator.choose(kernel, journal=journal)
    setup = topology.standard(
        kernel, speed, journal=journal, device=asked.link.device, backend=asked.link.backend
    )
    setup = of_link(setup, asked.link)
    if asked.known.transfers:
        setup = replace(setup, devices=(*setup.devices, EDU))
    return setup, modules


def foreign_files(asked: spec.Playbook, kernel: Image, *, journal: Journal) -> dict[str, Path]:
    """Return the user's own probes by the playbook's names of them: its neighbours, .c built."""
    folder = Path(asked.path).parent
    files = {name: folder / name for name in asked.probes.foreign}
    if sources := {name: path for name, path in files.items() if path.suffix == ".c"}:
        from lab import crash  # few runs have any

        files |= {
            name: crash.prepare(path, kernel, journal=journal).ko for name, path in sources.items()
        }
    return files


def of_link(setup: topology.Setup, link: spec.Link) -> topology.Setup:
    """Return a pair whose link device reaches memory, and receives, as `link` says."""
    virtio = link.device.startswith("virtio")
    words: list[str] = []
    device = ""
    if link.iommu:
        words.append("intel_iommu=on")
    if link.swiotlb is not None:
        words.append(f"swiotlb={link.swiotlb}")
    if virtio and words:
        # VIRTIO_F_ACCESS_PLATFORM, without which its driver gives it physical addresses.
        device += ",iommu_platform=on,disable-legacy=on"
    if not link.mrg_rxbuf:
        device += ",mrg_rxbuf=off"
    return replace(
        setup,
        extra=" ".join(words),
        devices=(IOMMU,) if link.iommu else (),
        link_options=device,
    )


def options(link: spec.Link) -> dict[str, str]:
    """Return what of the link's device is not as it is by default, for the manifest."""
    said = {
        "iommu": "on" if link.iommu else None,
        "swiotlb": link.swiotlb,
        "mrg_rxbuf": None if link.mrg_rxbuf else "off",
    }
    return {name: value for name, value in said.items() if value is not None}


def _parts(asked: spec.Playbook) -> Iterator[Part]:
    """Yield what of the lab a playbook makes use of."""
    probes = asked.probes.kind if "probes" not in spec.SECTIONS[asked.experiment].lacks else "kmod"
    if probes in ("kmod", "both"):
        yield "probes"
    if probes in ("bpf", "both"):
        yield "BPF probes"
    if asked.experiment in ("steps", "chain", "trap", "socket"):
        yield "types"
    if asked.link.device == "e1000e":
        yield "e1000e"
    if asked.link.delay_s or asked.link.loss:
        yield "netem"
    if asked.link.iommu:
        yield "iommu"
    if asked.link.swiotlb is not None:
        yield "swiotlb"


@contextlib.contextmanager
def stand(
    setup: topology.Setup,
    modules: dict[str, Path],
    *,
    lab_name: str,
    journal: Journal,
    reset: bool = True,
) -> Iterator[Stand]:
    """Yield a pair that is ready for one run after the other."""
    with _ready_pair(lab_name, setup, journal=journal, reset=reset) as (pair, how, restored):
        yield Stand(pair=pair, setup=setup, modules=modules, how=how, restored=restored)


def new_run(
    asked: spec.Playbook,
    setup: topology.Setup,
    base: Path,
    *,
    guests: Sequence[str],
    last: bool = True,
) -> rundir.RunDir:
    """Make a run directory with the playbook's bytes in it."""
    digest = hashlib.sha256(asked.source + setup.image.digest.encode()).hexdigest()
    run_dir = rundir.create(base, asked.name, digest, guests=guests, last=last)
    (run_dir.path / "playbook.yaml").write_bytes(asked.source)
    return run_dir


@contextlib.contextmanager
def _ready_pair(
    name: str, setup: topology.Setup, *, journal: Journal, reset: bool
) -> Iterator[tuple[topology.Lab, str, bool]]:
    """Yield a pair, how it came to be as it is, and whether its memory is the snapshot's.

    The lab that is up is used if it is what the playbook asks for; else the run brings
    up a pair of its own and takes it down.  Without `reset` only the lab will do.
    """
    if name in topology.names():
        with topology.opened(name) as pair:
            other = unlike(pair, setup)
            if other is None:
                yield pair, *_readied(pair, setup, journal=journal, reset=reset)
                return
        if not reset:
            raise HostError(
                f"lab '{name}' {other}; --no-reset asks for the lab as it stands",
                hint="invoke lab.up --fresh, or leave --no-reset out",
            )
        journal.say(f"lab '{name}' {other}: using a pair of its own")
    elif not reset:
        raise LabNotUp(f"lab '{name}' is not up, and --no-reset asks for it", hint="invoke lab.up")
    own = f"run-{os.getpid()}"
    with topology.opened(own, create=True) as pair:
        state = pair.bring_up(replace(setup, owner=os.getpid()), journal=journal)
        try:
            yield pair, f"a pair of its own, {state.how}", True
        finally:
            with journal.step("take the pair down"):
                pair.bring_down()


def unlike(pair: topology.Lab, setup: topology.Setup) -> str | None:
    """Say in what a lab differs from what is asked for; None where it does not."""
    state = pair.state
    if state is None:
        return "is not up"
    if state.image != setup.image.digest:
        if state.kernel != setup.image.asked:
            return f"has kernel {state.kernel}, not {setup.image.asked}"
        return "has an older image"
    lacking = [device.partition(",")[0] for device in setup.devices]
    lacking += [*setup.extra.split(), *setup.link_options.split(",")]
    if any(lacking):
        return f"has no {', '.join(word for word in lacking if word)}"
    has = state.device, state.backend, state.accelerator
    needs = setup.device, setup.backend, setup.accelerator.name
    if has != needs:
        way = "{} over {} under {}"
        return f"has {way.format(*has)}, and this run needs {way.format(*needs)}"
    return None


def _readied(
    pair: topology.Lab, setup: topology.Setup, *, journal: Journal, reset: bool
) -> tuple[str, bool]:
    """Put a lab back to its snapshot if anything was done in it, unless that is not wanted."""
    state = pair.require_state()
    if not reset:
        pair.attach(deadline=Deadline(REACH_S))
        return f"lab '{pair.name}' as it stands", False
    ails = pair.ails(deadline=Deadline(REACH_S))
    if ails is not None:
        journal.say(f"lab '{pair.name}' is reset: {ails}")
    if ails is not None or not state.pristine:
        pair.bring_down()
        state = pair.bring_up(setup, journal=journal)
    return f"lab '{pair.name}' {state.how} to its snapshot", True


# --- What every run writes ------------------------------------------------------------------


def common_manifest(
    ready: Stand, asked: spec.Playbook, *, guests: Sequence[str], command: str
) -> dict[str, Any]:
    """Return what the manifest of every run says; a kind of experiment adds its own."""
    kernel, speed = ready.setup.image, ready.setup.accelerator
    return {
        "experiment": asked.experiment,
        "playbook": asked.name,
        "kernel": kernel.release,
        "kernel_from": kernel.origin,
        "accelerator": {"name": speed.name, "why": speed.why},
        "link": {
            "device": asked.link.device,
            "backend": asked.link.backend,
            "offloads": {},
            "options": options(asked.link),
        },
        "witnesses": {},
        "drifted": list(kernel.drifted),
        "versions": {"skblab": lab.__version__, "qemu": qemu.installed().version},
        "digests": {
            "image": kernel.digest,
            "kernel": kernel.kernel_sha256,
            "playbook": hashlib.sha256(asked.source).hexdigest(),
        },
        "command": command,
        "reset": {
            "how": ready.how,
            "proven": "nonce" if ready.restored else "not asked for",
        },
        "guests": list(guests),
        "deadline_s": asked.deadline_s,
        # As the command line left it: `lab.report` asks the same again.
        "expect": asdict(asked.expect),
        **({"not_judged": dict(asked.not_judged)} if asked.not_judged else {}),
    }


def keep_symbols(
    ready: Stand, guest: Guest, target: Path, *, journal: Journal, deadline: Deadline
) -> None:
    """Keep the guest's symbols; asked of it once per snapshot, since a restore keeps them."""
    state = ready.pair.require_up()
    # By the nonce: a snapshot that was made anew has the same name and other addresses.
    mark = state.guests[guest.name].nonce[:16]
    kept = snapshot.folder() / state.snapshot / f"{guest.name}.{mark}.symbols"
    before = ready.symbols.setdefault(guest.name, target)
    if before is not target:
        # 7 MB that are the same for every run on this pair.
        with contextlib.suppress(OSError):
            target.hardlink_to(before)
            return
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(kept, target)
        return
    with journal.step("symbols", guest=guest.name):
        shell = guest.require_shell()
        # 7 MB of text: packing it costs a guest under TCG less than encrypting it.
        packed = "/run/symbols.gz"
        shell.run(f"gzip -1 -c < /proc/kallsyms > {packed}", deadline=deadline)
        shell.get(packed, target, deadline=deadline)
        shell.run(f"rm {packed}", deadline=deadline)
        target.write_bytes(gzip.decompress(target.read_bytes()))
    # The snapshot may have been evicted, or found corrupt, while this lab goes on.
    with contextlib.suppress(FileNotFoundError):
        part = kept.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(target, part)
        part.replace(kept)


def keep_logs(run_dir: rundir.RunDir, guests: Iterable[Guest]) -> None:
    """Copy what QEMU and the guests said, however the run ended."""
    for guest in guests:
        folder = run_dir.guest(guest.name).path
        for source, name in ((guest.folder.console, "console.log"), (guest.folder.log, "qemu.log")):
            with contextlib.suppress(OSError):
                (folder / name).write_bytes(process.read_given(source))
        argv = guest.argv or _running_argv(guest)
        (folder / "argv").write_text("\n".join(argv) + "\n", encoding="utf-8")


def _running_argv(guest: Guest) -> list[str]:
    for pid in process.holders(guest.folder.lock):
        with contextlib.suppress(OSError):
            raw = Path(f"/proc/{pid}/cmdline").read_bytes()
            return [word.decode("utf-8", "replace") for word in raw.rstrip(b"\0").split(b"\0")]
    return []


def describe_command() -> str:
    """Return the command line of this process as a shell takes it, for the manifest."""
    return " ".join(map(_quoted, [Path(sys.argv[0]).name, *sys.argv[1:]]))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # A payload may be any bytes but zero, and the manifest is text.
    return (
        "$'"
        + "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
            for byte in os.fsencode(word)
        )
        + "'"
    )
