"""Steps from cooked calls and accesses: their types, their order, and who is caught lying."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import calls as called
from lab import playbook
from lab.blocks import Table
from lab.calls import Call, Calls, How, Seen, Value
from lab.errors import EvidenceError, HostError, TraceCorrupt
from lab.experiment.steps import Following
from lab.journal import Journal
from lab.rundir import RunDir
from lab.steps import Compared, Fate, Steps, compare, lines, render, rows, told, values
from lab.steps.build import _of_message, _way, windows
from lab.steps.rows import Names, Step, Touch, Type
from lab.symbols import Symbols
from lab.workload import Side

SK, SKB, HEAD, ITER = (0xFFFF_8880_0000_0000 + 0x1000 * place for place in range(4))
USER = 0x5555_0000_1000
NAMES = Names(lambda at: f"at{at}", lambda _: "")


def value(name: str, number: int, kind: str = "int", *, to: str = "", signed: bool = True) -> Value:
    return Value(name=name, type=kind, value=number, points_to=to, signed=signed)


def skb(number: int = SKB) -> Value:
    return value("skb", number, "struct sk_buff *", to="sk_buff")


def sock(number: int = SK) -> Value:
    return value("sk", number, "struct sock *", to="sock")


def packet(data: int, length: int) -> Seen:
    return {"skb": {"head": HEAD, "data": HEAD + data, "len": length, "data_len": 0}}


class Cook:
    """Makes calls one after the other; times are orders in tens."""

    def __init__(self, guest: str = "sender") -> None:
        self.guest = guest
        self.calls: list[Call] = []
        self.open: list[int] = []
        self.order = 0

    def enter(self, function: str, *given: Value, how: How = How.CALL, before: Seen = {}) -> int:  # noqa: B006
        number = len(self.calls)
        self.calls.append(
            Call(
                number=number,
                parent=self.open[-1] if self.open else -1,
                how=how,
                function=function,
                module="",
                address=1000 + number,
                site=2000 + number,
                task=7,
                comm="sender",
                entered=self.order,
                entered_ns=self.order * 10,
                typed=True,
                arguments=given,
                before=before,
            )
        )
        self.open.append(number)
        self.order += 1
        return number

    def leave(self, returned: Value | None = None, after: Seen = {}) -> None:  # noqa: B006
        number = self.open.pop()
        self.calls[number] = dataclasses.replace(
            self.calls[number],
            left=self.order,
            left_ns=self.order * 10,
            returned=returned,
            after=after,
        )
        self.order += 1

    def done(self) -> Calls:
        return Calls(
            guest=self.guest,
            kernel="6.12",
            seconds=1.0,
            breakpoints=9,
            foreign=0,
            dropped=0,
            calls=tuple(self.calls),
        )


def sending() -> Calls:
    """Return sendto: a check, a copy into a packet, an interrupt, and the packet freed."""
    cook = Cook()
    saved = {"orig_ax": 44, "di": 3, "si": USER, "dx": 16, "r10": 0, "r8": 0, "r9": 0}
    cook.enter(
        "__x64_sys_sendto",
        value("regs", ITER + 64, "struct pt_regs *", to="pt_regs"),
        before={"regs": saved},
    )
    cook.enter("security_socket_sendmsg", sock(), before={"sk": sock_state(0)})
    cook.leave(value("", 0))
    cook.enter("udp_sendmsg", sock(), before={"sk": sock_state(0)})
    cook.enter(
        "ip_make_skb",
        sock(),
        value("getfrag", 99, "function *", to="ip_generic_getfrag"),
        before={"sk": sock_state(0)},
    )
    cook.enter("skb_put", skb(), value("len", 24), before=packet(16, 0))
    cook.leave(value("", HEAD + 16, "void *"), after=packet(16, 24))
    cook.enter("_copy_from_iter", iterator(), before={"i": {"count": 16, "iov_offset": 0}})
    cook.leave(value("", 16, "size_t", signed=False), after={"i": {"count": 0, "iov_offset": 16}})
    cook.enter("asm_sysvec_apic_timer_interrupt", how=How.INTERRUPT)
    cook.leave()
    cook.leave(skb_back(), after=packet(16, 24))
    cook.enter("is_it", skb(), before=packet(16, 24))
    cook.leave(value("", 1, "bool"), after=packet(16, 24))
    cook.enter("kfree", value("object", SKB, "const void *"))
    cook.leave()
    cook.leave(value("", 16), after={"sk": sock_state(53)})
    cook.leave(value("", 16, "long int"))
    return cook.done()


def iterator() -> Value:
    return value("i", ITER, "struct iov_iter *", to="iov_iter")


def skb_back() -> Value:
    return dataclasses.replace(skb(), name="")


def sock_state(port: int) -> dict[str, int]:
    return {
        "__sk_common.skc_daddr": 0x0100007F,
        "__sk_common.skc_dport": 0x0F27,
        "__sk_common.skc_num": port,
    }


def copy(at_ns: int, function: str = "_copy_from_iter") -> list[Touch]:
    common = {"ns": at_ns, "size": 16, "function": function, "evidence": "sender/access.bin#1"}
    return [
        Touch(store=False, virtual=USER, physical=0x1000, **common),  # type: ignore[arg-type]
        Touch(store=True, virtual=HEAD + 44, physical=0x2000, **common),  # type: ignore[arg-type]
    ]


def walked(followed: Calls, touched: list[Touch]) -> tuple[list[Step], list[str]]:
    steps, faults = rows.walk(followed, touched, NAMES, kept=range(len(followed.calls)))
    return rows.number(steps, way=frozenset()), faults


def copy_time(followed: Calls) -> int:
    return next(c for c in followed.calls if c.function == "_copy_from_iter").entered_ns + 1


def test_every_type_of_step() -> None:
    followed = sending()
    steps, faults = walked(followed, copy(copy_time(followed)))
    assert not faults
    assert {step.type for step in steps} == set(Type)
    told = [(step.type.value, step.function) for step in steps]
    copied = told.index(("CALL", "_copy_from_iter"))
    assert [kind for kind, _ in told[copied + 1 : copied + 6]] == [
        *("VAR_READ", "CPU_READ", "CPU_WRITE", "VAR_SET", "RETURN"),
    ]
    assert steps[0].type is Type.SYSCALL
    assert "RAX=0x2c" in steps[0].values
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    by_type = {step.type: step for step in steps}
    assert "getfrag = ip_generic_getfrag" in [
        step.values for step in steps if step.type is Type.VAR_READ
    ]
    assert "goes on after an interrupt" in by_type[Type.CONTINUE].work
    moved = next(s for s in steps if s.type is Type.VAR_SET and s.function == "_copy_from_iter")
    assert "count 16 → 0 iov_offset 0 → 16" in moved.values


def test_a_packet_that_was_freed_has_no_state() -> None:
    steps, _ = walked(sending(), [])
    freed = next(step.number for step in steps if step.function == "kfree")
    assert not [s for s in steps if s.type is Type.DATA_STATE and s.number > freed]


def test_bytes_touched_where_nothing_was_followed_is_a_disagreement() -> None:
    followed = sending()
    _, faults = walked(followed, copy(copy_time(followed), function="memcpy_orig"))
    assert len(faults) == 2
    assert "memcpy_orig loaded message bytes" in faults[0]


def test_bytes_touched_outside_every_window_are_the_programs_own() -> None:
    steps, faults = walked(sending(), copy(10_000, function="derive"))
    assert not faults
    assert Type.CPU_WRITE not in {step.type for step in steps}


# --- The worksheet's functions --------------------------------------------------------------


def claimed(*functions: str) -> list[compare.Claimed]:
    return [compare.Claimed(table="send", step="#01", function=one) for one in functions]


def compared(*functions: str) -> list[Compared]:
    followed = sending()
    known = {"udp_sendmsg", "ip_make_skb", "sock_sendmsg", "_copy_from_iter"}
    return compare.compare(claimed(*functions), {"send": (followed, followed.calls[0])}, known)


def test_seen_not_called_and_not_observable() -> None:
    found = compared("udp_sendmsg", "sock_sendmsg", "copy_from_iter_full", "_copy_from_iter")
    assert [one.fate for one in found] == [
        Fate.SEEN,
        Fate.NOT_CALLED,
        Fate.NOT_OBSERVABLE,
        Fate.SEEN,
    ]
    assert "udp_sendmsg → ip_make_skb → _copy_from_iter" in found[1].reason
    assert not compare.out_of_order(found)


def test_what_comes_in_another_order_is_noticed() -> None:
    faults = compare.out_of_order(compared("_copy_from_iter", "udp_sendmsg"))
    assert faults == [
        "udp_sendmsg was called before _copy_from_iter, which the worksheet has earlier"
    ]


def test_the_worksheets_list_is_whole(tmp_path: Path) -> None:
    listed = compare.load(Path(__file__).parents[2] / "claims" / "functions" / "worksheet.yaml")
    assert {one.table for one in listed} == {"send", "receive"}
    assert len(listed) == len(set(listed)) == 23
    bad = tmp_path / "steps.yaml"
    bad.write_text("send: [{step: 1}]")
    with pytest.raises(EvidenceError, match="expected lists"):
        compare.load(bad)


def test_a_compilers_suffix_is_no_other_function() -> None:
    assert compare.plain("do_softirq.part.0") == "do_softirq"


# --- Windows --------------------------------------------------------------------------------


def arriving() -> Calls:
    """Return two interrupts, of which the second is given the receiver's socket."""
    cook = Cook("receiver")
    for given in ([], [sock()]):
        cook.enter("common_interrupt")
        cook.enter("handler", *given)
        cook.leave()
        cook.leave()
    cook.enter("__x64_sys_recvfrom")
    cook.enter("udp_recvmsg", sock(), skb())
    cook.leave(value("", 16))
    cook.leave(value("", 16, "long int"))
    return cook.done()


def test_only_interrupts_of_the_message_are_kept() -> None:
    followed = arriving()
    moved = windows({"receiver": followed})
    assert set(moved) == {"receive"}
    assert _of_message(followed, [], moved) == frozenset({2, 3, 4, 5})
    touched = copy(followed.calls[1].entered_ns + 1)
    assert 0 in _of_message(followed, touched, moved)


def test_a_call_that_failed_is_no_window() -> None:
    followed = arriving()
    failed = dataclasses.replace(followed.calls[4], returned=value("", (1 << 64) - 11, "long int"))
    again = dataclasses.replace(followed, calls=(*followed.calls[:4], failed, followed.calls[5]))
    assert not windows({"receiver": again})


def test_the_way_is_who_carried_the_message_and_who_called_them() -> None:
    assert _way(arriving(), []) == {2, 3, 4, 5}


class Held:
    """A follower of which only is known whether it holds its guest."""

    def __init__(self) -> None:
        self.held = False

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.held = False


@pytest.mark.parametrize(("name", "size", "in_turn"), [("link", 16, True), ("link", 9000, False)])
def test_guests_run_in_turn_only_where_one_frame_is_sent(
    tmp_path: Path,
    name: str,
    size: int,
    in_turn: bool,  # noqa: FBT001
) -> None:
    asked = playbook.override(playbook.load(f"steps-{name}"), size=size)
    following = Following(asked, RunDir(tmp_path), journal=Journal())
    sender, receiver = Held(), Held()
    following._followers = {"sender": sender, "receiver": receiver}  # type: ignore[dict-item]
    following.opened("receiver")  # the agent's line interrupts: the receiver must hear "go"
    assert not receiver.held
    following.opened("sender")
    assert receiver.held is in_turn
    following.sent(Side("receiver", guest=None))  # type: ignore[arg-type]
    assert (sender.held, receiver.held) == (in_turn, False)
    following.opened("sender")
    assert not receiver.held


# --- Values, files, tables ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (value("fd", 3), "fd=3"),
        (value("err", 0xFFFF_FFF5), "err=-11"),
        (value("n", 0xFFFF_FFFF_FFFF_FFF2, "long int"), "n=-14"),
        (value("p", 0, "void *"), "p=NULL"),
        (value("ok", 1, "bool"), "ok=true"),
        (value("from", 0x1000, "void *", to="msghdr"), "from=0x1000 (msghdr)"),
        (skb(0x10), "skb=0x10"),
    ],
)  # fmt: skip
def test_values_as_people_read_them(one: Value, text: str) -> None:
    assert values.shown(one) == text


def test_addresses_and_ports() -> None:
    assert values.members("sock", sock_state(7)) == "skc_daddr=127.0.0.1 skc_dport=9999 skc_num=7"


def test_calls_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "calls.json"
    path.write_text(json.dumps(sending().to_json()))
    assert called.read(path) == sending()


@pytest.mark.parametrize("fault", ["schema", "parent", "how", "field", "list"])
def test_calls_json_that_nobody_wrote(tmp_path: Path, fault: str) -> None:
    data = sending().to_json()
    data["calls"] = [dict(one) for one in data["calls"]]
    if fault == "schema":
        data["schema"] = 9
    elif fault == "parent":
        data["calls"][1]["parent"] = 5
    elif fault == "how":
        data["calls"][1]["how"] = "flown"
    elif fault == "field":
        data["calls"][1]["more"] = 1
    path = tmp_path / "calls.json"
    path.write_text(json.dumps([] if fault == "list" else data))
    with pytest.raises(TraceCorrupt):
        called.read(path)


def account(*trouble: str) -> Steps:
    steps, _ = walked(sending(), [])
    marked = tuple(dataclasses.replace(step, way=step.depth < 2) for step in steps)
    return Steps(
        run="r",
        kernel="6.12",
        over="loopback",
        family="ipv4",
        protocol="udp",
        size=16,
        steps=marked,
        compared=tuple(compared("udp_sendmsg", "sock_sendmsg")),
        trouble=trouble,
        followed={"sender": {"calls": 9, "seconds": 1.0, "breakpoints": 5}},
    )


def test_the_table_shows_the_way_or_all_to_a_depth() -> None:
    found = account()
    text = render(found)
    assert text.startswith("COMPLETE")
    assert "| SYSCALL " in text
    assert "_copy_from_iter()" not in text
    assert "steps are not shown" in text
    assert "_copy_from_iter()" in render(found, everything=True)
    assert "udp_sendmsg()" not in render(found, everything=True, depth=0)
    assert "sock_sendmsg            not called" in text
    number = next(s.number for s in found.steps if s.function == "udp_sendmsg")
    assert f"udp_sendmsg             step #{number:02}" in text
    assert render(account("no copy")).startswith("INCOMPLETE: ")
    table = next(one for one in told(found) if isinstance(one, Table))
    assert len(table.rows) == len(table.styles) == text.count(" | ") // 5 - 1


# --- File and line --------------------------------------------------------------------------


def test_source_lines() -> None:
    assert lines.source_line("/build/linux/net/ipv4/udp.c:1156 (discriminator 3)") == (
        "net/ipv4/udp.c:1156"
    )
    assert lines.source_line("??:0") == ""
    assert lines.source_line("./arch/x86/include/asm/x.h:12") == "arch/x86/include/asm/x.h:12"


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program with lines that has a kernel's first symbol."""
    folder = tmp_path_factory.mktemp("debug") / "net"
    folder.mkdir()
    (folder / "a.c").write_text(
        "int _stext(void)\n{\n\treturn 1;\n}\n\nint main(void)\n{\n\treturn 2;\n}\n"
    )
    gcc = shutil.which("gcc")
    assert gcc
    subprocess.run([gcc, "-g", "-no-pie", "-o", "a", "net/a.c"], cwd=folder.parent, check=True)
    return folder.parent / "a"


def run_symbols(tmp_path: Path, debug: Path, shift: int) -> tuple[Symbols, int]:
    linked = lines.symbols_in(debug, {"_stext", "main"})
    start, main = min(linked["_stext"]), min(linked["main"])
    text = f"{start + shift:016x} T _stext\n{main + shift:016x} T main\n"
    (tmp_path / "symbols").write_text(text)
    return Symbols(tmp_path / "symbols"), main + shift


def test_lines_of_a_kernel_that_runs_elsewhere_than_it_was_linked(
    tmp_path: Path, debug: Path
) -> None:
    symbols, main = run_symbols(tmp_path, debug, 0x1234_0000)
    assert lines.look_up(debug, symbols, [main]) == {main: "net/a.c:7"}
    # Behind an instruction of it the line is that instruction's.
    assert lines.look_up(debug, symbols, [], [main + 1]) == {main + 1: "net/a.c:7"}


def test_another_kernel_than_the_runs_is_refused(tmp_path: Path, debug: Path) -> None:
    _, main = run_symbols(tmp_path, debug, 0)
    path = tmp_path / "symbols"
    path.write_text(path.read_text().replace(f"{main:016x}", f"{main + 16:016x}"))

    with pytest.raises(HostError, match="is not the kernel of this run: main lies elsewhere"):
        lines.look_up(debug, Symbols(path), [main + 16])


def test_what_lies_beyond_the_kernels_text_has_no_line(tmp_path: Path, debug: Path) -> None:
    symbols, main = run_symbols(tmp_path, debug, 0)
    with (tmp_path / "symbols").open("a") as file:
        file.write(f"{main + 1:016x} T _etext\n")

    assert {main} == set(lines.look_up(debug, symbols, [main], [main + 4]))


def test_a_file_without_lines_is_refused(tmp_path: Path, debug: Path) -> None:
    symbols, main = run_symbols(tmp_path, debug, 0)
    bare = tmp_path / "bare"
    subprocess.run(["strip", "--strip-debug", "-o", str(bare), str(debug)], check=True)
    with pytest.raises(HostError, match="names no lines"):
        lines.look_up(bare, symbols, [main])
    with pytest.raises(HostError, match="is no file"):
        lines.look_up(tmp_path / "nothing", symbols, [main])
