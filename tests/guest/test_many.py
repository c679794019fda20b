"""Many labs on one host: beside each other, one after the other where memory is short, apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lab import admission, image, paths, topology
from lab.deadline import Deadline, wait_until
from lab.journal import Journal
from tests import own_cache
from tests.guest.conftest import INVOKE, LAB, TOP, Invoke, qemus

SOMEBODY = 12345  # a uid that nobody has


def start(*words: str, lab: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(INVOKE), *words],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LAB_NAME": lab, **environ},
    )


def test_eight_labs_at_once_do_not_meet(tmp_path: Path) -> None:
    """Up, a run, down: eight times, all at the same time; on a small host some of them wait."""
    names = [f"{LAB}-{number}" for number in range(8)]
    runs = {name: str(tmp_path / name) for name in names}
    words = ("lab.up", "lab.run-loopback", "--no-reset", "lab.down")
    started = [start(*words, lab=name, LAB_RUNS=runs[name]) for name in names]
    ends = [process.communicate(timeout=500) for process in started]
    assert [0] * 8 == [process.returncode for process in started], ends
    taken = {path: json.loads((path / "ledger.json").read_text()) for path in tmp_path.glob("*/2*")}
    assert 8 == len(taken)
    assert all(ledger["complete"] for ledger in taken.values())
    seeds = {json.loads((path / "manifest.json").read_text())["seed"] for path in taken}
    assert 8 == len(seeds)
    assert not set(names) & set(topology.names())
    assert not [name for name in names if (paths.ram() / name).exists()]


def test_a_lab_beyond_what_memory_holds_waits_its_turn(invoke: Invoke) -> None:
    first, second = f"{LAB}-first", f"{LAB}-second"
    small = {"LAB_RAM": str(paths.ram() / f"{LAB}-budget")}  # a budget of its own
    small["LAB_MEMORY"] = str(int(1.5 * admission.NEED) >> 20)
    try:
        assert 0 == invoke("lab.up", lab=first, **small).code
        waiting = start("lab.up", lab=second, **small)
        assert waiting.stderr is not None
        told = waiting.stderr.readline()
        assert "waiting for memory: LAB_MEMORY allows" in told
        assert f"up are {first}" in told
        assert [] == qemus(second)
        assert 0 == invoke("lab.down", lab=first, **small).code
        _, err = waiting.communicate(timeout=120)
        assert 0 == waiting.returncode, err
        assert 2 == len(qemus(second))
    finally:
        invoke("lab.down", lab=first, **small)
        invoke("lab.down", lab=second, **small)
        shutil.rmtree(small["LAB_RAM"])


def as_somebody(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program as another user of this host."""
    ids = (f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LAB_", "XDG_"))}
    return subprocess.run(
        ["setpriv", *ids, "--clear-groups", "--no-new-privs", *argv],
        cwd=TOP,
        env={**env, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_two_users_do_not_see_each_other_s(up: Invoke) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to be another user")
    if as_somebody(sys.executable, "-c", "import lab, invoke").returncode != 0:
        pytest.skip("needs a checkout and a Python that every user may read")
    # A cache of his own, with a built image, since building one takes a minute.  Not below
    # tmp_path: pytest closes that to others.
    cache = Path(tempfile.mkdtemp(prefix="skblab-his-"))
    home = image.ensure("6.12", journal=Journal()).kernel.parent
    shutil.copytree(home, cache / "images" / home.name)
    manifest = cache / "images" / home.name / "manifest.json"
    (cache / "headers").mkdir()
    (cache / "headers" / "Makefile").touch()  # he builds no module
    text = json.loads(manifest.read_text()) | {"headers": str(cache / "headers")}
    manifest.write_text(json.dumps(text))
    subprocess.run(["chown", "-R", f"{SOMEBODY}:{SOMEBODY}", str(cache)], check=True)
    his = {"LAB_NAME": LAB, "LAB_CACHE": str(cache), "LAB_RUNTIME": f"/tmp/skblab-{SOMEBODY}"}
    ours = qemus(LAB)
    try:
        assert [] == json.loads(as_somebody(str(INVOKE), "lab.ps", "--json", **his).stdout)
        refused = as_somebody(str(INVOKE), "lab.exec", "sender", "true", **his)
        assert (3, True) == (refused.returncode, "not up" in refused.stderr)
        base = topology.Lab(LAB).base
        ram = paths.ram() / LAB / "sender.ram"
        key = paths.cache() / "id_ed25519"
        log = base / "sender.qemu.log"
        for path in (ram, base / "sender" / "qmp", base / "state.json", base / "link", key, log):
            tried = as_somebody("cat", str(path))
            assert "Permission denied" in tried.stderr, tried
        started = as_somebody(str(INVOKE), "lab.up", "--json", "--offline", "--fresh", **his)
        assert 0 == started.returncode, started.stderr
        told = json.loads(started.stdout)
        assert LAB == told["lab"]  # by the same name, beside ours
        assert told["how"].startswith("booted")
        theirs = as_somebody(str(INVOKE), "lab.ps", "--json", **his)
        assert [LAB] == [one["lab"] for one in json.loads(theirs.stdout)]
        assert "nothing to remove" in as_somebody(str(INVOKE), "lab.gc", **his).stdout
        assert ours == qemus(LAB)
        assert 0 == up("lab.status").code
    finally:
        down = as_somebody(str(INVOKE), "lab.down", **his)
        shutil.rmtree(f"/tmp/skblab-{SOMEBODY}", ignore_errors=True)
        shutil.rmtree(f"/dev/shm/skblab-{SOMEBODY}", ignore_errors=True)
        shutil.rmtree(cache)
    assert "is down" in down.stdout


def test_whoever_boots_the_same_pair_boots_it_once(up: Invoke, tmp_path: Path) -> None:
    """Three labs and a snapshot that is garbled: one boots, the others wait and restore."""
    cache = tmp_path / "cache"
    names = [f"{LAB}-cold-{number}" for number in range(3)]
    snapshot = up("lab.status", "--json").value["snapshot"]
    with own_cache.beside(cache, snapshot=snapshot) as folder:
        meta = folder / "meta.json"
        os.truncate(meta, meta.stat().st_size // 2)
        try:
            started = [start("lab.up", "--json", lab=name, LAB_CACHE=str(cache)) for name in names]
            ends = [process.communicate(timeout=300) for process in started]
            assert [0] * 3 == [process.returncode for process in started], ends
            how = sorted(json.loads(out)["how"].split()[0] for out, _ in ends)
            assert ["booted", "restored", "restored"] == how
            assert any("garbled" in err for _, err in ends), ends
            wait_until(
                lambda: all(len(qemus(name)) == 2 for name in names),
                what="all of them",
                deadline=Deadline(5),
            )
        finally:
            downs = [start("lab.down", lab=name, LAB_CACHE=str(cache)) for name in names]
            for process in downs:
                process.communicate(timeout=60)
