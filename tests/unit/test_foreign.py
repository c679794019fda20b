"""Probes of the user's own: each is read out apart, and a log that came round is told."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab import foreign
from lab.deadline import Deadline
from lab.errors import ProbeRejected
from lab.guest import Guest
from lab.journal import Journal


class Kernel:
    """A guest's shell whose kernel keeps the last `room` lines of its log."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.log = ["[    0.1] booted"]
        self.files: list[str] = []
        self.ran: list[str] = []

    def require_shell(self) -> Kernel:
        return self

    def require_agent(self) -> None:
        return None

    def put(self, path: Path, remote: str, *, deadline: Deadline) -> None:
        assert remote not in self.files
        self.files.append(remote)

    def run(self, command: str, *, deadline: Deadline, ok: bool = True) -> Any:
        self.ran.append(command)
        mark = re.search(r"echo '<6>(.*?)' > /dev/kmsg", command)
        if mark:
            self.log.append(f"[    1.0] {mark[1]}")
        if "insmod" in command:
            self.log.append(f"[    1.1] {command.rpartition(' ')[2]} says hello")
        return SimpleNamespace(exit_code=0, stdout="\n".join([*self.log[-self.room :], ""]))


def module(path: Path, name: str) -> Path:
    """Compile what has a module's .modinfo and nothing else of one."""
    path.parent.mkdir(exist_ok=True)
    text = f'const char name[] __attribute__((section(".modinfo"), used)) = "name={name}";\n'
    argv = ["gcc", "-x", "c", "-c", "-", "-o", str(path)]
    subprocess.run(argv, input=text, text=True, check=True, timeout=60)
    return path


def load(kernel: Kernel, files: dict[str, Path]) -> list[foreign.Foreign]:
    guest = cast("Guest", kernel)
    return foreign.load(guest, files, journal=Journal(), deadline=Deadline(5))


def read_out(kernel: Kernel, loaded: list[foreign.Foreign]) -> dict[str, str]:
    return foreign.read_out(cast("Guest", kernel), loaded, deadline=Deadline(5))


def test_two_files_of_one_name_are_two_probes(tmp_path: Path) -> None:
    files = {
        "hello.ko": module(tmp_path / "hello.ko", "hello"),
        "other/hello.ko": module(tmp_path / "other" / "hello.ko", "again"),
    }
    kernel = Kernel()
    said = read_out(kernel, load(kernel, files))

    assert {"foreign-hello.ko.txt", "foreign-other,hello.ko.txt"} == set(said)
    assert 2 == len(set(kernel.files))
    assert "/1/hello.ko says hello" in said["foreign-hello.ko.txt"]
    assert "/1/hello.ko says" not in said["foreign-other,hello.ko.txt"]
    assert "/2/hello.ko says hello" in said["foreign-other,hello.ko.txt"]
    assert ["rmmod again", "rmmod hello"] == [one for one in kernel.ran if "rmmod" in one]


def test_a_file_may_have_another_name_than_its_module(tmp_path: Path) -> None:
    kernel = Kernel()
    read_out(kernel, load(kernel, {"v2.ko": module(tmp_path / "v2.ko", "hello")}))

    assert "rmmod hello" == kernel.ran[-1]


def test_what_was_logged_before_is_no_output(tmp_path: Path) -> None:
    kernel = Kernel()
    (text,) = read_out(kernel, load(kernel, {"a.ko": module(tmp_path / "a.ko", "a")})).values()

    assert "booted" not in text
    assert "lab: " not in text
    assert text.startswith("[    1.1] ")


@pytest.mark.parametrize("lines", [4, 5, 50])
def test_a_log_that_came_round_is_told_and_its_rest_kept(tmp_path: Path, lines: int) -> None:
    kernel = Kernel(room=6)
    loaded = load(kernel, {"a.ko": module(tmp_path / "a.ko", "a")})
    kernel.log += [f"[    2.0] line {number}" for number in range(lines)]
    (text,) = read_out(kernel, loaded).values()

    whole = lines == 4
    assert whole == ("says hello" in text.splitlines()[0])
    assert whole != text.startswith("lost: the kernel's log came round")
    assert f"line {lines - 1}" == text.splitlines()[-1].partition("] ")[2]


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"no ELF")

    with pytest.raises(ProbeRejected, match=r"a\.ko could not be loaded: not a kernel module"):
        load(Kernel(), {"a.ko": tmp_path / "a.ko"})
