"""Under what a run's numbers hold."""

from __future__ import annotations

from collections.abc import Iterator

from lab.ledger import Ledger
from lab.rundir import Manifest, foreign_file


def conditions(ledger: Ledger, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield name and value of each condition."""
    yield "playbook", manifest.playbook
    yield "message", f"{manifest.count} × {manifest.size} bytes, {manifest.transport}"
    where = manifest.link
    yield "over", f"{manifest.over} ({where})"
    if manifest.over == "link":
        yield "offloads", ", ".join(f"{name} {value}" for name, value in manifest.offloads)
    origin = manifest.values.get("kernel_from")  # not in runs of before
    yield "kernel", f"Linux {manifest.kernel}" + (f": {origin}" if origin else "")
    yield "accelerator", f"{manifest.accelerator}: {manifest.accelerator_why}".rstrip(": ")
    yield (
        "probes",
        manifest.probe_kind
        + (f", without {', '.join(manifest.without)}" if manifest.without else ""),
    )
    if strangers := foreign(manifest):
        yield "foreign", strangers
    yield "drift", "; ".join(manifest.drifted) or "none: every package is the pinned one"
    yield "lost", ", ".join(f"{name} {count}" for name, count in ledger.lost.items()) or "nothing"
    if ledger.messages_lost:
        yield "messages lost", ", ".join(map(str, ledger.messages_lost))
    values = manifest.values
    for name in ("reset", "versions", "command"):
        told = values.get(name)
        if isinstance(told, dict):
            yield name, ", ".join(f"{key} {value}" for key, value in sorted(told.items()))
        elif told:
            yield name, str(told)


def notes(ledger: Ledger) -> list[str]:
    """Return what has to be said beside the numbers."""
    out = [f"{note}." for note in ledger.notes]
    if any(m.mover == "device" for message in ledger.messages for m in message.movements):
        out.append(
            "Device reads and writes are seen from the guests: no guest CPU touched the bytes. "
            "Between two QEMU guests it was a host CPU that moved them."
        )
    if ledger.accelerator.get("name") == "tcg":
        out.append("Under tcg durations are emulated; counts and addresses are not.")
    return out


def foreign(manifest: Manifest) -> str:
    """Say what became of the user's own probes, and where lies what they said."""
    probes, files = (manifest.values.get(name) for name in ("probes", "files"))
    guests = probes.get("foreign") if isinstance(probes, dict) else None
    became: dict[str, dict[str, list[str]]] = {}  # name -> state -> guests
    for guest, loaded in guests.items() if isinstance(guests, dict) else ():
        for name, state in loaded.items() if isinstance(loaded, dict) else ():
            became.setdefault(name, {}).setdefault(str(state), []).append(guest)
    out = []
    for name, states in became.items():
        if guests_of := states.pop("present", []):
            # As a message goes: from sender to receiver.
            kept = [f"{guest}/{foreign_file(name)}" for guest in sorted(guests_of, reverse=True)]
            kept = [path for path in kept if isinstance(files, dict) and path in files]
            out.append(f"{name} loaded, {' and '.join(kept) or 'and what it said was not kept'}")
    out += [f"{name} {state}" for name, states in became.items() for state in states]
    return "; ".join(out)
