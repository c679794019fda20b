"""socket(2) from records: what holds of a good run, and how each proof breaks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import experiment, socket
from lab.errors import TraceCorrupt
from lab.journal import Journal
from lab.record import WORDS, Kind
from lab.socket import hooked, status
from tests.unit.cooked_socket import FILE, SOCKET, TEXT, Cooked, cook, repeat

ENTRY, RETURN = Kind.ENTRY, Kind.RETURN
Spoil = Callable[[Cooked], object]


@pytest.fixture
def run(tmp_path: Path) -> Cooked:
    return cook(tmp_path / "run")


def broken(run: Cooked) -> set[str]:
    """Return the names of the proofs that do not hold."""
    return {one.name for one in socket.build(run.serve()).proofs if not one.holds}


def words(run: Cooked, hook: str, kind: Kind, place: int, value: int, *, nth: int = 0) -> None:
    """Put another value into the words of a record; nth 0 is that of the plain call."""
    event = run.at(hook, kind, nth)
    found = list(WORDS.unpack(event["bytes"]))
    found[place] = value
    event["bytes"] = WORDS.pack(*found)


def beyond_the_errors(run: Cooked) -> None:
    words(run, "__sys_socket", RETURN, 6, 0xFFFF_F000, nth=2)
    run.answer("bad type")["call"].update(returned=-4096)


def inet_create_last(run: Cooked) -> None:
    run.at("inet_create", ENTRY)["tsc"] = run.at("fd_install", RETURN)["tsc"]


def another_program(run: Cooked) -> None:
    """Say that a program ran of which nobody skipped a call."""
    ping = next(one for one in run.cases if one["name"] == "ping")
    run.cases.append({**ping, "name": "nc"})


def gone(run: Cooked, hook: str) -> None:
    run.chain[:] = [one for one in run.chain if one["hook"] != hook]


def test_all_holds_of_a_good_run_and_every_proof_names_its_records(run: Cooked) -> None:
    found = socket.build(run.serve())

    assert found.complete, broken(run)
    assert all(one.evidence for one in found.proofs)
    assert all(one.says for one in found.proofs)


SPOILED: dict[str, tuple[Spoil, set[str]]] = {
    "another argument": (
        lambda run: words(run, "__sys_socket", ENTRY, 1, 2),
        {"arguments"},
    ),
    "inet_create last": (
        inet_create_last,
        {"order"},
    ),
    "an old sk": (
        lambda run: run.at("sock_alloc", RETURN).update(sk=SOCKET),
        {"sock_alloc leaves sk and ops empty, state 1"},
    ),
    "a state": (
        lambda run: run.at("sock_alloc", RETURN).update(skb_len=3),
        {"sock_alloc leaves sk and ops empty, state 1"},
    ),
    "no ops": (
        lambda run: run.at("inet_create", RETURN).update(head=0),
        {"inet_create sets sk and ops"},
    ),
    "another socket": (
        lambda run: words(run, "inet_create", ENTRY, 1, SOCKET + 8),
        {"one pointer through the whole chain"},
    ),
    "another private_data": (
        lambda run: run.at("fd_install", ENTRY).update(src_phys=SOCKET + 8),
        {"one pointer through the whole chain", "private_data == socket"},
    ),
    "no way back": (
        lambda run: run.at("inet_create", RETURN).update(dst_phys=0),
        {"sk->sk_socket == socket"},
    ),
    "another file": (
        lambda run: words(run, "fd_install", ENTRY, 1, FILE + 8),
        {"one file"},
    ),
    "another descriptor": (
        lambda run: words(run, "get_unused_fd_flags", RETURN, 6, 4),
        {"one descriptor"},
    ),
    "other code": (
        lambda run: run.at("__x64_sys_sendto", ENTRY).update(aux=0x80CD),
        {"barrier: RAX = 44"},
    ),
    "another number": (
        lambda run: words(run, "__x64_sys_recvfrom", ENTRY, 3, 46),
        {"barrier: RAX = 45"},
    ),
    "no ring 3": (
        lambda run: words(run, "__x64_sys_socket", ENTRY, 5, 0x10),
        {"barrier: RAX = 41"},
    ),
    "another entry": (
        lambda run: words(run, "__x64_sys_socket", ENTRY, 7, TEXT + 0x100),
        {"entry point"},
    ),
    "a descriptor instead of an error": (
        lambda run: words(run, "__sys_socket", RETURN, 6, 5, nth=1),
        {"bad family fails"},
    ),
    "beyond the errors": (
        beyond_the_errors,
        {"bad type fails"},
    ),
    "never released": (
        lambda run: run.chain.remove(run.at("__sock_release", ENTRY, 1)),
        {"no descriptor: released, not installed"},
    ),
    "another inode put": (
        lambda run: words(run, "iput", ENTRY, 0, SOCKET, nth=2),
        {"injected: released, not installed"},
    ),
    "a signal taken early": (
        lambda run: words(run, "fd_install", ENTRY, 7, 0, nth=1),
        {"signal on the way back"},
    ),
    "a call that was interrupted": (
        lambda run: run.answer("signal")["signal"].update(ax=-4),
        {"signal on the way back"},
    ),
    "a handler before the return": (
        lambda run: run.answer("signal")["signal"].update(tsc=1),
        {"signal on the way back"},
    ),
    "an end before its start": (
        lambda run: run.latency[1].update(tsc=run.latency[0]["tsc"] - 1),
        {"start and end"},
    ),
    "another program taken": (
        lambda run: run.latency[2].update(comm="ping"),
        {"skipped programs are counted"},
    ),
    "a skip that was not told": (
        another_program,
        {"skipped programs are counted"},
    ),
    "a socket too many": (
        lambda run: run.repeats.__setitem__(0, repeat("plain", 20, left=1)),
        {"plain repeated: nothing is left"},
    ),
    "slabs that grew": (
        lambda run: run.repeats[1]["answer"]["settled"]["slabs"]["sock_inode_cache"].update(
            objects=45
        ),
        {"no descriptor repeated: nothing is left"},
    ),
    "failures nobody recorded": (
        lambda run: setattr(run, "injected", 19),
        {"injected repeated: nothing is left"},
    ),
    "a leak not seen": (
        lambda run: run.repeats.__setitem__(3, repeat("control", 4, error=-23, left=3)),
        {"a leak is caught"},
    ),
    "no leak made": (lambda run: run.repeats.pop(), {"a leak is caught"}),
    "records dropped": (lambda run: setattr(run, "dropped", 1), {"no record is lost"}),
    "an fd_install that returns": (
        lambda run: run.returns.update(fd_install="int"),
        {"fd_install cannot fail"},
    ),
    "no KASLR": (
        lambda run: run.kernels.update(
            sender=["0xffffffff81000000"] * 2, receiver=["0xffffffff81000000"]
        ),
        {"kernel text: boots differ, restores do not"},
    ),
    "a restore that moved": (
        lambda run: run.kernels.update(sender=[hex(TEXT), hex(TEXT + 0x40_0000)]),
        {"kernel text: boots differ, restores do not"},
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_each_proof_breaks_by_what_it_is_about_and_no_other(what: str, run: Cooked) -> None:
    spoil, proofs = SPOILED[what]
    spoil(run)

    assert proofs == broken(run)


def test_every_proof_is_seen_to_break(run: Cooked) -> None:
    names = {one.name for one in socket.build(run.serve()).proofs}

    by_hook = {"bad protocol fails"}  # of the same function as `released`, which breaks below
    assert names == set().union(*(proofs for _, proofs in SPOILED.values())) | by_hook


@pytest.mark.parametrize(
    ("hook", "proof"),
    [
        ("sock_alloc", "one pointer through the whole chain"),
        ("inet_create", "order"),
        ("fd_install", "private_data == socket"),
        ("__sock_release", "bad protocol fails"),
        ("get_signal", "signal on the way back"),
        ("__x64_sys_socket", "barrier: RAX = 41"),
    ],
)
def test_what_nobody_recorded_is_not_proven(run: Cooked, hook: str, proof: str) -> None:
    gone(run, hook)

    found = socket.build(run.serve())

    (one,) = (one for one in found.proofs if one.name == proof)
    assert not one.holds
    assert re.search(r"no record|never", one.says)


def test_functions_are_named_by_kallsyms_and_by_what_fired(run: Cooked) -> None:
    states = {one.name: one.state for one in socket.build(run.serve()).functions}

    assert hooked.INLINED == states["sock_map_fd"] == states["__sys_socket_create"]
    assert hooked.NOT_CALLED == states["sock_create"] == states["sock_release"]
    assert hooked.CALLED == states["sock_alloc"]


def test_a_symbol_without_a_hook_is_no_inlined_function(run: Cooked) -> None:
    run.symbols["sock_map_fd"] = TEXT + 0x5000

    states = {one.name: one.state for one in socket.build(run.serve()).functions}

    assert hooked.UNHOOKED == states["sock_map_fd"]


def test_the_books_lines_are_rendered_from_records(run: Cooked) -> None:
    lines = list(socket.lines(run.serve()))
    text = "\n".join(lines)

    assert "[PROBE] Latency Probe Loaded." == lines[0]
    assert "[PROBE] registration failed: sock_map_fd: ENOENT" in lines
    assert re.search(r"__sys_socket START \| PID: 142 \| Args: 2, 1, 0 \| TS: \d+", text)
    assert re.search(
        r"__sys_socket END   \| PID: 142 \| FD: 3 \| Status: SUCCESS \| Time: \d+ ns \(emulated\)",
        text,
    )
    assert re.search(r"FD: -97 \| Status: FAIL", text)
    assert "SKIPPING PING | PID: 7 | Returning 1 (No Kretprobe)" in text
    assert f"socket={SOCKET:x} Chassis Init: sk=0, ops=0, state=1" in text
    assert "[PROBE] Latency Probe Unloaded." in lines
    assert all("FAIL" in one for one in socket.lines(run.serve(), grep="FAIL"))


def test_a_module_that_left_its_ring_is_not_said_to_be_unloaded(run: Cooked) -> None:
    out = run.serve()
    calls = out.path / "sender" / "calls.json"
    calls.write_text(calls.read_text().replace('"socket_chain_probe": true', '"x": true'))

    assert "Chain Probe Unloaded" not in "\n".join(socket.lines(out))


def test_the_report_has_steps_maps_and_tables_within_110_columns(run: Cooked) -> None:
    text = socket.render(socket.build(run.serve()))

    assert text.startswith("PROVEN: socket(2, 1, 0) = 3")
    for word in ("THE TEN STEPS", "THE MEMORY MAP", "THE COMMON THREAD", "THE BARRIER", "PUZZLE"):
        assert word in text
    assert 10 == len(re.findall(r"^\d\d  .* ✓ ", text, re.MULTILINE))
    assert f"{SOCKET:016x} == {SOCKET:016x}: TRUE" in text
    assert "4294967199; the book's test of a long calls that SUCCESS" in " ".join(text.split())
    assert max(len(line) for line in text.splitlines() if "[PROBE]" not in line) <= 110


def test_a_report_of_a_broken_run_says_what_is_not_proven_first(run: Cooked) -> None:
    words(run, "__sys_socket", ENTRY, 1, 2)

    text = socket.render(socket.build(run.serve()))

    assert text.startswith("NOT PROVEN: 1 of ")
    assert "✗ arguments: the program loaded 2, 1, 0, __sys_socket received 2, 2, 0" in text


SAME = "module and BPF say the same"


def programs(run: Cooked, hook: str, kind: Kind) -> dict[str, Any]:
    """Return the BPF programs' record of the plain call, to be spoiled."""
    run.watch_by_programs()
    assert run.programs is not None
    return next(e for e in run.programs if (e["hook"], e["kind"]) == (hook, kind))


def test_both_accounts_are_held_against_each_other_and_each_record_says_who_saw_it(
    run: Cooked,
) -> None:
    run.watch_by_programs()
    found = socket.build(run.serve())

    assert broken(run) == set()
    assert found.agreement is not None
    assert len(run.chain) == len(found.agreement.pairs)
    steps = found.to_json()["calls"][1]["steps"]
    assert ["probe:kmod", "probe:bpf"] == steps[0]["seen_by"]
    assert "sender/bpf.bin#1" == steps[0]["evidence_beside"]
    assert re.search(r"__sys_socket\(.* #\d+ +bpf#1$", socket.render(found), re.MULTILINE)
    assert found.to_json()["watchers"] == ["probe:kmod", "probe:bpf"]


def other_argument(run: Cooked) -> None:
    event = programs(run, "__sys_socket", ENTRY)
    event["bytes"] = WORDS.pack(2, 2, 0, 0, 0, 0, 0, 0)


def other_register(run: Cooked) -> None:
    event = programs(run, "__sys_socket", ENTRY)
    event["bytes"] = WORDS.pack(2, 1, 0, 99, 0, 0, 0, 0)  # not one of its three arguments


def other_result(run: Cooked) -> None:
    event = programs(run, "__sys_socket", RETURN)
    event["bytes"] = WORDS.pack(2, 1, 0, 0, 0, 0, 4, 0)


def other_pointer(run: Cooked) -> None:
    programs(run, "fd_install", ENTRY)["src_phys"] += 8  # private_data


def other_instruction(run: Cooked) -> None:
    programs(run, "__x64_sys_socket", ENTRY)["aux"] = 0x340F  # sysenter


def other_signal(run: Cooked) -> None:
    programs(run, "get_signal", RETURN)["size"] = 9


def one_less(run: Cooked) -> None:
    run.watch_by_programs()
    assert run.programs is not None
    run.programs.pop()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (other_argument, "__sys_socket's entry: argument 1 is 0x1, by BPF 0x2"),
        (other_result, "__sys_socket's return: it returned 3, by BPF 4"),
        (other_pointer, "fd_install's entry: private_data is"),
        (other_instruction, "__x64_sys_socket's entry: instruction 0x50f at"),
        (other_signal, "get_signal's return: signal 10, by BPF 9"),
        (one_less, "get_signal's return: 1 records of the module, 0 of BPF"),
    ],
)
def test_a_difference_between_the_accounts_is_a_disagreement(
    run: Cooked, spoil: Spoil, says: str
) -> None:
    spoil(run)
    proof = next(one for one in socket.build(run.serve()).proofs if one.name == SAME)

    assert {SAME} == broken(run)
    assert says in proof.says
    assert proof.evidence


def test_a_register_that_is_no_argument_is_none_of_the_accounts_business(run: Cooked) -> None:
    other_register(run)

    assert set() == broken(run)


def test_programs_alone_prove_all_but_what_they_cannot_read(run: Cooked) -> None:
    run.watch_by_programs()
    run.module_watched = False
    found = socket.build(run.serve())

    assert set() == broken(run)
    names = {one.name for one in found.proofs}
    assert "entry point" not in names
    assert SAME not in names
    assert "privilege 3 -> not seen" in next(
        one.says for one in found.proofs if one.name == "barrier: RAX = 41"
    )
    assert "No program can read MSR_LSTAR" in " ".join(socket.render(found).split())
    assert "bpf.bin#" in found.to_json()["calls"][1]["steps"][0]["evidence"]


def test_what_programs_lost_is_lost(run: Cooked) -> None:
    run.watch_by_programs()
    assert run.programs is not None
    run.programs.append({"torn": True})

    assert "no record is lost" in broken(run)


def test_a_run_is_analysed_by_its_kind_and_says_its_trouble(run: Cooked) -> None:
    out = run.serve()
    assert () == experiment.analyse(out, journal=Journal()).trouble
    result = json.loads((out.path / "socket.json").read_text())
    assert result["complete"]
    assert {"proofs", "calls", "functions", "repeats", "kernels"} <= result.keys()

    gone(run, "fd_install")
    outcome = experiment.analyse(run.serve(), journal=Journal())
    assert "not proven: private_data == socket" in outcome.trouble
    assert "expected complete to be True, found False" in outcome.trouble


def test_a_call_with_two_arguments_is_refused_by_name(run: Cooked) -> None:
    run.answer("plain")["call"]["args"].pop()

    with pytest.raises(TraceCorrupt, match=r"calls\.json.*three arguments"):
        socket.build(run.serve())


@pytest.mark.parametrize(
    ("value", "name"),
    [(-1, "EPERM"), (-24, "EMFILE"), (-4095, "error 4095"), (-4096, ""), (0, ""), (3, "")],
)
def test_a_value_is_an_error_iff_it_is_from_minus_4095_to_minus_1(value: int, name: str) -> None:
    assert name == status.name(value)
    assert ("FAIL" if name else "SUCCESS") == status.status(value)


def test_an_int_in_rax_has_its_sign_in_the_low_half() -> None:
    assert (-97, 4294967199) == (status.as_int(0xFFFF_FF9F), status.as_long(0xFFFF_FF9F))
    assert -23 == status.as_long(2**64 - 23)
    assert 3 == status.as_int(3)


def test_files_that_are_not_those_of_the_run_are_a_proof_that_fails(run: Cooked) -> None:
    folder = run.serve()
    told = json.loads(folder.file("manifest.json").read_text())
    folder.write_json("manifest.json", told | {"files": {"sender/calls.json": "0"}})

    failed = [one.says for one in socket.build(folder).proofs if not one.holds]

    assert "sender/calls.json was changed since the run" in failed
