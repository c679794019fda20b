"""Memory for labs: who is let in, who waits and is told for whom, who is turned away."""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import admission, paths
from lab.deadline import Deadline, wait_until
from lab.errors import HostError, NoSpace
from lab.journal import Journal

PLENTY = 64 << 30


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a RAM folder on a host with memory for everybody."""
    monkeypatch.setattr(admission, "_host", lambda: iter([(PLENTY, "the host")]))
    monkeypatch.setattr(admission, "_tmpfs", lambda: PLENTY)
    paths.ram().mkdir(parents=True)


def places(name: str) -> tuple[Path, Path]:
    """Return RAM folder and runtime folder of a lab."""
    folder, base = paths.ram() / name, paths.runtime() / name
    folder.mkdir(parents=True, exist_ok=True)
    base.mkdir(parents=True, exist_ok=True)
    return folder, base


@contextmanager
def worked_on(name: str) -> Iterator[tuple[Path, Path]]:
    """Hold a lab as a command does."""
    folder, base = places(name)
    fd = os.open(base / "lab.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield folder, base
    finally:
        os.close(fd)


def quiet() -> Journal:
    return Journal(stream=io.StringIO())


def budget(monkeypatch: pytest.MonkeyPatch, labs: float) -> None:
    monkeypatch.setenv("LAB_MEMORY", str(int(labs * admission.NEED) >> 20))


def test_a_lab_alone_is_let_in_and_marked() -> None:
    with worked_on("a") as (folder, base):
        admission.enter(folder, base, journal=quiet())
        assert str(base) == (folder / admission.MARK).read_text().strip()
        assert ["a"] == [one.lab for one in admission.promises(but=Path("none"))]


def test_nobody_to_wait_for_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    budget(monkeypatch, 0.5)
    with worked_on("a") as (folder, base), pytest.raises(NoSpace, match="LAB_MEMORY allows"):
        admission.enter(folder, base, journal=quiet())
    assert not (folder / admission.MARK).exists()


@pytest.mark.parametrize("scarce", ["_host", "_tmpfs"])
def test_what_is_promised_is_not_free(monkeypatch: pytest.MonkeyPatch, scarce: str) -> None:
    free = int(1.5 * admission.NEED)
    value = {"_host": lambda: iter([(free, "the host")]), "_tmpfs": lambda: free}[scarce]
    monkeypatch.setattr(admission, scarce, value)
    monkeypatch.setenv("LAB_QUEUE_S", "0")
    with worked_on("a") as first, worked_on("b") as second:
        admission.enter(*first, journal=quiet())
        with pytest.raises(NoSpace, match="up are a"):
            admission.enter(*second, journal=quiet())
        # What the first has taken is no longer free, nor still to come.
        (first[0] / "sender.ram").write_bytes(bytes(1 << 20))
        held = admission.promises(but=second[0])[0].held
        assert held >= 1 << 20


def test_a_lab_without_an_owner_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    budget(monkeypatch, 1.5)
    with worked_on("a") as first:
        admission.enter(*first, journal=quiet())
    with worked_on("b") as second:
        admission.enter(*second, journal=quiet())


def test_who_waits_is_told_for_whom_and_let_in_when_they_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget(monkeypatch, 1.5)
    told = io.StringIO()
    with worked_on("b") as second:
        with worked_on("a") as first:
            admission.enter(*first, journal=quiet())
            waiting = threading.Thread(
                target=lambda: admission.enter(*second, journal=Journal(stream=told))
            )
            waiting.start()
            wait_until(
                lambda: "waiting for memory" in told.getvalue(),
                what="a message",
                deadline=Deadline(10),
            )
            assert "up are a" in told.getvalue()
            assert not (second[0] / admission.MARK).exists()
        waiting.join(10)
        assert (second[0] / admission.MARK).exists()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    budget(monkeypatch, 1.5)
    monkeypatch.setenv("LAB_QUEUE_S", "0.3")
    with worked_on("a") as first, worked_on("b") as second:
        admission.enter(*first, journal=quiet())
        with pytest.raises(NoSpace, match="no memory for a lab in 0 s; up are a"):
            admission.enter(*second, journal=quiet())


@pytest.mark.parametrize("text", ["much", "nan", "inf", "-inf", "-1", "1e300", "1_0 MiB", "9" * 99])
@pytest.mark.parametrize("name", ["LAB_MEMORY", "LAB_QUEUE_S"])
def test_a_number_is_a_number(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with worked_on("a") as (folder, base), pytest.raises(HostError, match=f"{name} is '") as wrong:
        admission.enter(folder, base, journal=quiet())
    assert f"{name}=NUMBER, 0 to 1e+09" == wrong.value.hint


def test_half_a_mebibyte_is_not_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_MEMORY", "0.5")
    with worked_on("a") as one, pytest.raises(NoSpace, match="LAB_MEMORY allows 0 MiB"):
        admission.enter(*one, journal=quiet())


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("0::/ci", ("memory.max", "memory.current")),
        ("4:memory:/ci", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_cgroup_s_limit_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, names: tuple[str, str]
) -> None:
    (tmp_path / names[0]).write_text("1000\n")
    (tmp_path / names[1]).write_text("300\n")
    (tmp_path / "memory.stat").write_text("x 1\ninactive_file 50\n")
    known = [(tmp_path / names[0], tmp_path / names[1], tmp_path / "memory.stat")]
    monkeypatch.undo()
    monkeypatch.setattr(admission, "_cgroup_files", lambda: iter(known))
    assert (750, f"cgroup {tmp_path}") in list(admission._host())
    read = Path.read_text

    def mine(path: Path, **how: str) -> str:
        return f"{line}\n" if path == Path("/proc/self/cgroup") else read(path, **how)

    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_text", mine)
    assert [names] == [(one[0].name, one[1].name) for one in admission._cgroup_files()]


def test_the_host_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    free = next(admission._host())[0]
    assert 1 << 20 < free < 1 << 50
