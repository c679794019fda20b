"""The tasks as a user calls them: exit codes, what is printed, and what is left when they die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import paths, process, topology
from lab.deadline import Deadline, wait_until
from tests.crash.conftest import NAME
from tests.guest.conftest import Done

INVOKE = Path(sys.executable).parent / "invoke"
TOP = Path(__file__).parents[2]
CORPUS = TOP / "kmod" / "crash"
Invoke = Callable[..., Done]


def environ(runs: Path, lab: str) -> dict[str, str]:
    return {**os.environ, "LAB_NAME": lab, "LAB_RUNS": str(runs)}


@pytest.fixture(scope="module")
def up(runs: Path) -> Iterator[Invoke]:
    """Run `invoke WORDS` with a lab that is up."""

    def run(*words: str) -> Done:
        done = subprocess.run(
            [str(INVOKE), *words],
            cwd=TOP,
            capture_output=True,
            text=True,
            env=environ(runs, NAME),
            timeout=300,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    assert 0 == run("lab.up").code
    yield run
    assert 0 == run("lab.down").code
    assert NAME not in topology.names()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("null_write.c",), 4, "OOPS in phase 'load': null_write.c:20"),
        (("null_write.c", "--expect", "oops", "--at", "null_write.c:20"), 0, "struct thing.count"),
        (("null_write.c", "--expect", "panic"), 4, "expected verdict panic, found oops"),
        (
            ("null_write.c", "--expect", "oops", "--at", "null_write.c:2"),
            4,
            "at null_write.c:2, found null_write.c:20",
        ),
        (("null_write.c", "--at", "null_write.c:20"), 2, "--expect VERDICT"),
        (("init_fails.c",), 5, "No such device"),
        (("init_never_returns.c", "--deadline", "1"), 7, "did not end after 1"),
        (("clean.c", "--params", "nosuch=1", "--soak", "0.1"), 0, "LOADED"),
        (("null_write.c", "--expect", "ooops"), 2, "is no verdict"),
        (("nosuch.c",), 2, "no such file"),
    ],
)
def test_exit_codes(up: Invoke, words: tuple[str, ...], code: int, text: str) -> None:
    done = up("lab.try", str(CORPUS / words[0]), *words[1:])

    assert code == done.code, done.out + done.err
    assert text in done.out + done.err


PLAYBOOK = """\
playbook: mine
question: Does it oops?
experiment: crash
module: {path: null_write.c}
deadline: 20s
expect: {verdict: VERDICT, at: "null_write.c:20"}
"""


@pytest.mark.parametrize(("verdict", "code"), [("oops", 0), ("panic", 4)])
def test_a_playbook_passes_when_it_ends_as_expected_and_only_then(
    up: Invoke, tmp_path: Path, verdict: str, code: int
) -> None:
    for name in ("null_write.c", "guest_only.h"):
        (tmp_path / name).write_text((CORPUS / name).read_text())
    (tmp_path / "mine.yaml").write_text(PLAYBOOK.replace("VERDICT", verdict))
    done = up("lab.run", str(tmp_path / "mine.yaml"))
    again = up("lab.report", "last")

    assert code == done.code, done.out + done.err
    assert "OOPS in phase 'load': null_write.c:20" in done.out
    assert code == again.code, "the run directory knows what was expected"
    assert again.out.startswith(done.out.partition("\n")[0])


def test_a_playbook_is_a_trigger(up: Invoke) -> None:
    """What `nic` sends comes from the peer, over the link, into the guest with the probe."""
    done = up("lab.try", str(CORPUS / "worksheet_final.c"), "--playbook", "nic", "--json")
    run = Path(json.loads(done.out)["run"])
    log = (run / "receiver" / "kernel.log").read_text()
    held = json.loads((run / "receiver" / "observations.json").read_text())["held"]

    assert 0 == done.code, done.out + done.err
    # The first load, and those that look for leaks: more where something seemed to grow, none
    # on a host so slow that they would take too long, which is said.
    again = 0 if "absent" in held else held["loads"] * (len(held["pages"]) - 1)
    assert again >= 6 or "too long" in held["absent"]
    assert 1 + again == sum(
        "comm=receiver" in line for line in log.splitlines() if "len=16" in line
    )


def test_a_failed_build_shows_the_compilers_words_and_is_5(up: Invoke, tmp_path: Path) -> None:
    (tmp_path / "broken.c").write_text("int f(void) { return nothing; }\n")
    done = up("lab.try", str(tmp_path / "broken.c"))

    assert 5 == done.code
    assert "broken.c:1:22: error: " in done.out  # quotes are those of the user's locale
    assert "nothing" in done.out


def test_json_is_the_post_mortem_and_nothing_else(up: Invoke) -> None:
    done = up("lab.try", str(CORPUS / "null_write.c"), "--json")
    value: dict[str, Any] = json.loads(done.out)

    assert 4 == done.code
    assert {"verdict", "phase", "at", "fingerprint", "run"} <= value.keys()
    assert Path(value["run"]).is_dir()


def test_equal_crashes_are_counted_together(up: Invoke) -> None:
    def count() -> int:
        groups = json.loads(up("lab.crashes", "--json").out)
        return sum(one["count"] for one in groups if one["module"] == "bad_jump")

    before = count()
    for _ in range(2):
        up("lab.try", str(CORPUS / "bad_jump.c"))
    assert before + 2 == count()
    assert "oops" in up("lab.crashes").out


def test_a_run_without_ram_has_no_core(up: Invoke) -> None:
    up("lab.try", str(CORPUS / "init_fails.c"))
    done = up("lab.vmcore", "last")

    assert 6 == done.code
    assert "--keep-ram" in done.err


def test_the_lab_is_as_it_was_afterwards(up: Invoke) -> None:
    up("lab.reset")
    up("lab.try", str(CORPUS / "null_write.c"))
    state = json.loads(up("lab.status", "--json").out)

    assert state["pristine"]
    assert 0 == up("lab.exec", "receiver", "true").code


def test_watch_tries_again_at_every_save(up: Invoke, tmp_path: Path, runs: Path) -> None:
    """At most four seconds from a save to the verdict, on a host that does nothing else."""
    source = (CORPUS / "null_write.c").read_text()
    (tmp_path / "guest_only.h").write_text((CORPUS / "guest_only.h").read_text())
    path = tmp_path / "null_write.c"
    path.write_text(source)
    log = tmp_path / "out"
    with log.open("wb") as out:
        watching = subprocess.Popen(
            [str(INVOKE), "lab.watch", str(path)],
            cwd=TOP,
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={**environ(runs, NAME), "PYTHONUNBUFFERED": "1"},
        )
    try:

        def verdicts(number: int) -> None:
            wait_until(
                lambda: log.read_text().count("fingerprint") >= number,
                what=f"verdict {number}",
                deadline=Deadline(60),
            )

        verdicts(1)
        start = time.monotonic()
        path.write_text(source.replace("thing->count = 7", "thing->count = 8"))
        verdicts(2)
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert time.monotonic() - start < 4.0 * busy
        path.write_text(source.replace("struct thing *thing = find", "broken"))
        verdicts(3)
        assert "BUILD-FAILED" in log.read_text()
    finally:
        watching.send_signal(signal.SIGINT)
        assert 130 == watching.wait(30)


def test_sigkill_in_mid_experiment_and_gc_leave_a_clean_host(
    runs: Path, tmp_path: Path, sole_collector: None
) -> None:
    here = tmp_path / "runs"
    trying = subprocess.Popen(
        [str(INVOKE), "lab.try", str(CORPUS / "soft_lockup.c")],
        cwd=TOP,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environ(here, f"{NAME}-none"),
    )
    own = f"try-{trying.pid}"
    try:
        wait_until(
            lambda: any("push the module" in file.read_text() for file in _journals(here)),
            what="the module to be loaded",
            deadline=Deadline(90),
        )
        locks = [guest.folder.lock for guest in topology.Lab(own).guests.values()]
        pids = [pid for lock in locks for pid in process.holders(lock)]
        assert pids
    finally:
        trying.kill()
        trying.wait(10)
    done = subprocess.run(
        [str(INVOKE), "lab.gc", "--json"],
        cwd=TOP,
        capture_output=True,
        text=True,
        env=environ(here, NAME),
        check=False,
    )
    assert 0 == done.returncode
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids),
        what="the guests to be gone",
        deadline=Deadline(5),
    )
    assert not (paths.runtime() / own).exists()
    assert not (paths.ram() / own).exists()


def _journals(runs: Path) -> list[Path]:
    return list(runs.glob("*/journal.jsonl"))
