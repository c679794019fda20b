"""The report: one sentence that is true, tables that fit, numbers that records carry."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from lab import blocks, ledger, report
from lab.ledger.expected import as_json, not_judged
from lab.report import conditions, listing, ring_table, tables, verdict
from lab.rundir import RunDir, prune
from lab.rundir.fields import Json
from tests.unit import cooked
from tests.unit.cooked import Cook


def render(run: RunDir) -> str:
    return report.render(ledger.build(run), run)


def test_the_link_in_one_sentence(tmp_path: Path) -> None:
    first, second, *_ = render(cooked.nic(tmp_path).serve()).splitlines()

    assert (
        "COMPLETE: 16 bytes copied 3 times by guest CPUs, read once and written once by "
        "devices; different skbs." == first
    )
    assert (
        "Copied by csum_and_copy_from_iter_full (sender), memcpy in page_to_skb (receiver), "
        "_copy_to_iter (receiver)." == second
    )


def test_loopback_in_one_sentence(tmp_path: Path) -> None:
    first = render(cooked.loopback(tmp_path).serve()).splitlines()[0]

    assert (
        "COMPLETE: 16 bytes copied twice by guest CPUs, no device touched them, 1 handover; "
        "same skb, same head." == first
    )


def test_where_not_every_byte_is_copied_as_often_the_sentence_says_so(tmp_path: Path) -> None:
    run = cooked.tcp(tmp_path, size=1449).serve()
    text = render(run)

    assert (
        "COMPLETE: 1449 bytes, each byte copied 3 or 4 times by guest CPUs, read once and written"
        " once by devices; different skbs." == " ".join(text.split("Copied by")[0].split())
    )
    assert "Totals: 3-4 guest CPU copies, 1 device read, 1 device write, 0 handovers;" in text


def test_messages_that_were_read_unlike_are_told_by_the_least_and_the_most(tmp_path: Path) -> None:
    found = ledger.build(cooked.nic(tmp_path, count=2).serve())
    totals = found.messages[0].totals._replace(device_reads=2, least_guest_cpu_copies=2)
    uneven = dataclasses.replace(
        found, messages=(found.messages[0]._replace(totals=totals), found.messages[1])
    )

    assert verdict.sentences(uneven)[0].startswith(
        "COMPLETE: 2 messages of 16 bytes each (1 copied 3 times and 1 with each byte copied 2 or "
        "3 times) by guest CPUs, read once or twice and written once by devices;"
    )


def test_whoever_copied_any_of_the_messages_is_named(tmp_path: Path) -> None:
    """Two of 16 bytes, sent one by one: as often as each other, and not by the same functions."""
    found = ledger.build(cooked.nic(tmp_path, count=2).serve())
    other = tuple(
        one._replace(function="skb_copy_bits") if one.function.endswith(">memcpy") else one
        for one in found.messages[1].movements
    )
    uneven = dataclasses.replace(
        found, messages=(found.messages[0], found.messages[1]._replace(movements=other))
    )

    assert (
        "Copied by csum_and_copy_from_iter_full (sender), memcpy in page_to_skb (receiver), "
        "_copy_to_iter (receiver), skb_copy_bits (receiver)." == verdict.sentences(uneven)[1]
    )


@pytest.mark.parametrize(
    ("least", "most", "words"),
    [(2, 2, "twice"), (1, 2, "once or twice"), (2, 3, "2 or 3 times"), (2, 4, "2 to 4 times"),
     (0, 2, "never to twice"), (0, 0, "never")],
)  # fmt: skip
def test_how_often_is_said_in_words(least: int, most: int, words: str) -> None:
    assert words == tables.often(least, most)


def test_the_tables_of_the_worksheet_are_there(tmp_path: Path) -> None:
    text = render(cooked.nic(tmp_path, payload=b"HELLO_SEND_TRACE").serve())

    for expected in (
        r"^#2 +memcpy in page_to_skb +rx 0x\w+ +skb 0x\w+ +16 +receiver/trace.bin#1$",
        r'^sender user buffer +0x555555559040 +user heap +0xa000040 +"HELLO_\w+" +RAM, sent$',
        r'^the wire +no address .* no address +"HELLO_SEND_TRACE" +frame$',
        r"^sender +__dev_queue_xmit +0x\w+ +0x\w+ +0x\w+ +58 +#2$",
        r"^receiver +__udp_enqueue_schedule_skb .* 16 +#3$",
        r"^UDP +8 +src_port=40000 dst_port=9999 len=24$",
        r"^THE FRAME +LEN +58 bytes, sender/wire.pcap#1: 17 addresses searched for .* none there",
        r"^Totals: 3 guest CPU copies, 1 device read, 1 device write, 0 handovers; 6 of 6 places",
        r"^Witnesses: census, probe:kmod, rings, wire; absent: access-log",
        r"host CPU that moved them",
        r"under tcg durations are emulated",
    ):
        assert re.search(expected, text, re.MULTILINE), expected


@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback])
@pytest.mark.parametrize("size", [1, 16, 1400, 9000])
@pytest.mark.parametrize("without", [(), ("_copy_to_iter",), cooked.SEND_HOOKS])
def test_it_fits_and_has_no_colours(
    tmp_path: Path, cook: Callable[..., Cook], size: int, without: tuple[str, ...]
) -> None:
    text = render(cook(tmp_path, size=size, count=3, without=without).serve())

    assert max(map(len, text.splitlines())) <= tables.WIDTH
    assert "\x1b" not in text
    assert text.endswith("\n")


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=5000, count=2).serve()

    assert render(run) == render(run)


def test_an_incomplete_ledger_says_so_first_and_why(tmp_path: Path) -> None:
    text = render(cooked.nic(tmp_path, without=("_copy_to_iter",)).serve())

    assert text.startswith(
        "INCOMPLETE: 16 bytes unaccounted for on receiver: _copy_to_iter was left out\n"
    )
    assert "COMPLETE: 16 bytes copied" not in text
    assert "those that are proven; more went unseen" in " ".join(text.split())


def test_lost_records_come_first(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.header = {"dropped": 7}
    cook.without = ("_copy_to_iter",)

    assert "7 dropped" in render(cook.serve()).splitlines()[0]


def test_a_run_in_which_nothing_moved_says_so(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    for guest in cook.guests.values():
        guest.events.clear()
        guest.frames.clear()

    assert "Nothing was seen to move." in render(cook.serve()).splitlines()


def test_a_report_without_a_workload_says_what_is_missing_and_nothing_false(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.skip_files |= {"sender/workload.json"}
    run = cook.serve()

    text = render(run)
    page = report.page(ledger.build(run), run)

    first = (
        "INCOMPLETE: sender/workload.json is missing: where the sender's buffer was is not known"
    )
    assert " ".join(text.split()).startswith(first)
    assert "Not to be told without sender/workload.json." in text
    for said in (" 0x0 ", "not found", "Nothing was seen", "No skb", "No frame", "no movement put"):
        assert said not in text
        assert said not in page
    assert "No copy was seen" not in page
    assert "No record with a time" not in page
    assert "Every movement names its record" not in page
    assert "nobody explains</b>" not in page


def test_a_disagreement_comes_first(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.queues["tx"]["gates"]["sent"]["descriptors"][0][1] = "0x7000000"

    assert render(cook.serve()).startswith("DISAGREEMENT: sender: the driver handed 0x1000006")


def test_an_unverified_place_shows_no_content(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.gates.clear()

    text = render(cook.serve())

    assert re.search(r"^sender skb linear .* not searched +no$", text, re.MULTILINE)
    assert "4 of 6 places verified" in text


def test_an_address_in_the_frame_is_told(tmp_path: Path) -> None:
    address = (cooked.DIRECT_MAP + 0x0200_0000).to_bytes(8, "big")
    text = render(cooked.nic(tmp_path, payload=address + b"12345678").serve())

    assert "holds the address 0xff11000002000000" in text


def test_fragments_share_the_number_of_their_copy(tmp_path: Path) -> None:
    text = render(cooked.nic(tmp_path, size=3000).serve())

    assert 3 == len(re.findall(r"^#1 ", text, re.MULTILINE))
    assert 3 == len(re.findall(r"^#2 ", text, re.MULTILINE))


def test_many_messages_end_in_one_line(tmp_path: Path) -> None:
    text = render(cooked.nic(tmp_path, count=40).serve())

    assert "COMPLETE: 40 messages of 16 bytes each" in text
    assert "40 messages complete: 3 guest CPU copies" in text
    assert len(text.splitlines()) < 60


def test_messages_that_were_not_copied_alike_are_counted_apart(tmp_path: Path) -> None:
    found = ledger.build(cooked.nic(tmp_path, count=3).serve())
    rare = found.messages[1]
    fewer = rare._replace(totals=rare.totals._replace(guest_cpu_copies=2, least_guest_cpu_copies=2))
    some = dataclasses.replace(found, messages=(found.messages[0], fewer, found.messages[2]))

    (first, _) = verdict.sentences(some)

    said = "3 messages of 16 bytes each (2 copied 3 times and 1 copied twice) by guest CPUs"
    assert said in first


def test_the_worksheets_lines(tmp_path: Path) -> None:
    lines = [line for _, line in report.lines(cooked.nic(tmp_path).serve())]

    for expected in (
        r"\[COPY1\] PID=301 comm=sender dest=ff1100000100003c len=16 csum\S+  sender/trace.bin#1",
        r"\[COPY2\] dev=lab0 skb_data=ff11000001000012 skb_len=58  sender/trace.bin#2",
        r"\[COPY3\] receive_buf dev=lab0 src=ff1100000c000000 size=70  receiver/trace.bin#0",
        r"\[COPY3\] page_to_skb>memcpy src=\w+ dest=\w+ size=58  receiver/trace.bin#1",
        r"\[COPY4\] PID=302 comm=receiver src=ff1100000300048a len=16 \S+  receiver/trace.bin#5",
    ):
        assert 1 == sum(bool(re.fullmatch(expected, line)) for line in lines), expected
    assert 12 == len(lines)


def test_lines_are_in_the_order_of_time_and_can_be_chosen(tmp_path: Path) -> None:
    run = cooked.loopback(tmp_path).serve()
    marks = [line[1:6] for _, line in report.lines(run) if not line.startswith("[SKB]")]

    assert ["COPY1", "COPY2", "COPY3", "COPY4"] == marks
    assert 1 == len(list(report.lines(run, "COPY4")))
    assert [] == list(report.lines(run, "nothing like it"))


def test_lines_of_a_run_without_traces_are_none(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.skip_files |= {"sender/trace.bin", "receiver/trace.bin"}

    assert [] == list(report.lines(cook.serve()))


def test_a_table_closes_up_where_it_must() -> None:
    wide = tables.table(("A", "LEN"), [("x" * 106, "12")])
    narrow = tables.table(("A", "LEN"), [("x", "1"), ("yy", "22")])

    assert 110 == max(map(len, wide))
    assert ["A   LEN", "───────", "x     1", "yy   22"] == narrow


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"HELLO_SEND_TRACE!!", '"HELLO_SEND_TRACE"'), (b"\0\1", "0001"), (b"", "")],
)
def test_content_is_text_where_it_is_one(data: bytes, text: str) -> None:
    assert text == tables.content(data)


def test_the_ledger_cites_its_messages_records_and_no_others(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.sender.hook("__dev_queue_xmit", skb=0xFF11000009990000)
    run = cook.serve()
    stranger = f"sender/trace.bin#{len(cook.sender.events) - 1}"

    assert report.cited(run) is None
    run.write_text("ledger.json", ledger.build(run).to_json())
    found = report.cited(run)
    assert found is not None
    assert stranger not in found
    assert {"sender/trace.bin#1", "receiver/trace.bin#5"} <= found


def at_a_terminal(run: RunDir, width: int) -> str:
    return at_width(report.told(ledger.build(run), run), width)


def at_width(told: Sequence[blocks.Block], width: int) -> str:
    out = io.StringIO()
    terminal = Console(file=out, width=width, force_terminal=True, highlight=False)
    for one in report.shown(told, width=width):
        terminal.print(one)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def words(told: Iterable[blocks.Block]) -> Iterator[str]:
    """Yield the words of all tables."""
    for one in told:
        if isinstance(one, blocks.Table):
            yield from (word for row in one.rows for cell in row for word in cell.split())


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_at_a_terminal_it_takes_the_width_there_is_and_breaks_no_word(
    tmp_path: Path, width: int
) -> None:
    run = cooked.nic(tmp_path).serve()
    told = report.told(ledger.build(run), run)

    shown = at_width(told, width)

    assert max(map(len, shown.splitlines())) <= width
    assert "COMPLETE: 16 bytes copied 3 times" in shown
    assert [word for word in words(told) if word not in shown] == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_rings_and_the_runs_break_no_word_at_a_terminal(tmp_path: Path, width: int) -> None:
    run = cooked.nic(tmp_path / "20261126T080713Z-nic-735990b4").serve()
    found = listing.row(run.path)
    assert found is not None
    row = dataclasses.replace(found, run=f"runs/{run.name}")
    account = ledger.build(run)
    for told in (ring_table.told(ring_table.tables(run, account.messages)), listing.told([row])):
        shown = at_width(told, width)

        assert max(map(len, shown.splitlines())) <= width
        assert [word for word in words(told) if word not in shown] == []


def test_a_row_that_is_set_by_itself_says_what_its_cells_are() -> None:
    table = blocks.table(("COPY", "SOURCE", "EMPTY", "LEN"), [("#1", "0x" + "f" * 16, "", "16")])

    assert "COPY #1   SOURCE 0xffffffffffffffff\n  LEN 16\n" == at_width(table, 36)
    assert at_width(table, 60).splitlines()[1].split() == ["COPY", "SOURCE", "EMPTY", "LEN"]


def test_a_terminal_shows_what_a_guest_said_as_it_is(tmp_path: Path) -> None:
    size = len(b"[red]x[/red]\x1b[31m")
    run = cooked.nic(tmp_path, payload=b"[red]x[/red]\x1b[31m", size=size).serve()
    sound = cooked.nic(tmp_path / "text", payload=b"[bold]HI[/bold].", size=16).serve()

    assert "\x1b[31m" not in at_a_terminal(run, 140).partition("LOCATION")[2]
    assert "[bold]HI[/bold]." in at_a_terminal(sound, 140)


def test_addresses_stay_whole_at_a_terminal_where_words_can_give_way() -> None:
    rows = [("0xffff8c4c815170c0", "a sentence that is longer than its column is", "#34")] * 2
    out = io.StringIO()
    terminal = Console(file=out, width=48, highlight=False)
    for one in report.shown(blocks.table(("SOCKET", "WHAT IT WAS", "RECORD"), rows), width=48):
        terminal.print(one)

    assert 2 == out.getvalue().count("0xffff8c4c815170c0")
    assert 2 == out.getvalue().count("#34")
    assert max(map(len, out.getvalue().splitlines())) <= 48


def test_a_table_that_has_no_room_loses_nothing() -> None:
    out = io.StringIO()
    terminal = Console(file=out, width=20, highlight=False)
    for one in report.shown(
        blocks.table(("A", "B"), [("0123456789" * 3, "9876543210" * 2)]), width=20
    ):
        terminal.print(one)

    assert 50 == sum(letter.isdigit() for letter in out.getvalue())


def test_what_was_sent_again_is_in_the_first_sentence(tmp_path: Path) -> None:
    built = ledger.build(cooked.tcp(tmp_path, dropped=1).serve())

    assert verdict.sentences(built)[0].startswith(
        "COMPLETE: 16 bytes copied 4 times by guest CPUs, read once and written once by devices"
        " and 16 bytes sent again; "
    )
    assert (
        "message 0: 16 of its bytes were sent again (frames sender/wire.pcap#0, "
        "sender/wire.pcap#1); counts are of those that were received"
    ) in built.notes


def test_only_frames_with_bytes_that_were_sent_again_are_named(tmp_path: Path) -> None:
    """Of three segments the last alone: those of the others carried theirs once."""
    (message,) = ledger.build(cooked.tcp(tmp_path, size=3000, dropped=1).serve()).messages
    reads = [one for one in message.movements if one.kind == "dma-read"]
    once = [one for one in message.movements if one not in reads[:2]]

    (note,) = ledger._again_notes([message._replace(movements=tuple(once))])

    assert [0, 1448, 2896, 0, 1448, 2896] == [one.offset for one in reads]
    frames = ", ".join(reads[number].evidence[-1] for number in (2, 5))
    assert f"104 of its bytes were sent again (frames {frames});" in note


def test_nothing_is_said_to_be_sent_again_that_was_not(tmp_path: Path) -> None:
    built = ledger.build(cooked.nic(tmp_path, size=9000, count=2).serve())

    assert [0, 0] == [message.sent_again for message in built.messages]
    assert "again" not in " ".join([*verdict.sentences(built), *built.notes])


@pytest.mark.parametrize(("count", "said"), [(4, "not found"), (6, "used again since")])
def test_a_program_s_buffer_that_a_later_message_lay_in_is_said_to_be_used_again(
    tmp_path: Path, count: int, said: str
) -> None:
    """A program's slots are four here; of a message nobody overwrote it says another thing."""
    run = cooked.nic(tmp_path, count=count, slots=4).serve()
    for guest in run.guests():
        path = guest.file("census.json")
        census = json.loads(path.read_text())
        for gate in census["gates"]:
            gate["hits"] = []
        path.write_text(json.dumps(census))

    text = report.render(ledger.build(run), run)

    (line,) = [line for line in text.splitlines() if line.startswith("sender user buffer")]
    assert said in line


def test_what_cannot_be_judged_is_said_and_why(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.manifest["expect"] = {"complete": True}
    assert "Not judged" not in render(cook.serve())

    skb = "only a probe sees an skb: --probes none"
    cook.manifest["not_judged"] = {
        "same_head": skb,
        "device_reads": "of size 16",
        "same_object": skb,
    }
    run = cook.serve()
    account = ledger.build(run)

    told = " ".join(render(run).split())
    assert f"Not judged: device-reads (of size 16); same-object, same-head ({skb})." in told
    without = not_judged(account, run.manifest())
    assert [
        {"name": "device-reads", "why": "of size 16"},
        {"name": "same-object", "why": skb},
        {"name": "same-head", "why": skb},
    ] == as_json([], without)["not_judged"]
    page = report.page(account, run)
    assert ">same-object</td>" in page
    assert f"not judged: {skb}</td>" in page


def test_of_an_interrupted_run_nothing_is_expected(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path)
    cook.manifest["expect"] = {"complete": True, "guest_cpu_copies": 7}
    run = cook.serve()
    assert "! expected guest-cpu-copies 7, found 3" in " ".join(render(run).split())

    manifest = run.manifest_json()
    manifest.pop("files", None)
    run.write_manifest(manifest)
    run.write_text("journal.jsonl", json.dumps({"outcome": "Interrupted"}) + "\n")
    account = ledger.build(run)

    assert not account.complete
    assert "INTERRUPTED" == verdict.word(account)
    text = report.render(account, run)
    assert text.startswith("INTERRUPTED: the run did not end")
    assert "xpected" not in text
    assert "Not judged: complete, guest-cpu-copies (the run was interrupted)." in text
    row = listing.row(run.path)
    assert row is not None
    assert (None, "INTERRUPTED") == (row.complete, row.verdict)


def test_folders_of_many_runs_are_listed(tmp_path: Path) -> None:
    folders: dict[str, dict[str, object]] = {
        "20261126T120000Z-sweep-1": {"index.json": {"playbook": "wide", "proven": False,
            "cells": [{"state": "proven"}, {"state": "failed"}]}},
        "20261126T120001Z-claims-2": {"experiments.json": {"experiments": {"lo": {}}},
            "claims.json": {"summary": "90 claims: 50 confirmed"}},
        "20261126T120002Z-claims-3": {"experiments.json": {"experiments": {"lo": {}}}},
    }  # fmt: skip
    for name, files in folders.items():
        (tmp_path / name).mkdir()
        for file, value in files.items():
            (tmp_path / name / file).write_text(json.dumps(value))

    known = prune.runs(tmp_path)
    rows = [row for path in known if (row := listing.row(path)) is not None]

    assert [("sweep", "NOT PROVEN: 1 cells"), ("claims", "JUDGED"), ("claims", "not judged")] == [
        (row.kind, row.verdict) for row in rows
    ]
    assert ["2 cells", "90 claims", "1 experiments"] == [row.message for row in rows]
    assert 2 == len(prune.prune(tmp_path, keep=1).paths)


def test_the_users_own_probes_are_told_with_where_their_words_are(tmp_path: Path) -> None:
    absent = "absent: there is no bpftrace in the guest image"
    both = ("sender", "receiver")
    became = {"a.bt": absent, "mine/seen.ko": "present", "late.ko": "present"}
    cook = cooked.nic(tmp_path)
    cook.manifest["probes"] = {
        "kind": "kmod", "modules": {}, "without": [], "foreign": dict.fromkeys(both, became)
    }  # fmt: skip
    run = cook.serve()
    files = [f"{guest}/foreign-mine,seen.ko.txt" for guest in both]
    for file in files:
        run.file(file).touch()
    cook.manifest["files"] = run.digests(both)
    text = " ".join(render(cook.serve()).split())

    assert (
        "Foreign: late.ko loaded, and what it said was not kept; "
        f"mine/seen.ko loaded, {' and '.join(files)}; a.bt {absent}." in text
    )
    assert text.startswith("COMPLETE")
    assert "Foreign" not in render(cooked.nic(tmp_path / "without").serve())


@pytest.mark.parametrize("lie", [3, {"foreign": [1]}, {"foreign": {"sender": "x"}}])
def test_probes_that_a_manifest_garbles_are_not_told(tmp_path: Path, lie: Json) -> None:
    manifest = cooked.nic(tmp_path).serve().manifest()
    lied = dataclasses.replace(manifest, values={**manifest.values, "probes": lie})

    assert not conditions.foreign(lied)
