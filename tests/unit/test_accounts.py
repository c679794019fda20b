"""Modules and BPF programs in one run: who saw what, and what only one of them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import ledger, record, report
from lab.ledger import Ledger
from lab.record import HOOK_COPY, Hook, Kind
from lab.rundir import RunDir
from tests.unit import cooked

Event = dict[str, Any]
Change = Callable[[Event], Event | None]
# The copies that BPF sees where they are called, by what the modules call them.
CALLED = {
    "_copy_from_iter": "ip_generic_getfrag>_copy_from_iter",
    "_copy_to_iter": "udp_recvmsg>_copy_to_iter",
}

# What a cooked run has no list of.
UNSEALED = "the manifest lists no files: whether they are as the run wrote them is not known"


def beside(
    run: RunDir,
    *,
    kind: str = "both",
    change: Change = lambda event: event,
    absent: tuple[str, ...] = (),
    dropped: int = 0,
) -> RunDir:
    """Tell what the modules told once more, as BPF programs would."""
    for folder in run.guests():
        trace = record.read(folder.trace, guest=folder.name)
        events = []
        for entry in sorted(trace.records, key=lambda entry: (entry.tsc, entry.number)):
            event = record.values_of(entry)
            del event["seq"]
            if entry.hook in CALLED:
                event |= {"hook": CALLED[entry.hook], "kind": Kind.CALLSITE}
                event |= {"size": entry.ret, "ret": 0}
            changed = change(event)
            if changed is not None and changed["hook"] not in absent:
                events.append(changed)
        hooks = [
            Hook(
                CALLED.get(hook.name, hook.name),
                -22 if CALLED.get(hook.name, hook.name) in absent else 0,
                hook.flags & HOOK_COPY,
            )
            for hook in trace.hooks
        ]
        folder.bpf.write_bytes(
            record.encode_section(events, name="bpf", hooks=hooks, module_base=0, dropped=dropped)
        )
        if kind == "bpf":
            folder.trace.unlink()
    values = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    values["probes"]["kind"] = kind
    run.write_manifest(values)
    return run


def said(found: Ledger) -> list[str]:
    return [entry.text for entry in found.disagreements]


@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback], ids=["nic", "loopback"])
def test_each_movement_lists_both_that_saw_it(tmp_path: Path, cook: Any) -> None:
    run = beside(cook(tmp_path).serve())
    found = ledger.build(run)

    assert found.complete
    assert [] == said(found)
    assert (UNSEALED,) == found.notes
    for movement in found.messages[0].movements:
        assert {"probe:kmod", "probe:bpf"} <= set(movement.confirmed_by)
    assert {"present"} == {found.witnesses[name] for name in ("probe:kmod", "probe:bpf")}
    copies = [m for m in found.messages[0].movements if m.kind == "copy"]
    assert all(any("bpf.bin#" in one for one in copy.evidence) for copy in copies)
    assert "sender/bpf" in found.lost
    text = report.render(found, run)
    assert "probe:bpf" in text
    # The table has the modules' records, the sentence behind it the programs'.
    first, last = copies[0], copies[-1]
    line = next(" ".join(part.split()) for part in text.split("\n\n") if "BPF programs too" in part)
    line = line.partition("Seen by the BPF programs too: ")[2]
    assert line.startswith(f"copy #1 {first.evidence[1]}")
    assert line.endswith(f" {last.evidence[1]}.")
    assert ("; handover" if cook is cooked.loopback else "; virtio-net-pci reads sender/") in line


@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback], ids=["nic", "loopback"])
def test_bpf_alone_accounts_for_everything(tmp_path: Path, cook: Any) -> None:
    found = ledger.build(beside(cook(tmp_path).serve(), kind="bpf"))

    assert found.complete
    assert "present" == found.witnesses["probe:bpf"]
    assert found.witnesses["probe:kmod"].startswith("absent")
    for movement in found.messages[0].movements:
        assert "probe:bpf" in movement.confirmed_by
        assert "probe:kmod" not in movement.confirmed_by


def moved_elsewhere(event: Event) -> Event:
    """Tell of another target in the receiver than the modules do."""
    if event["hook"] == CALLED["_copy_to_iter"]:
        event["user"] += 64
    return event


def unseen(event: Event) -> Event | None:
    """Leave the driver's copy out, though the hook for it is attached."""
    return None if event["hook"] == "virtio_net:page_to_skb>memcpy" else event


def test_a_copy_told_differently_is_a_disagreement(tmp_path: Path) -> None:
    found = ledger.build(beside(cooked.nic(tmp_path).serve(), change=moved_elsewhere))

    assert any(
        "probe:kmod saw, and probe:bpf did not: _copy_to_iter" in text for text in said(found)
    )


def filled_elsewhere(event: Event) -> Event:
    """Tell of another buffer that the device filled."""
    if event["hook"] == "virtio_net:receive_buf":
        event |= {"src": event["src"] + 64, "src_phys": event["src_phys"] + 64}
    return event


def test_what_a_device_did_told_differently_is_a_disagreement(tmp_path: Path) -> None:
    found = ledger.build(beside(cooked.nic(tmp_path).serve(), change=filled_elsewhere))

    assert any(
        "probe:kmod saw, and probe:bpf did not: virtio-net-pci" in text for text in said(found)
    )
    assert not [note for note in found.notes if "has no hook for" in note]


def test_a_copy_that_one_did_not_see_is_a_disagreement(tmp_path: Path) -> None:
    found = ledger.build(beside(cooked.nic(tmp_path).serve(), change=unseen))

    (text,) = [text for text in said(found) if "page_to_skb" in text]
    assert text.startswith("probe:kmod saw, and probe:bpf did not: virtio_net:page_to_skb>memcpy")
    evidence = [entry.evidence for entry in found.disagreements if entry.text == text]
    assert evidence[0][0].startswith("receiver/trace.bin#")


def test_what_the_modules_did_not_see_is_a_disagreement(tmp_path: Path) -> None:
    run = beside(cooked.loopback(tmp_path).serve())
    for folder in run.guests():
        kept = record.read(folder.trace, guest=folder.name)
        sections = b""
        for section in kept.sections:
            events = [
                record.values_of(entry)
                for entry in kept.records
                if entry.module == section.name and entry.hook != "_copy_to_iter"
            ]
            for event in events:
                del event["seq"]
            sections += record.encode_section(events, name=section.name, hooks=section.header.hooks)
        folder.trace.write_bytes(sections)
    found = ledger.build(run)

    assert any(
        "probe:bpf saw, and probe:kmod did not: udp_recvmsg>_copy_to_iter" in text
        for text in said(found)
    )


def test_where_there_is_no_hook_silence_is_a_note(tmp_path: Path) -> None:
    gone = (CALLED["_copy_to_iter"],)
    found = ledger.build(beside(cooked.nic(tmp_path).serve(), absent=gone))

    assert found.complete
    assert [] == said(found)
    assert ("probe:bpf in receiver has no hook for _copy_to_iter", UNSEALED) == found.notes


def test_lost_records_say_nothing_of_what_was_not_seen(tmp_path: Path) -> None:
    run = beside(cooked.nic(tmp_path).serve(), change=unseen, dropped=1)
    found = ledger.build(run)

    assert not found.complete
    assert any("bpf lost records: 1 dropped" in entry.why for entry in found.incomplete)
    assert [] == said(found)


def test_an_account_that_is_gone_is_missed(tmp_path: Path) -> None:
    run = beside(cooked.nic(tmp_path).serve())
    run.guest("receiver").bpf.unlink()
    found = ledger.build(run)

    assert not found.complete
    assert any("receiver/bpf.bin is absent or empty" in entry.why for entry in found.incomplete)
