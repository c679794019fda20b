"""report.html: its words answer what people ask, and nothing in it can do harm."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab import ledger, report, spec
from lab.experiment import socket as socket_experiment
from lab.journal import Journal
from lab.report import Archive, cells, rings
from lab.report.moments import timeline
from lab.rundir import RunDir
from lab.rundir.artefacts import Descriptor, Queue, RingGate, Rings
from tests.unit import cooked, cooked_socket, reader
from tests.unit.cooked import Cook

HOSTILE = b"</style><script>alert(1)</script>'\"><img src=x onerror=alert(2)>\xff\xfe\x00&amp;"


def page(run: RunDir) -> str:
    return report.page(ledger.build(run), run)


def ask(text: str, question: str, pattern: str) -> str:
    """Return what a page answers to a question, as the first group of a pattern."""
    after = text.partition(question)[2]
    assert after, f"nobody answers: {question}"
    found = re.search(pattern, after)
    assert found is not None, f"{question} {after[:300]}"
    return found[1]


# A person's questions of a run over the link, where the answer stands, and the right one as
# the cook knows it: it cooked three copies, one device read and one write, and lost nothing.
COPIES, COPIERS = "How many times were the bytes copied?", "Who made each copy?"
READ, WRITTEN = "What did a device read, and from where?", "What did a device write, and where to?"
SKB, WIRE = "Is the receiver's skb the one that was sent?", "What went over the wire?"
PLACES = "Where did the bytes lie, and were there copies nobody explains?"
LOST, CONDITIONS = "Was anything lost?", "Under which conditions does it hold?"
WHY = "Why believe it?"
QUESTIONS = (
    (COPIES, r"^ (\d+) copies by guest CPUs", "3"),
    (COPIERS, r"^ #1: (\w+ on \w+)", "csum_and_copy_from_iter_full on sender"),
    (COPIERS, r"#2: (memcpy in page_to_skb on \w+)", "memcpy in page_to_skb on receiver"),
    (COPIERS, r"#3: (_copy_to_iter on \w+)", "_copy_to_iter on receiver"),
    (READ, r"^ virtio-net-pci of sender read 70 bytes, (16) of them the message's", "16"),
    (READ, r"read .*?, from the ([\w ]+):", "skb linear area"),
    (WRITTEN, r"of receiver wrote .*? to the ([\w ]+):", "RX buffer"),
    (SKB, r"^ (\w+): different skbs", "No"),
    (WIRE, r"^ 1 frame\. The first is (\d+) bytes", "58"),
    (WIRE, r"17 addresses of the run searched for in it, (\w+) is there", "none"),
    (PLACES, r"^ In (\d+) places: .*? 6 of them are verified by content; 0 runs", "6"),
    (LOST, r"^ (\w+): 0 records were lost", "No"),
    (CONDITIONS, r"^ (UDP over link) \(virtio-net-pci over dgram\)", "UDP over link"),
    (CONDITIONS, r"Linux [\w.+-]+; accelerator (\w+)", "tcg"),
    (WHY, r"(\d) witnesses looked on \(census, probe:kmod, rings, wire\)", "4"),
    (WHY, r"(No two) of them disagree\.", "No two"),
)


@pytest.mark.parametrize(("question", "pattern", "answer"), QUESTIONS)
def test_its_words_alone_answer_what_people_ask(
    tmp_path: Path, question: str, pattern: str, answer: str
) -> None:
    assert ask(reader.words(page(cooked.nic(tmp_path).serve())), question, pattern) == answer


def test_other_runs_get_other_answers(tmp_path: Path) -> None:
    over_lo = reader.words(page(cooked.loopback(tmp_path / "lo").serve()))
    cook = cooked.nic(tmp_path / "lost")
    cook.header["dropped"] = 7
    lossy = reader.words(page(cook.serve()))

    assert ask(over_lo, "How many times were the bytes copied?", r"^ (\d+) copies") == "2"
    assert ask(over_lo, "the one that was sent?", r"^ (\w+):") == "Yes"
    assert ask(over_lo, "from where?", r"^ (Nothing was read by a device)")
    assert ask(over_lo, "over the wire?", r"^ (Nothing)") == "Nothing"
    assert ask(lossy, "Was anything lost?", r"^ (Yes: 7 records of [\w/]+)")


def test_an_incomplete_run_says_so_first(tmp_path: Path) -> None:
    text = reader.words(
        page(cooked.nic(tmp_path, without=("virtio_net:page_to_skb>memcpy",)).serve())
    )

    assert text.index("INCOMPLETE") < text.index("What is missing") < text.index("The journey")
    assert "virtio_net:page_to_skb>memcpy was left out" in text
    assert "no record shows how" in text
    assert "that are proven; more went unseen" in text


@pytest.mark.parametrize("cook", [cooked.nic, cooked.loopback])
def test_a_strangers_bytes_stay_words(tmp_path: Path, cook: Callable[..., Cook]) -> None:
    made = cook(tmp_path, payload=HOSTILE, size=len(HOSTILE))
    for guest in made.guests.values():
        for event in guest.events:
            event["comm"] = "<b>&'\"x"
    html = page(made.serve())
    names = {name for name, _ in reader.tags(html)}
    attributes = {key for _, told in reader.tags(html) for key in told}

    assert names.isdisjoint({"script", "img", "iframe", "object", "b\\"})
    assert not [key for key in attributes if key.startswith("on")]
    assert "<script" not in html
    assert "&lt;b&gt;&amp;&#39;&#34;x" in html


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    html = page(cooked.nic(tmp_path).serve())
    links = [
        value
        for _, told in reader.tags(html)
        for key in ("src", "href", "srcset", "data")
        if (value := told.get(key))
    ]

    assert links
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


LINKED: dict[str, Callable[[Path], Cook]] = {
    "pieces": lambda path: cooked.nic(path, size=9000, count=3),
    "large-udp": lambda path: cooked.nic(path, size=65507),
    "large-tcp": lambda path: cooked.tcp(path, size=65536),
    "many": lambda path: cooked.nic(path, count=23),
    "loopback": lambda path: cooked.loopback(path, size=65507),
}


@pytest.mark.parametrize("name", LINKED)
def test_every_link_leads_somewhere(tmp_path: Path, name: str) -> None:
    html = page(LINKED[name](tmp_path).serve())
    led = {told["href"] for _, told in reader.tags(html) if "href" in told}

    assert reader.dead(html) == set()
    assert {one for one in led if one and one.startswith("#m0-")}
    assert reader.dead(html.replace('id="m0-0"', "")) == {"#m0-0"}


def test_every_link_on_the_page_of_a_socket_leads_somewhere(tmp_path: Path) -> None:
    out = cooked_socket.cook(tmp_path / "run").serve()
    socket_experiment.analyse(out, spec.Expect(), journal=Journal())

    assert reader.dead(out.file("report.html").read_text()) == set()


def test_a_badge_is_of_the_place_that_is_drawn_or_says_that_none_is(tmp_path: Path) -> None:
    cook = cooked.nic(tmp_path, size=9000)
    whole = reader.words(page(cook.serve()))
    assert re.search(r"TX ring · descriptor 0: 0x[0-9a-f]+ \+ \d+ \(\+6\)", whole)

    for gate in cook.sender.queues["tx"]["gates"].values():
        gate["descriptors"] = [one for one in gate["descriptors"] if one[0] != 0]
    assert "TX ring · the first's is in no snapshot" in reader.words(page(cook.serve()))


def test_many_messages_make_no_larger_page_and_it_says_so(tmp_path: Path) -> None:
    few = page(cooked.nic(tmp_path / "few", count=60).serve())
    many = page(cooked.nic(tmp_path / "many", count=300).serve())

    assert len(many) < len(few) * 1.1
    assert "Left out here: 260 more messages; all are in ledger.json" in reader.words(many)


def test_a_mark_on_a_ring_stands_only_where_the_descriptor_held_the_buffer(tmp_path: Path) -> None:
    def gate(name: str, *, given: tuple[int, ...], used: tuple[tuple[int, int], ...] = (),
             address: int = 0x1000) -> RingGate:  # fmt: skip
        held = (
            Descriptor(id=0, address=address, length=70, flags=0, next=1),
            Descriptor(id=1, address=0x5000, length=70, flags=0, next=2),
        )
        return RingGate(name=name, avail_idx=len(used) + len(given), used_idx=len(used),
                        descriptors=held, used=used, given=given)  # fmt: skip

    gates = (
        gate("armed", given=(), address=0),
        gate("sent", given=(0,)),
        gate("received", given=(), used=((0, 0),)),
        gate("later", given=(0,), used=((0, 0),), address=0x9000),
    )
    queue = Queue(kind="tx", index=0, size=2, gates=gates)
    (ring,) = rings.rings("sender", Rings(device="x", queues=(queue,)), ["sent/tx/0"])

    assert [strip.marked for strip in ring.strips] == [(), (0,), (0,), ()]
    assert [strip.runs[0][2] for strip in ring.strips] == ["free", "posted", "used", "posted"]


def test_expectations_of_many_messages_are_one_row(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, count=23).serve()
    found = [
        ledger.Expectation(name="handovers", message=n, expected="0", found="0") for n in range(23)
    ]
    odd = ledger.Expectation(name="handovers", message=4, expected="0", found="1")
    text = reader.words(report.page(ledger.build(run), run, [*found, odd]))

    assert text.count("handovers of 23 messages, 0 to 22") == 1
    assert text.count("handovers of message 4") == 2  # at the top and in the table


def test_what_looks_the_same_is_one_row_and_none_of_it_is_lost(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=65507).serve()
    built = ledger.build(run)
    shown = timeline(built.messages[0], Archive(run))
    html = report.page(built, run)
    text = reader.words(html)

    assert sum(1 + len(row.others) for row in shown.rows) == len(shown.moments)
    assert len({(row.first.guest, row.first.what) for row in shown.rows}) == len(shown.rows) < 24
    assert all(
        one.who.startswith("the device") == one.kind.startswith("dma") for one in shown.moments
    )
    assert text.count("skb at __dev_queue_xmit ×45") == 1
    assert "__dev_queue_xmit ×45 0x" in text
    assert all(moment.evidence in text for moment in shown.moments)
    assert all(one.evidence[0] in text for one in built.messages[0].movements)
    assert html.count('<tr class="movement">') < 10
    assert "Left out here: " not in html.partition('id="skb"')[2].partition('id="rings"')[0]


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=5000, count=2).serve()

    assert page(run) == page(run)


def test_the_message_is_marked_in_the_bytes(tmp_path: Path) -> None:
    html = page(cooked.nic(tmp_path, payload=b"HELLO_SEND_TRACE").serve())
    marked = re.findall(r"<mark>([0-9a-f]{2})</mark>", html)

    assert bytes.fromhex("".join(marked)).startswith(b"HELLO_SEND_TRACE")
    assert set(bytes.fromhex("".join(marked))) == set(b"HELLO_SEND_TRACE")


def test_evidence_that_is_gone_does_not_break_the_page(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path).serve()
    built = ledger.build(run)
    run.guest("receiver").trace.unlink()
    run.guest("sender").wire.unlink()

    assert "no such record" in report.page(built, run)


def test_a_cell_breaks_before_a_value_and_is_escaped() -> None:
    assert cells.breaks("f(net=ffffffff87eb6540, <b>)") == (
        "f(<wbr>net=<wbr>ffffffff87eb6540, &lt;b&gt;)"
    )
    assert cells.breaks("") == ""


def test_words_of_arrows_beside_each_other_fit_a_phone(tmp_path: Path) -> None:
    run = cooked.nic(tmp_path, size=9000).serve()
    built = ledger.build(run)
    (message,) = built.messages
    mine = [one for one in message.movements if one.kind == "copy"][1::2]
    long = "a_function_of_a_very_long_name"
    movements = tuple(
        one._replace(function=long) if one in mine else one for one in message.movements
    )
    html = report.page(replace(built, messages=(message._replace(movements=movements),)), run)
    short = re.findall(r">(a_func\w*…)<", html)

    assert short  # on the narrow drawing alone
    assert all(len(one) < 22 for one in short)
    assert f">{long}<" in html
