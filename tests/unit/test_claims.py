"""Claims: a verdict follows the run, each kind of it, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import attempt, claims, crash, experiment, ledger, paths, playbook, settle
from lab.claims import MEASURES, Text, Verdict, table
from lab.claims.evidence import Evidence
from lab.claims.judge import agrees
from lab.claims.types import NotHere, Value
from lab.commands import Console
from lab.commands.claims import Options
from lab.commands.claims import claims as command
from lab.errors import EvidenceError, GuestLost, PlaybookError
from lab.experiment import message
from lab.journal import Journal
from lab.rundir import RunDir
from lab.socket.hooked import CALLED, INLINED, LEFT_OUT, NOT_CALLED, UNHOOKED
from tests.unit import cooked
from tests.unit.cooked import Cook

TOP = Path(__file__).parents[2]
HEAD = """\
title: A text
experiments:
  lo: {playbook: loopback}
  nic: {playbook: nic}
  crash: {try: crash/worksheet_bug1.c, send: yes}
claims:
"""
CLAIM = "- {id: A1, at: block 1, says: two copies, tests: [{on: lo, measure: copies, is: 2}]}\n"


def text_of(*lines: str) -> Text:
    return claims.parse(HEAD + "\n".join(lines) + "\n", "mine.yaml")


def claim(*tests: str) -> Text:
    return text_of(f"- {{id: A1, at: block 1, says: x, tests: [{', '.join(tests)}]}}")


def serve(cook: Cook) -> RunDir:
    run = cook.serve()
    run.write_text("ledger.json", ledger.build(run).to_json())
    return run


class Folder:
    """What `lab.settle` would have left, of cooked runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.index: dict[str, dict[str, str]] = {}

    def add(self, name: str, cook: Callable[..., Cook], **options: Any) -> RunDir:
        run = serve(cook(self.path / name, **options))
        self.index[f"mine/{name}"] = {"name": name, "state": claims.DONE, "reason": ""}
        return run

    def lacks(self, name: str, state: str, reason: str) -> None:
        self.index[f"mine/{name}"] = {"name": name, "state": state, "reason": reason}

    def judge(self, text: Text) -> tuple[Verdict, ...]:
        RunDir(self.path).write_json(claims.INDEX, {"experiments": self.index})
        (judged,) = claims.judge([text], self.path)
        return judged.verdicts


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "taken")


# --- Verdicts -------------------------------------------------------------------------------

TWO_ON_LO = "{on: lo, measure: copies, is: 2}"
TWO_ON_BOTH = "{on: [lo, nic], measure: copies, is: 2}"


def test_all_that_was_said_was_measured(folder: Folder) -> None:
    folder.add("lo", cooked.loopback)

    (found,) = folder.judge(claim(TWO_ON_LO))

    assert (claims.CONFIRMED, "") == (found.word, found.on)
    (answer,) = found.answers
    assert answer.measured is not None
    assert 2 == answer.measured.value
    for evidence in answer.measured.evidence:
        file, _, number = evidence.partition("#")
        assert (folder.path / file).is_file()
        assert number.isdigit()


def test_another_run_refutes_the_same_claim(folder: Folder) -> None:
    """The claim that loopback confirms, of the run over a link."""
    folder.add("lo", cooked.nic)

    (found,) = folder.judge(claim(TWO_ON_LO))

    assert claims.REFUTED == found.word
    assert found.answers[0].measured is not None
    assert 3 == found.answers[0].measured.value


def test_where_it_holds_in_one_run_and_not_in_another_it_depends(folder: Folder) -> None:
    folder.add("lo", cooked.loopback)
    folder.add("nic", cooked.nic)

    (found,) = folder.judge(claim(TWO_ON_BOTH))

    assert claims.DEPENDS == found.word
    assert "path: holds for loopback; not for virtio-net-pci over dgram" == found.on


def test_what_it_depends_on_is_what_differs(folder: Folder) -> None:
    folder.add("lo", cooked.nic, size=1400)
    folder.add("nic", cooked.nic, size=16)

    (found,) = folder.judge(claim(TWO_ON_BOTH))

    assert "size: holds for 1400 bytes; not for 16 bytes" == found.on


def test_two_conditions_together_may_tell_them_apart(folder: Folder) -> None:
    text = claims.parse(
        HEAD.replace("  nic:", "  tcp: {playbook: nic}\n  lo-tcp: {playbook: nic}\n  nic:")
        + "- id: A1\n  at: x\n  says: y\n  tests:\n"
        "  - {on: [lo, lo-tcp, nic, tcp], measure: copy-out, is: _copy_from_iter}\n",
        "mine.yaml",
    )
    folder.add("lo", cooked.loopback)
    folder.add("lo-tcp", cooked.tcp, over="loopback")
    folder.add("tcp", cooked.tcp, over="link")
    folder.add("nic", cooked.nic)

    (found,) = folder.judge(text)

    assert found.on.startswith("path and protocol: holds for loopback udp, loopback tcp,")
    assert found.on.endswith("not for virtio-net-pci over dgram udp")


def test_tests_of_one_run_are_told_by_their_measures(folder: Folder) -> None:
    folder.add("lo", cooked.loopback)

    (found,) = folder.judge(claim(TWO_ON_LO, "{on: lo, measure: handovers, is: 2}"))

    assert "holds for copies on lo; not for handovers on lo" == found.on


def test_an_experiment_that_cannot_run_here_leaves_it_not_testable(folder: Folder) -> None:
    folder.lacks("lo", claims.UNAVAILABLE, "no link of taps can be made here")

    (found,) = folder.judge(claim(TWO_ON_LO))

    assert (claims.NOT_HERE, "no link of taps can be made here") == (found.word, found.on)


def test_what_can_be_measured_decides_where_a_part_cannot(folder: Folder) -> None:
    folder.lacks("lo", claims.UNAVAILABLE, "no such device")
    folder.add("nic", cooked.nic)

    (found,) = folder.judge(claim(TWO_ON_BOTH))

    assert claims.REFUTED == found.word
    row = "copies on lo: not testable here: no such device"
    (judged,) = claims.judge([claim(TWO_ON_BOTH)], folder.path)
    assert row in table.markdown([judged], conditions="")
    assert f"- {row}\n" in table.render([judged])


def test_a_failed_experiment_leaves_it_undecided(folder: Folder) -> None:
    folder.lacks("lo", claims.FAILED, "GuestLost: sender: QEMU died")
    folder.add("nic", cooked.nic)

    (found,) = folder.judge(claim(TWO_ON_BOTH))

    assert claims.UNDECIDED == found.word
    assert "QEMU died" in found.on


def test_an_experiment_nobody_took_leaves_it_undecided(folder: Folder) -> None:
    (found,) = folder.judge(claim(TWO_ON_LO))

    assert (claims.UNDECIDED, "mine/lo was not run") == (found.word, found.on)


def test_an_incomplete_ledger_carries_no_verdict(folder: Folder) -> None:
    folder.add("lo", cooked.loopback, without=("_copy_to_iter",))

    (found,) = folder.judge(claim(TWO_ON_LO))

    assert claims.UNDECIDED == found.word
    assert "_copy_to_iter was left out" in found.on


def test_witnesses_that_disagree_carry_no_verdict(folder: Folder) -> None:
    run = folder.add("lo", cooked.loopback)
    cooked.edit(run, "ledger.json", lambda found: found["disagreements"].append({"text": "odd"}))

    (found,) = folder.judge(claim(TWO_ON_LO))

    assert (claims.UNDECIDED, "witnesses of lo disagree: odd") == (found.word, found.on)


def test_a_claim_without_tests_says_why(folder: Folder) -> None:
    text = text_of("- {id: A1, at: x, says: 3.3 V, untestable: there is no wire}")

    (found,) = folder.judge(text)

    assert (claims.NOT_HERE, "there is no wire") == (found.word, found.on)


@pytest.mark.parametrize(
    ("found", "op", "said", "expected"),
    [
        (2, "is", 2, True),
        (1, "is", True, False),  # a count is no yes
        (True, "is", 1, False),
        ("a", "is-not", "b", True),
        (3, "at-least", 3, True),
        (3, "at-least", 4, False),
        (3, "at-most", 2, False),
        ("tcp", "among", ("udp", "tcp"), True),
        (0, "among", (False, 2), False),
        (("a", "b"), "has", "b", True),
        (("a", "b"), "has", ("b", "c"), False),
        (22, "has", 22, True),
    ],
)
def test_comparisons(found: Value, op: Any, said: Value, *, expected: bool) -> None:
    assert expected == agrees(found, op, said)


def test_a_text_is_not_compared_as_a_number() -> None:
    with pytest.raises(EvidenceError, match="compares numbers"):
        agrees("three", "at-least", 2)


# --- Measures -------------------------------------------------------------------------------

LO, NIC, BIG, TCP = "loopback", "nic", "nic of 1000", "tcp over link"
COOKS: dict[str, Callable[[Path], Cook]] = {
    LO: cooked.loopback,
    NIC: cooked.nic,
    BIG: lambda path: cooked.nic(path, size=1000),
    TCP: lambda path: cooked.tcp(path, over="link"),
}
VALUES: list[tuple[str, str, str, Value]] = [
    (LO, "copies", "", 2),
    (NIC, "copies", "", 3),
    (NIC, "device-reads", "", 1),
    (LO, "device-reads", "", 0),
    (NIC, "device-writes", "", 1),
    (LO, "handovers", "", 1),
    (NIC, "handovers", "", 0),
    (NIC, "copied-by", "", ("csum_and_copy_from_iter_full", "page_to_skb>memcpy", "_copy_to_iter")),
    (LO, "copy-out", "", "_copy_from_iter"),
    (LO, "copy-in", "", "_copy_to_iter"),
    (LO, "copy-out-bytes", "", 16),
    (LO, "copy-in-bytes", "", 16),
    (NIC, "copy-in-reads", "", "skb-linear"),
    (BIG, "copy-in-reads", "", "rx-buffer"),
    (LO, "one-kernel-place", "", True),
    (NIC, "one-kernel-place", "", False),
    (LO, "registers-hold-arguments", "", True),
    (LO, "same-skb", "", True),
    (NIC, "same-skb", "", False),
    (LO, "same-head", "", True),
    (LO, "skb-data-values", "", 3),
    (LO, "skb-len", "__dev_queue_xmit", 58),
    (NIC, "skb-len", "start_xmit", 58),
    (LO, "payload-offset", "ip_generic_getfrag", 28),
    (LO, "payload-offset", "skb_consume_udp", 0),
    (LO, "physical-places", "", 3),
    (NIC, "physical-places", "", 5),
    (NIC, "machines", "", 2),
    (LO, "region", "kernel", "direct map"),
    (LO, "physical-is-low-28-bits", "", True),  # so low that nothing is lost
    (NIC, "direct-map-constants", "", 1),
    (NIC, "frame-length", "", 58),
    (NIC, "frame-part", "IPv4", 20),
    (NIC, "frame-part", "payload", 16),
    (NIC, "frame-field", "udp_length", 24),
    (NIC, "addresses-on-wire", "", 0),
    (NIC, "rx-posted-before", "", True),
    (NIC, "context", "__udp_enqueue_schedule_skb", "softirq"),
    (NIC, "context", "_copy_to_iter", "process"),
    (LO, "iter-type", "_copy_to_iter", -1),
    (LO, "lo-lengths", "", (58,)),
    (LO, "lo-protocol", "58", "udp"),
]


@pytest.mark.parametrize(("cook", "name", "of", "expected"), VALUES)
def test_a_measure_says_what_the_run_holds(
    tmp_path: Path, cook: str, name: str, of: str, expected: Value
) -> None:
    run = serve(COOKS[cook](tmp_path / "run"))

    found = MEASURES[name].function(Evidence("run", run), of)

    assert expected == found.value
    assert isinstance(found.value, bool) == isinstance(expected, bool)
    for evidence in found.evidence:
        assert run.file(evidence.partition("#")[0]).is_file(), evidence


def test_every_measure_of_a_message_is_measured_here() -> None:
    elsewhere = {"copy-out-caller", "copy-in-caller", "symbol-alike", "rx-descriptor-changed"}
    tried = {"verdict", "phase", "fault-address", "log-lines", "fact"}
    tried |= {"proof", "kernel-calls"}
    # In test_claims_own.py:
    tried |= {"copy-out-width", "copy-out-through-register", "copy-out-stored", "virtual-places"}
    tried |= {"called-by", "argument", "returned", "not-copied", "called-within"}
    tried |= {"argument-behind", "buffer-in-user-space"}
    tried |= {"descriptor", "descriptor-leads-to-sock", "sock-destination"}
    tried |= {"armed-first-byte", "armed-by", "returns-to"}
    lines = {"line-what", "line-lengths", "sent-from-rodata"}  # in test_explained.py
    assert MEASURES.keys() - elsewhere - tried - lines == {name for _, name, _, _ in VALUES}


def spoiled(tmp_path: Path, how: Callable[[Cook], None], *, over: str = "lo") -> Evidence:
    cook = (cooked.loopback if over == "lo" else cooked.nic)(tmp_path / "run")
    how(cook)
    return Evidence("run", serve(cook))


def value_of(seen: Evidence, name: str, of: str = "") -> Value:
    return MEASURES[name].function(seen, of).value


def test_a_register_that_holds_something_else_is_seen(tmp_path: Path) -> None:
    seen = Evidence("run", serve(cooked.loopback(tmp_path / "run")))
    seen.run.file("ledger.json")
    cooked.edit(
        seen.run,
        "ledger.json",
        lambda found: found["messages"][0]["places"][0].update(virtual="0x1234"),
    )

    assert value_of(seen, "registers-hold-arguments") is False


def test_an_address_on_the_wire_is_seen(tmp_path: Path) -> None:
    run = serve(cooked.nic(tmp_path / "run", size=64))
    seen = Evidence("run", run)
    frame, evidence = seen.frame()
    inside = frame.data[50:58]

    def plant(found: Any) -> None:
        place = next(one for one in found["messages"][0]["places"] if one["place"] != "wire")
        place["virtual"] = f"0x{int.from_bytes(inside, 'little'):x}"

    cooked.edit(run, "ledger.json", plant)

    assert evidence.startswith("sender/wire.pcap#")
    assert 1 == value_of(Evidence("run", run), "addresses-on-wire")


@pytest.mark.parametrize(("bit", "expected"), [(0, False), (0x4000, True)])
def test_a_descriptor_that_the_device_changed_is_seen(
    tmp_path: Path, bit: int, *, expected: bool
) -> None:
    def mark(cook: Cook) -> None:
        gates = cook.receiver.queues["rx"]["gates"]
        rows = gates["received"]["descriptors"] = [
            list(one) for one in gates["armed"]["descriptors"]
        ]
        for row in rows:
            row[3] ^= bit

    assert expected == value_of(spoiled(tmp_path, mark, over="link"), "rx-descriptor-changed")


@pytest.mark.parametrize(("length", "expected"), [(60, True), (0, False)])
def test_a_length_in_a_descriptor_of_e1000e_is_the_devices(
    tmp_path: Path, length: int, *, expected: bool
) -> None:
    def tell(found: Any) -> None:
        for queue in found["queues"]:
            for gate in queue["gates"].values():
                gate["used"] = [[number, length] for number, _ in gate["used"]]

    run = serve(cooked.nic(tmp_path / "run"))
    cooked.edit(run, "ledger.json", lambda found: found["link"].update(device="e1000e"))
    cooked.edit(
        run,
        "receiver/rings.json",
        tell,
    )

    assert expected == value_of(Evidence("run", run), "rx-descriptor-changed")


def test_a_descriptor_that_was_posted_anew_says_nothing(tmp_path: Path) -> None:
    seen = Evidence("run", serve(cooked.nic(tmp_path / "run")))

    with pytest.raises(EvidenceError, match="had posted another buffer"):
        value_of(seen, "rx-descriptor-changed")


def test_a_physical_address_above_256_mib_loses_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = serve(cooked.loopback(tmp_path / "run"))
    seen = Evidence("run", run)
    high = SimpleNamespace(
        id="sender/trace.bin#0", src=cooked.DIRECT_MAP + (1 << 28), src_phys=1 << 28, dst=0,
        dst_phys=0,
    )  # fmt: skip
    monkeypatch.setattr(seen, "records", lambda: iter([high]))

    assert value_of(seen, "physical-is-low-28-bits") is False


@pytest.mark.parametrize(
    ("name", "of", "said"),
    [
        ("skb-len", "start_xmit", "saw no skb of the message at start_xmit"),
        ("frame-length", "", "no frame of run carries the message"),
        ("rx-posted-before", "", "rings is absent"),
        ("iter-type", "csum_and_copy_to_iter", "was not copied at"),
        ("context", "page_to_skb", "did not see the message"),
        ("lo-protocol", "66", "nothing carries the value"),
        ("region", "nobody", "has no place of the nobody"),
        ("symbol-alike", "__sys_socket", "has no symbol __sys_socket"),
        ("verdict", "", "postmortem.json"),
        ("fact", "lstar", "no module printed a fact called lstar"),
    ],
)
def test_what_is_not_there_is_no_value(tmp_path: Path, name: str, of: str, said: str) -> None:
    seen = Evidence("run", serve(cooked.loopback(tmp_path / "run")))

    with pytest.raises(Exception, match=said):
        value_of(seen, name, of)


def test_a_symbol_of_two_guests_is_compared(tmp_path: Path) -> None:
    run = serve(cooked.nic(tmp_path / "run"))
    for guest, address in (("sender", "ffffffff81000010"), ("receiver", "ffffffff92000010")):
        run.guest(guest).symbols.write_text(f"{address} T __sys_socket\n")
    assert value_of(Evidence("run", run), "symbol-alike", "__sys_socket") is False

    run.guest("receiver").symbols.write_text("ffffffff81000010 T __sys_socket\n")
    assert value_of(Evidence("run", run), "symbol-alike", "__sys_socket") is True


@pytest.fixture
def tried(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "try")
    (run.path / "receiver").mkdir(parents=True)
    run.write_manifest({"module": "x.c", "kernel": "6.12.1", "guests": ["receiver"]})
    fault = {"address": "0x7ffd00001000"}
    run.write_json("postmortem.json", {"verdict": "panic", "fault": fault})
    said = ("lstar=entry_SYSCALL_64", "n=41", "b=no")
    log = "".join(f"<6>[    1.{at}] [FACT] {fact}\n" for at, fact in enumerate(said))
    run.guest("receiver").file("kernel.log").write_text(log)
    return run


def test_what_became_of_a_module_is_measured(tried: RunDir) -> None:
    seen = Evidence("try", tried)

    assert "panic" == value_of(seen, "verdict")
    assert "user" == value_of(seen, "fault-address")
    assert "entry_SYSCALL_64" == value_of(seen, "fact", "lstar")
    assert (41, False) == (value_of(seen, "fact", "n"), value_of(seen, "fact", "b"))
    assert 2 == value_of(seen, "log-lines", "FACT] ") - 1  # type: ignore[operator]
    assert 0 == value_of(seen, "log-lines", "[COPY4]")
    assert ("receiver/kernel.log#2",) == MEASURES["fact"].function(seen, "n").evidence


@pytest.mark.parametrize(
    ("address", "kind"),
    [("0x18", "NULL"), ("0x7ffd00001000", "user"), ("0xffff888000001000", "kernel")],
)
def test_the_kind_of_a_fault_address(tried: RunDir, address: str, kind: str) -> None:
    tried.write_json("postmortem.json", {"verdict": "panic", "fault": {"address": address}})

    assert kind == value_of(Evidence("try", tried), "fault-address")


def test_a_module_that_did_not_fault_has_no_address(tried: RunDir) -> None:
    tried.write_json("postmortem.json", {"verdict": "loaded", "fault": None})

    with pytest.raises(EvidenceError, match="did not fault"):
        value_of(Evidence("try", tried), "fault-address")


@pytest.mark.parametrize("verdict", ["build-failed", "refused"])
def test_a_module_that_never_loaded_says_nothing(tried: RunDir, verdict: str) -> None:
    told = {"verdict": verdict, "phase": "build", "kernel": "6.1.0", "why": "no member __iov"}
    tried.write_json("postmortem.json", told)
    seen = Evidence("try", tried)

    for measure, of in (("verdict", ""), ("log-lines", "[COPY4]")):
        with pytest.raises(NotHere, match=f"never loaded on .*: {verdict}: no member __iov"):
            value_of(seen, measure, of)
    assert "build" == value_of(seen, "phase")


def test_a_socket_that_was_followed_is_measured(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "socket")
    run.path.mkdir()
    told = {
        "complete": True,
        "proofs": [{"name": "order", "holds": False, "evidence": ["sender/trace.bin#3"]}],
        "functions": [
            {"name": name, "state": state, "calls": calls, "evidence": ids}
            for name, state, calls, ids in (
                ("iput", CALLED, 6, ["sender/trace.bin#52"]),
                ("__sys_socket_create", INLINED, 0, []),
                ("sock_create", NOT_CALLED, 0, []),
                ("inet_create", LEFT_OUT, 0, []),
                ("sock_alloc", UNHOOKED, 0, []),
            )
        ],
    }
    run.write_json("socket.json", told)
    seen = Evidence("socket", run)

    assert value_of(seen, "proof", "order") is False
    assert 6 == value_of(seen, "kernel-calls", "iput")
    # A claim about source is not refuted by what a compiler made of it.
    with pytest.raises(NotHere, match="__sys_socket_create has no symbol of its own: compiled"):
        value_of(seen, "kernel-calls", "__sys_socket_create")
    with pytest.raises(NotHere, match="sock_create exists and is not called on this way"):
        value_of(seen, "kernel-calls", "sock_create")
    for unseen in ("inet_create", "sock_alloc"):
        with pytest.raises(EvidenceError, match=f"calls of {unseen} were not followed"):
            value_of(seen, "kernel-calls", unseen)
    with pytest.raises(EvidenceError, match="none of its proofs called ordre"):
        value_of(seen, "proof", "ordre")
    run.write_json("socket.json", told | {"complete": False})
    with pytest.raises(EvidenceError, match="is not proven"):
        value_of(Evidence("socket", run), "proof", "order")


# --- Claims files ---------------------------------------------------------------------------

FAULTS: list[tuple[str, str]] = [
    ("", "the playbook is empty"),
    ("- a\n", "1:1: expected keys and values"),
    (HEAD, "6:8: expected a list"),
    (HEAD + CLAIM + CLAIM, "two claims are called A1"),
    (HEAD + CLAIM.replace("A1", "a-1"), "expected an id such as W12"),
    (HEAD + CLAIM.replace("says: two copies, ", ""), "missing key 'says'"),
    (HEAD + CLAIM.replace("at: block 1", "att: 1"), "unknown key 'att' (did you mean 'at'?)"),
    (HEAD + CLAIM.replace("on: lo", "on: low"), "unknown experiment 'low' (did you mean 'lo'?)"),
    (HEAD + CLAIM.replace("measure: copies", "measure: copys"), "did you mean 'copies'?"),
    (HEAD + CLAIM.replace("is: 2", "of: x, is: 2"), "measure copies has no 'of'"),
    (HEAD + CLAIM.replace("copies, is", "skb-len, is"), "measure skb-len asks 'of' which hook"),
    (HEAD + CLAIM.replace(", is: 2", ""), "a test compares in one of these ways: is, is-not"),
    (HEAD + CLAIM.replace("is: 2", "is: 2, among: [1]"), "a test compares in one of these ways"),
    (HEAD + "- {id: A1, at: x, says: y}\n", "a claim has tests, or says why it is untestable"),
    (HEAD.replace("{playbook: nic}", "{}") + CLAIM, "has either a playbook or a module to try"),
    (HEAD.replace("{playbook: nic}", "{playbook: nic, try: x.c}") + CLAIM, "has either a"),
    (HEAD.replace("send: yes", "size: 3") + CLAIM, "a module to try takes no size"),
    (HEAD.replace("  nic:", "  N!C:") + CLAIM, "no name for an experiment"),
    (HEAD.replace("bug1.c", "bug1.c, kernel: 5.4") + CLAIM, "expected one of 6.12, 6.1"),
    (HEAD + CLAIM.replace("[{on", "[&a {on"), "anchors (&name) are not allowed"),
]


@pytest.mark.parametrize(("words", "said"), FAULTS)
def test_a_fault_is_named_where_it_stands(words: str, said: str) -> None:
    with pytest.raises(PlaybookError) as caught:
        claims.parse(words, "mine.yaml")

    assert said in str(caught.value)
    assert "mine.yaml:" in str(caught.value)


def test_values_are_what_they_look_like() -> None:
    text = claim(
        "{on: lo, measure: same-skb, is: yes}",
        '{on: lo, measure: copy-out, is: "yes"}',
        "{on: lo, measure: copies, among: [1, 2]}",
        "{on: lo, measure: copy-out, is: _copy_from_iter}",
    )

    assert [True, "yes", (1, 2), "_copy_from_iter"] == [one.value for one in text.claims[0].tests]


def test_a_file_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(PlaybookError, match="did you mean 'worksheet'"):
        claims.load("worksheets")


@pytest.mark.parametrize("name", claims.names())
def test_our_own_claims_ask_for_what_there_is(name: str) -> None:
    text = claims.load(name)
    used = {test.on for one in text.claims for test in one.tests}

    assert used == text.experiments.keys(), "an experiment that no claim asks for"
    todo = settle.wanted([text])
    assert len(todo) == len(used)
    assert all(playbook.why_not(one.asked) is None for one in todo)


# --- Taking the experiments -----------------------------------------------------------------


def test_texts_share_experiments_that_are_alike() -> None:
    one, two = (
        claims.parse(
            HEAD + f"- {{id: A1, at: x, says: y, tests: [{TWO_ON_BOTH.replace('nic', second)}]}}\n",
            f"{name}.yaml",
        )
        for name, second in (("one", "nic"), ("two", "crash"))
    )
    todo = settle.wanted([one, two])

    assert {
        "lo": ("one/lo", "two/lo"),
        "nic": ("one/nic",),
        "crash": ("two/crash",),
    } == {one.name: one.names for one in todo}


def test_an_experiment_of_another_text_with_the_same_name_has_its_own_place() -> None:
    one = claims.parse(HEAD + CLAIM, "one.yaml")
    two = claims.parse(
        HEAD.replace("{playbook: loopback}", "{playbook: loopback, size: 99}") + CLAIM, "two.yaml"
    )

    assert ["lo", "two-lo"] == [one.name for one in settle.wanted([one, two])]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{playbook: loopback}", "{playbook: loopbak}", "experiment lo: unknown playbook"),
        ("{playbook: loopback}", "{playbook: loopback, size: 0}", "experiment lo: --size"),
        ("{playbook: loopback}", "{try: crash/none.c}", "there is no module crash/none.c"),
    ],
)
def test_an_experiment_that_is_not_there_is_refused_before_anything_starts(
    old: str, new: str, said: str
) -> None:
    text = claims.parse(HEAD.replace(old, new) + CLAIM, "one.yaml")

    with pytest.raises(PlaybookError, match=said):
        settle.wanted([text])


class FakeBench:
    """Stands for the machine: what is brought up, and what each experiment leaves."""

    def __init__(self) -> None:
        self.stands = 0
        self.taken: list[str] = []
        self.lost = ""

    def setup_for(self, *_: object, **__: object) -> tuple[Any, dict[str, Path]]:
        return SimpleNamespace(image=SimpleNamespace(digest="d", release="6.12.1")), {}

    @contextlib.contextmanager
    def stand(self, setup: Any, modules: Any, **_: object) -> Iterator[Any]:
        self.stands += 1
        yield SimpleNamespace(setup=setup, pair=None)

    def take(self, ready: Any, asked: Any, run_dir: RunDir, **_: object) -> None:
        over = asked.workload.over
        self.taken.append(over)
        if self.lost == over:
            self.lost = ""
            raise GuestLost("sender", "QEMU died")
        (cooked.nic if over == "link" else cooked.loopback)(run_dir.path).serve()

    def attempt(self, bench: Any, path: Path, trial: Any, **options: Any) -> Any:
        self.taken.append(path.name)
        run = RunDir(options["base"] / f"try-{path.stem}")
        run.path.mkdir()
        run.write_manifest(
            {"kind": "try", "module": path.name, "kernel": "6.12", "guests": ["receiver"],
             "versions": {"qemu": "7"}, "accelerator": {"name": "tcg"}}
        )  # fmt: skip
        seen = {"phases": [{"name": "load"}], "end": "panicked"}
        run.guest("receiver").write_json("observations.json", seen)
        log = Path(__file__).parent / "postmortem_logs" / f"{path.stem}.log"
        run.guest("receiver").file("kernel.log").write_bytes(log.read_bytes())
        attempt.list_files(run)
        return attempt.judge(run)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBench:
    fake = FakeBench()
    monkeypatch.setattr(paths, "runs", lambda: tmp_path / "runs")
    for name in ("setup_for", "stand"):
        monkeypatch.setattr(experiment, name, getattr(fake, name))
    kind = experiment.Kind(guests=message.guests, take=fake.take, analyse=message.analyse)
    monkeypatch.setattr(experiment, "kind_of", lambda _: kind)
    monkeypatch.setattr(attempt, "run", fake.attempt)
    monkeypatch.setattr(crash, "prepare_all", lambda *_, **__: None)
    return fake


MINE = (
    HEAD
    + f"- {{id: A1, at: x, says: two copies, tests: [{TWO_ON_BOTH}]}}\n"
    + "- {id: A2, at: x, says: it crashes, tests: [{on: crash, measure: verdict, is: panic}]}\n"
    + "- {id: A3, at: x, says: 3 V, untestable: no experiment yet}\n"
)


def tell(tmp_path: Path, *, json: bool = False, **options: Any) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    asked = Options(texts=(str(tmp_path / "mine.yaml"),), **options)
    command(Console(json=json, journal=Journal(stream=io.StringIO())), "x", asked)


def test_a_users_own_claims_are_judged_in_one_command(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(tmp_path)

    out = capsys.readouterr().out
    assert 1 == bench.stands
    assert ["loopback", "link", "worksheet_bug1.c"] == bench.taken
    assert "DEPENDS: path" in out
    assert "3 claims: 1 confirmed, 1 depends, 1 not testable here (1 of these because" in out
    folder = Path(out.strip().splitlines()[-1])
    for line in out.splitlines():
        assert len(line) <= 110 or "/" in line
    # An evidence id is a path below the folder, and a record in it.
    told = json.loads((folder / "claims.json").read_text())
    for one in told["texts"][0]["claims"]:
        for answer in one["measured"]:
            assert answer["evidence"]
            for evidence in answer["evidence"]:
                assert (folder / evidence.partition("#")[0]).is_file(), evidence


def test_a_program_reads_the_verdicts_as_json(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(tmp_path, json=True)

    told = json.loads(capsys.readouterr().out)
    verdicts = [one["verdict"] for one in told["texts"][0]["claims"]]
    assert ["depends", "confirmed", "not testable here"] == verdicts
    assert Path(told["folder"]).is_dir()


def test_an_experiment_that_fails_is_exit_code_6_and_the_others_are_judged(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.lost = "loopback"

    with pytest.raises(EvidenceError, match="1 claims could not be judged: A1: mine/lo") as caught:
        tell(tmp_path, json=True)

    assert 6 == caught.value.exit_code
    assert 2 == bench.stands
    told = json.loads(capsys.readouterr().out)
    verdicts = [one["verdict"] for one in told["texts"][0]["claims"]]
    assert ["undecided", "confirmed", "not testable here"] == verdicts


def test_verdicts_are_made_again_from_the_folder_alone(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(tmp_path)
    first = capsys.readouterr().out
    folder = first.strip().splitlines()[-1]

    tell(tmp_path, on=folder)

    assert first == capsys.readouterr().out
    assert 1 == bench.stands
    with pytest.raises(PlaybookError, match=r"has no experiments\.json"):
        tell(tmp_path, on=str(tmp_path))


def no_copies(found: Any) -> None:
    for one in found["messages"]:
        one["movements"] = [it for it in one["movements"] if it["kind"] != "copy"][:1]


def saved(found: Any) -> None:
    found.update(verdict="loaded")


@pytest.mark.parametrize(
    ("file", "edit"), [("nic/ledger.json", no_copies), ("crash/postmortem.json", saved)]
)
def test_an_edited_result_settles_no_claim(
    bench: FakeBench,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    edit: Callable[[Any], None],
) -> None:
    tell(tmp_path)
    first = capsys.readouterr().out
    folder = first.strip().splitlines()[-1]
    cooked.edit(RunDir(Path(folder)), file, edit)
    (text,) = [claims.load(str(tmp_path / "mine.yaml"))]
    (judged,) = claims.judge([text], Path(folder))
    assert table.render([judged]) not in first  # whoever believes it says something else

    tell(tmp_path, on=folder)

    assert first == capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "claim_"), [("nic/receiver/trace.bin", "A1"), ("crash/receiver/kernel.log", "A2")]
)
def test_edited_evidence_settles_no_claim(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, claim_: str
) -> None:
    tell(tmp_path)
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    nic = RunDir(folder / "nic")
    nic.write_manifest({**nic.manifest_json(), "files": nic.digests(["sender", "receiver"])})
    with (folder / file).open("ab") as changed:
        changed.write(b"more")

    with pytest.raises(EvidenceError, match=f"1 claims could not be judged: {claim_}: mine/"):
        tell(tmp_path, on=str(folder))
    assert f"{file.partition('/')[2]} was changed since the run" in " ".join(
        capsys.readouterr().out.split()
    )


def test_an_index_is_held_against_the_folder(folder: Folder) -> None:
    folder.add("lo", cooked.loopback)
    folder.lacks("lo", claims.UNAVAILABLE, "no such device")
    (found,) = folder.judge(claim(TWO_ON_LO))
    assert (claims.UNDECIDED, True) == (found.word, "there is a run of it" in found.on)

    folder.index["mine/lo"] = {"name": "../taken/lo", "state": claims.DONE}
    (found,) = folder.judge(claim(TWO_ON_LO))
    assert (claims.UNDECIDED, True) == (found.word, "expected the name of a run" in found.on)


def test_one_claim_runs_only_what_it_needs(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(tmp_path, only="A2")

    assert ["worksheet_bug1.c"] == bench.taken
    assert "1 claims: 1 confirmed" in capsys.readouterr().out
    with pytest.raises(PlaybookError, match="no claim is called A9"):
        tell(tmp_path, only="A9")


# --- The document ---------------------------------------------------------------------------


def test_the_document_is_made_from_the_verdicts(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "claims.md"
    tell(tmp_path, markdown=str(out))

    made = out.read_text()
    assert "| A1 | x | two copies | **depends**: path: holds for loopback; not for" in made
    assert "copies on nic: 3 (claimed: 2) `nic/sender/trace.bin#" in made
    assert table.COMMAND in made
    assert "tcg" in made


def test_a_bar_in_a_claim_does_not_break_the_table(folder: Folder) -> None:
    text = text_of("- {id: A1, at: x, says: a | b, untestable: c}")
    judged = claims.Judged(text=text, verdicts=folder.judge(text))

    assert "a \\| b" in table.markdown([judged], conditions="here")
