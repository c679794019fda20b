"""Runs as a user takes them: the numbers, what they rest on, and what breaks them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lab import build, image, paths
from lab.deadline import Deadline, wait_until
from lab.journal import Journal
from tests.guest.conftest import INVOKE, LAB, TOP, Done, Invoke, Once, abandoned, qemus, wait_gone


def ledger(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.run / "ledger.json").read_text())
    return found


def copies(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [move for move in message["movements"] if move["kind"] == "copy"]


@pytest.fixture
def nic(once: Once) -> Done:
    return once("lab.run-nic")


@pytest.fixture
def loopback(once: Once) -> Done:
    return once("lab.run-loopback")


@pytest.fixture(scope="module")
def alone(invoke: Invoke) -> Done:
    """Take a run where no lab is up."""
    return invoke("lab.run-loopback", "--json", lab=f"{LAB}-none")


def test_nic_three_copies_one_read_one_write(nic: Done) -> None:
    assert 0 == nic.code, nic.out + nic.err
    found = ledger(nic)
    assert found["complete"]
    assert not found["disagreements"]
    (message,) = found["messages"]
    assert (3, 1, 1, 0) == tuple(
        message["totals"][name]
        for name in ("guest_cpu_copies", "device_reads", "device_writes", "handovers")
    )
    first, middle, last = copies(message)
    assert "sender" == first["guest"]
    assert ("receiver", "receiver") == (middle["guest"], last["guest"])
    assert "page_to_skb" in middle["function"]
    assert not message["skb"]["same_object"]


def test_nic_every_place_is_verified_by_content(nic: Done) -> None:
    (message,) = ledger(nic)["messages"]
    assert all(place["content_verified"] for place in message["places"])
    assert not ledger(nic)["unexplained"]


@pytest.mark.parametrize("which", ["nic", "loopback"])
def test_every_claim_leads_to_a_record(which: str, request: pytest.FixtureRequest) -> None:
    done: Done = request.getfixturevalue(which)
    for message in ledger(done)["messages"]:
        for claim in (*message["movements"], *message["places"]):
            assert claim["evidence"], claim
            for evidence in claim["evidence"]:
                name, _, record = evidence.partition("#")
                assert (done.run / name).is_file(), evidence
                assert record


def test_loopback_two_copies_one_handover_one_skb(loopback: Done) -> None:
    assert 0 == loopback.code, loopback.out + loopback.err
    (message,) = ledger(loopback)["messages"]
    assert (2, 0, 0, 1) == tuple(
        message["totals"][name]
        for name in ("guest_cpu_copies", "device_reads", "device_writes", "handovers")
    )
    assert message["skb"]["same_object"]
    assert message["skb"]["same_head"]
    sent = [row for row in message["skb"]["sender"] if row.get("at") == "__dev_queue_xmit"]
    assert [58] == [row["len"] for row in sent]


@pytest.mark.parametrize(
    ("task", "hook"),
    [
        ("lab.run-nic", "csum_and_copy_from_iter_full"),
        ("lab.run-nic", "virtio_net:page_to_skb>memcpy"),
        ("lab.run-nic", "_copy_to_iter"),
        ("lab.run-loopback", "_copy_from_iter"),
    ],
)
def test_without_a_copy_hook_it_is_incomplete_not_fewer(once: Once, task: str, hook: str) -> None:
    done = once(task, "--without", hook)
    assert 6 == done.code, done.out
    assert done.out.startswith("INCOMPLETE")
    assert hook in done.out
    found = json.loads((Path(done.out.strip().splitlines()[-1]) / "ledger.json").read_text())
    assert not found["complete"]


def test_report_recomputes_byte_for_byte_anywhere(nic: Done, up: Invoke, tmp_path: Path) -> None:
    moved = tmp_path / nic.run.name
    shutil.copytree(nic.run, moved)
    kept = {name: (moved / name).read_bytes() for name in ("ledger.json", "report.txt")}
    for name in kept:
        (moved / name).unlink()
    assert 0 == up("lab.report", str(moved)).code
    assert kept == {name: (moved / name).read_bytes() for name in kept}


def test_the_worksheets_lines_are_rendered_from_records(loopback: Done, up: Invoke) -> None:
    run = str(loopback.run)
    assert "comm=sender" in up("lab.lines", run, "--grep", "COPY1").out
    assert "dev=lo" in up("lab.lines", run, "--grep", "COPY2").out
    assert "len=16" in up("lab.lines", run, "--grep", "COPY4").out


@pytest.mark.parametrize("task", ["lab.run-nic", "lab.run-loopback"])
def test_the_worksheets_own_payload(up: Invoke, task: str) -> None:
    done = up(task, "--payload", "HELLO_SEND_TRACE")
    assert 0 == done.code, done.out + done.err
    assert "HELLO_SEND_TRACE" in done.out


@pytest.mark.parametrize("words", [("--size", "1400"), ("--count", "23"), ("--size", "86")])
def test_other_sizes_and_counts_balance(once: Once, words: tuple[str, str]) -> None:
    done = once("lab.run-nic", *words)
    assert 0 == done.code, done.out + done.err
    assert ledger(done)["complete"]


def test_json_is_the_ledger_and_names_the_run(alone: Done) -> None:
    assert 0 == alone.code, alone.err
    assert alone.value["complete"]
    assert Path(alone.value["run"]).is_dir()


def test_json_of_a_run_that_fails_is_one_document(up: Invoke) -> None:
    done = up("lab.run-loopback", "--without", "_copy_to_iter", "--json")
    assert 6 == done.code
    assert not done.value["complete"]
    run = Path(done.value["run"])
    assert not json.loads((run / "ledger.json").read_text())["complete"]
    told = (run / "report.txt").read_text()
    assert told.startswith("INCOMPLETE")
    assert "_copy_to_iter" in told


def test_a_report_asks_what_the_run_asked(once: Once, invoke: Invoke) -> None:
    """Options that change a playbook change what it expects, then and later."""
    done = once("lab.run-nic", "--size", "1400")
    assert 0 == done.code, done.err
    assert 0 == invoke("lab.report", str(done.run)).code


def test_a_run_without_a_lab_brings_its_own_pair_and_leaves_nothing(alone: Done) -> None:
    assert 0 == alone.code, alone.err
    told = json.loads((Path(alone.value["run"]) / "manifest.json").read_text())
    assert told["reset"]["how"].startswith("a pair of its own")
    assert not abandoned()


def test_the_other_kernel_says_the_same(once: Once) -> None:
    """6.1 copies with other functions, as often, and the answer is the same."""
    done = once("lab.run-nic", "--kernel", "6.1")
    assert 0 == done.code, done.out + done.err
    found = ledger(done)
    assert [True, []] == [found["complete"], found["unexplained"]]
    (message,) = found["messages"]
    assert (3, 1, 1, 0) == tuple(
        message["totals"][name]
        for name in ("guest_cpu_copies", "device_reads", "device_writes", "handovers")
    )
    assert "csum_and_copy_from_iter" == copies(message)[0]["function"]


@pytest.mark.parametrize("kind", ["kmod", "bpf"])
def test_a_full_ring_is_counted_and_proves_nothing(up: Invoke, kind: str) -> None:
    done = up("lab.run", "full-ring", "--probes", kind, "--json")
    assert 6 == done.code
    assert not done.value["complete"]
    assert [] == done.value["disagreements"]  # what is not told is no lie
    told = (Path(done.value["run"]) / "report.txt").read_text()
    assert re.match(r"INCOMPLETE: sender: \w+ lost records: [1-9]\d* dropped\n", told), told


def test_a_comm_filter_counts_what_it_skipped(up: Invoke) -> None:
    done = up("lab.run-loopback", "--comm", "receiver")
    assert 6 == done.code
    manifest = json.loads((done_run(done) / "manifest.json").read_text())
    assert "receiver" == manifest["probes"]["comm"]


def done_run(done: Done) -> Path:
    return Path(done.out.strip().splitlines()[-1])


def test_a_module_that_will_not_load_is_a_probe_error(up: Invoke) -> None:
    kernel = image.ensure("6.12", journal=Journal())
    module = build.build_modules(kernel, journal=Journal())["recv_trace"]
    assert 0 == up("lab.put", "receiver", str(module), "/run/recv_trace.ko").code
    assert 0 == up("lab.exec", "receiver", f"insmod /run/recv_trace.ko nonce={'0' * 32}").code
    done = up("lab.run-nic", "--no-reset")
    assert 5 == done.code, done.err
    assert "ProbeRejected" in done.err
    assert "run:" in done.err


def start_run(tmp_path: Path, lab: str, *words: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a run in its own process and return when its probes are being loaded."""
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [str(INVOKE), *(words or ("lab.run-nic",))],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LAB_NAME": lab, "LAB_RUNS": str(runs)},
    )

    def begun() -> Path | None:
        for journal in runs.glob("*/journal.jsonl"):
            told = journal.read_text()
            if "restore the pair" in told or "boot the pair" in told:
                return runs / journal.parent.resolve().name  # which may be found as `last`
        return None

    run = wait_until(begun, what="the run to begin", deadline=Deadline(60))
    return process, run


def test_a_guest_killed_in_mid_run_is_typed_and_the_run_is_kept(tmp_path: Path) -> None:
    process, run = start_run(tmp_path, f"{LAB}-killed")
    own = f"run-{process.pid}"
    os.kill(qemus(own)[1], signal.SIGKILL)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert 4 == process.returncode, err
    assert "GuestLost" in err
    assert time.monotonic() - start < 10
    assert (run / "journal.jsonl").exists()
    assert not (paths.runtime() / own).exists()


def test_ctrl_c_in_mid_run_cleans_up(tmp_path: Path) -> None:
    process, run = start_run(tmp_path, f"{LAB}-stopped")
    own = f"run-{process.pid}"
    pids = qemus(own)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert 130 == process.returncode, err
    assert f"run, as far as it came: {run}" in err
    wait_gone(pids)
    assert run.exists()
    assert not (paths.runtime() / own).exists()
    assert not (paths.ram() / own).exists()


@pytest.mark.parametrize(
    ("link", "size", "copies"),
    [
        ("device: e1000e", 16, 3),
        ("device: e1000e, copybreak: 0", 16, 2),
        ("device: e1000e, mtu: 9000", 4000, 2),
        ("mtu: 9000, delay: 1ms", 4000, 2),
    ],
)
def test_other_links_are_accounted_for(
    up: Invoke, tmp_path: Path, link: str, size: int, copies: int
) -> None:
    path = tmp_path / "link.yaml"
    path.write_text(
        f"playbook: link\nquestion: Is it?\nlink: {{{link}}}\n"
        f"workload: {{over: link, protocol: udp, size: {size}}}\n"
        f"expect: {{complete: yes, guest-cpu-copies: {copies}, device-reads: 1}}\n"
    )
    done = up("lab.run", str(path))
    assert 0 == done.code, done.out + done.err
    told = " ".join(done.out.split())
    for setting in link.replace(":", "").split(", "):
        assert setting.removeprefix("device ") in told.partition(";")[2]


def link_playbook(folder: Path, link: str, expect: str) -> str:
    path = folder / "link.yaml"
    path.write_text(
        f"playbook: link\nquestion: Is it?\nlink: {{{link}}}\n"
        "workload: {over: link, protocol: udp, size: 16}\n"
        f"expect: {{complete: yes, device-reads: 1, device-writes: 1, {expect}}}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("link", "options", "copies"),
    [
        ("iommu: on", (), 3),
        ("iommu: on", ("--probes", "none"), 3),
        ("device: e1000e, swiotlb: force", (), 5),
        ("mrg_rxbuf: off", ("--kernel", "6.1"), 2),
    ],
)
def test_a_device_that_has_not_the_driver_s_memory_is_accounted_for(
    invoke: Invoke, tmp_path: Path, link: str, options: tuple[str, ...], copies: int
) -> None:
    """By an IOMMU's addresses, by bounce buffers, by buffers with room for an skb in front."""
    path = link_playbook(tmp_path, link, f"guest-cpu-copies: {copies}")
    done = invoke("lab.run", path, *options, lab=f"{LAB}-link")
    assert 0 == done.code, done.out + done.err
    (message,) = ledger(done)["messages"]
    for movement in message["movements"]:
        if movement["mover"] == "device":
            assert "rings" in movement["confirmed_by"]
        elif not options:
            assert "access-log" in movement["confirmed_by"]
    bounces = [place for place in message["places"] if place["place"] == "bounce"]
    assert (2 if "swiotlb" in link else 0) == len(bounces)


def test_a_bounce_whose_hook_is_left_out_is_missed(invoke: Invoke, tmp_path: Path) -> None:
    path = link_playbook(tmp_path, "device: e1000e, swiotlb: force", "guest-cpu-copies: 5")
    done = invoke("lab.run", path, "--without", "swiotlb_bounce>memcpy", lab=f"{LAB}-link")
    assert 6 == done.code, done.err
    assert "swiotlb_bounce>memcpy was left out" in done.out
