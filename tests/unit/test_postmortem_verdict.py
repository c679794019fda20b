"""One word for what was seen: each verdict, and what is next to it and is not it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.postmortem import verdict
from lab.postmortem.log import complaints, read

LOGS = Path(__file__).parent / "postmortem_logs"
LOADED: dict[str, Any] = {"phases": [{"name": "load", "exit": 0}, {"name": "soak", "exit": None}]}
FROZEN = {"how": "burns CPU", "cpu_s": 1.0, "seconds": 1.1, "nmi": "panicked"}
FOREIGN = {"at": "0xffffffff81000000", "old": "90", "new": "cc"}


def decide(seen: dict[str, Any], *texts: str, log: str | None = None) -> verdict.Verdict:
    text = "".join(f"<4>[    1.000000] {line}\n" for line in texts)
    if log is not None:
        text = (LOGS / f"{log}.log").read_text(encoding="utf-8")
    entries = read(text)
    return verdict.decide({**LOADED, **seen}, entries, complaints(entries))


@pytest.mark.parametrize(
    ("seen", "texts", "word"),
    [
        ({}, (), "loaded"),
        ({}, ("WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2",), "warn"),
        ({}, ("BUG: scheduling while atomic: x/1/0x2",), "bug"),
        ({}, ("Oops: int3: 0000 [#1] SMP",), "oops"),
        ({}, ("divide error: 0000 [#1] SMP",), "oops"),
        ({}, ("general protection fault, probably for non-canonical address",), "oops"),
        ({}, ("BUG: KASAN: slab-use-after-free in f+0x1/0x2",), "kasan"),
        ({}, ("WARNING: possible recursive locking detected",), "bug"),
        ({}, ("WARNING: possible circular locking dependency detected",), "bug"),
        ({}, ("WARNING: inconsistent lock state",), "bug"),
        ({}, ("WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",), "bug"),
        ({}, ("WARNING: bad unlock balance detected!",), "bug"),
        ({}, ("WARNING: suspicious RCU usage",), "bug"),
        ({}, ("WARNING: insmod/120 still has locks held!",), "bug"),
        ({}, ("[ BUG: Invalid wait context ]",), "bug"),
        ({}, ("WARNING: the possible is not impossible",), "warn"),
        ({}, ("BUG: KFENCE: use-after-free read in f+0x1/0x2",), "kfence"),
        ({}, ("BUG kmalloc-64 (Tainted: G  OE): Right Redzone overwritten",), "slub"),
        ({}, ("watchdog: BUG: soft lockup - CPU#0 stuck for 2s! [x:1]",), "soft-lockup"),
        ({}, ("INFO: task x:1 blocked for more than 2 seconds.",), "hung-task"),
        ({}, ("rcu: INFO: rcu_preempt self-detected stall on CPU",), "rcu-stall"),
        ({}, ("x invoked oom-killer: gfp_mask=0x0",), "oom"),
        ({}, ("Kernel panic - not syncing: as printed",), "loaded"),
        ({"end": "panicked"}, ("Kernel panic - not syncing: as asked",), "panic"),
        ({"end": "panicked"}, (), "panic"),
        ({"end": "panicked"}, ("Kernel panic - not syncing: Out of memory: x",), "oom"),
        ({"end": "guest-reset"}, ("reboot: Restarting system",), "reset"),
        ({"end": "guest-reset"}, (), "reset"),
        ({"end": "guest-shutdown"}, (), "poweroff"),
        ({"end": "lost"}, (), "guest-lost"),
        ({"frozen": FROZEN, "end": "panicked"}, (), "hard-lockup"),
        ({"flood": True}, (), "flood"),
        ({"deadline": True}, (), "deadline"),
        ({"changed": {"text": {"listed": [FOREIGN]}}}, (), "corrupt"),
        ({"changed": {"files": {"listed": [{**FOREIGN, "file": "bin/x"}]}}}, (), "corrupt"),
        ({"phases": [{"name": "load", "exit": 1, "said": "a: No such device"}]}, (), "refused"),
        ({"phases": [{"name": "load", "exit": -11, "said": ""}]}, (), "oops"),
        (
            {
                "phases": [{"name": "load", "exit": 1, "said": "a: No such device"}],
                "changed": {"text": {"listed": [FOREIGN]}},
            },
            (),
            "corrupt",
        ),
    ],
)
def test_each_verdict(seen: dict[str, Any], texts: tuple[str, ...], word: str) -> None:
    assert word == decide(seen, *texts).word
    assert word in verdict.VERDICTS


def test_the_end_of_the_machine_counts_before_what_led_to_it() -> None:
    found = decide({"end": "panicked"}, log="worksheet_bug1")

    assert "panic" == found.word
    assert found.complaint is not None
    assert "oops" == found.complaint.kind


def test_a_panic_that_only_was_printed_is_said_and_not_believed() -> None:
    found = decide({}, "Kernel panic - not syncing: as printed")

    assert "loaded" == found.word
    assert any("no panic came" in one for one in found.also)


def test_what_was_changed_is_said_whatever_the_verdict() -> None:
    found = decide({"end": "guest-reset", "changed": {"text": {"listed": [FOREIGN]}}})

    assert "reset" == found.word
    assert any("kernel text" in one for one in found.also)


def test_a_warning_does_not_hide_what_followed_it() -> None:
    found = decide({}, "WARNING: CPU: 0 PID: 1 at a.c:1 f", "Oops: 0000 [#1] SMP")

    assert "oops" == found.word
    assert any("WARNING" in also for also in found.also)


def test_a_triple_fault_and_a_reboot_are_told_apart() -> None:
    assert "triple fault" in decide({"end": "guest-reset"}).why
    assert "triple" not in decide({"end": "guest-reset"}, "reboot: Restarting system").why


def test_a_lockup_of_a_starved_guest_is_not_believed() -> None:
    text = "watchdog: BUG: soft lockup - CPU#0 stuck for 2s! [x:1]"
    doubt = {"text": text, "share": 0.1, "believed": False, "seq": 1}

    found = decide({"lockups": [doubt]}, text)

    assert "loaded" == found.word
    assert "not believed" in found.also[0]
    assert "soft-lockup" == decide({"lockups": [{**doubt, "believed": True}]}, text).word


def test_a_refusal_names_what_was_missing() -> None:
    phases = [{"name": "load", "exit": 1, "said": "insmod: x: Unknown symbol in module"}]

    found = decide({"phases": phases}, "x: Unknown symbol nothing (err -2)")

    assert "Unknown symbol in module: nothing" == found.why


def test_a_module_of_another_kernel_says_so() -> None:
    phases = [{"name": "load", "exit": 1, "said": "insmod: x: Invalid module format"}]

    found = decide({"phases": phases}, "x: version magic '6.1 SMP' should be '6.12 SMP'")

    assert "refused" == found.word
    assert "should be '6.12 SMP'" in found.why


def test_a_killed_insmod_is_the_oops_and_no_refusal() -> None:
    phases = [{"name": "load", "exit": -9, "said": "Killed"}]

    assert "oops" == decide({"phases": phases}, "Oops: 0000 [#1] SMP").word


def test_what_was_not_compared_is_said() -> None:
    assert "not compared: gone" in decide({"changed": {"absent": "gone"}}).also[0]


def test_a_log_that_was_written_over_is_harm_and_is_said_whatever_the_verdict() -> None:
    found = decide({"log": {"trouble": "not mapped"}})

    assert "corrupt" == found.word
    assert "could not be read to its end: not mapped" in found.why
    assert not found.also
    after = decide({"log": {"trouble": "not mapped"}}, "Oops: 0000 [#1] SMP")
    assert "oops" == after.word
    assert "could not be read" in after.also[0]


B, D, W, L = 1 << 5, 1 << 7, 1 << 9, 1 << 14
OURS = 1 << 12 | 1 << 13  # a module out of tree, and not signed


def tainted(now: int, *, before: int | None = 0, lost: int = 5000, **more: Any) -> dict[str, Any]:
    return {"log": {"lost": lost}, "tainted": {"before": before, "now": now, **more}}


@pytest.mark.parametrize(
    ("now", "word"),
    [
        (OURS, "loaded"),
        (W | OURS, "warn"),
        (D, "oops"),
        (D | W, "oops"),
        (L, "soft-lockup"),
        (B, "bug"),
    ],
)
def test_a_report_that_nobody_read_left_its_mark(now: int, word: str) -> None:
    found = decide(tainted(now))

    assert word == found.word
    assert word == "loaded" or "5000 records of its log were overwritten unread" in found.why
    assert "5000 records of the kernel's log were overwritten unread" in "".join(found.also)
    assert "would have left no mark" in "".join(found.also)


def test_a_mark_that_was_there_before_is_none_of_the_modules() -> None:
    assert "loaded" == decide(tainted(W, before=W, lost=0)).word


@pytest.mark.parametrize("before", [None, W, D | OURS])
def test_without_marks_to_go_by_nobody_says_loaded_of_a_log_that_was_lost(
    before: int | None,
) -> None:
    found = decide(tainted(before or 0, before=before))

    assert "flood" == found.word
    assert "cannot be known: 5000 records were overwritten unread" in found.why
    assert "loaded" == decide(tainted(before or 0, before=before, lost=0)).word


def test_a_report_that_was_read_is_told_and_its_mark_is_not() -> None:
    found = decide(tainted(W, lost=0), "WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2")

    assert ("warn", ()) == (found.word, found.also)
    assert found.why.startswith("WARNING: ")


def test_a_flood_in_which_a_warning_went_under_says_so() -> None:
    found = decide({"flood": True, **tainted(W)})

    assert "flood" == found.word
    assert any("marked itself W" in one for one in found.also)


def test_a_lockup_without_a_line_is_weighed_like_one_that_has_one() -> None:
    weighed = {"share": 0.1, "ran_s": 0.1, "believed": False}

    found = decide(tainted(L, soft_lockup=weighed))

    assert "loaded" == found.word
    assert "not believed, the guest had 10% of a CPU" in found.also[0]
    assert "soft-lockup" == decide(tainted(L, soft_lockup={**weighed, "believed": True})).word


@pytest.mark.parametrize("seen", [{}, {"phases": []}, {"log": None}, {"changed": None}])
def test_an_observation_with_holes_is_no_crash_of_ours(seen: dict[str, Any]) -> None:
    assert "loaded" == verdict.decide(seen, [], []).word


def test_the_same_complaint_over_and_over_is_one_line() -> None:
    texts = [f"WARNING: CPU: 0 PID: {pid} at a.c:1 f" for pid in range(30)]

    found = decide({}, "Oops: 0000 [#1] SMP", *texts)

    assert ("WARNING: CPU: 0 PID: 0 at a.c:1 f (30 times)",) == found.also
