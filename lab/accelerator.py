"""Whether KVM works here, proven by booting the lab's own kernel under it.

/dev/kvm may be there, open and answer every ioctl, and still not carry a kernel
(kvm_pvm on the development machine).  Only a boot to a marker tells.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import paths, process, qemu
from lab.deadline import Deadline, wait_until
from lab.errors import DeadlineExceeded, HostError
from lab.image import Image
from lab.journal import Journal

DEVICE = Path("/dev/kvm")
MARKER = b"skblab: init"
KEPT = 8
TRIAL_S = 15.0  # a KVM boot to the marker takes under 2 s; nested KVM was seen at 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """What runs guest code, and why."""

    name: str
    why: str


def choose(image: Image, *, journal: Journal) -> Accelerator:
    """Return what `LAB_ACCEL` demands, else KVM if it is proven to work, else TCG."""
    wanted = os.environ.get("LAB_ACCEL", "auto")
    if wanted not in ("auto", "kvm", "tcg"):
        raise HostError(f"LAB_ACCEL is '{wanted}'", hint="LAB_ACCEL=auto|kvm|tcg")
    if wanted == "tcg":
        return Accelerator(name="tcg", why="LAB_ACCEL=tcg")
    reason = _unusable()
    if reason is None:
        reason = _remembered(image)
        if reason is None:
            with journal.step("see whether KVM carries the kernel"):
                reason = _trial(image)
            _remember(image, reason)
    if reason == "":
        return Accelerator(name="kvm", why="proven by a boot of the lab's own kernel")
    if wanted == "kvm":
        raise HostError(
            f"KVM does not work here: {reason}", hint="unset LAB_ACCEL, or LAB_ACCEL=tcg"
        )
    return Accelerator(name="tcg", why=reason)


def kvm_group() -> int | None:
    """Return the group that may open /dev/kvm, None where there is none that may."""
    try:
        facts = DEVICE.stat()
    except FileNotFoundError:
        return None
    return facts.st_gid if facts.st_mode & 0o060 == 0o060 else None


def _unusable() -> str | None:
    if not DEVICE.exists():
        return "no /dev/kvm"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "/dev/kvm is not ours to open (group kvm)"
    return None


def _memory() -> Path:
    return paths.private(paths.cache()) / "accelerator.json"


def _circumstances(image: Image) -> dict[str, str]:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return {"boot": boot_id, "qemu": qemu.digest_of_binary(), "image": image.digest}


def _remembered(image: Image) -> str | None:
    try:
        stored = json.loads(_memory().read_text(encoding="utf-8"))
        entry = stored["verdicts"][image.digest]
        if entry["circumstances"] == _circumstances(image):
            return str(entry["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _remember(image: Image, reason: str) -> None:
    try:
        verdicts = dict(json.loads(_memory().read_text(encoding="utf-8"))["verdicts"])
    except (OSError, ValueError, KeyError, TypeError):
        verdicts = {}
    verdicts.pop(image.digest, None)
    verdicts[image.digest] = {"circumstances": _circumstances(image), "reason": reason}
    # One per image, the newest few: a developer goes back and forth between kernels.
    text = json.dumps({"verdicts": dict(list(verdicts.items())[-KEPT:])})
    part = _memory().with_suffix(f".{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(_memory())


def _trial(image: Image) -> str:
    """Boot the kernel under KVM; return "" if its init spoke, else why not.

    Where only root may open /dev/kvm the trial runs as root, with our own kernel, so that
    the answer is about KVM and not about the permission.
    """
    world = DEVICE.stat().st_mode & 0o006 == 0o006
    root_only = process.unprivileged() is not None and kvm_group() is None and not world
    with tempfile.TemporaryDirectory(prefix="skblab-kvm-") as name:
        folder = process.give(Path(name), mode=0o700)
        console, log, lock = folder / "console", folder / "log", folder / "lock"
        with image.kernel.open("rb") as kernel, image.initramfs.open("rb") as initramfs:
            process.start(
                [
                    qemu.installed().path,
                    *("-accel", "kvm", "-cpu", "host", "-m", "256M", "-nodefaults"),
                    *("-no-user-config", "-display", "none", "-no-reboot"),
                    *("-kernel", f"/dev/fd/{kernel.fileno()}"),
                    *("-initrd", f"/dev/fd/{initramfs.fileno()}"),
                    *("-append", "console=ttyS0 quiet panic=-1 lab.name=trial"),
                    *("-chardev", f"file,id=console,path={console}"),
                    *("-serial", "chardev:console"),
                ],
                lock=lock,
                log=log,
                cwd=folder,
                pass_fds=[kernel.fileno(), initramfs.fileno()],
                dies_with_us=True,
                group=kvm_group(),
                as_root=root_only,
            )

        def spoke() -> str | None:
            if console.exists() and MARKER in console.read_bytes():
                return "yes"
            # QEMU stays, with its vCPU stopped, after KVM gave up (seen with kvm_pvm).
            failed = log.exists() and b"KVM internal error" in log.read_bytes()
            return "ended" if failed or not process.is_locked(lock) else None

        try:
            answer = wait_until(
                spoke, what="the kernel under KVM", deadline=Deadline(TRIAL_S), interval_s=0.02
            )
        except DeadlineExceeded:
            answer = "silent"
        process.stop(lock, grace_s=0.0)
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if answer == "yes":
            return "KVM works, but only root may open /dev/kvm" if root_only else ""
        what = "KVM gave up" if answer == "ended" else f"the kernel was silent for {TRIAL_S:.0f} s"
        detail = f" ({said[0][:80]})" if said else ""
        return f"/dev/kvm opens, but cannot boot the lab's kernel: {what}{detail}"


def describe(accelerator: Accelerator) -> str:
    """Return the one line a person gets."""
    return f"accelerator: {accelerator.name} ({accelerator.why})"
