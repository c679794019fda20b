"""What was seen of an attempt, as its file has it: checked once, so that nobody else need doubt."""

from __future__ import annotations

from typing import Any

from lab.rundir import Fields, GuestDir, RunDir

FILE = "observations.json"


def read(guest: GuestDir) -> dict[str, Any]:
    """Return the observations of a run; `TraceCorrupt` names what is not as it should be."""
    top = Fields(RunDir(guest.path).read_json(FILE), guest.file(FILE))
    for phase in top.each("phases"):
        phase.text("name")
        phase.number("seconds", 0.0)
        for name in ("said", "where"):
            phase.text(name, "")
        if phase.has("exit"):
            phase.integer("exit")
    for lockup in top.each("lockups"):
        lockup.text("text")
        lockup.number("share")
        lockup.flag("believed")
    if top.has("frozen"):
        frozen = top.inner("frozen")
        frozen.text("how")
        for name in ("cpu_s", "seconds"):
            frozen.number(name)
    if top.has("changed"):
        _changed(top.inner("changed"))
    if top.has("log"):
        top.inner("log").size("lost", 0)
    if top.has("tainted"):
        _tainted(top.inner("tainted"))
    if top.has("held"):
        _held(top.inner("held"))
    if top.has("seconds"):
        top.number("seconds")
    return top.values


def _changed(changed: Fields) -> None:
    for part, names in (("text", ()), ("files", ("file",))):
        if changed.has(part):
            for one in changed.inner(part).each("listed"):
                for name in (*names, "at", "old", "new"):
                    one.text(name)


def _tainted(tainted: Fields) -> None:
    for name in ("before", "now"):
        if tainted.has(name):
            tainted.size(name)
    if tainted.has("soft_lockup"):
        weighed = tainted.inner("soft_lockup")
        weighed.number("share")
        weighed.flag("believed")


def _held(held: Fields) -> None:
    if not held.has("loads"):
        return
    held.size("loads")
    held.sizes("pages")
    caches = held.inner("caches")
    for name in caches.values:
        cache = caches.inner(name)
        cache.size("size")
        cache.sizes("objects")
