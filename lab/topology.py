"""Both guests and the link: up in parallel, restored in parallel, down for certain."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lab import access, admission, build, paths, process, qemu, snapshot, ssh
from lab import tap as taps
from lab.accelerator import Accelerator
from lab.deadline import Deadline
from lab.errors import (
    DeadlineExceeded,
    GuestError,
    HostError,
    LabBusy,
    LabError,
    LabNotUp,
    SnapshotError,
    UncleanStop,
)
from lab.guest import MEMORY_MIB, PAIR, Folder, Guest, Identity, cmdline, ignore_shared
from lab.image import Image, verify
from lab.journal import Journal
from lab.spec import AnyKernel, Backend, OwnKernel

T = TypeVar("T")
# What a boot may mend; a missing tool or a full disk it does not.
RESTORE_FAILURES = (SnapshotError, GuestError, DeadlineExceeded, FileNotFoundError)
BOOT_S = 120.0  # TCG boots the pair in about 6 s on two cores; with a load of 10 over 60 s
OWN_BOOT_S = 300.0  # of a user's own: KASAN and lockdep, emulated, take several times as long
SOCKET_PATH = 107  # bytes a UNIX socket's path can have
RESTORE_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GuestState:
    """How to reach a guest that is up."""

    port: int
    hostkey: str
    nonce: str
    release: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabState:
    """What `state.json` says of a lab that is up."""

    kernel: AnyKernel
    image: str
    device: str
    backend: Backend
    accelerator: str
    accelerator_why: str
    snapshot: str
    how: str  # "booted" or "restored"
    pristine: bool  # nothing was done in the guests since they came up
    since: float
    owner: int  # 0: stays up until `lab.down`; else the process it belongs to
    guests: dict[str, GuestState]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a pair is made of, and whether it belongs to a process (0: until `lab.down`)."""

    image: Image
    accelerator: Accelerator
    device: str = "virtio-net-pci"
    backend: Backend = "dgram"
    owner: int = 0
    extra: str = ""  # more words for the kernels' command lines
    devices: tuple[str, ...] = ()  # more devices for both guests, as QEMU's -device takes them
    link_options: str = ""  # of the link's device, as QEMU's -device takes them
    plugin: Path | None = None  # the access log; None where there can be none


def standard(
    image: Image,
    accelerator: Accelerator,
    *,
    journal: Journal,
    device: str = "virtio-net-pci",
    backend: Backend = "dgram",
) -> Setup:
    """Return the usual setup: with the access log wherever it can be had."""
    plugin = None
    if not access_log_absent(accelerator):
        plugin = build.build_witness(access.plugin_api(qemu.installed().version), journal=journal)
    return Setup(
        image=image, accelerator=accelerator, device=device, backend=backend, plugin=plugin
    )


def backend_absent(backend: Backend) -> str:
    """Return why no link of this backend can be had here, "" where one can."""
    return taps.absent() if backend == "tap" else ""


def access_log_absent(accelerator: Accelerator) -> str:
    """Return why no access log can be taken here, "" where one can."""
    asked = os.environ.get("LAB_ACCESS_LOG", "")
    if asked not in ("", "on", "off"):
        raise HostError(f"LAB_ACCESS_LOG is '{asked[:40]}'", hint="LAB_ACCESS_LOG=on|off")
    if asked == "off":
        return "LAB_ACCESS_LOG=off"
    if accelerator.name != "tcg":
        return f"under {accelerator.name} no emulator sees the accesses"
    try:
        access.plugin_api(qemu.installed().version)
    except HostError as error:
        return str(error)
    return ""


class Lab:
    """A pair of guests; made by `opened`, which holds the lab against other commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.base = paths.runtime() / name
        self._reach: dict[str, GuestState] = {}
        self._admitted = False  # there is memory for it, and the RAM folder says so
        self.state: LabState | None = _read_state(self.base / "state.json")
        self.guests = {
            me.name: Guest(me, peer, self._folder(me), lab=name) for me, peer in (PAIR, PAIR[::-1])
        }

    def _folder(self, me: Identity) -> Folder:
        return Folder(base=self.base, ram=paths.ram() / self.name / f"{me.name}.ram", name=me.name)

    @property
    def up(self) -> bool:
        """Whether both guests run and the state says how to reach them."""
        return self.state is not None and all(guest.alive for guest in self.guests.values())

    def require_state(self) -> LabState:
        """Return what is known of a lab that was brought up, dead or alive."""
        if self.state is None:
            raise LabNotUp(f"lab '{self.name}' is not up", hint="invoke lab.up")
        return self.state

    def ails(self, *, deadline: Deadline) -> str | None:
        """Return what is wrong with a guest, as QEMU says it; None where both run."""

        def ask(guest: Guest) -> None:
            if guest.alive and guest.monitor is None:
                guest.attach(deadline=deadline)
            guest.check()

        try:
            self.both(ask)
        except (GuestError, DeadlineExceeded) as error:
            return str(error)
        return None

    def require_up(self) -> LabState:
        """Return the state of a lab that is up; `LabNotUp`, or the error of a dead guest."""
        state = self.require_state()
        for guest in self.guests.values():
            guest.check()
        return state

    # -- up ------------------------------------------------------------------------

    def bring_up(self, setup: Setup, *, journal: Journal, fresh: bool = False) -> LabState:
        """Restore the pair from its snapshot, or boot it and save one.

        Afterwards the guests run, are proven to be what they should be, and `state` says
        how to reach them.  On failure nothing of the lab is left running.
        """
        for guest in self.guests.values():
            guest.extra = setup.extra
            guest.devices = setup.devices
            guest.link_options = setup.link_options
            guest.plugin = setup.plugin
        name = self._key(setup)
        try:
            if not fresh and self._restored(setup, name, journal=journal):
                return self._write(setup, name, "restored")
            with snapshot.making(name, journal=journal):
                if not fresh and self._restored(setup, name, journal=journal):
                    return self._write(setup, name, "restored")  # another lab has saved it
                with journal.step("boot the pair"):
                    reach = self._boot(setup, journal=journal)
                with journal.step("save the snapshot"):
                    stored = self._save(name, reach)
                    self._stop_guests()
                # Go on from the snapshot, so that the first run starts from the same memory as
                # every later one (and from a RAM file without the zeros that were scrubbed).
                with journal.step("restore the pair"):
                    self._restore(setup, stored, journal=journal)
            return self._write(setup, name, "booted")
        except BaseException:
            self._stop_guests()
            self._forget()
            raise

    def _restored(self, setup: Setup, name: str, *, journal: Journal) -> bool:
        """Restore the pair from snapshot `name`; one that cannot be is told of and discarded."""
        stored = _stored(name, journal)
        if stored is None:
            return False
        try:
            with journal.step("restore the pair"):
                self._restore(setup, stored, journal=journal)
        except RESTORE_FAILURES as error:
            # FileNotFoundError: another lab evicted it, or found it corrupt, meanwhile.
            journal.say(f"restore failed, booting instead: {error}")
            self._stop_guests()
            snapshot.discard(name)
            return False
        return True

    def _key(self, setup: Setup) -> str:
        # The plugin is no part of what a guest is: nothing of it is in a snapshot.
        configs = [
            replace(
                guest.config(
                    accelerator=setup.accelerator.name,
                    device=setup.device,
                    kernel="K",
                    initramfs="I",
                    tap=0 if setup.backend == "tap" else None,
                ),
                plugin=None,
            )
            for guest in self.guests.values()
        ]
        facts: dict[str, object] = {
            "qemu": qemu.digest_of_binary(),
            "image": setup.image.digest,
            "kernel": [setup.image.release, setup.image.kernel_sha256],
            # The lab's name and folders are not part of what a guest is.
            "argv": [
                " ".join(qemu.command_line(config))
                .replace(str(self.base), "BASE")
                .replace(str(paths.ram()), "RAM")
                .replace(self.name, "LAB")
                for config in configs
            ],
            "cmdline": [cmdline(*pair, device=setup.device) for pair in (PAIR, PAIR[::-1])],
            "tsc": _tsc_rate(),
            "key": ssh.public_key(),
        }
        return snapshot.key(facts)

    def prepare(self, *, journal: Journal) -> None:
        """Make both guests' folders and RAM files, once there is memory for them."""
        folder = paths.private(paths.private(paths.ram(), mode=0o711) / self.name, mode=0o711)
        if not self._admitted:
            admission.enter(folder, self.base, journal=journal)
            self._admitted = True
        for guest in self.guests.values():
            guest.prepare()

    def _launch(self, setup: Setup, *, incoming: bool) -> None:
        with contextlib.ExitStack() as held:
            ends: dict[str, int] = {}
            if setup.backend == "tap":
                ends = held.enter_context(taps.joined(list(self.guests)))
            for guest in self.guests.values():
                # From this thread: a parent-death signal is tied to the thread that forks.
                guest.launch(
                    setup.image,
                    accelerator=setup.accelerator.name,
                    device=setup.device,
                    incoming=incoming,
                    dies_with_us=setup.owner != 0,
                    tap=ends.get(guest.name),
                )

    def _boot(self, setup: Setup, *, journal: Journal) -> dict[str, GuestState]:
        verify(setup.image)  # a boot reads all of it anyway; a restore reads none of it
        self.prepare(journal=journal)
        deadline = Deadline(BOOT_S if setup.image.own is None else OWN_BOOT_S)
        self._launch(setup, incoming=False)

        def settle(guest: Guest) -> GuestState:
            guest.attach(deadline=deadline)
            release = guest.greet(deadline=deadline)
            nonce, hostkey = guest.settle(deadline=deadline)
            port = guest.ssh_port(deadline=deadline)
            return GuestState(port=port, hostkey=hostkey, nonce=nonce, release=release)

        return self.both(settle)

    def _save(self, name: str, reach: dict[str, GuestState]) -> snapshot.Snapshot:
        part = snapshot.begin(name)

        def freeze(guest: Guest) -> snapshot.Frozen:
            facts = reach[guest.name]
            return guest.save(part, nonce=facts.nonce, hostkey=facts.hostkey, release=facts.release)

        try:
            snapshot.require_space(
                part,
                len(self.guests) * (MEMORY_MIB << 20),
                what="a snapshot",
                hint="free space, or LAB_CACHE=FOLDER",
            )
            self.both(_stop)
            return snapshot.commit(part, name, self.both(freeze), used=_snapshots_used())
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def _restore(self, setup: Setup, stored: snapshot.Snapshot, *, journal: Journal) -> None:
        self.prepare(journal=journal)
        deadline = Deadline(RESTORE_S)
        self._launch(setup, incoming=True)

        self.both(lambda guest: _fill(guest, stored, deadline))
        self._reach = self.both(lambda guest: _wake(guest, stored, deadline))

    def restore_guest(self, name: str, setup: Setup) -> LabState:
        """Put one guest back to the snapshot; its peer runs on and keeps all it holds."""
        state = self.state
        stored = None if state is None else snapshot.load(state.snapshot)
        if state is None or stored is None:
            raise SnapshotError(f"lab '{self.name}' has no snapshot to restore {name} from")
        if state.backend == "tap":
            # The bridge is its peer's now: only the namespace that both were made in has it.
            raise SnapshotError(f"{name} is on a link of taps, which is made for both at once")
        deadline = Deadline(RESTORE_S)
        guest = self.guests[name]
        if guest.monitor is None and guest.alive:
            with contextlib.suppress(LabError, OSError):
                guest.attach(deadline=Deadline(1.0))
        guest.stop()
        for log in (guest.folder.console, guest.folder.log):
            log.unlink(missing_ok=True)  # they are bounded, so a new life has new ones
        guest.prepare()
        guest.launch(
            setup.image,
            accelerator=setup.accelerator.name,
            device=setup.device,
            incoming=True,
            dies_with_us=state.owner != 0,
        )
        _fill(guest, stored, deadline)
        reach = {**state.guests, name: _wake(guest, stored, deadline)}
        self._store(LabState(**{**_fields(state), "guests": reach}))
        return self.require_up()

    def both(self, work: Callable[[Guest], T]) -> dict[str, T]:
        """Do `work` on both guests at once; raise the first failure when both have ended."""
        with ThreadPoolExecutor(len(self.guests)) as pool:
            started = {name: pool.submit(work, guest) for name, guest in self.guests.items()}
            try:
                wait(started.values())
            except BaseException:
                # Ctrl-C: what the workers wait for ends with our lines to the guests.
                self.hang_up()
                raise
        failures = [error for future in started.values() if (error := future.exception())]
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"also: {other}")
            raise failures[0]
        return {name: future.result() for name, future in started.items()}

    # -- state -----------------------------------------------------------------------

    def _write(self, setup: Setup, name: str, how: str) -> LabState:
        state = LabState(
            kernel=setup.image.asked,
            image=setup.image.digest,
            device=setup.device,
            backend=setup.backend,
            accelerator=setup.accelerator.name,
            accelerator_why=setup.accelerator.why,
            snapshot=name,
            how=how,
            pristine=True,
            since=time.time(),
            owner=setup.owner,
            guests=self._reach,
        )
        self._store(state)
        return state

    def touch(self) -> None:
        """Remember that the guests are no longer what the snapshot holds."""
        state = self.require_up()
        if state.pristine:
            self._store(LabState(**{**_fields(state), "pristine": False}))

    def untouch(self) -> None:
        """Remember that every guest is again what the snapshot holds."""
        state = self.require_up()
        if not state.pristine:
            self._store(LabState(**{**_fields(state), "pristine": True}))

    def _store(self, state: LabState) -> None:
        part = self.base / "state.json.part"
        part.touch(mode=0o600)  # QEMU's user may pass through the folder, so may others
        part.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        part.replace(self.base / "state.json")
        self.state = state

    def _forget(self) -> None:
        for stale in self.base.iterdir():
            if stale.name == "lab.lock":
                continue
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)
        shutil.rmtree(paths.ram() / self.name, ignore_errors=True)
        self._admitted = False
        self.state = None

    # -- reach -----------------------------------------------------------------------

    def attach(self, *names: str, deadline: Deadline) -> None:
        """Open monitor, agent and shell of the guests called `names` (default: both)."""
        state = self.require_up()

        def reach(guest: Guest) -> None:
            if names and guest.name not in names:
                return
            facts = state.guests[guest.name]
            if guest.monitor is None:
                guest.attach(deadline=deadline)
            guest.open_shell(port=facts.port, hostkey=facts.hostkey)
            if guest.agent is None:
                guest.greet(deadline=deadline)

        self.both(reach)

    def hang_up(self) -> None:
        """Close our lines to the guests; they go on."""
        for guest in self.guests.values():
            guest.hang_up()

    # -- down --------------------------------------------------------------------------

    def bring_down(self) -> None:
        """End both guests and remove everything of the lab, then say if force was needed."""
        killed = self._stop_guests()
        self._forget()
        if killed:
            raise UncleanStop(killed[0], "QEMU did not end when told to and was killed")

    def _stop_guests(self) -> list[str]:
        def end(guest: Guest) -> bool:
            if guest.monitor is None and guest.alive:
                with contextlib.suppress(LabError, OSError):
                    guest.attach(deadline=Deadline(1.0))
            return guest.stop()

        return [name for name, killed in self.both(end).items() if killed]


def _stored(name: str, journal: Journal) -> snapshot.Snapshot | None:
    """Return a snapshot; one that is garbled is told of, thrown away and booted around."""
    try:
        return snapshot.load(name)
    except SnapshotError as error:
        journal.say(f"booting anew: {error}")
        snapshot.discard(name)
        return None


def _stop(guest: Guest) -> None:
    monitor = guest.require_monitor()
    ignore_shared(monitor)
    monitor.execute("stop")


def _fill(guest: Guest, stored: snapshot.Snapshot, deadline: Deadline) -> None:
    frozen = stored.guests[guest.name]
    snapshot.verify_state(stored.file(guest.name, "state"), frozen)
    snapshot.unpack(stored.file(guest.name, "ram"), guest.folder.ram, frozen)
    guest.attach(deadline=deadline)
    guest.load(stored, deadline=deadline)


def _wake(guest: Guest, stored: snapshot.Snapshot, deadline: Deadline) -> GuestState:
    frozen = stored.guests[guest.name]
    _continue(guest)
    guest.greet(deadline=deadline)
    guest.prove_restored(frozen.nonce, deadline=deadline)
    guest.set_time(deadline=deadline)
    return GuestState(
        port=guest.ssh_port(deadline=deadline),
        hostkey=frozen.hostkey,
        nonce=frozen.nonce,
        release=frozen.release,
    )


def _continue(guest: Guest) -> None:
    guest.require_monitor().execute("cont")


@contextlib.contextmanager
def opened(name: str, *, create: bool = False) -> Iterator[Lab]:
    """Hold lab `name` against other commands; our lines to its guests end with the block."""
    base = paths.runtime()
    if create:
        if len(str(base / name / "receiver" / "agent")) > SOCKET_PATH:
            raise HostError(
                f"{base} is too long a path for sockets", hint="LAB_RUNTIME=/a/short/folder"
            )
        paths.private(base, mode=0o711)
    folder = base / name
    fd = _hold(name, create=create)
    try:
        lab = Lab(name)
        try:
            yield lab
        finally:
            lab.hang_up()
            if lab.state is None and not any(guest.alive for guest in lab.guests.values()):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)


def _hold(name: str, *, create: bool) -> int:
    """Return the descriptor that holds the lock of lab `name`.

    Its holder before us may have removed the folder meanwhile, and with it the lock that we
    waited for: then it is made anew.
    """
    folder = paths.runtime() / name
    lock = folder / "lab.lock"
    while True:
        with contextlib.suppress(FileNotFoundError):
            if create:
                try:
                    paths.private(folder, mode=0o711)
                except HostError:
                    if os.path.lexists(folder):
                        raise
                    continue  # it went away while it was looked at
            elif not folder.is_dir():
                raise LabNotUp(f"lab '{name}' is not up", hint="invoke lab.up")
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                process.take_lock(fd)
                if os.fstat(fd).st_ino == lock.stat().st_ino:
                    return fd
            except BlockingIOError as error:
                os.close(fd)
                raise _busy(name) from error
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def refuse_busy(name: str) -> None:
    """Raise `LabBusy` when another command holds lab `name`."""
    if process.is_locked(paths.runtime() / name / "lab.lock"):
        raise _busy(name)


def _busy(name: str) -> LabBusy:
    lock = paths.runtime() / name / "lab.lock"
    pids = " ".join(str(pid) for pid in process.holders(lock))
    wait = f"flock -w 60 {shlex.quote(str(lock))} true"
    return LabBusy(
        f"another command (process {pids or 'unknown'}) is working on lab '{name}'",
        log=lock,
        hint=f"wait for it ({wait}), or name another lab: LAB_NAME=other",
    )


def names() -> list[str]:
    """Return the labs that have a folder, up or not."""
    base = paths.runtime()
    if not base.is_dir():
        return []
    return sorted(path.name for path in base.iterdir() if (path / "lab.lock").exists())


def collect_garbage() -> list[str]:
    """Remove what killed owners left: labs without an owner, RAM files, half snapshots."""
    removed: list[str] = []
    for name in names():
        lock = paths.runtime() / name / "lab.lock"
        if process.is_locked(lock):
            continue  # somebody is working on it
        # Meanwhile another process may have begun to work on it, or removed it.
        with contextlib.suppress(LabBusy, LabNotUp), opened(name) as lab:
            owned = lab.state is not None and lab.state.owner == 0
            if owned and lab.up:
                continue
            with contextlib.suppress(UncleanStop):
                lab.bring_down()
            removed.append(f"lab {name}")
    removed += _stray_ram()
    if snapshot.folder().is_dir():
        for part in snapshot.folder().glob("*.part"):
            if not Path(f"/proc/{part.name.split('.')[-2]}").exists():
                shutil.rmtree(part, ignore_errors=True)
                removed.append(f"half snapshot {part.name}")
    return removed


def _snapshots_used() -> set[str]:
    """Return the snapshots that labs which are up restore from, of whatever runtime folder."""
    owners: set[Path] = set()
    for mark in paths.ram().glob(f"*/{admission.MARK}"):
        with contextlib.suppress(FileNotFoundError):
            if base := admission.owner(mark):
                owners.add(base)
    states = [_read_state(base / "state.json") for base in owners]
    return {state.snapshot for state in states if state is not None}


def _stray_ram() -> list[str]:
    """Remove RAM folders whose lab is gone.

    Only what a lab made, as its mark says, is looked at: LAB_RAM may be anybody's folder.
    The mark names the lab's runtime folder, so that a lab of another one is left alone.
    """
    removed: list[str] = []
    for mark in paths.ram().glob(f"*/{admission.MARK}"):
        folder = mark.parent
        try:
            base = admission.owner(mark)
        except FileNotFoundError:
            continue  # another process removed it meanwhile
        if base is None or admission.alive(base) or (base / "state.json").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(f"RAM of {folder.name}")
    return removed


def _read_state(path: Path) -> LabState | None:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        guests = {name: GuestState(**facts) for name, facts in stored.pop("guests").items()}
        if isinstance(stored["kernel"], dict):
            stored["kernel"] = OwnKernel(**stored["kernel"])
        return LabState(**stored, guests=guests)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # half written by a killed owner: as good as none


def _fields(state: LabState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__slots__}


def _tsc_rate() -> str:
    """Return what decides the guest's TSC: a snapshot runs at the wrong speed elsewhere."""
    wanted = ("model name", "bogomips")
    for block in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[:1]:
        pairs = [line.partition(":") for line in block.splitlines()]
        return "|".join(value.strip() for key, _, value in pairs if key.strip() in wanted)
    return ""
