"""Why bytes did not arrive, of which messages that is, and under what conditions of the link."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lab import correlate, ledger, report, workload
from lab.correlate import audit
from lab.correlate.types import Gap
from lab.ledger import Ledger
from lab.ledger.reasons import Reasons
from lab.rundir import RunDir, conditions
from tests.unit import cooked

WAIT = ", after 5 s with nothing to read (no playbook makes it longer)"
NETEM = (
    "qdisc netem 8001: root refcnt 2 limit 1000 loss 30%\n Sent {} bytes {} pkt (dropped {}, over"
)


def whys(found: Ledger) -> list[tuple[int | None, str]]:
    return [(one.message, one.why) for one in found.incomplete]


def short(tmp_path: Path, *, got: int = 40) -> RunDir:
    """Cook a stream of three messages of 20 bytes, of which the receiver never reads the last."""
    cook = cooked.tcp(tmp_path, size=20, count=3)
    cook.manifest["idle_ms"] = workload.IDLE_MS
    read = [event for event in cook.receiver.events if event["hook"] == "_copy_to_iter"]
    cook.receiver.events.remove(read[-1])
    run = cook.serve()

    def end(workloads: Any) -> None:
        (one,) = workloads
        one["received"]["messages"].pop()
        one["received"] |= {"received": 2, "bytes": got, "timed_out": True}
        one["done"]["messages"].pop()
        one["done"] |= {"held": 2}

    cooked.edit(run, "receiver/workload.json", end)
    return run


def test_of_a_torn_datagram_the_rest_did_not_wait_but_was_not_enough(tmp_path: Path) -> None:
    run = cooked.torn(tmp_path).serve()
    found = [why for _, why in whys(ledger.build(run)) if "frame" in why or "datagram" in why]

    assert [
        "no frame carries them",
        "the rest of its datagram did not come, and no program is given a part",
    ] == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NETEM.format(90, 1, 2) + NETEM.format(999, 12, 6), "; netem there dropped 4 frames and"),
        (NETEM.format(0, 0, 0) + NETEM.format(999, 12, 1), "; netem there dropped 1 frame and"),
        (NETEM.format(0, 0, 0) + NETEM.format(999, 12, 0), ""),
        (NETEM.format(0, 0, 1), ""),  # only one reading
        ("qdisc noqueue 0: root refcnt 2\n", ""),
    ],
)
def test_what_netem_dropped_is_said_of_what_no_frame_carries(
    tmp_path: Path, text: str, said: str
) -> None:
    run = cooked.torn(tmp_path).serve()
    run.guest("sender").file("qdisc.txt").write_text(text)

    (why,) = [why for _, why in whys(ledger.build(run)) if why.startswith("no frame")]

    assert why.startswith(f"no frame carries them{said}")
    assert ("(sender/qdisc.txt)" in why) == bool(said)


def test_a_wait_that_ended_says_after_how_long(tmp_path: Path) -> None:
    found = ledger.build(short(tmp_path))

    assert (2, f"the receiver's wait for it ended first{WAIT}") in whys(found)


def test_a_segment_that_was_not_sent_again_in_time_says_so(tmp_path: Path) -> None:
    """TCP would have: what no frame carries by then is no loss that nothing mends."""
    run = short(tmp_path)
    gap = Gap(guest="sender", message=2, between=("a", "b"), bytes=20, why=audit.NO_FRAME)
    why = Reasons(correlate.load(run), [gap]).of(gap)

    assert f"no frame carries them; the receiver's wait for them ended{WAIT[1:]}" == why


def test_a_run_that_does_not_know_its_limit_names_none(tmp_path: Path) -> None:
    run = short(tmp_path)
    manifest = run.manifest_json()
    del manifest["idle_ms"]
    run.write_manifest(manifest)

    assert (2, "the receiver's wait for it ended first") in whys(ledger.build(run))


def test_the_guest_waits_as_long_as_the_host_says() -> None:
    header = (Path(__file__).parents[2] / "guest/workload.h").read_text()

    assert [str(workload.IDLE_MS)] == re.findall(r"^#define IDLE_MS\s+(\d+)$", header, re.MULTILINE)


def test_of_a_stream_that_ended_early_only_what_lacks_bytes_is_incomplete(tmp_path: Path) -> None:
    found = ledger.build(short(tmp_path))

    assert not found.complete
    assert {2} == {one.message for one in found.incomplete}
    assert [True, True, False] == [message.complete for message in found.messages]


@pytest.mark.parametrize("got", [39, 41])
def test_where_program_and_records_do_not_agree_on_it_no_message_is_complete(
    tmp_path: Path, got: int
) -> None:
    found = ledger.build(short(tmp_path, got=got))

    assert [False] * 3 == [message.complete for message in found.messages]


@pytest.mark.parametrize(
    ("link", "device", "said"),
    [
        ({"mtu": "1500"}, "virtio-net-pci", {}),
        ({"mtu": "9000", "copybreak": "0"}, "virtio-net-pci", {"mtu": "9000"}),
        ({"mtu": "1500", "copybreak": "0"}, "e1000e", {"copybreak": "0"}),
        ({"mtu": "1500", "copybreak": "256"}, "e1000e", {}),
        (
            {"qdisc": "qdisc netem 8001: root refcnt 2 limit 1000 delay 50ms loss 30%"},
            "virtio-net-pci",
            {"delay": "50ms", "loss": "30%"},
        ),
        ({"qdisc": "qdisc noqueue 0: root refcnt 2"}, "virtio-net-pci", {}),
    ],
)
def test_what_of_a_link_is_not_as_usual(
    link: dict[str, object], device: str, said: dict[str, str]
) -> None:
    assert said == conditions.set_otherwise(link, device=device)


def test_a_run_says_the_conditions_of_its_link(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    assert "(virtio-net-pci over dgram; gro on, " in report.render(ledger.build(run), run)

    manifest: dict[str, Any] = dict(run.manifest_json())
    manifest["link"] |= {"mtu": "9000", "qdisc": "qdisc netem 8001: root delay 50ms"}
    run.write_manifest(manifest)
    found = ledger.build(run)

    assert "(virtio-net-pci over dgram, mtu 9000, delay 50ms; " in report.render(found, run)
    assert {"mtu": "9000", "delay": "50ms"}.items() <= found.link.items()
    assert "over dgram, mtu 9000, delay 50ms" in report.page(found, run)


def test_messages_alike_are_one_note_and_their_counts_are_of_each(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=1472 + 1480 + 50, count=6, slots=8).serve()
    found = ledger.build(run)

    (note,) = [note for note in found.notes if "times" in note]
    assert note.startswith("messages 0 to 5: some of their bytes were copied 2 times, others 3;")
    text = " ".join(report.render(found, run).split())
    assert "Totals: each message: 2-3 guest CPU copies, 1 device read, 1 device write" in text
    assert re.search(r"0 handovers; the run: (\d+) of \d+ places verified by content", text)
