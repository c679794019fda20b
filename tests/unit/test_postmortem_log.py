"""The kernel's complaints as two kernels really wrote them, and what is read out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.postmortem import log

LOGS = Path(__file__).parent / "postmortem_logs"


def reports(name: str) -> list[log.Complaint]:
    text = (LOGS / f"{name}.log").read_text(encoding="utf-8")
    return log.complaints(log.read(text))


@pytest.mark.parametrize(
    ("name", "kinds", "first_step"),
    [
        ("null_write", ["oops"], "null_write_init [null_write]"),
        ("worksheet_bug1", ["oops", "panic"], "handler [worksheet_bug1]"),
        ("bad_jump", ["oops"], "bad_jump_init [bad_jump]"),
        ("double_free", ["oops"], None),
        ("stack_overflow", ["oops", "panic"], "deeper [stack_overflow]"),
        ("warn_on", ["warn"], "warn_on_init [warn_on]"),
        ("soft_lockup", ["soft-lockup"], "soft_lockup_init [soft_lockup]"),
        ("rcu_stall", ["rcu-stall"], "rcu_stall_init [rcu_stall]"),
        ("kfence", ["kfence", "kfence"], "use_after_free_init [use_after_free]"),
        ("kasan", ["kasan"], "kfree"),
        ("lockdep", ["bug"], "__mutex_lock"),
        ("slub", ["slub", "warn"], "out_of_bounds_init [out_of_bounds]"),
    ],
)
def test_kinds_and_the_first_step(name: str, kinds: list[str], first_step: str | None) -> None:
    found = reports(name)

    assert kinds == [one.kind for one in found]
    if first_step is not None:
        assert first_step == found[0].steps[0].name


@pytest.mark.parametrize(
    ("name", "kind", "step"),
    [
        ("hung_task", "hung-task", "hung_task_init [hung_task]"),
        ("memory_exhaustion", "oom", "memory_exhaustion_init [memory_exhaustion]"),
        ("sleep_in_atomic", "bug", "sleep_in_atomic_init [sleep_in_atomic]"),
        ("double_free", "oops", "double_free_init [double_free]"),
        ("hard_lockup", "panic", "hard_lockup_init [hard_lockup]"),
        ("kasan", "kasan", "double_free_init [double_free]"),
        ("lockdep", "bug", "order_init [order]"),
    ],
)
def test_the_module_is_among_the_steps(name: str, kind: str, step: str) -> None:
    found = next(one for one in reports(name) if one.kind == kind)

    assert step in [frame.name for frame in found.steps]


def test_kasan_tells_what_became_of_the_object_before() -> None:
    (found,) = reports("kasan")

    assert 0xFFFF88800025CE00 == found.address
    assert "Free" == found.access
    assert ("insmod", 40) == (found.comm, found.pid)
    assert "the cache kmalloc-64 of size 64, 0 bytes inside of, 64-byte region" in str(found.object)
    (allocated, by), (freed, after) = found.history
    assert ("allocated", "freed") == (allocated, freed)
    assert ["double_free_init [double_free]", 0x1CB] == [by[0].name, by[0].offset]
    assert ["kfree", "double_free_init [double_free]"] == [step.name for step in after[:2]]
    # Each of the three calls is one step of its own trace, and of no other's.
    offsets = [step.offset for step in found.steps if step.module == "double_free"]
    assert [0x1E3] == offsets


def test_kfence_tells_it_too_and_it_is_no_step_of_the_fault() -> None:
    found = reports("kfence")[0]

    assert ["allocated", "freed"] == [what for what, _ in found.history]
    assert [0x131] == [step.offset for step in found.steps if step.module == "use_after_free"]


def test_the_steps_of_a_lockdep_report_are_those_of_its_own_backtrace() -> None:
    """The chain of locks before it has the steps of other, earlier calls."""
    (found,) = reports("lockdep")

    assert "WARNING: possible circular locking dependency detected" == found.title
    assert [0x59] == [step.offset for step in found.steps if step.module == "order"]


def test_an_oops_tells_address_registers_task_and_code() -> None:
    (found,) = reports("null_write")

    assert 0x10 == found.address
    assert "supervisor write access" in (found.access or "")
    assert "insmod" == found.comm
    assert "0000000000000000" == dict(found.registers)["RAX"]
    assert "<c7> 40 10" in (found.code or "")


def test_the_registers_are_the_kernels_and_not_the_programs() -> None:
    """The program that made the call has registers in the report too, after RIP: 0033."""
    (found,) = reports("null_write")

    assert "ORIG_RAX" not in dict(found.registers)


def test_a_bug_line_names_its_file() -> None:
    text = "<2>[    1.000000] kernel BUG at drivers/x.c:12!\n"
    (found,) = log.complaints(log.read(text))

    assert ("drivers/x.c", 12) == (found.file, found.line)


def test_what_happened_and_the_oops_line_are_one_report_but_the_next_is_another() -> None:
    lines = [
        "BUG: unable to handle page fault for address: ffffffffc0000000",
        "Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI",
        "BUG: unable to handle page fault for address: ffffffffc0000008",
        "Oops: Oops: 0000 [#2] PREEMPT SMP NOPTI",
    ]
    text = "".join(f"<1>[    1.00000{i}] {line}\n" for i, line in enumerate(lines))

    assert [2, 2] == [len(one.lines) for one in log.complaints(log.read(text))]


@pytest.mark.parametrize(
    "text",
    [
        "clean: nothing to see",
        "warn_on: loading out-of-tree module taints kernel.",
        "rcu: Hierarchical SRCU implementation.",
        "Call Trace:",
        "lab_debug: an oops would be a pity",
    ],
)
def test_ordinary_lines_are_no_complaints(text: str) -> None:
    assert log.kind_of(text) is None


@pytest.mark.parametrize("text", ["", "no log\n", "<9>[ x] y\n", "\0\0\0"])
def test_what_is_no_log_is_left_out(text: str) -> None:
    assert [] == log.complaints(log.read(text))


def test_frames_lose_what_the_compiler_added() -> None:
    frame = log.Frame("deeper.constprop.0", 1, 2, "m")

    assert "deeper [m]" == frame.name


def test_a_refusal_says_errno_symbol_and_kernel() -> None:
    said = "insmod: ERROR: could not insert module /run/x.ko: Unknown symbol in module\n"
    entries = log.read("<4>[    1.000000] x: Unknown symbol nothing (err -2)\n")

    assert "Unknown symbol in module" == log.errno_said(said)
    assert ["nothing"] == log.unknown_symbols(entries)
    assert log.version_magic(entries) is None
    assert "" == log.errno_said("")
