"""Our own claims on cooked results: each verdict follows what was written, and flips with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab import access, claims
from lab.claims import MEASURES, Verdict
from lab.claims.evidence import Evidence
from lab.claims.types import NotHere
from lab.errors import EvidenceError
from lab.rundir import RunDir
from tests.unit import cooked, test_steps
from tests.unit.test_claims import serve, value_of

# --- The instructions of a copy -------------------------------------------------------------

COPY_AT = 0xFFFF_FFFF_8100_0000


def logged(
    path: Path, *, step: int = 3, width: int = 8, lost: int = 0, witness: str = "present"
) -> Evidence:
    """Return a run whose first copy the plugin saw: the store is `step` bytes behind the load."""
    run = serve(cooked.loopback(path))
    logged_into(run, step=step, width=width, lost=lost, witness=witness)
    return Evidence("lo", run)


def logged_into(
    run: RunDir, *, step: int = 3, width: int = 8, lost: int = 0, witness: str = "present"
) -> None:
    """Add to a run what the plugin saw of its first copy."""

    def add(found: Any) -> None:
        found["witnesses"]["access-log"] = witness
        found["messages"][0]["movements"][0]["evidence"].append("sender/access.bin#0")

    cooked.edit(run, "ledger.json", add)
    seen = Evidence("lo", run)
    first = seen.copies[0]
    text = bytes(range(0x40, 0x50))
    source, target = (int(seen.places[first[end]]["virtual"], 16) for end in ("source", "target"))
    stack = {"virt": 0xFFFF_C900_0000_0F00, "bytes": text[:8], "store": True, "ip": COPY_AT + 0x900}
    both = {"narrowest": width, "widest": width, "count": 16 // width}
    rows = [
        {"virt": source, "bytes": text, "ip": COPY_AT, **both},
        {**stack, "narrowest": 4, "widest": 4, "count": 2},  # an interrupt's
        {"virt": target, "bytes": text[lost:], "store": True, "ip": COPY_AT + step, **both},
    ]
    run.guest("sender").file("access.bin").write_bytes(access.encode_log(rows))


@pytest.mark.parametrize(
    ("step", "width", "expected"), [(3, 8, (True, 8)), (0, 1, (False, 1)), (3, 4, (True, 4))]
)
def test_how_a_copy_takes_its_bytes(
    tmp_path: Path, step: int, width: int, expected: tuple[bool, int]
) -> None:
    seen = logged(tmp_path / "run", step=step, width=width)

    assert expected == (
        value_of(seen, "copy-out-through-register"),
        value_of(seen, "copy-out-width"),
    )
    evidence = MEASURES["copy-out-width"].function(seen, "").evidence
    assert ("sender/access.bin#0", "sender/access.bin#2") == evidence


def test_a_copy_of_which_stores_are_missing_has_no_width(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="loads and stores differ in bytes"):
        value_of(logged(tmp_path / "run", lost=8), "copy-out-width")


def test_without_the_plugin_there_is_nothing_to_say_of_instructions(tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="no plugin"):
        value_of(logged(tmp_path / "run", witness="absent: no plugin"), "copy-out-width")


# --- The claims that a chain, a trap and a barrier decide ------------------------------------


def chain_json(*, address: str = "7f000001", sk_socket: int = 7, fd: int = 3) -> dict[str, Any]:
    def case(name: str, peer: str, number: int) -> dict[str, Any]:
        outside = {"f_op_is_socket": 1, "sock": 5, "file": 6, "socket_file": 6, "socket": 7,
                   "sk_socket": sk_socket}  # fmt: skip
        return {
            "name": name, "fd": fd, "pid": 9, "error": 0, "inside": {}, "outside": outside,
            "bytes": f"{peer}{'00' * 8}{'270f' if int(peer, 16) else '0000'}", "address_at": 0,
            "port_at": 12, "evidence": f"sender/trace.bin#{number}", "differences": [],
        }  # fmt: skip

    return {
        "cases": [
            case("udp-unconnected-sent", "00000000", 0),
            case("udp-connected", address, 1),
        ]
    }


def trap_json(*, found: str = "e81b45dc17", kind: str = "fentry call", to: str = "") -> Any:
    text = [
        {"moment": moment, "place": "__sys_socket", "found": found, "kind": kind}
        for moment in ("before", "armed")
    ]
    stack = [
        {"moment": "before", "symbol": "hrtimer_nanosleep+0x9e"},
        {"moment": "armed", "symbol": to or "arch_rethook_trampoline+0x0"},
    ]
    return {"text": text, "stack": stack, "function": "do_nanosleep"}


def socket_json(*, holds: bool = True, outer: str = "__sock_create") -> dict[str, Any]:
    names = [*(f"barrier: RAX = {number}" for number in (41, 44, 45)), "entry point"]
    proofs = [
        {"name": name, "holds": holds, "evidence": ["sender/trace.bin#0"]}
        for name in (*names, "start and end")
    ]
    called = {"state": "called", "calls": 1, "evidence": ["sender/trace.bin#1"]}
    entered = enumerate((("__sys_socket", 0), (outer, 1), ("sock_alloc", 2), ("inet_create", 2)))
    steps = [
        {"function": name, "depth": depth, "kind": "entry", "evidence": f"sender/trace.bin#{at}"}
        for at, (name, depth) in entered
    ]
    return {
        "complete": True,
        "proofs": proofs,
        "functions": [{"name": "__sys_socket", **called}],
        "calls": [{"steps": []}, {"steps": steps}],
    }


OWN = [
    ("S1", socket_json(), claims.CONFIRMED),
    ("S1", socket_json(holds=False), claims.REFUTED),
    ("S1", socket_json() | {"complete": False}, claims.UNDECIDED),
    ("S21", socket_json(), claims.CONFIRMED),
    ("S21", socket_json(holds=False), claims.DEPENDS),
    ("S22", socket_json(), claims.CONFIRMED),
    ("S22", socket_json(outer="sock_create"), claims.REFUTED),
    ("S22", socket_json() | {"calls": []}, claims.UNDECIDED),
    ("S5", trap_json(), claims.REFUTED),
    ("S5", trap_json(found="cc00", kind="breakpoint (int3)"), claims.CONFIRMED),
    ("S5", trap_json() | {"text": []}, claims.UNDECIDED),
    ("S6", trap_json(), claims.CONFIRMED),
    ("S6", trap_json(to="hrtimer_nanosleep+0x9e"), claims.DEPENDS),
    ("S6", trap_json() | {"stack": []}, claims.UNDECIDED),
    ("W1", chain_json(), claims.CONFIRMED),
    ("W1", chain_json(sk_socket=8, fd=4), claims.REFUTED),
    ("W1", {"cases": []}, claims.UNDECIDED),
    ("W1b", chain_json(), claims.DEPENDS),
    ("W1b", chain_json(address="7f000002"), claims.REFUTED),
]


def judged_alone(tmp_path: Path, name: str, cook: Callable[[Path], RunDir]) -> Verdict:
    """Judge a claim of ours by runs that are all cooked alike."""
    text = next(
        claims.narrowed(one, frozenset([name]))
        for one in map(claims.load, claims.names())
        if any(claim.id == name for claim in one.claims)
    )
    folder = RunDir(tmp_path)
    index = {}
    for on in {test.on for test in text.claims[0].tests}:
        cook(tmp_path / on)
        index[f"{text.name}/{on}"] = {"name": on, "state": claims.DONE}
    folder.write_json(claims.INDEX, {"experiments": index})
    ((found,),) = (judged.verdicts for judged in claims.judge([text], tmp_path))
    return found


@pytest.mark.parametrize(("name", "told", "expected"), OWN)
def test_a_verdict_of_ours_follows_what_was_written(
    tmp_path: Path, name: str, told: Any, expected: str
) -> None:
    def cook(path: Path) -> RunDir:
        run = RunDir(path)
        path.mkdir()
        run.write_manifest({"kernel": "6.12.1", "guests": ["sender"]})
        for file in ("chain.json", "result.json", "socket.json"):
            run.write_json(file, told)
        return run

    assert expected == judged_alone(tmp_path, name, cook).word


@pytest.mark.parametrize(
    ("step", "width", "expected"),
    [(3, 8, claims.CONFIRMED), (0, 1, claims.REFUTED), (3, 4, claims.DEPENDS)],
)
def test_mov_or_string_move_follows_the_access_log(
    tmp_path: Path, step: int, width: int, expected: str
) -> None:
    def cook(path: Path) -> RunDir:
        return logged(path, step=step, width=width).run

    assert expected == judged_alone(tmp_path, "W37", cook).word


def test_accounts_that_differ_and_sockets_nobody_made_decide_nothing(tmp_path: Path) -> None:
    told = chain_json()
    told["cases"][0]["differences"] = ["sock: inside 0x1, outside 0x2"]
    run = RunDir(tmp_path)
    run.write_json("chain.json", told)
    seen = Evidence("chain", run)

    with pytest.raises(EvidenceError, match="inside and outside differ: sock"):
        value_of(seen, "sock-destination", "udp-unconnected-sent")
    with pytest.raises(EvidenceError, match="no socket called sctp"):
        value_of(seen, "descriptor", "sctp")


# --- The claims that followed calls decide ---------------------------------------------------


def followed_run(
    path: Path,
    *,
    between: str = "inet_sendmsg",
    given: int = 24,
    left_over: int = 0,
    to: int = 28,
    failed: int = 0,
    buffer: int = 0x5555_0000_1000,
    trouble: str = "",
    known: str = "sock_sendmsg",
) -> RunDir:
    """Return a run of steps: sendto() down to the copy, and recvfrom() down to udp_recvmsg."""
    cook = test_steps.Cook()
    number = test_steps.value
    msg = {"msg": {"msg_iter.count": given - 8}}
    cook.enter("__x64_sys_sendto")
    given_to = {"fd": 3, "buff": buffer, "len": given - 8, "flags": failed}
    cook.enter("__sys_sendto", *(number(name, held) for name, held in given_to.items()))
    cook.enter(between)
    cook.enter("udp_sendmsg", number("msg", 1), before=msg)
    cook.enter("ip_make_skb", number("length", given))
    cook.enter("__ip_append_data.isra.0", number("length", given))
    cook.enter("skb_put")
    cook.leave(number("", 0x1000))
    cook.enter("ip_generic_getfrag", number("to", 0x1000 + to))
    cook.enter("_copy_from_iter", number("bytes", 16))
    cook.leave(number("", 16 - left_over))
    for answer in (failed, failed, 0, 16, 16, 16, 16):
        cook.leave(number("", answer))
    functions = ("__x64_sys_recvfrom", "__sys_recvfrom", "sock_recvmsg", "inet_recvmsg")
    for function in functions:
        cook.enter(function)
    if between != "inet_sendmsg":
        cook.enter("another")
    cook.enter("udp_recvmsg")
    while cook.open:
        cook.leave(number("", 16))
    run = serve(cooked.loopback(path))
    run.write_json("steps.json", {"trouble": [trouble] * bool(trouble), "followed": {"sender": {}}})
    run.guest("sender").file("calls.json").write_text(json.dumps(cook.done().to_json()))
    run.guest("sender").symbols.write_text(f"ffffffff81000000 T {known}\n")
    return run


FOLLOWED: list[tuple[str, dict[str, Any], str]] = [
    ("W53", {}, claims.CONFIRMED),
    ("W53", {"given": 30, "failed": 1}, claims.DEPENDS),
    ("W54", {}, claims.REFUTED),
    ("W54", {"between": "sock_sendmsg"}, claims.CONFIRMED),
    ("W54", {"trouble": "accesses were lost"}, claims.UNDECIDED),
    ("W55", {}, claims.CONFIRMED),
    ("W55", {"given": 30}, claims.REFUTED),
    ("W56", {}, claims.CONFIRMED),
    ("W56", {"given": 30}, claims.DEPENDS),
    ("W57", {}, claims.CONFIRMED),
    ("W57", {"given": 30}, claims.DEPENDS),
    ("W58", {}, claims.NOT_HERE),
    ("W58", {"known": "sock_alloc_send_skb"}, claims.NOT_HERE),
    ("W59", {}, claims.REFUTED),
    ("W59", {"to": 8}, claims.CONFIRMED),
    ("W60", {}, claims.NOT_HERE),
    ("W60b", {}, claims.CONFIRMED),
    ("W60b", {"buffer": (1 << 47) - 8}, claims.REFUTED),
    ("W60b", {"buffer": 0}, claims.REFUTED),
    ("W62", {}, claims.CONFIRMED),
    ("W62", {"failed": -14}, claims.REFUTED),
    ("W63", {}, claims.CONFIRMED),
    ("W63", {"between": "sock_sendmsg"}, claims.DEPENDS),
    ("W64", {}, claims.CONFIRMED),
]


@pytest.mark.parametrize(("name", "how", "expected"), FOLLOWED)
def test_a_verdict_of_ours_follows_the_calls(
    tmp_path: Path, name: str, how: Mapping[str, Any], expected: str
) -> None:
    found = judged_alone(tmp_path, name, lambda path: followed_run(path, **how))

    assert expected == found.word, [(one.state, one.measured, one.why) for one in found.answers]


@pytest.mark.parametrize(
    ("left_over", "lost", "expected"),
    [(0, 0, claims.CONFIRMED), (4, 0, claims.DEPENDS), (0, 8, claims.UNDECIDED)],
)
def test_what_a_copy_left_is_told_by_its_answer_and_by_the_stores(
    tmp_path: Path, left_over: int, lost: int, expected: str
) -> None:
    def cook(path: Path) -> RunDir:
        run = followed_run(path, left_over=left_over)
        logged_into(run, lost=lost)
        return run

    assert expected == judged_alone(tmp_path, "W61", cook).word


def test_a_message_at_one_virtual_address_is_not_at_three(tmp_path: Path) -> None:
    def merge(found: Any) -> None:
        for place in found["messages"][0]["places"]:
            place["virtual"] = "0x1000"

    def cook(path: Path) -> RunDir:
        run = followed_run(path)
        cooked.edit(run, "ledger.json", merge)
        return run

    assert claims.REFUTED == judged_alone(tmp_path, "W64", cook).word


def test_what_a_call_was_not_seen_with_is_no_value(tmp_path: Path) -> None:
    seen = Evidence("steps", followed_run(tmp_path / "run"))

    for name, of, said in (
        ("argument", "udp_sendmsg fd", "udp_sendmsg was followed without fd"),
        ("argument", "udp_sendmsg msg.name", "without msg.name"),
        ("not-copied", "udp_sendmsg", "does not say what it was asked"),
        ("buffer-in-user-space", "udp_sendmsg buff len", "without buff and len"),
        ("argument-behind", "udp_sendmsg len ip_make_skb", "returned nothing before"),
    ):
        with pytest.raises(EvidenceError, match=said):
            value_of(seen, name, of)
    with pytest.raises(NotHere, match="sock_sendmsg exists and is not called on this way"):
        value_of(seen, "called-by", "sock_sendmsg")
    with pytest.raises(NotHere, match="access_ok has no symbol of its own"):
        value_of(seen, "called-by", "access_ok")
