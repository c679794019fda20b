"""Children: bounded, without privileges, known to be alive by their lock."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab import process
from lab.deadline import Deadline, wait_until
from lab.errors import ToolMissing


def run(tmp_path: Path, script: str) -> process.Child:
    folder = tmp_path / "child"
    folder.mkdir()
    process.give(folder, mode=0o777)
    for part in tmp_path.parents:
        if part.stat().st_uid == os.geteuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    return process.start(
        ["/bin/sh", "-c", script], lock=tmp_path / "lock", log=tmp_path / "log", cwd=folder
    )


def ended(child: process.Child) -> None:
    wait_until(lambda: not child.alive, what="the child to end", deadline=Deadline(10))
    process.reap(child.pid)


def test_alive_until_it_ends(tmp_path: Path) -> None:
    child = run(tmp_path, "exec sleep 100")
    assert child.alive
    assert child.pid in process.holders(tmp_path / "lock")
    assert process.stop(tmp_path / "lock", grace_s=0.0)
    process.reap(child.pid)
    assert not child.alive


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = run(tmp_path, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(
        lambda: "ready" in (tmp_path / "log").read_text(), what="ready", deadline=Deadline(10)
    )
    assert process.stop(tmp_path / "lock", grace_s=0.0)
    process.reap(child.pid)
    assert not process.is_locked(tmp_path / "lock")


def test_one_that_ended_need_not_be_killed(tmp_path: Path) -> None:
    child = run(tmp_path, "exit 3")
    ended(child)
    assert not process.stop(tmp_path / "lock")


def test_a_file_at_its_limit_is_a_failed_write_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FILE_LIMIT_BYTES", 4096)
    child = run(tmp_path, "head -c 100000 /dev/zero > big; echo still alive > after")
    ended(child)
    assert 4096 == (tmp_path / "child" / "big").stat().st_size
    assert (tmp_path / "child" / "after").exists()


def test_it_has_no_privileges(tmp_path: Path) -> None:
    if process.unprivileged() is None:
        pytest.skip("needs root: there is nothing to take away")
    child = run(tmp_path, "id -u; grep -E '^(NoNewPrivs|CapEff|CapBnd)' /proc/self/status")
    ended(child)
    said = (tmp_path / "log").read_text().split()
    assert "0" != said[0]
    assert ["NoNewPrivs:", "1"] == said[-2:] or "1" == said[said.index("NoNewPrivs:") + 1]
    assert 0 == int(said[said.index("CapEff:") + 1], 16)
    assert 0 == int(said[said.index("CapBnd:") + 1], 16)


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    child = run(tmp_path, "exec sleep 100")
    with pytest.raises(BlockingIOError):
        process.start(["true"], lock=tmp_path / "lock", log=tmp_path / "log", cwd=tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    ended(child)


def test_no_lock_no_holder(tmp_path: Path) -> None:
    assert not process.is_locked(tmp_path / "none")


def test_a_missing_tool_names_its_package() -> None:
    with pytest.raises(ToolMissing) as caught:
        process.tool("no-such-tool", package="some-package")
    assert "some-package" in str(caught.value.hint)


def test_a_link_in_a_folder_we_gave_away_is_not_followed(tmp_path: Path) -> None:
    secret, link, twin = tmp_path / "secret", tmp_path / "link", tmp_path / "twin"
    secret.write_text("only ours")
    link.symlink_to(secret)
    twin.hardlink_to(secret)
    for path in (link, twin):
        with pytest.raises(OSError, match=r"(symbolic link|plain file)"):
            process.read_given(path)
    twin.unlink()
    assert b"only ours" == process.read_given(secret)
    assert b"ours" == process.read_given(secret, most=4)


def may_prefer(pid: int) -> bool:
    """Tell whether this user may (CAP_SYS_NICE), by trying, and put back what was."""
    before = os.getpriority(os.PRIO_PROCESS, pid)
    try:
        os.setpriority(os.PRIO_PROCESS, pid, before - 1)
    except PermissionError:
        return False
    os.setpriority(os.PRIO_PROCESS, pid, before)
    return True


def test_processes_are_preferred_for_a_while_and_not_after() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        before = os.getpriority(os.PRIO_PROCESS, child.pid)
        with process.preferred([child.pid]):
            inside = os.getpriority(os.PRIO_PROCESS, child.pid)
            ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert inside == ours == (process.PREFERRED if may_prefer(child.pid) else before)
        assert before == os.getpriority(os.PRIO_PROCESS, child.pid)
        assert before == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        child.kill()
        child.wait()


def test_a_session_of_its_own_is_preferred_as_a_group(tmp_path: Path) -> None:
    child = process.start(
        ["/bin/sleep", "60"], lock=tmp_path / "lock", log=tmp_path / "log", cwd=tmp_path,
        as_root=True,
    )  # fmt: skip
    group = Path(f"/proc/{child.pid}/autogroup")
    if not group.exists() or not may_prefer(child.pid):
        process.stop(tmp_path / "lock")
        pytest.skip("no autogroups here, or not root")
    try:
        told = [group.read_text().split()[-1]]
        with process.preferred([child.pid]):
            told.append(group.read_text().split()[-1])
        told.append(group.read_text().split()[-1])
        assert [str(process.NICE), str(process.PREFERRED), str(process.NICE)] == told
    finally:
        process.stop(tmp_path / "lock", grace_s=0.1)
        process.reap(child.pid)


def test_a_process_that_is_gone_is_not_preferred_and_no_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()

    with process.preferred([child.pid]):
        pass
