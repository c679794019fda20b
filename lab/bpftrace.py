"""bpftrace in a guest, for one measurement: no image has it, so it is pushed when it is wanted.

It and the libraries it needs come from packages by a lock of their own
(`images/bpftrace.lock.yaml`), kept and verified as an image's are: 52 MB of packages, 207 MB in
the guest.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab import paths
from lab.deadline import Deadline, wait_until
from lab.errors import GuestError, ImageError
from lab.guest import Guest
from lab.image.lock import Lock
from lab.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "bpftrace"
PROGRAM = "usr/bin/bpftrace"
LIBRARY = re.compile(r"(usr/)?lib/x86_64-linux-gnu/[^/]+\.so(\.[^/]*)?")
HOME = "/opt/bpftrace"
ROOM = "300m"  # packed and unpacked; / and /run may hold half of a guest's memory each
READY = "ready"
READY_S = 300.0  # under TCG its compiler takes a minute
POLL_S = 1.0  # asking takes the guest a tenth of it
COUNT = re.compile(r"^@\[(?:kprobe:)?(.+?)\]: (\d+)$", re.MULTILINE)


def bundle(*, journal: Journal) -> Path:
    """Return bpftrace and its libraries as one packed file, made once for each lock.

    Raises `ImageError` where its packages are not to be had.
    """
    from lab.image import fetch, lock_path, recipe, store

    path = lock_path(NAME)
    made = paths.cache() / NAME / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.tgz"
    if made.is_file():
        return made
    parts = recipe.load(paths.data() / "images")
    gathered = fetch.gather(
        read_lock(path, suites=set(parts.suites)),
        recipe=parts,
        folder=paths.cache() / "packages",
        # Not by a public name: every image is made anew when a file of lab/image/ changes.
        market=store._market(parts),  # noqa: SLF001
        journal=journal,
        locked=False,
        offline=False,
    )
    with journal.step("pack bpftrace and its libraries"):
        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_suffix(".new")
        part.write_bytes(pack(gathered.files))
        part.replace(made)
    return made


def read_lock(path: Path, *, suites: set[str]) -> Lock:
    """Read a lock that pins no kernel; `ImageError` names all that is wrong with it."""
    from lab.image import lock

    faults: list[str] = []
    body = lock.mapping(path.read_text(encoding="utf-8"), name=path.name, faults=faults)
    lock.closed(body, {"schema", "series", "packages"}, "the lock", faults)
    found = [
        lock._package(entry, f"packages[{number}]", suites, faults)  # noqa: SLF001 - as below
        for number, entry in enumerate(body.get("packages") or ())
    ]
    if faults:
        raise ImageError(f"{path.name}: {'; '.join(faults)}")
    return Lock(series=NAME, packages=tuple(one for one in found if one is not None))


def pack(packages: dict[str, Path]) -> bytes:
    """Return what of these packages bpftrace runs with, as a .tar.gz."""
    from lab.image import deb, elf

    found = deb.members(packages[NAME], PROGRAM.__eq__)
    if PROGRAM not in found:
        raise ImageError(f"{NAME} has no file {PROGRAM}")
    shelf: dict[str, bytes] = {}
    for package in packages.values():
        files = {
            posixpath.basename(path): member
            for path, member in deb.members(
                package, lambda path: bool(LIBRARY.fullmatch(path))
            ).items()
        }
        for name, member in files.items():
            # libx.so.1 -> libx.so.1.2
            target = files.get(posixpath.basename(member.target or name), member)
            if target.target is None:
                shelf[name] = target.data
    whole = {NAME: found[PROGRAM].data}
    libraries = elf.libraries(whole, shelf)
    whole |= {f"lib/{name}": data for name, data in libraries.items()}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as archive:
        for name, data in whole.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def push(guest: Guest, packed: Path, *, deadline: Deadline) -> None:
    """Unpack it in a guest; nothing of it is there after the guest is gone."""
    shell = guest.require_shell()
    shell.run(f"mkdir -p {HOME} && mount -t tmpfs -o size={ROOM} {NAME} {HOME}", deadline=deadline)
    shell.put(packed, f"{HOME}/all.tgz", deadline=deadline)
    unpack = f"cd {HOME} && gunzip -c all.tgz | tar x && rm all.tgz"
    shell.run(unpack, deadline=deadline)


def script(hooks: Sequence[str]) -> str:
    """Return a script that counts the calls of functions, and says when it does."""
    probes = ",\n".join(f"kprobe:{hook}" for hook in hooks)
    return f'BEGIN {{ printf("{READY}\\n"); }}\n{probes} {{ @[probe] = count(); }}\n'


def counts(text: str) -> dict[str, int]:
    """Return the calls of each function, from what the script printed as it ended."""
    return {name: int(number) for name, number in COUNT.findall(text)}


@contextmanager
def counting(
    guest: Guest, hooks: Sequence[str], *, folder: Path, deadline: Deadline
) -> Iterator[Callable[[], dict[str, int]]]:
    """Count calls of `hooks` from here on; what is yielded ends that and returns the counts."""
    shell = guest.require_shell()
    local = folder / "hooks.bt"
    local.write_text(script(hooks), encoding="utf-8")
    shell.put(local, f"{HOME}/hooks.bt", deadline=deadline)
    alive = f"kill -0 $(cat {HOME}/pid) 2>/dev/null && echo alive"
    shell.run(
        f"cd {HOME}; {{ LD_LIBRARY_PATH=lib ./{NAME} hooks.bt > out 2>&1 & echo $! > pid; }}",
        deadline=deadline,
    )

    def begun() -> bool:
        said = shell.run(f"cat {HOME}/out; {alive}", deadline=deadline, ok=False).stdout
        if "alive" not in said:
            raise GuestError(guest.name, f"{NAME} ended: {said.strip()[-500:]}")
        return READY in said.splitlines()

    def ended() -> bool:
        return "alive" not in shell.run(alive, deadline=deadline, ok=False).stdout

    def stop() -> dict[str, int]:
        shell.run(f"kill -INT $(cat {HOME}/pid)", deadline=deadline, ok=False)
        wait_until(ended, deadline=deadline, what=f"{NAME} to end", interval_s=POLL_S)
        return counts(shell.run(f"cat {HOME}/out", deadline=deadline).stdout)

    try:
        wait_until(
            begun, deadline=deadline.within(READY_S), what=f"{NAME} to be ready", interval_s=POLL_S
        )
        yield stop
    finally:
        shell.run(f"kill -9 $(cat {HOME}/pid)", deadline=deadline, ok=False)
