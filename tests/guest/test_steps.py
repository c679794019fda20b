"""A message followed call by call, and a descriptor followed to its peer, on real kernels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import accelerator, image, topology
from lab.journal import Journal
from tests.guest.conftest import Invoke, Once


@pytest.fixture(scope="module", autouse=True)
def _can_follow() -> None:
    speed = accelerator.choose(image.ensure("6.12", journal=Journal()), journal=Journal())
    if absent := topology.access_log_absent(speed):
        pytest.skip(f"needs an access log: {absent}")


SENT = ["__sys_sendto", "udp_sendmsg", "ip_make_skb", "__ip_append_data", "ip_generic_getfrag"]
CASES = (
    ("6.12", "link", "csum_and_copy_from_iter_full"),
    pytest.param("6.12", "loopback", "_copy_from_iter", marks=pytest.mark.long),
    pytest.param("6.1", "loopback", "_copy_from_iter", marks=pytest.mark.long),
    pytest.param("6.1", "link", "csum_and_copy_from_iter", marks=pytest.mark.long),
)


@pytest.mark.parametrize(("kernel", "over", "copier"), CASES)
def test_every_call_on_the_way_is_in_the_table(
    invoke: Invoke, tmp_path: Path, kernel: str, over: str, copier: str
) -> None:
    done = invoke("lab.run-steps", "--over", over, "--kernel", kernel)
    assert 0 == done.code, done.out[-2000:] + done.err
    found: dict[str, Any] = json.loads((done.run / "steps.json").read_text())
    steps = found["steps"]
    assert {one["type"] for one in steps} >= {
        *("SYSCALL", "CALL", "VAR_SET", "VAR_READ", "CHECK", "CPU_READ", "CPU_WRITE"),
        *("RETURN", "DATA_STATE"),
    }
    called = [one["function"] for one in steps if one["type"] in ("SYSCALL", "CALL")]
    places = [called.index(name) for name in (*SENT, copier, "udp_queue_rcv_one_skb")]
    assert places == sorted(places)
    written = [one for one in steps if one["type"] == "CPU_WRITE"]
    assert len(written) == (3 if over == "link" else 2)
    worksheet = {one["function"]: one for one in found["worksheet"]}
    assert worksheet["sock_sendmsg"]["fate"] == "not called"
    assert worksheet["copy_from_user_iter"]["fate"] == "not observable"
    seen = [one["seen_at"] for one in found["worksheet"] if one["fate"] == "seen"]
    assert seen == sorted(seen)
    assert not list(done.run.glob("*/trace.bin"))  # nothing was loaded into a guest

    sheet = tmp_path / "sheet"
    sheet.write_text(invoke("lab.worksheet", str(done.run)).out)
    assert 0 == invoke("lab.worksheet", str(done.run), f"--check={sheet}").code
    sheet.write_text("E05 = 66\n")
    wrong = invoke("lab.worksheet", str(done.run), f"--check={sheet}")
    assert 6 == wrong.code
    assert "measured: 58" in wrong.out


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_inside_and_outside_agree_on_what_hangs_on_fd_3(
    once: Once, invoke: Invoke, tmp_path: Path, kernel: str
) -> None:
    done = once("lab.run-chain", "--kernel", kernel)
    assert 0 == done.code, done.out + done.err
    assert json.loads((done.run / "manifest.json").read_text())["kernel"].startswith(f"{kernel}.")
    found = json.loads((done.run / "chain.json").read_text())
    peers = {one["name"]: one["outside"]["skc_dport"] for one in found["cases"]}
    assert peers == {
        "udp-unconnected": 0,
        "udp-unconnected-sent": 0,
        "udp-connected": 0x0F27,  # 9999 in network order
        "tcp-unconnected": 0,
        "tcp-connected": 0x0F27,
    }
    changed = tmp_path / done.run.name
    shutil.copytree(done.run, changed)
    looked = changed / "sender" / "lookup.json"
    data = json.loads(looked.read_text())
    data["cases"][2]["chain"]["sock"] += 64
    looked.write_text(json.dumps(data))
    again = invoke("lab.report", str(changed))
    assert 6 == again.code
    assert "DISAGREEMENT" in again.out
