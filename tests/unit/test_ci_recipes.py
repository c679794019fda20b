"""The recipes for other people's runners: they parse, and refuse what they cannot use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

TOP = Path(__file__).parents[2]
CI = TOP / "examples" / "ci"


def test_the_workflow_runs_both_accelerators_and_skips_neither() -> None:
    job = yaml.safe_load((CI / "github.yml").read_text())["jobs"]["test"]
    assert ["kvm", "tcg"] == job["strategy"]["matrix"]["accel"]
    assert "lab,${{ matrix.accel }}" == job["env"]["LAB_MUST_RUN"]
    (cache,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/cache")]
    assert "snapshots" not in cache["with"]["path"]
    assert any("99-kvm.rules" in step.get("run", "") for step in job["steps"])


def test_the_script_names_what_a_runner_lacks(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "id").symlink_to("/usr/bin/id")
    done = subprocess.run(
        ["/bin/sh", str(CI / "run.sh")],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    # It looks in /usr/sbin and /sbin too, and QEMU lives in neither.
    assert 3 == done.returncode, done.stderr
    assert "there is no qemu-system-x86_64 here" in done.stderr
    assert "try: apt-get install" in done.stderr
