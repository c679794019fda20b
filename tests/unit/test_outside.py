"""Two accounts of one run: they agree, or the one that lies is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import access, correlate, ledger, report
from lab.correlate import outside
from lab.correlate.naming import Names
from lab.correlate.types import Kind, Movement
from lab.report import questions
from lab.rundir import RunDir
from tests import schema
from tests.unit import cooked
from tests.unit.cooked import Cook
from tests.unit.cooked_dma import SHIFT, behind_iommu

Row = dict[str, Any]
TEXT = 0xFFFF_FFFF_8160_0000  # a function that has no hook: memcpy_orig


def rows(run: RunDir, movement: Movement, call: int) -> list[Row]:
    """Return the load and the store an emulator would have logged for a copy."""
    text = correlate.load(run).identity.bytes_of(movement.message)
    front = movement.size - movement.payload_size  # headers; a row is of one page
    front *= all(one.physical % 4096 >= front for one in (movement.source, movement.target))
    data = bytes(front) + text[movement.offset : movement.offset + movement.payload_size]
    common = {"bytes": data, "ip": TEXT + 16 * call, "call": call, "tsc": 1000 + call}
    places = ((movement.source, False), (movement.target, True))
    return [
        {
            **common, "virt": place.virtual - front, "phys": place.physical - front,
            "store": store,
        }
        for place, store in places
    ]  # fmt: skip


def logged(run: RunDir) -> dict[str, list[Row]]:
    """Return, per guest, the accesses of the copies that the probes of a run report."""
    out: dict[str, list[Row]] = {guest.name: [] for guest in run.guests()}
    for call, movement in enumerate(correlate.follow(run).movements, 1):
        if movement.kind is Kind.COPY:
            out[movement.guest] += rows(run, movement, call)
    return out


def write(run: RunDir, logs: dict[str, list[Row]], **header: Any) -> None:
    for guest in run.guests():
        guest.file("access.bin").write_bytes(access.encode_log(logs[guest.name], **header))


@pytest.fixture(params=["nic", "loopback"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    cook = {"nic": cooked.nic, "loopback": cooked.loopback}[request.param](tmp_path)
    return cook.serve()


@pytest.mark.parametrize("entry", [0x0100_0000 | 3, 0x0100_0000], ids=["mapped", "not allowed"])
def test_what_was_stored_in_an_iommu_s_table_says_what_the_device_read(
    tmp_path: Path, entry: int
) -> None:
    """Nobody in the guest is asked: the rings hold the device's address, the log what it was."""
    cook = behind_iommu(cooked.nic(tmp_path))
    page, slot = (0x0100_0000 + SHIFT), 0x0505_0000
    for gate in cook.sender.queues["tx"]["gates"].values():
        gate["entries"] = [[f"{page:#x}", f"{slot:#x}"]]
    run = cook.serve()
    logs = logged(run)
    stored = {"bytes": entry.to_bytes(8, "little"), "phys": slot, "virt": slot, "store": True}
    logs["sender"].append({**stored, "ip": TEXT, "call": 99, "tsc": 999})
    write(run, logs)

    log = outside.look(correlate.load(run))
    assert log is not None
    flow = correlate.follow(log.inputs)

    reads = [one for one in flow.movements if one.kind is Kind.DMA_READ]
    if entry & 3:
        assert not flow.gaps
        assert any("sender/access.bin#" in one for one in reads[0].evidence)
    else:
        assert not reads
        assert "no record and no table of the IOMMU says" in flow.gaps[0].why


def test_both_accounts_confirm_every_copy(run: RunDir) -> None:
    write(run, logged(run))

    found = ledger.build(run)

    assert found.complete
    assert () == found.disagreements
    assert "present" == found.witnesses["access-log"]
    for message in found.messages:
        for movement in message.movements:
            if movement.kind == "copy":
                assert "access-log" in movement.confirmed_by
                assert any("access.bin#" in one for one in movement.evidence)


@pytest.mark.parametrize("stored", [False, True])
def test_what_a_cpu_stored_is_confirmed_to_be_no_device_s(tmp_path: Path, *, stored: bool) -> None:
    run = cooked.nic(tmp_path).serve()
    logs = logged(run)
    (written,) = [one for one in correlate.follow(run).movements if one.kind is Kind.DMA_WRITE]
    if stored:
        text = correlate.load(run).identity.bytes_of(0)
        common = {"bytes": text, "ip": TEXT, "call": 90, "tsc": 900}
        here, away = (written.target.virtual, written.target.physical), 1 << 20
        logs["receiver"][:0] = [
            {**common, "virt": here[0] + away, "phys": here[1] + away, "store": False},
            {**common, "virt": here[0], "phys": here[1], "store": True},
        ]
    write(run, logs)

    found = ledger.build(run)

    (again,) = [one for one in found.messages[0].movements if one.kind == "dma-write"]
    assert ("access-log" in again.confirmed_by) is not stored
    assert bool(found.disagreements) is stored


# --- What a copy is called ---------------------------------------------------------------------

# The calls around a copy as the log has them, innermost first, by the hook of it.
CALLED = {
    "csum_and_copy_from_iter_full": (0xFFFF_FFFF_8160_2057, 0xFFFF_FFFF_8150_0061),
    "_copy_from_iter": (0xFFFF_FFFF_8160_1115, 0xFFFF_FFFF_8150_0061),
    "_copy_to_iter": (0xFFFF_FFFF_8160_30D1, 0xFFFF_FFFF_8150_1368),
    # A kprobe executes the call itself: what is on the stack is who called page_to_skb.
    "virtio_net:page_to_skb>memcpy": (0xFFFF_FFFF_C010_1308,),
}


def called(run: RunDir) -> dict[str, list[Row]]:
    """Return the accesses of a run's copies with the calls around each."""
    logs = logged(run)
    copies = [one for one in correlate.follow(run).movements if one.kind is Kind.COPY]
    for guest, rows_of in logs.items():
        mine = [one for one in copies if one.guest == guest]
        for number, row in enumerate(rows_of):
            row["caller"] = CALLED[mine[number // 2].function]
    return logs


def relabelled(cook: Cook, hook: str, lie: Row) -> RunDir:
    """Serve a run whose log is true and whose records of a hook say otherwise."""
    run = cook.serve()
    write(run, called(run))
    for guest in cook.guests.values():
        for event in guest.events:
            if event["hook"] == hook:
                event.update(lie)
    return cook.serve()


def test_names_of_a_true_run_agree(run: RunDir) -> None:
    write(run, called(run))

    assert ledger.build(run).proven


@pytest.mark.parametrize(
    ("hook", "lie", "says"),
    [
        ("_copy_to_iter", {"hook": "csum_and_copy_to_iter"}, "CPUs were in memcpy_orig < _copy_to"),
        ("_copy_to_iter", {"hook": "virtio_net:page_to_skb>memcpy"}, "CPUs were in memcpy_orig"),
        ("virtio_net:page_to_skb>memcpy", {"hook": "_copy_to_iter"}, "< receive_buf+0x308"),
        ("csum_and_copy_from_iter_full", {"hook": "_copy_from_iter"}, "by _copy_from_iter, and"),
        ("_copy_to_iter", {"caller": 0xFFFF_FFFF_8150_2010}, "CPUs were called from udp_recvmsg"),
        ("_copy_to_iter", {"size": 20, "ret": 20}, "of 20 bytes, and CPUs copied 16"),
        ("virtio_net:page_to_skb>memcpy", {"aux": 0xFFFF_FFFF_8150_1010}, "instruction elsewhere"),
        (
            "virtio_net:page_to_skb>memcpy",
            {"hook": "virtio_net:xdp_linearize_page>memcpy"},
            "instruction elsewhere",
        ),
    ],
)
def test_a_probe_that_names_a_copy_otherwise_is_named(
    tmp_path: Path, hook: str, lie: Row, says: str
) -> None:
    found = ledger.build(relabelled(cooked.nic(tmp_path), hook, lie))

    assert any(says in one.text for one in found.disagreements)
    assert not found.proven


def test_the_log_alone_names_no_hook_and_its_instructions_lie_where_it_says(run: RunDir) -> None:
    write(run, called(run))
    for guest in run.guests():
        guest.trace.unlink()
    cooked.edit(run, "manifest.json", lambda it: it["probes"].update(kind="none"))

    assert () == ledger.build(run).disagreements


def test_a_function_that_calls_another_last_is_on_no_stack(tmp_path: Path) -> None:
    """What has no hook of its own may be what the hooked function became."""
    cook = cooked.nic(tmp_path, absent=["csum_and_copy_from_iter_full"])
    for event in cook.sender.events:
        if event["hook"] == "csum_and_copy_from_iter_full":
            event["hook"] = "_copy_from_iter"
    run = cook.serve()
    logs = logged(run)
    for row in logs["sender"]:
        row["caller"] = CALLED["csum_and_copy_from_iter_full"][:1]
    write(run, logs)

    assert ledger.build(run).complete
    assert () == ledger.build(run).disagreements


@pytest.mark.parametrize(("hook", "faults"), [("first", 0), ("second", 0), ("third", 2)])
def test_of_the_same_bytes_copied_twice_one_of_both_acts_is_a_probe_s(
    hook: str, faults: int
) -> None:
    """TCP sends again, from and to the same places by another function."""
    acts: dict[str, Any] = {
        name: SimpleNamespace(function=name, callers=("__tcp_transmit_skb+0x1",))
        for name in ("first", "second")
    }
    twins: list[Any] = [
        SimpleNamespace(evidence=[name], size=9, payload_size=9, function=name) for name in acts
    ]
    movement: Any = SimpleNamespace(function=hook, caller="", size=9, payload_size=9)
    hooks = frozenset({"first", "second", "third"})
    names = Names(functions=hooks, copying=hooks, seen=acts, callers=False)

    assert faults == len(list(names.unlike(movement, twins)))


def test_a_copy_the_log_lacks_is_a_probe_that_lies(run: RunDir) -> None:
    logs = logged(run)
    guest = next(name for name, entries in logs.items() if entries)
    del logs[guest][:2]
    write(run, logs)

    found = ledger.build(run)

    assert any("no CPU was seen to make" in one.text for one in found.disagreements)
    assert not found.proven


@pytest.mark.parametrize("lost", [0, 3])
def test_of_probes_that_lost_records_silence_is_a_note(tmp_path: Path, lost: int) -> None:
    """What they did not report, or not as often, they may have had no room for."""
    logs = logged(cooked.nic(tmp_path / "whole").serve())
    assert logs["receiver"]
    cook = cooked.nic(tmp_path / "lossy")
    copies = [one for one in cook.receiver.events if one["hook"].endswith(">memcpy")]
    cook.receiver.events[:] = [one for one in cook.receiver.events if one not in copies]
    cook.header["dropped"] = lost
    run = cook.serve()
    write(run, logs)

    found = ledger.build(run)

    named = [one.text for one in found.disagreements if "no probe reported" in one.text]
    noted = [one for one in found.notes if "copies of which the probes, which lost" in one]
    assert (not lost, bool(lost)) == (bool(named), bool(noted))
    assert not found.complete


def test_a_copy_the_probes_lack_is_named(run: RunDir) -> None:
    logs = logged(run)
    last = correlate.follow(run).movements[-1]
    extra = rows(run, last, 90)
    extra[0] |= {"virt": extra[1]["virt"], "phys": extra[1]["phys"]}
    extra[1] |= {"virt": cooked.DIRECT_MAP + 0x1234000, "phys": 0x1234000}
    logs[last.guest] += extra
    write(run, logs)

    found = ledger.build(run)

    texts = [one.text for one in found.disagreements if "no probe reported" in one.text]
    assert texts
    assert "0x1234000" in texts[0]
    assert not found.proven


def test_a_probe_that_reports_a_wrong_address_is_caught(run: RunDir) -> None:
    logs = logged(run)
    guest = next(name for name, entries in logs.items() if entries)
    for row in logs[guest]:
        if row["store"]:
            row["virt"] += 0x10000
            row["phys"] += 0x10000
    write(run, logs)

    assert ledger.build(run).disagreements


def test_a_log_with_losses_confirms_nothing_and_is_said_to(run: RunDir) -> None:
    write(run, {name: [] for name in logged(run)}, lost=3)

    found = ledger.build(run)

    assert found.complete
    assert () == found.disagreements
    lost = 3 * len(run.guests())
    assert (0, lost) == (found.records_lost, found.accesses_lost)
    assert f"lost {lost} accesses: not held against the probes" == found.witnesses["access-log"]
    schema.check(found.as_json())
    text = " ".join(report.render(found, run).split())
    assert f"0 records, {lost} accesses lost." in text
    listed = text.partition("Witnesses: ")[2].partition(" absent:")[0]
    assert "access-log" not in listed.partition(";")[0]
    assert f"; access-log: lost {lost} accesses, not held against the probes" in listed
    answers = questions.answers(found, found.messages[0], run.manifest(), "")
    told = {one.question: one.answer for one in answers}
    assert " 3 accesses of " in told["Was anything lost?"]
    assert f"(access-log: lost {lost} accesses" in told["Why believe it?"]
    assert "access-log," not in told["Why believe it?"].partition(" (access-log: lost")[0]


def test_a_log_that_lost_nothing_is_a_witness_like_others(run: RunDir) -> None:
    write(run, logged(run))

    found = ledger.build(run)

    assert "present" == found.witnesses["access-log"]
    assert "accesses lost" not in report.render(found, run)


def test_without_probes_the_log_alone_is_complete(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)

    found = ledger.build(run)

    assert found.complete, [one.why for one in found.incomplete]
    (message,) = found.messages
    totals = message.totals
    assert (3, 1, 1) == (totals.guest_cpu_copies, totals.device_reads, totals.device_writes)


def test_without_probes_a_missing_copy_leaves_a_gap(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    logs = logged(run)
    del logs["receiver"][:2]
    write(run, logs)
    _without_probes(run)

    assert not ledger.build(run).complete


def test_without_probes_times_are_the_emulators_and_no_clock_is_off(tmp_path: Path) -> None:
    """What a guest's TSC is to the host's clock says nothing of when the log saw an access."""
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    write(run, logged(run))
    gates = [
        {"gate": gate, "before_ns": 1, "after_ns": 2} for gate in ("armed", "sent", "received")
    ]
    for guest in run.guests():
        told = json.loads(guest.file("tsc.json").read_text())
        guest.write_json("tsc.json", {**told, "gates": gates})
    assert {"clock"} == {one.what for one in ledger.build(run).disagreements}
    _without_probes(run)

    assert not ledger.build(run).disagreements


def _cut(cook: Cook) -> list[list[Any]]:
    """Make of the descriptor that was sent one of the headers and one of the payload."""
    rows: list[list[Any]] = cook.sender.queues["tx"]["gates"]["sent"]["descriptors"]
    number, start, length, flags, _ = rows[0]
    payload = length - 16
    rows[:1] = [
        [number, start, payload, flags, number + 1],
        [number + 1, f"{int(start, 16) + payload:#x}", 16, flags, 0],
    ]
    return rows


def test_without_probes_a_packet_of_several_descriptors_is_put_together(tmp_path: Path) -> None:
    """As a device with scatter-gather is given it: the headers, and what a page holds."""
    cook = cooked.nic(tmp_path)
    _cut(cook)
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)

    found = ledger.build(run)

    assert found.complete, found.incomplete
    (read,) = [m for m in found.messages[0].movements if m.kind == "dma-read"]
    assert {"sender/rings.json#sent/tx/0", "sender/rings.json#sent/tx/1"} < set(read.evidence)


def test_without_probes_a_packet_that_was_sent_again_is_the_same_one(tmp_path: Path) -> None:
    """TCP sends again what it hears nothing of; the ring may show its descriptors once."""
    cook = cooked.nic(tmp_path)
    _cut(cook)
    cook.sender.frames.append(cook.sender.frames[-1])
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)

    assert ledger.build(run).complete


def test_without_probes_half_of_a_packet_is_none(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    _cut(cook).pop(0)
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)

    assert "and the rings show none" in ledger.build(run).incomplete[0].why


def test_without_probes_a_table_that_is_gone_is_told(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.queues["tx"]["gates"]["sent"]["descriptors"][0][1:4] = ["0x9000", 32, 4]
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)

    assert "the rings point at tables that are freed by then" in (
        ledger.build(run).incomplete[0].why
    )


def test_without_probes_a_loss_is_incomplete(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    write(run, logged(run), lost=1)
    _without_probes(run)

    found = ledger.build(run)

    assert not found.complete
    assert any("lost 1 accesses" in one.why for one in found.incomplete)
    assert not found.witnesses["access-log"].startswith("lost")
    schema.check(found.as_json())


def test_one_guest_without_a_log_is_no_witness(run: RunDir) -> None:
    write(run, logged(run))
    run.guests()[0].file("access.bin").unlink()

    assert outside.look(correlate.load(run)) is None
    assert ledger.build(run).witnesses["access-log"].startswith("absent")


def _without_probes(run: RunDir) -> None:
    manifest = dict(run.manifest().values)
    manifest["probes"] = {"kind": "none", "without": []}
    run.write_manifest(manifest)
    for guest in run.guests():
        guest.trace.unlink()


def test_the_log_s_times_are_not_held_against_the_guest_s_clock(tmp_path: Path) -> None:
    """An emulator's TSC is the host's; a guest's begins elsewhere."""
    run = cooked.nic(tmp_path).serve()
    write(run, logged(run))
    names = ("armed", "sent", "received")
    gates = [{"gate": gate, "before_ns": 10**15, "after_ns": 10**15} for gate in names]
    for guest in run.guests():
        cooked.edit(run, f"{guest.name}/tsc.json", lambda value: value.update(gates=gates))
    assert "clock" in {one.what for one in ledger.build(run).disagreements}

    cooked.edit(run, "manifest.json", lambda value: value["probes"].update(kind="none"))

    assert () == ledger.build(run).disagreements


# --- How often ------------------------------------------------------------------------------


def last_copy(run: RunDir) -> Movement:
    return [one for one in correlate.follow(run).movements if one.kind is Kind.COPY][-1]


def twice(run: RunDir) -> list[str]:
    return [one.text for one in ledger.build(run).disagreements if " once more than " in one.text]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("function", [16, 1], ids=["another function", "the same function"])
def test_a_copy_made_once_more_than_a_probe_reports_is_named(
    run: RunDir, function: int, times: int
) -> None:
    """The same bytes from the same place to the same: to the log another act."""
    logs = logged(run)
    last = last_copy(run)
    for call in range(90, 90 + times):
        logs[last.guest] += rows(run, last, call * function)
    write(run, logs)

    assert times == len(twice(run))
    assert f"to {last.target.physical:#x}" in twice(run)[0]
    assert not ledger.build(run).proven


def test_a_probe_that_reports_a_copy_twice_is_caught(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    run = cook.serve()
    write(run, logged(run))
    once = next(one for one in cook.receiver.events if one["hook"].endswith(">memcpy"))
    cook.receiver.events.append(once | {"tsc": once["tsc"] + 5})

    (text,) = twice(cook.serve())

    assert "a probe reports once more than CPUs" in text


def test_an_outer_and_an_inner_function_are_one_copy(tmp_path: Path) -> None:
    cook = cooked.loopback(tmp_path)
    run = cook.serve()
    write(run, logged(run))
    inner = next(one for one in cook.sender.events if one["hook"] == "_copy_to_iter")
    cook.sender.events.append(inner | {"hook": "csum_and_copy_to_iter", "tsc": inner["tsc"] + 5})

    found = ledger.build(cook.serve())

    assert () == found.disagreements
    assert found.complete


@pytest.mark.parametrize(("began", "named"), [(0, 0), (8, 1)], ids=["begun again", "a piece"])
def test_a_copy_that_a_fault_broke_off_is_begun_again(run: RunDir, began: int, named: int) -> None:
    """A probe may be told that nothing was copied; a piece from the middle is another copy."""
    logs = logged(run)
    guest = last_copy(run).guest
    broken = [
        row
        | {"bytes": row["bytes"][began : began + 8], "call": 77}
        | {key: row[key] + began for key in ("virt", "phys")}
        for row in logs[guest][-2:]
    ]
    logs[guest][-2:-2] = broken
    write(run, logs)

    assert named == len(twice(run))


def test_a_copy_of_several_messages_at_once_is_one_act(tmp_path: Path) -> None:
    """As of an skb that holds what TCP has not sent yet."""
    cook = cooked.nic(tmp_path, count=2)
    run = cook.serve()
    logs = logged(run)
    inputs = correlate.load(run)
    data = b"".join(map(inputs.identity.bytes_of, (0, 1)))
    common = {"bytes": data, "ip": TEXT, "call": 99, "tsc": 9999}
    for at, store in ((0x0700_0000, False), (0x0701_0000, True)):
        place = {"virt": cooked.DIRECT_MAP + at, "phys": at, "store": store}
        logs["sender"].append(common | place)
    write(run, logs)

    log = outside.look(inputs)

    assert log is not None
    (sender,) = [one for one in log.guests if one.name == "sender"]
    (act,) = [one for one in sender.records if one.size == len(data)]
    assert act.bytes == data


# --- What a device was given, where the rings do not show it any more --------------------------

RING, OFFERED = 0x1000, 0x2000  # of a cooked queue


def _given(
    logs: dict[str, list[Row]], pieces: list[tuple[int, int]], *, index: int, table: int = 0
) -> None:
    """Log that the sender's driver gave its device a packet, in descriptor 0 of the ring."""

    def store(physical: int, data: bytes) -> None:
        logs["sender"].append(
            {"bytes": data, "phys": physical, "virt": cooked.DIRECT_MAP + physical, "store": True,
             "ip": TEXT, "call": 500 + index, "tsc": 5000 + index}
        )  # fmt: skip

    for number, (address, length) in enumerate(pieces):
        more = int(number + 1 < len(pieces))
        store(
            (table or RING) + 16 * number, struct.pack("<QIHH", address, length, more, number + 1)
        )
    if table:
        store(RING, struct.pack("<QIHH", table, 16 * len(pieces), 4, 1))
    store(OFFERED + 4 + 2 * (index % 256), bytes(2))
    store(OFFERED + 2, struct.pack("<H", index + 1))


def _sent_pieces(cook: Cook) -> list[tuple[int, int]]:
    gates = cook.sender.queues["tx"]["gates"]["sent"]
    return [(int(row[1], 16), row[2]) for row in gates["descriptors"] if row[2]]


@pytest.mark.parametrize("table", [0, 0x7000], ids=["in the ring", "in a table"])
def test_without_probes_what_was_stored_in_a_descriptor_says_what_was_read(
    tmp_path: Path, table: int
) -> None:
    cook = cooked.nic(tmp_path)
    _cut(cook)
    pieces = _sent_pieces(cook)
    for row in cook.sender.queues["tx"]["gates"]["sent"]["descriptors"]:
        row[1:4] = ["0x0", 0, 0]
    run = cook.serve()
    logs = logged(run)
    _without_probes(run)
    write(run, logs)
    assert "and the rings show none" in ledger.build(run).incomplete[0].why

    _given(logs, pieces, index=7, table=table)
    write(run, logs)
    found = ledger.build(run)

    assert found.complete, found.incomplete
    (read,) = [m for m in found.messages[0].movements if m.kind == "dma-read"]
    assert any(one.startswith("sender/access.bin#") for one in read.evidence)


def test_without_probes_a_descriptor_that_is_used_again_was_read_each_time(
    tmp_path: Path,
) -> None:
    cook = cooked.nic(tmp_path, count=3)
    pieces = _sent_pieces(cook)
    rows = cook.sender.queues["tx"]["gates"]["sent"]["descriptors"]
    rows[0][1:3] = [f"{pieces[-1][0]:#x}", pieces[-1][1]]  # it shows the last of them
    for row in rows[1:]:
        row[1:4] = ["0x0", 0, 0]
    run = cook.serve()
    logs = logged(run)
    _without_probes(run)
    for number, piece in enumerate(pieces):
        _given(logs, [piece], index=7 + number)
    write(run, logs)
    found = ledger.build(run)

    assert 3 == len(pieces)
    assert found.complete, found.incomplete
    reads = [m for one in found.messages for m in one.movements if m.kind == "dma-read"]
    assert 3 == len(reads)


def _over_two_buffers(cook: Cook, first: int) -> None:
    """Make of the receive buffer that was filled one that holds `first` bytes, and the next."""
    gates = cook.receiver.queues["rx"]["gates"]
    start, used = int(gates["armed"]["descriptors"][0][1], 16), gates["received"]["used"]
    (_, length) = used[0]
    used[:1] = [[0, first], [1, length - first]]
    gates["received"]["used_idx"] += 1
    for gate in gates.values():
        gate["descriptors"][0][2] = first
        gate["descriptors"][1][1:3] = [f"{start + first:#x}", 1536]


@pytest.mark.parametrize("first", [58, 64, 69])
def test_without_probes_a_frame_may_go_over_several_buffers(tmp_path: Path, first: int) -> None:
    """Of mergeable buffers each but the last is full, and the first begins with the header."""
    cook = cooked.nic(tmp_path, size=1000)
    _over_two_buffers(cook, 12 + 42 + first)
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)
    found = ledger.build(run)

    assert found.complete, found.incomplete
    writes = [m for m in found.messages[0].movements if m.kind == "dma-write"]
    assert [first, 1000 - first] == [one.payload_size for one in writes]
    assert 1 == found.messages[0].totals.device_writes


@pytest.mark.parametrize("seen", [True, False])
def test_a_further_buffer_of_a_frame_holds_it_only_where_somebody_saw_it(
    tmp_path: Path, *, seen: bool
) -> None:
    """The ring says where and how much; the driver is told of the first buffer alone."""
    cook = cooked.nic(tmp_path, size=1000)
    _over_two_buffers(cook, 12 + 42 + 100)
    (told,) = [one for one in cook.receiver.events if one["hook"] == "virtio_net:receive_buf"]
    told |= {"size": 12 + 42 + 100, "bytes": bytes(10) + b"\x02\x00" + told["bytes"][12:]}
    if not seen:
        cook.receiver.gates.clear()

    flow = correlate.follow(cook.serve())

    writes = [one.payload_size for one in flow.movements if one.kind is Kind.DMA_WRITE]
    assert ([100, 900] if seen else [100]) == writes
    assert seen is not bool(flow.gaps)


@pytest.mark.parametrize("seen", ["census", "nobody"])
def test_without_probes_a_length_that_is_gone_is_told_by_the_bytes(
    tmp_path: Path, seen: str
) -> None:
    """E1000e's driver gives a descriptor a new buffer, and with the old one its length is gone."""
    cook = cooked.nic(tmp_path, device="e1000e")
    queue = cook.receiver.queues["rx"]
    del queue["avail"]
    queue["gates"]["armed"] |= {"used_idx": 0, "avail_idx": 256}
    queue["gates"]["received"] |= {"used_idx": 1, "avail_idx": 257, "used": []}
    run = cook.serve()
    write(run, logged(run))
    _without_probes(run)
    if seen == "nobody":
        run.guest("receiver").write_json("census.json", {"needles": "tag", "gates": []})
        logs = logged(run)
        del logs["receiver"][:2]  # the driver's copy out of the buffer
        write(run, logs)
    found = ledger.build(run)

    assert (seen == "census") == found.complete, found.incomplete
    if seen == "census":
        assert 1 == found.messages[0].totals.device_writes
