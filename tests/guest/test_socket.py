"""socket(2) as a user has it followed: proven on both kernels, and what breaks it is told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.guest.conftest import LAB, Done, Invoke, Once

SMALL = """\
playbook: small
experiment: socket
question: Does it hold with fewer repeats?
kernel: "{kernel}"
probes: {{comm: socket_test}}
calls: {{repeats: 3000, control: 20, fault: {fault}}}
deadline: 2m
"""


def findings(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.run / "socket.json").read_text())
    return found


def broken(found: dict[str, Any]) -> set[str]:
    return {one["name"] for one in found["proofs"] if not one["holds"]}


@pytest.fixture
def followed(once: Once) -> Done:
    return once("lab.run-socket")


def test_one_socket_through_the_whole_chain_and_nothing_left(followed: Done) -> None:
    assert 0 == followed.code, followed.out + followed.err
    assert followed.out.startswith("PROVEN: socket(2, 1, 0) = 3")
    found = findings(followed)
    assert (True, {"missed": 0, "dropped": 0, "torn": 0}) == (found["complete"], found["lost"])
    states = {one["name"]: one["state"] for one in found["functions"]}
    assert "inlined: no symbol of its own" == states["sock_map_fd"] == states["__sys_socket_create"]
    assert "there, not called" == states["sock_create"]
    errors = {one["case"]: one["error"] for one in found["calls"]}
    assert ("EAFNOSUPPORT", "EINVAL", "EPROTONOSUPPORT", "EMFILE", "ENFILE") == tuple(
        errors[case]
        for case in ("bad family", "bad type", "bad protocol", "no descriptor", "injected")
    )
    repeats = {one["name"]: one for one in found["repeats"]}
    assert {10_000} == {repeats[name]["count"] for name in ("plain", "no descriptor", "injected")}
    assert {"TCP alloc": 200, "sockets used": 200} == repeats["control"]["moved"]


def test_the_books_lines_and_the_same_report_anywhere(
    followed: Done, up: Invoke, tmp_path: Path
) -> None:
    lines = up("lab.lines", str(followed.run)).out
    assert re.search(r"SKIPPING PING \| PID: \d+", lines)
    assert re.search(r"__sys_socket END   \| PID: \d+ \| FD: 3 \| Status: SUCCESS", lines)
    assert "Status: FAIL" in lines
    moved = tmp_path / followed.run.name
    shutil.copytree(followed.run, moved)
    (moved / "report.txt").unlink()
    assert 0 == up("lab.report", str(moved)).code
    assert (followed.run / "report.txt").read_bytes() == (moved / "report.txt").read_bytes()


def test_a_leak_and_a_missing_hook_are_exit_code_6(up: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "leak.yaml"
    path.write_text(SMALL.format(kernel="6.12", fault="sock_alloc_file"))
    done = up("lab.run", str(path), "--without", "inet_create")
    assert 6 == done.code, done.out + done.err
    assert done.out.startswith("NOT PROVEN")
    found = findings(done)
    leaked = next(one for one in found["repeats"] if one["name"] == "injected")
    assert 3000 == leaked["moved"]["sockets used"]
    assert {
        "injected repeated: nothing is left",
        "injected: released, not installed",
        "inet_create sets sk and ops",
        "sk->sk_socket == socket",
    } <= broken(found)
    assert "private_data == socket" not in broken(found)


def test_programs_and_module_see_the_same_calls(up: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(SMALL.format(kernel="6.12", fault="alloc_file_pseudo"))
    done = up("lab.run", str(path), "--probes", "both", "--json")
    assert 0 == done.code, done.err
    found = done.value
    assert ["probe:kmod", "probe:bpf"] == found["watchers"]
    assert "module and BPF say the same" in {one["name"] for one in found["proofs"]}
    plain = next(one for one in found["calls"] if one["case"] == "plain")
    assert {"probe:bpf"} <= set.intersection(*(set(one["seen_by"]) for one in plain["steps"]))


def test_the_other_kernel_proves_the_same(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "older.yaml"
    path.write_text(SMALL.format(kernel="6.1", fault="alloc_file_pseudo"))
    # By BPF programs: what they can see there is all that is asked.
    done = invoke("lab.run", str(path), "--probes", "bpf", "--json", lab=f"{LAB}-61")
    assert 0 == done.code, done.err
    assert done.value["kernel"].startswith("6.1.")
    assert done.value["complete"]
    assert Path(done.value["run"]).is_dir()
