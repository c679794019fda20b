"""Playbooks: what they say, and what is said of broken ones."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import experiment, paths, playbook
from lab.errors import PlaybookError
from lab.playbook import override
from lab.playbook.reading import _nested, _or_a_word, _reader, _schema
from lab.spec import (
    HOOKS,
    SECTIONS,
    Expect,
    Experiment,
    Link,
    Module,
    OwnKernel,
    Playbook,
    Probes,
    Workload,
)

ZEROS = 16 * r"\0"
GOOD = """\
playbook: mine
question: Who copies it?
workload: {over: link}
"""


KNOWN = """\
playbook: mine
question: Is it seen?
experiment: known
"""


def messages(text: str) -> list[str]:
    return [
        f"{problem.line}:{problem.column}: {problem.message}"
        for problem in playbook.problems(text, "x.yaml")
    ]


def load_text(folder: Path, text: str) -> Playbook:
    file = folder / "x.yaml"
    file.write_text(text, encoding="utf-8")
    return playbook.load(file)


# What good ones say.


def test_nic_asks_what_the_readme_shows() -> None:
    nic = playbook.load("nic")

    assert ("nic", "6.12", 180.0) == (nic.name, nic.kernel, nic.deadline_s)
    assert Workload(over="link", protocol="udp", size=16, count=1) == nic.workload
    assert (
        Expect(
            complete=True,
            guest_cpu_copies=3,
            device_reads=1,
            device_writes=1,
            handovers=0,
            same_object=False,
            unexplained=0,
        )
        == nic.expect
    )


def test_loopback_expects_one_skb_and_no_device() -> None:
    expect = playbook.load("loopback").expect

    assert (2, 0, 0, 1) == (
        expect.guest_cpu_copies,
        expect.device_reads,
        expect.device_writes,
        expect.handovers,
    )
    assert (True, True, 58) == (expect.same_object, expect.same_head, expect.skb_len_at_xmit)


@pytest.mark.parametrize("name", playbook.names())
def test_a_playbook_of_ours_has_its_own_name_and_opens_with_plain_words(name: str) -> None:
    loaded = playbook.load(name)

    assert name == loaded.name
    assert loaded.question.endswith("?")
    assert re.match(rb"# [A-Z].*\.\n", loaded.source)
    assert (paths.data() / "playbooks" / f"{name}.yaml").read_bytes() == loaded.source


def test_the_shortest_playbook_gets_the_defaults(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, GOOD)

    assert (Link(), Probes(), Expect()) == (loaded.link, loaded.probes, loaded.expect)
    assert Workload(over="link") == loaded.workload
    assert str(tmp_path / "x.yaml") == loaded.path


def test_every_value_is_read_as_written(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        """\
playbook: full-1
question: All of it?
kernel: 6.1
link: {mtu: 9000, iommu: no}
probes: {comm: sender, without: [_copy_to_iter, "virtio_net:page_to_skb>memcpy"], records: 9}
workload:
  {over: loopback, family: ipv6, size: 2K, count: 23, connect: yes, port: 12, payload: "0123"}
deadline: 1.5m
expect: {complete: off, unexplained: 2}
""",
    )

    assert Link(mtu=9000) == loaded.link
    assert ("6.1", 90.0) == (loaded.kernel, loaded.deadline_s)
    hooks = ("_copy_to_iter", "virtio_net:page_to_skb>memcpy")
    assert Probes(comm="sender", without=hooks, records=9) == loaded.probes
    assert (
        Workload(
            over="loopback",
            family="ipv6",
            size=2048,
            count=23,
            payload=b"0123",
            connect=True,
            port=12,
        )
        == loaded.workload
    )
    assert Expect(complete=False, unexplained=2) == loaded.expect


def test_a_message_needs_a_workload_and_an_unknown_experiment_is_named() -> None:
    short = "playbook: mine\nquestion: Who?\n"

    assert ["1:1: missing key 'workload'"] == messages(short)
    (said,) = messages(short + "experiment: massage\n")
    assert "did you mean 'message'?" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("workload: {over: link}\n", "an experiment 'socket' has no 'workload'"),
        ("sweep: {size: [1]}\n", "an experiment 'socket' has no 'sweep'"),
        ("probes: {kind: none}\n", "an experiment 'socket' needs probes; found 'none'"),
        ("probes: {records: 9}\n", "an experiment 'socket' has rings of its own size"),
        ("expect: {handovers: 1}\n", "an experiment 'socket' says no 'handovers'"),
        ("calls: {repeats: 10}\n", "expected a whole number from 3000 to 1000000; found '10'"),
        ("calls: {fault: iput}\n", "expected one of alloc_file_pseudo, sock_alloc_file"),
    ],
)
def test_an_experiment_has_its_own_sections_only(more: str, said: str) -> None:
    (found,) = messages(f"playbook: mine\nquestion: What?\nexperiment: socket\n{more}")
    assert said in found


def test_calls_are_of_no_message_and_a_size_is_of_no_socket() -> None:
    assert ["4:8: an experiment 'message' has no 'calls'"] == messages(GOOD + "calls: {}\n")
    with pytest.raises(PlaybookError, match="--size: an experiment 'socket' has no 'workload'"):
        override(playbook.load("socket"), size=16)
    with pytest.raises(PlaybookError, match="--probes: an experiment 'socket' needs probes"):
        override(playbook.load("socket"), probes="none")


def test_every_kind_of_experiment_is_run_by_somebody() -> None:
    tried = {"crash"}  # by lab.attempt
    assert set(experiment.KINDS) | tried == set(SECTIONS) == set(get_args(Experiment))


def test_a_payload_gives_the_size(tmp_path: Path) -> None:
    text = GOOD.replace("{over: link}", "{over: link, payload: HELLO_ü}")

    assert 8 == load_text(tmp_path, text).workload.size


def test_every_field_of_the_spec_has_a_key_and_a_reader() -> None:
    for cls, where in (
        (Playbook, ""),
        (Link, "link."),
        (Probes, "probes."),
        (Workload, "workload."),
        (Workload, "trigger."),
        (Module, "module."),
        (Expect, "expect."),
    ):
        for key, (_, annotation) in _schema(cls).items():
            if _nested(annotation) is None and "tuple" not in str(annotation):
                assert callable(_reader(annotation, where + key))
    with pytest.raises(TypeError, match=r"nothing reads expect\.novel"):
        _reader(complex, "expect.novel")


def test_the_hooks_are_those_of_the_contract() -> None:
    contract = Path(__file__).parents[2] / "docs" / "internals.md"
    table = contract.read_text(encoding="utf-8").partition("## Kernel modules")[2]
    told = re.findall(
        r"^    (\S+) +(?:send|recv|arrival|latency|chain) +[A-Z]+ ", table, re.MULTILINE
    )
    older = re.findall(r"\(6\.1: (\w+)\)", table)

    assert set(HOOKS) == set(told) | set(older)


# What is said of broken ones.

RULES: list[tuple[str, str]] = [
    # The whole file.
    ("", "1:1: the playbook is empty"),
    ("# only words\n", "1:1: the playbook is empty"),
    ("- a\n", "1:1: expected keys such as playbook, question, experiment; found a list"),
    ("just words\n", "1:1: expected keys such as playbook, question, experiment; found 'just"),
    (GOOD + "---\na: b\n", "4:1: a playbook is one document; here is another"),
    (GOOD + "link: &a {mtu: 68}\n", "4:7: anchors (&name) are not allowed"),
    (GOOD + "link: *a\n", "4:7: aliases (*name) are not allowed"),
    (GOOD + "kernel: !!str 6.1\n", "4:9: tags (!name) are not allowed"),
    (GOOD + "link: !!python/object:os.system {}\n", "4:7: tags (!name) are not allowed"),
    (GOOD + "link: " + "[" * 9 + "]" * 9, "4:14: nested deeper than 8 levels"),
    (GOOD + "link: [" * 2000, "4:29: nested deeper than 8 levels"),
    (GOOD + "link: {", "4:8: expected the node content, but found '<stream end>'"),
    (GOOD + "a\tb: [\x07]", "4:7: a character that no YAML text may hold"),
    (GOOD + '"\\UFFFFFFFF": 1', "1:1: an escape or a version in this file is no number YAML knows"),
    (f"%YAML 1.{'9' * 5000}\n---\n{GOOD}", "1:1: an escape or a version"),
    ("x" * 65_537, "1:1: a playbook has at most 64 KiB"),
    # Keys.
    (GOOD + "kernal: 6.1\n", "4:1: unknown key 'kernal' (did you mean 'kernel'?)"),
    (GOOD + "zzz: 6.1\n", "4:1: unknown key 'zzz'"),
    (GOOD + "size: 3\n", "4:1: unknown key 'size' ('size' belongs under 'workload')"),
    (
        GOOD + "link: {kernel: 6.1}\n",
        "4:8: unknown key 'kernel' ('kernel' belongs to the top level)",
    ),
    (GOOD + "link: {<<: {mtu: 68}}\n", "4:8: unknown key '<<'"),
    (GOOD + "playbook: x\n", "4:1: duplicate key 'playbook', first given on line 1"),
    (GOOD + "expect:\t3\n", "4:8: found character '\\t' that cannot start any token"),
    (GOOD + "? [a]\n: b\n", "4:3: expected a key; found a list"),
    (GOOD + "source: x\n", "4:1: unknown key 'source'"),
    ("question: x?\nworkload: {over: link}\n", "1:1: missing key 'playbook'"),
    ("playbook: x\nworkload: {over: link}\n", "1:1: missing key 'question'"),
    ("playbook: x\nquestion: x?\n", "1:1: missing key 'workload'"),
    ("playbook: x\nquestion: x?\nworkload: {size: 3}\n", "3:11: missing key 'over'"),
    # Shapes.
    (GOOD + "link: 3\n", "4:7: expected keys such as device, backend, mtu; found '3'"),
    (GOOD + "link:\n", "4:6: expected keys such as device, backend, mtu; found nothing"),
    (GOOD + "kernel: [6.1]\n", "4:9: expected one value; found a list"),
    (
        GOOD + "kernel: {image: a, modules: b, header: c}\n",
        "4:32: unknown key 'header' (did you mean 'headers'?)",
    ),
    (GOOD + "kernel: {image: a}\n", "4:9: missing key 'modules'"),
    (GOOD + "kernel: {image: a, modules: [b]}\n", "4:29: expected one value; found a list"),
    (GOOD + "kernel: {image: a, modules: }\n", "4:28: expected a path; found nothing"),
    (GOOD + "probes: {without: a}\n", "4:19: expected a list such as [a, b]; found 'a'"),
    (GOOD + 'kernel: "\\uD800"\n', "4:9: half a surrogate pair is no character"),
    # Values.
    (GOOD.replace("mine", "Mine"), "1:11: expected a name of at most 40 small letters"),
    (GOOD.replace("mine", "../x"), "1:11: expected a name of at most 40 small letters"),
    (GOOD.replace("Who copies it?", '""'), "2:11: expected a question in one line"),
    (GOOD.replace("Who copies it?", '"a\\eb"'), "2:11: expected a question in one line"),
    (GOOD + "kernel: 6.2\n", "4:9: expected one of 6.12, 6.1; found '6.2' (did you mean '6.12'?)"),
    (GOOD + "deadline: 60\n", "4:11: expected a duration from 1s to 60m such as 60s; found '60'"),
    (GOOD + "deadline: 0s\n", "4:11: expected a duration"),
    (GOOD + "deadline: 61m\n", "4:11: expected a duration"),
    (GOOD + "link: {device: virtio}\n", "4:16: expected one of virtio-net-pci, e1000e; found"),
    (GOOD + "link: {mtu: 67}\n", "4:13: expected a whole number from 68 to 65535; found '67'"),
    (GOOD + "link: {iommu: true}\n", "4:15: expected on or off, yes or no; found 'true'"),
    (
        GOOD + "probes: {foreign: [mine.ko, mine.py]}\n",
        "4:29: expected a probe of your own, *.c, *.ko, *.bpf.o, *.bt; found 'mine.py'",
    ),
    (
        GOOD + "probes: {foreign: [mine.bpf.c]}\n",
        "4:20: expected what clang makes of 'mine.bpf.c', a .bpf.o (docs/probes.md)",
    ),
    (
        KNOWN + "known: {copies: 3}\nprobes: {foreign: [mine.ko]}\n",
        "5:9: an experiment 'known' loads no probes of yours (foreign)",
    ),
    (GOOD + "probes: {kind: dtrace}\n", "4:16: expected one of kmod, bpf, both, none"),
    (GOOD + "probes: {comm: a b}\n", "4:16: expected a comm of 1 to 15 letters"),
    (GOOD + "probes: {comm: abcdefghijklmnop}\n", "4:16: expected a comm of 1 to 15 letters"),
    (
        GOOD + "probes: {without: [copy_to_iter]}\n",
        "4:20: unknown hook 'copy_to_iter' (did you mean '_copy_to_iter'?)",
    ),
    (
        GOOD + "probes: {without: [nosuchhook]}\n",
        "4:20: unknown hook 'nosuchhook'; the nearest of ",
    ),
    (GOOD + "expect: {complete: 1}\n", "4:20: expected on or off, yes or no; found '1'"),
    (GOOD + "expect: {handovers: -1}\n", "4:21: expected a whole number from 0 to 1000000"),
    (GOOD.replace("link}", "link, size: 1GB}"), "3:30: expected a size such as 512 or 64K"),
    (GOOD.replace("link}", "link, size: 0x10}"), "3:30: expected a size such as 512 or 64K"),
    (GOOD.replace("link}", "link, size: ٣}"), "3:30: expected a size such as 512 or 64K"),
    (GOOD.replace("link}", "link, size: 0}"), "3:30: a UDP message on IPv4 has 1 to 65507 bytes"),
    (
        GOOD.replace("link}", "link, size: 65508}"),
        "3:30: a UDP message on IPv4 has 1 to 65507 bytes; found 65508",
    ),
    (GOOD.replace("link}", "link, count: 0}"), "3:31: expected a whole number from 1 to 10000"),
    (GOOD.replace("link}", "link, count: 10001}"), "3:31: expected a whole number from 1 to 10000"),
    (GOOD.replace("link}", "link, port: 65536}"), "3:30: expected a whole number from 1 to 65535"),
    (GOOD.replace("link}", 'link, payload: ""}'), "3:33: the payload is empty"),
    (GOOD.replace("link}", f"link, payload: {'x' * 16385}}}"), "3:33: a payload has at most 16384"),
    (
        GOOD.replace("link}", 'link, payload: "\\0", size: 8}'),
        "3:33: it begins with zeros alone, as most of memory does",
    ),
    (
        GOOD.replace("link}", f'link, payload: "{ZEROS}A"}}'),
        "3:33: it begins with zeros alone, as most of memory does",
    ),
    (
        GOOD.replace("link}", "link, payload: HELLO, size: 4}"),
        "3:33: 5 bytes of payload do not fit a size of 4",
    ),
    (
        GOOD + "probes: {kind: none, without: [_copy_to_iter]}\n",
        "4:31: hooks cannot be left out where probes are none",
    ),
    (
        GOOD + "probes: {kind: none, comm: sender}\n",
        "4:28: a comm cannot be picked where probes are none",
    ),
    (
        GOOD + "probes: {kind: none, records: 8}\n",
        "4:31: there is no ring to have room where probes are none",
    ),
    (
        GOOD + "probes: {records: 131073}\n",
        "4:19: expected a whole number from 1 to 131072; found '131073'",
    ),
    (GOOD + "kernel: ./bzImage\n", "4:9: a kernel of your own is {image: FILE, modules: FOLDER}"),
    (KNOWN + "known: {copies: 0}\n", "4:17: nothing is moved: no copies and no transfers"),
    (
        KNOWN + "known: {copies: 0, transfers: 1, hidden: yes}\n",
        "4:42: of no copies none can be hidden",
    ),
    (GOOD + "link: {copybreak: 0}\n", "4:19: only the driver of e1000e has a copybreak"),
    (GOOD + "link: {loss: 101%}\n", "4:14: expected a share from 0% to 100% such as 1.5%; found"),
    (GOOD + "link: {delay: 11s}\n", "4:15: expected a delay from 0ms to 10s such as 20ms; found"),
    (
        GOOD + "link: {iommu: on, swiotlb: force}\n",
        "4:28: behind an IOMMU nothing is bounced",
    ),
    (GOOD + "link: {swiotlb: on}\n", "4:17: expected one of force; found 'on'"),
    (
        GOOD + "link: {device: e1000e, mrg_rxbuf: off}\n",
        "4:35: only a virtio device has mergeable receive buffers",
    ),
    (
        GOOD + "link: {mrg_rxbuf: off, backend: tap}\n",
        "4:19: over taps a frame would lie in pages that are not followed",
    ),
    (
        GOOD + "link: {mrg_rxbuf: off, mtu: 9000}\n",
        "4:29: without mrg_rxbuf a buffer has room for 1500 bytes",
    ),
    (GOOD + "link: {xdp: drop}\n", "4:13: expected one of pass; found 'drop'"),
    (
        GOOD + "link: {device: e1000e, xdp: pass}\n",
        "4:29: only a virtio device's driver takes an XDP program here",
    ),
    (
        GOOD + "link: {xdp: pass, mtu: 9000}\n",
        "4:24: with an XDP program it is at most 3506",
    ),
    (GOOD + "link: {backend: tap, mtu: 65535}\n", "4:27: over taps it is at most 65521"),
    (
        GOOD + "link: {mrg-rxbuf: off}\n",
        "4:8: unknown key 'mrg-rxbuf' (did you mean 'mrg_rxbuf'?)",
    ),
]


@pytest.mark.parametrize(("text", "message"), RULES, ids=[message[:60] for _, message in RULES])
def test_a_broken_rule_is_told_where_it_stands(text: str, message: str) -> None:
    (said,) = messages(text)

    assert said.startswith(message)


BROKEN = """\
# Nothing here is right.
playbook: Bad Name
question: ""
kernal: 6.12
link: {device: e1000, backend: tap, iommu_platform: on}
link: {}
probes: {kind: none, without: [copy_to_iter]}
size: 4
workload:
  over: wire
  size: 70000
  count: [1]
  connect: true
deadline: 60
expect: 3
"""

TOP = (
    "expected one of playbook, question, experiment, kernel, link, probes, module, workload, known,"
    " trigger, calls, expect, sweep, deadline"
)
LINK = (
    "expected one of device, backend, mtu, iommu, swiotlb, mrg_rxbuf, xdp, copybreak, delay, loss"
)
SAID = """\
broken.yaml has 14 faults; nothing was started
broken.yaml:2:11: expected a name of at most 40 small letters, digits and '-'; found 'Bad Name'
    playbook: Bad Name
              ^
broken.yaml:3:11: expected a question in one line of 1 to 200 characters
    question: ""
              ^
broken.yaml:4:1: unknown key 'kernal' (did you mean 'kernel'?); <TOP>
    kernal: 6.12
    ^
broken.yaml:5:16: expected one of virtio-net-pci, e1000e; found 'e1000' (did you mean 'e1000e'?)
    link: {device: e1000, backend: tap, iommu_platform: on}
                   ^
broken.yaml:5:37: unknown key 'iommu_platform'; <LINK>
    link: {device: e1000, backend: tap, iommu_platform: on}
                                        ^
broken.yaml:6:1: duplicate key 'link', first given on line 5
    link: {}
    ^
broken.yaml:7:32: unknown hook 'copy_to_iter' (did you mean '_copy_to_iter'?)
    probes: {kind: none, without: [copy_to_iter]}
                                   ^
broken.yaml:8:1: unknown key 'size' ('size' belongs under 'workload'); <TOP>
    size: 4
    ^
broken.yaml:10:9: expected one of loopback, link; found 'wire'
      over: wire
            ^
broken.yaml:11:9: a UDP message on IPv4 has 1 to 65507 bytes; found 70000
      size: 70000
            ^
broken.yaml:12:10: expected one value; found a list
      count: [1]
             ^
broken.yaml:13:12: expected on or off, yes or no; found 'true'
      connect: true
               ^
broken.yaml:14:11: expected a duration from 1s to 60m such as 60s; found '60'
    deadline: 60
              ^
broken.yaml:15:9: expected keys such as complete, guest-cpu-copies, device-reads; found '3'
    expect: 3
            ^
""".replace("<TOP>", TOP).replace("<LINK>", LINK)


def test_a_badly_broken_file_is_told_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text(BROKEN, encoding="utf-8")

    with pytest.raises(PlaybookError) as caught:
        playbook.load("broken.yaml")

    assert SAID == f"{caught.value}\n"
    assert 2 == caught.value.exit_code
    assert "lab.check" in (caught.value.hint or "")


def test_a_long_line_is_shown_around_its_fault() -> None:
    (problem,) = playbook.problems(GOOD + "link: {mtu: " + "7" * 300 + ", zz: 1}\n", "x")[1:]

    line, caret = str(problem).splitlines()[1:]
    assert 105 > len(line)
    assert "zz" == line[caret.index("^") :][:2]


def test_a_terminal_gets_no_escapes_from_a_file() -> None:
    text = GOOD + "kern\u009bal: 3\n"

    for problem in playbook.problems(text, "x"):
        assert "\u009b" not in str(problem)


def test_the_size_is_looked_at_before_the_text(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"[" * 10_485_760)

    with pytest.raises(PlaybookError, match=r"is over 64 KiB"):
        playbook.load(big)


def test_bytes_that_are_no_utf8_are_told(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(GOOD.encode() + b"kernel: \xff\n")

    with pytest.raises(PlaybookError, match=r"x\.yaml:4:9: not UTF-8: byte 0xff"):
        playbook.load(file)
    assert 1 == len(playbook.problems(file.read_bytes(), "x"))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert "mine" == load_text(tmp_path, "\ufeff" + GOOD).name


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(PlaybookError) as caught:
        playbook.load("loopbak")

    assert "unknown playbook 'loopbak' (did you mean 'loopback'?)" == str(caught.value)
    assert "nic" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("./none.yaml", "cannot be read: No such file"),
        ("/dev/zero.yaml", "cannot be read"),
        ("/dev/zero", "/dev/zero is not a file"),
        ("/", "/ is not a file"),
        ("../../etc/passwd", "cannot be read|has 1 fault"),
        ("", "unknown playbook nothing"),
        ("x\0y", "holds no NUL"),
    ],
)
def test_a_path_that_is_no_playbook_is_told(name: str, fault: str) -> None:
    with pytest.raises(PlaybookError, match=fault):
        playbook.load(name)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")

    with pytest.raises(PlaybookError, match="is not a file"):
        playbook.load(tmp_path / "x.yaml")


@given(st.text(max_size=400))
@settings(deadline=None, max_examples=200)
def test_no_text_breaks_the_reader(text: str) -> None:
    playbook.problems(text, "x.yaml")


WORDS = st.sampled_from(
    [
        *("link", "workload", "size", "probes", "on", "1", "- ", ": ", "\n  ", ", ", "? "),
        *("&a ", "*a", "!x ", "---", "\\U", "\\x", *"{}[]\n\"'|>%#\t\x85"),
    ]
)


@given(st.lists(WORDS, max_size=60))
@settings(deadline=None, max_examples=300)
def test_no_yaml_breaks_the_reader(words: list[str]) -> None:
    text = "".join(words)

    for problem in playbook.problems(text, "x.yaml"):
        assert problem.line >= 1
        assert problem.column >= 1
        assert str(problem).startswith("x.yaml:")


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_break_the_reader(data: bytes) -> None:
    playbook.problems(data, "x.yaml")


# Options of the command line.


def test_options_take_the_place_of_what_was_asked() -> None:
    changed = override(
        playbook.load("nic"),
        size="32",
        count=23,
        family="ipv6",
        payload="HELLO",
        without="_copy_to_iter, loopback_xmit",
        comm="sender",
        kernel="6.1",
        deadline="5m",
        connect=True,
    )

    assert (
        Workload(over="link", family="ipv6", size=32, count=23, payload=b"HELLO", connect=True)
        == changed.workload
    )
    assert Probes(without=("_copy_to_iter", "loopback_xmit"), comm="sender") == changed.probes
    assert ("6.1", 300.0) == (changed.kernel, changed.deadline_s)


def test_no_option_changes_nothing() -> None:
    nic = playbook.load("nic")

    assert nic == override(nic)


def test_a_payload_option_sets_the_size() -> None:
    nic = playbook.load("nic")

    assert 16 == override(nic, payload="HELLO_SEND_TRACE").workload.size
    assert 5 == override(nic, payload="HELLO").workload.size
    assert b"\xff" == override(nic, payload="\udcff").workload.payload


def test_what_was_expected_of_another_size_is_not_expected() -> None:
    loopback, nic = playbook.load("loopback"), playbook.load("nic")

    assert loopback.expect == override(loopback, size="16", count="3").expect
    assert None is override(loopback, size="64").expect.skb_len_at_xmit
    assert 2 == override(loopback, size="64").expect.guest_cpu_copies
    assert None is override(loopback, family="ipv6").expect.skb_len_at_xmit
    assert 2 == override(loopback, family="ipv6").expect.guest_cpu_copies
    assert None is override(nic, family="ipv6").expect.guest_cpu_copies
    assert nic.expect == override(nic, connect=True).expect
    large = override(nic, size="1400").expect
    assert (None, None, None) == (large.guest_cpu_copies, large.device_reads, large.device_writes)
    assert (True, 0) == (large.complete, large.unexplained)


def test_what_options_leave_no_answer_to_is_named_with_why() -> None:
    loopback, nic = playbook.load("loopback"), playbook.load("nic")
    size, skb = "asked of the playbook's own size, 16", "only a probe sees an skb: --probes none"
    protocol = "asked of the playbook's own protocol, udp"

    assert () == override(nic, count=3, connect=True).not_judged
    assert {"same_object": skb} == dict(override(nic, probes="none").not_judged)
    assert {"same_object": skb, "same_head": skb, "skb_len_at_xmit": skb} == dict(
        override(loopback, probes="none", size=64).not_judged
    )
    assert dict.fromkeys(("guest_cpu_copies", "device_reads", "device_writes"), size) == dict(
        override(nic, size=1400).not_judged
    )
    assert {"unexplained": "3 bytes are too few to search RAM for"}.items() <= dict(
        override(nic, payload="abc").not_judged
    ).items()
    named = dict(override(loopback, protocol="tcp", size=64).not_judged)
    assert {protocol} == {*named.values()}
    # Every line of the file is asked, or named as not asked.
    assert EXPECTED == {*named, *_asked(override(loopback, protocol="tcp", size=64).expect)}


EXPECTED = {
    *("complete", "guest_cpu_copies", "device_reads", "device_writes", "handovers"),
    *("same_object", "same_head", "skb_len_at_xmit", "unexplained"),
}


def _asked(expect: Expect) -> set[str]:
    return {name for name, value in dataclasses.asdict(expect).items() if value is not None}


@pytest.mark.parametrize("name", ["loopback", "nic"])
def test_of_another_protocol_only_a_complete_ledger_is_expected(name: str) -> None:
    found = override(playbook.load(name), protocol="tcp").expect

    assert Expect(complete=True, unexplained=0) == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "ipx"}, "--family: expected one of ipv4, ipv6; found 'ipx'"),
        (
            {"size": 65528, "family": "ipv6"},
            "--size: a UDP message on IPv6 has 1 to 65527 bytes; found 65528",
        ),
        ({"size": "0"}, "--size: a UDP message on IPv4 has 1 to 65507 bytes; found 0"),
        ({"size": 65508}, "--size: a UDP message on IPv4 has 1 to 65507 bytes; found 65508"),
        ({"size": "big"}, "--size: expected a size such as 512 or 64K; found 'big'"),
        ({"size": -1}, "--size: expected a size such as 512 or 64K; found '-1'"),
        ({"size": "4", "payload": "HELLO"}, "--payload: 5 bytes of payload do not fit a size of 4"),
        ({"payload": ""}, "--payload: the payload is empty"),
        ({"count": "0"}, "--count: expected a whole number from 1 to 10000; found '0'"),
        ({"without": "copy_to_iter"}, "--without: unknown hook 'copy_to_iter' (did you mean"),
        ({"without": ""}, "--without: unknown hook nothing"),
        ({"without": ["a,b"]}, "--without: unknown hook 'a'"),
        ({"probes": "none", "without": "_copy_to_iter"}, "--without: hooks cannot be left out"),
        ({"probes": "none", "comm": "x"}, "--comm: a comm cannot be picked"),
        ({"comm": "a b"}, "--comm: expected a comm"),
        ({"protocol": "sctp"}, "--protocol: expected one of udp, tcp"),
        ({"protocol": "sctp"}, "--protocol: expected one of udp, tcp; found 'sctp'"),
        ({"kernel": "5.4"}, "--kernel: expected one of 6.12, 6.1; found '5.4'"),
        ({"kernel": "./bzImage"}, "--kernel: a kernel of your own is {image: FILE"),
        ({"deadline": 0.5}, "--deadline: expected a duration"),
        ({"deadline": "soon"}, "--deadline: expected a duration"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlaybookError) as caught:
        override(playbook.load("nic"), **options)

    assert str(caught.value).startswith(said)
    assert 2 == caught.value.exit_code


def test_all_bad_options_are_named_at_once() -> None:
    with pytest.raises(PlaybookError) as caught:
        override(playbook.load("nic"), size="x", count="y", kernel="z")

    assert ["--size", "--count", "--kernel"] == re.findall(
        r"^--\w+", str(caught.value), re.MULTILINE
    )


@pytest.mark.parametrize("payload", [r"\0\0A", ZEROS[2:] + "A", r"\0, size: 7"])
def test_a_payload_that_begins_with_some_zeros_is_one(tmp_path: Path, payload: str) -> None:
    """What is too short to be searched for may be of zeros alone."""
    text, _, more = payload.partition(",")
    load_text(tmp_path, GOOD.replace("link}", f'link, payload: "{text}"{more and ","}{more}}}'))


def test_an_option_that_contradicts_the_file_is_the_one_named(tmp_path: Path) -> None:
    file = load_text(tmp_path, GOOD.replace("link}", "link, payload: HELLO}"))
    left_out = load_text(tmp_path, GOOD + "probes: {without: [_copy_to_iter]}\n")

    with pytest.raises(PlaybookError, match=r"^--size: 5 bytes of payload do not fit a size of 4"):
        override(file, size="4")
    with pytest.raises(PlaybookError, match=r"^--probes: hooks cannot be left out"):
        override(left_out, probes="none")


# Modules that may crash.

CRASH = """\
playbook: mine
question: What does it do?
experiment: crash
module: {path: x.c}
expect: {verdict: oops, at: "x.c:3"}
"""


def test_a_crash_says_what_is_done_and_how_it_ends(tmp_path: Path) -> None:
    (tmp_path / "x.c").touch()
    loaded = load_text(
        tmp_path,
        CRASH.replace(
            "{path: x.c}",
            "{path: x.c, target: one, params: [a=1, b=c], soak: 500ms, unload: no,"
            " kfence: yes, slub-debug: FZP}",
        )
        + "trigger: {over: link, size: 2K}\n",
    )

    assert (
        Module(
            path=str(tmp_path / "x.c"), target="one", params=("a=1", "b=c"), soak_s=0.5,
            unload=False, kfence=True, slub_debug="FZP",
        )
        == loaded.module
    )  # fmt: skip
    assert Workload(over="link", size=2048) == loaded.trigger
    assert ("oops", "x.c:3") == (loaded.expect.verdict, loaded.expect.at)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("module: {path: x.c}\n", "", "1:1: missing key 'module'"),
        ("{path: x.c}", "{}", "4:9: missing key 'path'"),
        ('expect: {verdict: oops, at: "x.c:3"}\n', "", "1:1: an experiment 'crash' expects a"),
        ("verdict: oops, ", "", "5:9: an experiment 'crash' expects a 'verdict'"),
        ("oops", "opps", "found 'opps' (did you mean 'oops'?)"),
        ("verdict: oops", "complete: yes, verdict: oops", "5:9: an experiment 'crash' says no"),
        ("module", "workload: {over: link}\nmodule", "4:11: an experiment 'crash' has no 'work"),
        ("module", "link: {mtu: 68}\nmodule", "4:7: an experiment 'crash' has no 'link'"),
        ("module", "probes: {kind: none}\nmodule", "4:9: an experiment 'crash' has no 'probes'"),
        ("{path: x.c}", "{path: x.c, soak: 11m}", "expected a duration from 0s to 10m"),
        ("{path: x.c}", "{path: x.c, params: [a b]}", "4:30: expected a parameter such as"),
        ("{path: x.c}", "{path: x.c, slub-debug: Q}", "expected letters of F, Z, P, U and A"),
        ("{path: x.c}", "{path: x.c, soke: 1s}", "unknown key 'soke' (did you mean 'soak'?)"),
        ("module", "verdict: oops\nmodule", "('verdict' belongs under 'expect')"),
        ("module", "trigger: {size: 4}\nmodule", "4:10: missing key 'over'"),
        ("crash", "message", "an experiment 'message' has no 'module'"),
        ("crash", "message", "an experiment 'message' says no 'verdict'"),
    ],
)
def test_a_fault_of_a_crash_is_told_where_it_stands(old: str, new: str, said: str) -> None:
    text = CRASH.replace(old, new, 1)

    assert text != CRASH
    assert any(said in one for one in messages(text)), messages(text)


OWN = "kernel: {image: k/bzImage, modules: k/out}\n"


def test_a_kernel_of_ones_own_lies_beside_the_playbook(tmp_path: Path) -> None:
    (tmp_path / "k/out").mkdir(parents=True)
    with pytest.raises(PlaybookError, match=r"4:17: there is no 'k/bzImage' beside this playbook"):
        load_text(tmp_path, GOOD + OWN)
    (tmp_path / "k/bzImage").touch()
    loaded = load_text(tmp_path, GOOD + OWN)

    mine = OwnKernel(image=f"{tmp_path}/k/bzImage", modules=f"{tmp_path}/k/out")
    assert mine == loaded.kernel
    assert mine == override(loaded, size=5).kernel
    assert "6.1" == override(loaded, kernel="6.1").kernel


def test_the_options_name_a_kernel_of_ones_own_together() -> None:
    mine = playbook.kernel_of("./bzImage", "out", "tree")

    assert OwnKernel(image="./bzImage", modules="out", headers="tree") == mine
    assert mine == override(playbook.load("nic"), kernel=mine).kernel
    assert "6.1" == playbook.kernel_of("6.1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("6.12", "out"), "--modules: goes with a kernel of your own"),
        (("6.12", "", "tree"), "--headers: goes with a kernel of your own"),
        (("", "out"), "--modules: and --kernel BZIMAGE is missing"),
        (("./bzImage",), "--modules FOLDER is missing"),
        (("6.13",), "--kernel: expected one of 6.12, 6.1, or a bzImage"),
    ],
)
def test_half_a_kernel_of_ones_own_is_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlaybookError, match=re.escape(message)):
        playbook.kernel_of(*given)


def test_a_module_that_is_not_there_is_a_fault_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(PlaybookError, match=r"4:16: there is no 'x\.c' beside this playbook"):
        load_text(tmp_path, CRASH)


def test_a_probe_of_ones_own_that_is_not_there_is_a_fault_at_its_line(tmp_path: Path) -> None:
    for name in ("here.ko", "here.c"):
        (tmp_path / name).touch()
    (tmp_path / "folder.ko").mkdir()
    files = "probes: {foreign: [here.ko, here.c, "

    loaded = load_text(tmp_path, GOOD + files + "]}\n")
    for name in ("gone.ko", "folder.ko", "n" * 300 + ".bt"):
        with pytest.raises(PlaybookError, match=r"4:37: .* (beside this playbook|looked for: )"):
            load_text(tmp_path, GOOD + files + name + "]}\n")

    assert ("here.ko", "here.c") == loaded.probes.foreign  # outputs are named so


def test_the_options_of_a_message_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.c").touch()
    loaded = load_text(tmp_path, CRASH)

    assert "6.1" == override(loaded, kernel="6.1").kernel
    assert loaded.expect == override(loaded, kernel="6.1").expect
    with pytest.raises(PlaybookError, match="--size: an experiment 'crash' has none"):
        override(loaded, size=5)


def test_a_link_too_small_for_ipv6_is_a_contradiction() -> None:
    text = "playbook: x\nquestion: y?\nlink: {mtu: 1279}\nworkload: {over: link, family: ipv6}\n"

    (said,) = messages(text)
    assert "a link that carries IPv6 has an MTU of at least 1280; found 1279" in said
    assert [] == messages(text.replace("1279", "1280"))
    assert [] == messages(text.replace("over: link", "over: loopback"))


# The page that has every key, docs/playbook.md.

PAGE = Path(__file__).parents[2] / "docs" / "playbook.md"


def rows(columns: int) -> dict[str, list[str]]:
    """Return the rows of the page's tables with so many columns, by what is in their first."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        first = re.fullmatch("`(.+)`", cells[0])
        if line.startswith("| ") and first and len(cells) == columns:
            found[first[1]] = cells[1:]
    return found


def keys(cls: type[Any], where: str = "") -> dict[str, tuple[Any, object]]:
    """Return each key a file may have, with its field and its type."""
    found = {}
    for key, (field, annotation) in _schema(cls).items():
        name = f"{where}{key}"
        nested = _nested(annotation)
        if nested is None or _or_a_word(annotation) or name == "trigger":  # a second workload
            found[name] = field, annotation
        if nested is not None and name != "trigger":
            found |= keys(nested, f"{name}.")
    return found


def quoted(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def test_the_page_has_every_key_and_no_other() -> None:
    page = rows(4)
    assert [*keys(Playbook)] == sorted(page.keys() - SECTIONS, key=[*keys(Playbook)].index)


@pytest.mark.parametrize("key", sorted(keys(Playbook).keys() - {"trigger"}))
def test_what_the_page_says_may_be_written_is_read(key: str) -> None:
    field, annotation = keys(Playbook)[key]
    written, default, _ = rows(4)[key]
    read = _reader(annotation, key)
    texts = [part for one in quoted(written) for part in one.strip("[]").split(", ")]

    values = [read(text) for text in texts]
    assert values
    assert (get_origin(annotation) is tuple) == written.startswith("`[")
    literals = {word for kind in (annotation, *get_args(annotation)) for word in get_args(kind)}
    words = {word for word in literals if isinstance(word, str)}
    assert not words or get_origin(annotation) is tuple or words == set(values)
    if field.default is dataclasses.MISSING:
        assert "required" == default
    elif shown := quoted(default):
        assert [field.default] == [read(text) for text in shown]
    else:
        assert field.default in {None, (), ""}


def test_the_page_says_what_each_kind_reads() -> None:
    page = rows(4)
    for kind, sections in SECTIONS.items():
        told = [quoted(cell) for cell in page[kind]] if kind in page else None
        assert [[*sections.needs], [*sections.may], [*sections.lacks]] == told, kind
