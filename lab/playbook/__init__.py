"""YAML to `lab.spec`: a closed schema, every fault at its line and column, nothing constructed.

The file is read as nodes, never loaded, so that a bare `6.10` or `no` stays what was written.
The schema is the dataclasses of `lab.spec` in kebab-case; `values` says what each value may be,
`reading` walks the nodes.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab import paths
from lab.errors import PlaybookError, did_you_mean
from lab.playbook.judged import not_judged
from lab.playbook.reading import FILE_LIMIT, Problem, Reading
from lab.playbook.values import (
    OF_CRASHES,
    OPTIONS,
    PARTNERS,
    Fault,
    contradictions,
    kernel,
    misplaced,
    shown,
    why_not,
)
from lab.spec import SECTIONS, AnyKernel, OwnKernel, Playbook

__all__ = [
    "Problem",
    "kernel_of",
    "load",
    "names",
    "override",
    "problems",
    "why_not",
]


def names() -> list[str]:
    """Return the names of the playbooks that come with the lab."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def load(path_or_name: str | Path) -> Playbook:
    """Read a playbook by path, or by name among those that come with the lab."""
    path, shown = _find(path_or_name)
    source = _read(path, shown)
    text = _decode(source, shown)
    if isinstance(text, Problem):
        raise _refuse(shown, [text])
    reading = Reading(text, shown, folder=path.parent)
    playbook = reading.playbook()
    if playbook is None or reading.problems:
        raise _refuse(shown, reading.sorted())
    return dataclasses.replace(playbook, source=source)


def problems(text: str | bytes, path: str) -> list[Problem]:
    """Return every fault of a playbook's text, in the order of its lines."""
    decoded = _decode(text, path) if isinstance(text, bytes) else text
    if isinstance(decoded, Problem):
        return [decoded]
    reading = Reading(decoded, path)
    reading.playbook()
    return reading.sorted()


def kernel_of(image: str, modules: str = "", headers: str = "") -> AnyKernel:
    """Return the kernel that the options --kernel, --modules and --headers name together."""
    try:
        return kernel(image, modules, headers)
    except Fault as fault:
        raise PlaybookError(
            str(fault),
            hint="--kernel BZIMAGE --modules FOLDER [--headers FOLDER] (docs/kernels.md)",
        ) from fault


def override(
    playbook: Playbook,
    *,
    size: str | int | None = None,
    count: str | int | None = None,
    payload: str | bytes | None = None,
    family: str | None = None,
    protocol: str | None = None,
    connect: bool | None = None,
    without: str | Iterable[str] | None = None,
    comm: str | None = None,
    probes: str | None = None,
    kernel: AnyKernel | None = None,
    deadline: str | float | None = None,
) -> Playbook:
    """Return the playbook with a command line's options in place; every fault names its option.

    What the options leave no answer to is expected no more: `not_judged` names it, and why.  A
    payload without a size sets the size.
    """
    given: dict[str, str | None] = {
        "size": _text(size),
        "count": _text(count),
        "payload": payload.decode("utf-8", "surrogateescape")
        if isinstance(payload, bytes)
        else payload,
        "family": family,
        "protocol": protocol,
        "without": without if isinstance(without, str) or without is None else ",".join(without),
        "comm": comm,
        "probes": probes,
        "kernel": None if kernel is None else str(kernel),
        "deadline": f"{deadline:g}s" if isinstance(deadline, int | float) else deadline,
    }
    faults = [
        f"--{option}: an experiment 'crash' has none"
        for option, text in given.items()
        if playbook.experiment == "crash" and text is not None and option not in OF_CRASHES
    ]
    values: dict[str, Any] = {}
    for option, text in given.items():
        if text is None:
            continue
        where, read = OPTIONS[option]
        try:
            if option == "kernel" and isinstance(kernel, OwnKernel):
                values[where] = kernel
                continue
            values[where] = read(text)
        except Fault as fault:
            faults.append(f"--{option}: {fault}")
    if connect is not None:
        values["workload.connect"] = connect
    if "workload.payload" in values and "workload.size" not in values:
        values["workload.size"] = len(values["workload.payload"])
    changed = _with(playbook, values)
    faults += _not_of_its_kind(changed, given)
    parts = (changed.workload, changed.probes, changed)
    for key, message in (fault for part in parts for fault in contradictions(part)):
        faults += [
            f"--{o}: {message}" for o in (key, *PARTNERS.get(key, ())) if given[o] is not None
        ][:1]
    if faults:
        raise PlaybookError("\n".join(faults))
    if changed.experiment == "crash":
        return changed
    gone = not_judged(playbook, changed)
    expect = dataclasses.replace(changed.expect, **dict.fromkeys(gone))
    return dataclasses.replace(changed, expect=expect, not_judged=tuple(gone.items()))


def _not_of_its_kind(changed: Playbook, given: Mapping[str, str | None]) -> list[str]:
    """Return faults of options that this kind of experiment has no use for."""
    options: dict[str, list[str]] = {}
    for option, text in given.items():
        if text is not None:
            options.setdefault(OPTIONS[option][0].partition(".")[0], []).append(option)
    found = misplaced(
        changed.experiment,
        {*options, *SECTIONS[changed.experiment].needs},
        expect=changed.expect,
        probes=changed.probes,
    )
    return [f"--{option}: {message}" for key, message in found for option in options.get(key, [])]


def _with(playbook: Playbook, values: dict[str, Any]) -> Playbook:
    parts: dict[str, dict[str, Any]] = {}
    for where, value in values.items():
        part, _, key = where.rpartition(".")
        parts.setdefault(part, {})["deadline_s" if key == "deadline" else key] = value
    top = parts.pop("", {})
    for part, fields in parts.items():
        top[part] = dataclasses.replace(getattr(playbook, part), **fields)
    return dataclasses.replace(playbook, **top)


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _refuse(path: str, found: list[Problem]) -> PlaybookError:
    many = "1 fault" if len(found) == 1 else f"{len(found)} faults"
    listing = "\n".join(str(problem) for problem in found)
    return PlaybookError(
        f"{path} has {many}; nothing was started\n{listing}",
        hint="mend it; 'invoke lab.check FILE' reads a playbook and starts nothing",
    )


def _folder() -> Path:
    return paths.data() / "playbooks"


def _find(path_or_name: str | Path) -> tuple[Path, str]:
    text = str(path_or_name)
    if "\0" in text:
        raise PlaybookError("a playbook's name holds no NUL")
    if isinstance(path_or_name, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return Path(text), text
    known = names()
    if text in known:
        return _folder() / f"{text}.yaml", f"playbooks/{text}.yaml"
    raise PlaybookError(
        f"unknown playbook {shown(text)}{did_you_mean(text, known)}",
        hint=f"one of {', '.join(known)}, or a path such as ./mine.yaml",
    )


def _read(path: Path, shown: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PlaybookError(f"{shown} is not a file", hint="name a YAML file")
        with path.open("rb") as file:
            source = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise PlaybookError(
            f"{shown} cannot be read: {error.strerror}", hint=f"or one of {', '.join(names())}"
        ) from error
    if len(source) > FILE_LIMIT:
        raise PlaybookError(
            f"{shown} is over {FILE_LIMIT // 1024} KiB, the most a playbook may have",
            hint="name a playbook; those of the lab have under 2 KiB",
        )
    return source


def _decode(source: bytes, shown: str) -> str | Problem:
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError as error:
        before = source[: error.start].decode("utf-8").split("\n")
        message = f"not UTF-8: byte 0x{source[error.start]:02x}"
        return Problem(len(before), len(before[-1]) + 1, message, shown, "")
