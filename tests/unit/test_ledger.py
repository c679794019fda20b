"""The ledger: complete only when every byte is accounted for, and the same text each time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import ledger, report, spec
from lab.errors import TraceCorrupt
from lab.fnv import digest
from lab.ledger import Ledger, text
from lab.report import verdict
from lab.rundir import RunDir
from lab.spec import Expect
from tests.unit import cooked
from tests.unit.cooked import Cook
from tests.unit.counted import calls

NIC = spec.Expect(
    complete=True,
    guest_cpu_copies=3,
    device_reads=1,
    device_writes=1,
    handovers=0,
    same_object=False,
    same_head=False,
    skb_len_at_xmit=58,
    unexplained=0,
)
LOOPBACK = spec.Expect(
    complete=True,
    guest_cpu_copies=2,
    device_reads=0,
    device_writes=0,
    handovers=1,
    same_object=True,
    same_head=True,
    skb_len_at_xmit=58,
    unexplained=0,
)


def build(cook: Cook) -> Ledger:
    return ledger.build(cook.serve())


def why(found: Ledger) -> str:
    return "; ".join(entry.why for entry in found.incomplete)


@pytest.mark.parametrize(
    ("cook", "expect"), [(cooked.nic, NIC), (cooked.loopback, LOOPBACK)], ids=["nic", "loopback"]
)
def test_the_worksheets_message_is_accounted_for(
    tmp_path: Path, cook: Callable[..., Cook], expect: spec.Expect
) -> None:
    found = build(cook(tmp_path))

    assert found.proven
    assert [] == ledger.check(found, expect)
    (message,) = found.messages
    assert all(place.content_verified for place in message.places)
    assert all(place.evidence for place in message.places)
    assert all(movement.evidence for movement in message.movements)


def test_the_other_paths_expectations_fail_line_by_line(tmp_path: Path) -> None:
    found = build(cooked.nic(tmp_path))

    assert [
        "guest-cpu-copies 2, found 3",
        "device-reads 0, found 1",
        "device-writes 0, found 1",
        "handovers 1, found 0",
        "same-object yes, found no",
        "same-head yes, found no",
    ] == ledger.check(found, LOOPBACK)


def test_what_was_not_seen_is_unknown_and_not_as_expected(tmp_path: Path) -> None:
    hooks = [hook for hook in cooked.SEND_HOOKS if hook not in cooked.COPY_HOOKS]
    found = build(cooked.nic(tmp_path, without=hooks))

    assert ["same-object no, found unknown", "skb-len-at-xmit 58, found no record"] == (
        ledger.check(found, spec.Expect(same_object=False, skb_len_at_xmit=58))
    )
    assert [] == ledger.check(found, spec.Expect())


def test_json_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=5000, count=3).serve()

    assert ledger.build(run).to_json() == ledger.build(run).to_json()


def test_json_keeps_the_contract(tmp_path: Path) -> None:
    top = json.loads(build(cooked.nic(tmp_path)).to_json())

    assert {
        "schema", "playbook", "complete", "lost", "messages_lost", "accelerator", "link",
        "witnesses", "messages", "incomplete", "unexplained", "touches", "disagreements", "notes",
    } == set(top)  # fmt: skip
    assert {"sender/send_trace": 0, "receiver/recv_trace": 0} == top["lost"]
    assert {"device", "backend", "offloads"} == set(top["link"])
    message = top["messages"][0]
    assert {
        "guest_cpu_copies": 3,
        "least_guest_cpu_copies": 3,
        "device_reads": 1,
        "least_device_reads": 1,
        "device_writes": 1,
        "least_device_writes": 1,
        "handovers": 0,
        "least_handovers": 0,
    } == message["totals"]
    place = message["places"][1]
    assert ("skb-linear", "0xff1100000100003c", "0x100003c") == (
        place["place"],
        place["virtual"],
        place["physical"],
    )
    assert {
        "guest", "mover", "kind", "function", "instruction", "caller", "source", "target",
        "offset", "size", "payload_size", "certainty", "evidence", "confirmed_by",
    } == set(message["movements"][0])  # fmt: skip
    assert [0, 1, 2, 3, 4] == [movement["source"] for movement in message["movements"]]
    assert [1, 2, 3, 4, 5] == [movement["target"] for movement in message["movements"]]
    assert "0xff11000002000000" == message["skb"]["sender"][0]["skb"]


def test_the_witnesses_are_named_and_the_absent_say_why(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.manifest["witnesses"] = {"access-log": "absent: kvm", "census": "present"}
    cook.skip_files.add("receiver/rings.json")

    found = build(cook)

    assert {
        "access-log": "absent: kvm",
        "census": "present",
        "probe:bpf": "absent: this run has none",
        "probe:kmod": "present",
        "rings": "absent: nothing from receiver",
        "wire": "present",
    } == found.witnesses


# --- What makes it incomplete ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("cook", "hook"),
    [
        (cooked.nic, "csum_and_copy_from_iter_full"),
        (cooked.nic, "virtio_net:page_to_skb>memcpy"),
        (cooked.nic, "_copy_to_iter"),
        (cooked.loopback, "_copy_from_iter"),
        (cooked.loopback, "_copy_to_iter"),
    ],
)
def test_without_a_hook_that_carries_a_copy_it_is_incomplete(
    tmp_path: Path, cook: Callable[..., Cook], hook: str
) -> None:
    found = build(cook(tmp_path, without=(hook,)))

    assert not found.complete
    assert not found.messages[0].complete
    assert f"{hook} was left out" in why(found)
    assert 16 == found.incomplete[0].bytes
    assert 2 == len(found.incomplete[0].between)


def test_a_hook_the_path_does_not_use_may_be_left_out(tmp_path: Path) -> None:
    found = build(cooked.nic(tmp_path, without=("_copy_from_iter", "csum_and_copy_to_iter")))

    assert found.proven
    assert [] == ledger.check(found, NIC)


@pytest.mark.parametrize(
    ("header", "word"),
    [({"dropped": 2}, "2 dropped"), ({"finished": False}, "was not finished")],
)
def test_loss_makes_it_incomplete(tmp_path: Path, header: dict[str, Any], word: str) -> None:
    cook = cooked.nic(tmp_path)
    cook.header = header

    found = build(cook)

    assert not found.complete
    assert word in why(found)


def test_a_missed_call_makes_it_incomplete(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.missed["sock_def_readable"] = 3

    found = build(cook)

    assert not found.complete
    assert 3 == found.lost["receiver/recv_trace"]
    assert "recv_trace lost records: 3 missed" in why(found)


def test_without_a_trace_it_is_incomplete(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    run.guest("receiver").trace.write_bytes(b"")

    found = ledger.build(run)

    assert not found.complete
    assert "receiver/trace.bin is absent or empty" in why(found)
    assert found.witnesses["probe:kmod"].startswith("absent")


@pytest.mark.parametrize(
    ("role", "path", "value", "word"),
    [
        ("sender", ("sent", "sent"), 0, "send returned 0 messages of 1"),
        ("sender", ("sent", "messages", 0, "returned"), 8, "send returned 8 (errno 0)"),
        ("sender", ("sent",), None, "never reported what it send returned"),
        ("receiver", ("received", "messages", 0, "returned"), 15, "recv returned 15"),
        ("receiver", ("done",), None, "the receiver never said what it holds"),
        ("receiver", ("done", "messages"), [], "does not hold message 0"),
        ("receiver", ("done", "messages", 0, "digest"), "0" * 16, "has digest 0000000000000000"),
    ],
)
def test_what_the_programs_say_counts(
    tmp_path: Path, role: str, path: tuple[Any, ...], value: Any, word: str
) -> None:
    cook = cooked.nic(tmp_path)
    top: Any = cook.guests[role].workloads[0]
    for step in path[:-1]:
        top = top[step]
    top[path[-1]] = value

    found = build(cook)

    assert not found.complete
    assert word in why(found)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"all": "0" * 16}, "have digest 0000000000000000 at the receiver"),
        ({"held": 22}, "holds messages 0 to 21, expected 0 to 22"),
        ({"first": 1}, "holds messages 1 to 23, expected 0 to 22"),
    ],
)
def test_one_digest_vouches_for_messages_that_fit_in_no_line(
    tmp_path: Path, change: dict[str, Any], word: str | None
) -> None:
    cook = cooked.nic(tmp_path, count=23, slots=32)
    done: Any = cook.guests["receiver"].workloads[0]["done"]
    whole = b"".join(cook.messages.bytes(n) for n in range(23))
    done |= {"first": 0, "held": 23, "all": f"{digest(whole):016x}", **change}
    del done["messages"][5:]

    found = build(cook)

    assert found.complete is (word is None), why(found)
    if word is not None:
        assert word in why(found)


def test_no_workload_at_all_is_incomplete_and_no_crash(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.skip_files |= {"sender/workload.json", "receiver/workload.json"}

    found = build(cook)

    assert not found.complete
    assert found.incomplete[0].why.startswith("sender/workload.json is missing:")
    assert "receiver/workload.json is missing:" in why(found)


@pytest.mark.parametrize("role", ["sender", "receiver"])
@pytest.mark.parametrize("cook_of", [cooked.nic, cooked.loopback, cooked.tcp])
def test_without_a_workload_nothing_else_is_said_to_be_missing(
    tmp_path: Path, role: str, cook_of: Callable[[Path], Cook]
) -> None:
    cook = cook_of(tmp_path)
    run = cook.serve()
    holder = next(guest for guest in run.guests() if role in {w.role for w in guest.workloads()})
    path = holder.file("workload.json")
    kept = [one for one in json.loads(path.read_bytes()) if one["role"] != role]
    path.write_text(json.dumps(kept))
    if not kept:
        path.unlink()

    found = ledger.build(run)

    lacks = f"{holder.name}/workload.json"
    said = f"has no {role}" if kept else "is missing"
    first, *others = [one.why for one in found.incomplete]
    assert f"{lacks} {said}: where the {role}'s buffer was is not known" == first
    assert lacks == found.lacks
    # Neither that a hook saw nothing, nor that a frame did not arrive: nobody could look.
    assert others
    assert all(one == f"not to be told: {lacks} {said}" for one in others), others
    assert not any("0x0" in end for one in found.incomplete for end in one.between)


def test_a_workload_that_was_changed_is_not_one_that_is_missing(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    cooked.edit(run, "manifest.json", lambda found: found.update(files=digests(run)))
    path = run.guest("sender").file("workload.json")
    path.write_text(path.read_text() + " ")

    found = ledger.build(run)

    assert "sender/workload.json was changed since the run" in why(found)
    assert "" == found.lacks


def digests(run: RunDir) -> dict[str, str]:
    """Return the manifest's list of files, as a run would have written it."""
    return {
        f"{guest.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for guest in run.guests()
        for path in guest.path.iterdir()
    }


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"protocol": "tcp"}, "the manifest says protocol tcp, the sender (sender/workload.json)"),
        ({"protocol": "tcp"}, "the manifest says protocol tcp, sender/wire.pcap#1 udp"),
        ({"family": "ipv6"}, "the manifest says family ipv6, sender/wire.pcap#1 ipv4"),
        ({"size": 17}, "the manifest says size 17, the receiver (receiver/workload.json) 16"),
        ({"count": 2}, "the manifest says count 2, the sender (sender/workload.json) 1"),
        (
            {"kernel": "6.1.0"},
            "the manifest says kernel 6.1.0, the guest (sender/ethtool.txt) 6",
        ),
    ],
)
def test_a_manifest_that_says_other_than_the_records_is_a_fault(
    tmp_path: Path, stated: dict[str, Any], said: str
) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    run.guest("sender").file("ethtool.txt").write_text("kernel: 6.12.117+deb12-amd64\nmtu: 1500\n")
    assert ledger.build(run).complete

    cooked.edit(run, "manifest.json", lambda found: found.update(stated))
    found = ledger.build(run)

    assert not found.complete
    assert said in why(found)


def test_only_the_manifest_is_incomplete_and_no_crash(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    for guest in run.guests():
        for path in guest.path.iterdir():
            path.unlink()

    assert not ledger.build(run).complete


def test_a_disagreement_is_no_proof(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.queues["tx"]["gates"]["sent"]["descriptors"][0][1] = "0x7000000"

    found = build(cook)

    assert found.complete
    assert found.disagreements
    assert not found.proven


@pytest.mark.parametrize("name", ["sender/trace.bin", "receiver/wire.pcap", "sender/rings.json"])
def test_a_garbled_file_raises(tmp_path: Path, name: str) -> None:
    run = cooked.nic(tmp_path).serve()
    run.file(name).write_bytes(b"garbage" * 2000)

    with pytest.raises(TraceCorrupt):
        ledger.build(run)


def test_many_messages_have_their_own_lines(tmp_path: Path) -> None:
    found = build(cooked.nic(tmp_path, count=9))

    assert found.proven
    assert [] == ledger.check(found, NIC)
    assert list(range(9)) == [message.id for message in found.messages]


def test_one_message_of_many_that_fails_is_named(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, count=3)
    lost = [e for e in cook.receiver.events if e["hook"] == "_copy_to_iter"][1]
    cook.receiver.events.remove(lost)

    found = build(cook)

    assert [True, False, True] == [message.complete for message in found.messages]
    assert ["guest-cpu-copies of message 1 3, found 2"] == (
        ledger.check(found, spec.Expect(guest_cpu_copies=3))
    )


# --- TCP ------------------------------------------------------------------------------------


def test_over_loopback_tcp_hands_a_clone_over(tmp_path: Path) -> None:
    (message,) = build(cooked.tcp(tmp_path, over="loopback")).messages

    assert message.skb.same_object is False
    assert message.skb.same_head is True
    assert "__tcp_transmit_skb" == message.skb.sender[0].at


def test_without_the_record_of_the_filled_skb_nobody_knows_of_a_clone(tmp_path: Path) -> None:
    cook = cooked.tcp(tmp_path, over="loopback", without=("__tcp_transmit_skb",))
    (message,) = build(cook).messages

    assert message.complete
    assert message.skb.same_object is None


def test_where_bytes_differ_the_smallest_count_stands_too(tmp_path: Path) -> None:
    (message,) = build(cooked.tcp(tmp_path, size=1449)).messages

    totals = message.totals
    assert (4, 3) == (totals.guest_cpu_copies, totals.least_guest_cpu_copies)


def test_a_count_that_is_expected_is_expected_of_each_byte(tmp_path: Path) -> None:
    found = build(cooked.tcp(tmp_path, size=1449))

    assert ["guest-cpu-copies 4, found 3 to 4"] == ledger.check(found, Expect(guest_cpu_copies=4))
    assert [] == ledger.check(found, Expect(device_reads=1))


@pytest.mark.parametrize("size", [1, 7])
def test_too_short_to_be_searched_for_is_complete_by_socket_and_order(
    tmp_path: Path, size: int
) -> None:
    cook = cooked.tcp(tmp_path, size=size, count=3)
    cook.manifest["witnesses"] = {"census": "absent: too short"}

    found = build(cook)

    assert found.complete
    assert "absent: too short" == found.witnesses["census"]


def test_a_file_changed_since_the_run_is_named(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    path = run.guest("receiver").file("rings.json")
    manifest = dict(run.manifest().values)
    manifest["files"] = {
        f"{name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for name in ("sender", "receiver")
        for file in run.guest(name).path.iterdir()
    }
    run.write_manifest(manifest)
    assert ledger.build(run).complete
    assert not ledger.build(run).notes

    planted = run.guest("sender").file("more.json")
    planted.write_text("{}")
    assert "sender/more.json is not among the files of the run" in why(ledger.build(run))
    planted.unlink()

    path.write_text(path.read_text() + "\n")

    assert "receiver/rings.json was changed since the run" in why(ledger.build(run))
    path.unlink()
    assert "receiver/rings.json is gone since the run" in why(ledger.build(run))


@pytest.mark.parametrize("files", [None, "zz", []])
def test_a_list_of_files_that_is_none_is_named(tmp_path: Path, files: object) -> None:
    run = cooked.nic(tmp_path).serve()
    run.write_manifest(dict(run.manifest().values) | {"files": files})

    found = ledger.build(run)
    assert not found.complete
    assert "the manifest's list of files is none" in why(found)


def test_without_a_list_of_files_that_is_said(tmp_path: Path) -> None:
    notes = ledger.build(cooked.nic(tmp_path).serve()).notes
    assert any("the manifest lists no files" in note for note in notes)


def test_what_was_left_out_is_said_even_if_nothing_is_missing(tmp_path: Path) -> None:
    found = ledger.build(cooked.nic(tmp_path, without=["virtio_net:page_to_skb"]).serve())
    assert found.complete
    assert "left out as asked: virtio_net:page_to_skb" in found.notes


def test_a_witness_whose_file_is_gone_is_named(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    manifest = dict(run.manifest().values)
    manifest["witnesses"] = {"census": "present"}
    run.write_manifest(manifest)
    assert ledger.build(run).complete

    run.guest("sender").file("census.json").unlink()

    found = ledger.build(run)
    assert not found.complete
    assert "census was a witness of the run" in why(found)


def test_nothing_unexplained_is_not_said_where_nobody_looked(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=4).serve()
    for guest in run.guests():
        guest.write_json("census.json", {"needles": "absent: too short", "gates": []})

    found = ledger.build(run)

    assert not found.searched
    assert ["unexplained 0, found unknown"] == ledger.check(found, Expect(unexplained=0))
    assert "RAM was not searched" in " ".join(report.render(found, run).split())


def test_a_virtual_address_that_is_not_the_physical_one_s_is_a_disagreement(
    tmp_path: Path,
) -> None:
    cook = cooked.nic(tmp_path)
    event = next(one for one in cook.guests["receiver"].events if one.get("dst"))
    event["dst"] += 4096

    found = build(cook)

    assert any("direct map" in one.text for one in found.disagreements)
    assert not found.proven


def test_a_manifest_nobody_wrote_is_corrupt_and_no_crash(tmp_path: Path) -> None:
    for change in ({"size": 0}, {"count": 0}, {"count": 1 << 24}, {"seed": None}):
        run = cooked.nic(tmp_path / str(len(str(change)))).serve()
        run.write_manifest({**run.manifest().values, **change})
        with pytest.raises(TraceCorrupt):
            ledger.build(run)


@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback])
def test_twice_the_messages_are_twice_the_work(tmp_path: Path, cook: Callable[..., Cook]) -> None:
    few = cook(tmp_path / "few", count=150).serve()
    many = cook(tmp_path / "many", count=300).serve()

    assert calls(lambda: ledger.build(many)) < 2.3 * calls(lambda: ledger.build(few))


def fragments(path: Path, *, count: int) -> Cook:
    """Cook datagrams of several frames, the last of which lies where an older one was."""
    return cooked.nic(path, size=6000, count=count, heads=cooked.reused(count, fragment=4))


def segments(path: Path, *, count: int) -> Cook:
    """Cook a stream of which each message is two frames, where older ones of it were."""
    return cooked.tcp(path, size=2800, count=count, again=4)


def strange(path: Path, *, count: int) -> Cook:
    """Cook datagrams whose last frame is never what the device was given."""
    cook = fragments(path, count=count)
    cook.sender.frames = [
        frame[:-1] + bytes([frame[-1] ^ 1]) if at % 5 == 0 and at else frame
        for at, frame in enumerate(cook.sender.frames)
    ]
    return cook


def unheard(path: Path, *, count: int) -> Cook:
    """Cook datagrams of which the receiver's driver was told of every other frame alone."""
    cook = fragments(path, count=count)
    told = [one for one in cook.receiver.events if one["hook"] == "virtio_net:receive_buf"]
    missing = {id(one) for one in told[::2]}
    cook.receiver.events = [one for one in cook.receiver.events if id(one) not in missing]
    return cook


@pytest.mark.parametrize("cook", [fragments, segments, strange, unheard])
def test_twice_the_frames_are_twice_the_work(tmp_path: Path, cook: Callable[..., Cook]) -> None:
    few = cook(tmp_path / "few", count=60).serve()
    many = cook(tmp_path / "many", count=120).serve()

    assert calls(lambda: ledger.build(many)) < 2.3 * calls(lambda: ledger.build(few))


def test_in_its_file_a_place_is_a_line_and_so_is_a_movement(tmp_path: Path) -> None:
    built = ledger.build(cooked.nic(tmp_path, count=2).serve())
    lines = [line.strip(" ,") for line in built.to_json().splitlines()]
    places = [json.loads(line) for line in lines if line.startswith('{"guest"')]

    assert json.loads(built.to_json()) == built.as_json()
    assert sum("region" in entry for entry in places) == 2 * 6
    assert sum("mover" in entry for entry in places) == 2 * 5


# --- Messages that got lost -----------------------------------------------------------------


@pytest.mark.parametrize("slots", [8, 2])
def test_a_lost_datagram_is_a_lost_message_and_shifts_no_digest(tmp_path: Path, slots: int) -> None:
    found = ledger.build(cooked.nic(tmp_path, count=6, slots=slots, lost=(1, 4)).serve())

    assert (1, 4) == found.messages_lost
    assert {1, 4} == {entry.message for entry in found.incomplete}
    assert [True, False, True, True, False, True] == [one.complete for one in found.messages]
    assert 0 == sum(found.lost.values())
    assert () == found.disagreements
    (first, *_) = verdict.sentences(found)
    assert first.startswith("INCOMPLETE: 2 of 6 messages lost: ")


def test_a_message_the_receiver_has_and_cannot_have_is_no_lost_one(tmp_path: Path) -> None:
    """The digests are held against the order of the records, so a wrong one is still found."""
    run = cooked.nic(tmp_path, count=4, slots=8, lost=(1,)).serve()

    def spoil(workloads: Any) -> None:
        workloads[0]["done"]["messages"][1]["digest"] = "0" * 16

    cooked.edit(run, "receiver/workload.json", spoil)
    found = ledger.build(run)

    assert "message 2 has digest 0000000000000000" in " ".join(one.why for one in found.incomplete)


def test_where_the_records_do_not_say_which_none_is_called_lost(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, count=4, slots=8, lost=(1,), without=["_copy_to_iter"])
    found = ledger.build(cook.serve())

    assert () == found.messages_lost
    assert "recv returned 3 messages of 4" in [one.why for one in found.incomplete]


def test_nothing_is_lost_where_all_came(tmp_path: Path) -> None:
    found = ledger.build(cooked.nic(tmp_path, count=3).serve())

    assert () == found.messages_lost
    assert found.complete


def test_the_text_of_a_ledger_comes_a_message_at_a_time(tmp_path: Path) -> None:
    built = build(cooked.nic(tmp_path, count=3))
    pieces = list(built.pieces())

    assert built.to_json() == "".join(pieces)
    assert [0, 1, 2] == [
        int(number)
        for piece in pieces
        for number in re.findall(r'^      "id": (\d+)', piece, re.MULTILINE)
    ]
    assert all(piece.count('"totals"') < 2 for piece in pieces)


@pytest.mark.parametrize("kept", [1, text.PATTERNS])
def test_words_of_any_kind_are_written_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Lines are filled in by `%`, and those with the same words share theirs."""
    monkeypatch.setattr(text, "PATTERNS", kept)
    built = build(cooked.nic(tmp_path))
    message = built.messages[0]
    words = ("50%", "%d", "%%s", '"quoted"', "a\\b\n", "größer", "")
    named = [
        movement._replace(function=word, caller=word, confirmed_by=(word, "x"), evidence=(word,))
        for word in words
        for movement in message.movements
    ]
    of_places = tuple(
        place._replace(region=word, content_verified=bool(word))
        for word in words
        for place in message.places
    )
    changed = message._replace(movements=tuple(named), places=of_places)
    told = dataclasses.replace(built, messages=(changed,))

    assert json.loads(told.to_json()) == told.as_json()
