"""Many cells, one table: which cells there are, what is said of each, and when it is a failure."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console as Terminal

from lab import experiment, ledger, paths, playbook, report, sweep, topology
from lab.commands import Console
from lab.commands.measure import Options
from lab.commands.measure import run as run_command
from lab.commands.measure import sweep as sweep_command
from lab.errors import DeadlineExceeded, GuestLost, LedgerIncomplete, PlaybookError
from lab.experiment import message
from lab.journal import Journal
from lab.spec import Playbook, Sweep, Workload
from tests.unit import cooked
from tests.unit.cooked import Cook

TEXT = """\
playbook: many
question: How often?
workload: {over: link}
sweep:
  over: [loopback, link]
  backend: [dgram, tap]
  protocol: [udp, tcp]
  size: [16, 1000]
"""


def quiet() -> Journal:
    return Journal(stream=io.StringIO())


def asked(tmp_path: Path, text: str = TEXT) -> Playbook:
    path = tmp_path / "many.yaml"
    path.write_text(text)
    return playbook.load(path)


# --- Cells ----------------------------------------------------------------------------------


def test_every_value_meets_every_other_and_loopback_no_device(tmp_path: Path) -> None:
    found = sweep.cells(asked(tmp_path))

    assert 4 + 2 * 4 == len(found) == len(set(found))
    assert {"virtio-net-pci"} == {
        cell.link.device for cell in found if cell.workload.over == "loopback"
    }


def test_families_and_connected_sockets_are_values_and_tcp_is_always_connected(
    tmp_path: Path,
) -> None:
    text = TEXT.replace("protocol:", "family: [ipv4, ipv6]\n  connect: [no, yes]\n  protocol:")
    found = [
        sweep.Result(asked=cell, state=sweep.PROVEN).transport
        for cell in sweep.cells(asked(tmp_path, text))
        if cell.workload.over == "loopback" and cell.workload.size == 16
    ]

    assert [
        "udp", "connected udp", "tcp",
        "udp on IPv6", "connected udp on IPv6", "tcp on IPv6",
    ] == found  # fmt: skip


def test_an_empty_list_is_the_playbooks_own_value(tmp_path: Path) -> None:
    (cell,) = sweep.cells(asked(tmp_path, TEXT.partition("sweep:")[0]))

    assert ("6.12", "link", 16) == (cell.kernel, cell.workload.over, cell.workload.size)


def test_a_cell_may_be_measured_many_times(tmp_path: Path) -> None:
    text = TEXT.replace("sweep:", "sweep:\n  repeat: 3", 1)
    once, thrice = sweep.cells(asked(tmp_path)), sweep.cells(asked(tmp_path, text))
    assert 3 * len(once) == len(thrice)
    assert thrice[0].workload == thrice[2].workload


def test_the_labs_own_sweep_has_the_thresholds_of_the_driver() -> None:
    sizes = set(playbook.load("sweep").sweep.size)

    assert {86, 87, 1162, 1163, 1472, 1473, 65507, 65536, 1, 7} <= sizes


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": 65508}, "a UDP message on IPv4 has 1 to 65507 bytes"),
        ({"size": 65508, "family": "ipv6"}, None),
        ({"size": 65528, "family": "ipv6"}, "a UDP message on IPv6 has 1 to 65527 bytes"),
        ({"protocol": "tcp", "size": 65536}, None),
    ],
)
def test_what_cannot_run_here_says_why(
    tmp_path: Path, change: dict[str, Any], why: str | None
) -> None:
    base = asked(tmp_path)
    cell = dataclasses.replace(base, workload=dataclasses.replace(base.workload, **change))

    found = playbook.why_not(cell)

    assert found is None if why is None else found is not None and why in found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  size: [16, big]", "expected a size"),
        ("  family: [ipx]", "expected one of ipv4, ipv6"),
        ("  connect: [maybe]", "expected on or off, yes or no"),
        ("  protocol: [sctp]", "expected one of udp, tcp"),
        ("  kernel: [5.10]", "expected one of 6.12, 6.1"),
        ("  sizes: [1]", "unknown key 'sizes'"),
    ],
)
def test_faults_of_a_sweep_are_told_where_they_stand(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(PlaybookError, match=said):
        asked(tmp_path, TEXT.partition("  over: [")[0] + line + "\n")


# --- What a cell says -----------------------------------------------------------------------


def facts(cook: Cook) -> sweep.Facts:
    run = cook.serve()
    return sweep.facts(ledger.build(run), run)


def test_every_number_is_the_ledgers(tmp_path: Path) -> None:
    found = facts(cooked.tcp(tmp_path, size=1449))

    assert (4, 3, 1, 1, 0) == (
        found.copies,
        found.least_copies,
        found.reads,
        found.writes,
        found.handovers,
    )
    assert (2, 1514) == (found.frames, found.frame)
    assert {"_copy_from_iter": 1, "skb_copy_and_csum_bits": 2, "memcpy in page_to_skb": 1,
            "_copy_to_iter": 2} == dict(found.calls)  # fmt: skip


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        (86, ("a copy of the frame",)),
        (87, ("an skb built on the RX buffer",)),
        (1162, ("an skb built on the RX buffer",)),
        (1163, ("frags in the RX buffer",)),
        (1473, ("frags in the RX buffer", "a copy of the frame")),
    ],
)
def test_how_the_driver_took_a_frame_in_is_read_from_its_skb(
    tmp_path: Path, size: int, taken: tuple[str, ...]
) -> None:
    assert taken == facts(cooked.nic(tmp_path, size=size)).taken


def test_the_size_of_the_buffers_is_the_descriptors(tmp_path: Path) -> None:
    """Every 21st mergeable buffer is larger, and then the driver does otherwise."""
    cook = cooked.nic(tmp_path, size=1163)
    for gate in cook.receiver.queues["rx"]["gates"].values():
        for row in gate["descriptors"]:
            row[2] = 2048

    assert (2048,) == facts(cook).buffers
    assert () == facts(cooked.loopback(tmp_path / "lo")).buffers


def result(tmp_path: Path, size: int, **changes: Any) -> sweep.Result:
    cell = dataclasses.replace(
        Playbook(name="x", question="y", workload=Workload(over="link", size=size))
    )
    plain = sweep.Result(
        asked=cell,
        state=sweep.PROVEN,
        release="6.12.1",
        run="r",
        facts=facts(cooked.nic(tmp_path / str(size), size=size)),
    )
    return dataclasses.replace(plain, **changes)


def test_a_threshold_is_told_by_what_was_measured_on_both_sides(tmp_path: Path) -> None:
    sizes = (16, 86, 87, 1162, 1163, 1472, 1473)
    found = list(sweep.changes([result(tmp_path, size) for size in sizes]))

    assert ["86 to 87", "1162 to 1163", "1472 to 1473"] == [
        line.partition(", ")[2].partition(" bytes")[0] for line in found
    ]
    assert "frame of 128, then 129 bytes; memcpy in page_to_skb no longer copies" in found[0]
    assert "frame of 1204, then 1205 bytes; the receiving driver makes frags" in found[1]
    assert "2 frames instead of 1" in found[2]


def test_a_cell_that_is_not_proven_explains_no_threshold(tmp_path: Path) -> None:
    two = [result(tmp_path, 86), result(tmp_path, 87, state=sweep.UNPROVEN)]

    assert [] == list(sweep.changes(two))


def test_the_table_fits_and_says_what_is_not_proven(tmp_path: Path) -> None:
    results = (
        result(tmp_path, 16),
        result(tmp_path, 1473),
        result(tmp_path, 87, state=sweep.UNPROVEN, reason="incomplete: sender: _x was left out"),
        result(tmp_path, 88, state=sweep.FAILED, reason="GuestLost: QEMU died", facts=None),
    )
    found = sweep.Sweep(folder=tmp_path, results=results)

    text = sweep.render(found)

    assert all(len(line) <= 110 for line in text.splitlines())
    assert "2-3" in text
    assert "NOT PROVEN: incomplete" in text
    assert "FAILED: GuestLost" in text
    assert "4 cells: 2 proven, 1 unproven, 1 failed" in text
    assert not found.proven


def test_what_devices_touched_is_told_by_the_least_and_the_most_too(tmp_path: Path) -> None:
    one = result(tmp_path, 16)
    assert one.facts is not None
    again = dataclasses.replace(one.facts, reads=2)
    found = sweep.Sweep(folder=tmp_path, results=(dataclasses.replace(one, facts=again),))

    (row,) = [line for line in sweep.render(found).splitlines() if " 16 " in line]
    assert ["16", "3", "1-2", "1", "1"] == row.split()[4:9]


def test_at_a_terminal_the_table_is_as_wide_as_that(tmp_path: Path) -> None:
    results = (result(tmp_path, 86), result(tmp_path, 87))
    found = sweep.Sweep(folder=tmp_path, results=results)

    out = io.StringIO()
    terminal = Terminal(file=out, width=200, force_terminal=True)
    for one in report.shown(sweep.told(found)):
        terminal.print(one)

    text = out.getvalue()
    assert "\x1b[" in text
    assert "csum_and_copy_from_iter_full, memcpy in page_to_skb, _copy_to_iter" in text
    assert "86 to 87 bytes: frame of 128, then 129 bytes" in text
    assert "2 cells: 2 proven" in text


def test_how_long_it_takes_counts_what_was_brought_up_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = io.StringIO()
    progress = sweep._Progress(Journal(stream=said), 4)
    progress.begin(2, 1)
    for size, at in ((16, 32.0), (86, 34.0)):  # 30 s of bringing up, 2 s a cell
        now[0] = at
        progress.tell(result(tmp_path, size, seconds=2.0))

    lines = said.getvalue().splitlines()
    assert "4 cells on 2 topologies, 1 more cannot run here" == lines[0]
    assert lines[1].endswith("2.0 s, 36 s left")
    assert lines[2].endswith("2.0 s, 34 s left")


# --- A whole sweep --------------------------------------------------------------------------


class FakeBench:
    """Stands for the machine: what is brought up, and what each cell leaves."""

    def __init__(self, spoil: dict[int, str]) -> None:
        self.spoil = spoil  # size -> what happens
        self.stands: list[str] = []
        self.slow = 0  # bring-ups to come that fail
        self.taken: list[tuple[str, str, int]] = []

    def setup_for(self, cell: Playbook, **_: object) -> tuple[Any, dict[str, Path]]:
        return SimpleNamespace(image=SimpleNamespace(digest="d", release="6.12.1")), {}

    @contextlib.contextmanager
    def stand(self, setup: Any, modules: Any, **_: object) -> Iterator[Any]:
        self.stands.append("up")
        if self.slow:
            self.slow -= 1
            raise DeadlineExceeded("waited 60.0 s for the agent")
        yield SimpleNamespace(setup=setup)

    def take(self, ready: Any, cell: Playbook, run_dir: Any, **_: object) -> None:
        work = cell.workload
        self.taken.append((work.over, work.protocol, work.size))
        if self.spoil.get(work.size) == "lost":
            self.spoil.pop(work.size)
            raise GuestLost("sender", "QEMU died")
        without = ("_copy_to_iter",) if self.spoil.get(work.size) == "incomplete" else ()
        options: dict[str, Any] = {"size": work.size, "without": without}
        if work.protocol == "tcp":
            cooked.tcp(run_dir.path, over=work.over, **options).serve()
        else:
            (cooked.nic if work.over == "link" else cooked.loopback)(
                run_dir.path, **options
            ).serve()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBench:
    fake = FakeBench({})
    monkeypatch.setattr(paths, "runs", lambda: tmp_path / "runs")
    for name in ("setup_for", "stand"):
        monkeypatch.setattr(experiment, name, getattr(fake, name))
    monkeypatch.setattr(message, "take", fake.take)
    no_taps = {"tap": "no link of taps can be made here: not allowed"}
    monkeypatch.setattr(topology, "backend_absent", lambda backend: no_taps.get(backend, ""))
    return fake


def measure(tmp_path: Path) -> sweep.Sweep:
    return sweep.run(asked(tmp_path), lab_name="x", journal=quiet(), command="c")


def test_one_bring_up_serves_all_cells_of_a_topology(bench: FakeBench, tmp_path: Path) -> None:
    found = measure(tmp_path)

    assert ["up"] == bench.stands
    assert 8 == len(bench.taken)
    states = [one.state for one in found.results]
    assert (8, 4) == (states.count(sweep.PROVEN), states.count(sweep.UNAVAILABLE))
    assert found.proven


def test_a_backend_that_cannot_be_had_here_is_a_reason(bench: FakeBench, tmp_path: Path) -> None:
    reasons = {one.reason for one in measure(tmp_path).results if one.backend == "tap"}

    assert {"no link of taps can be made here: not allowed"} == reasons


def test_where_taps_can_be_had_they_are_one_more_topology(
    bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "backend_absent", lambda _: "")

    found = measure(tmp_path)

    assert ["up", "up"] == bench.stands
    assert [sweep.PROVEN] * 12 == [one.state for one in found.results]


def test_a_sweep_is_a_folder_of_runs_with_an_index_and_a_table(
    bench: FakeBench, tmp_path: Path
) -> None:
    found = measure(tmp_path)

    index = json.loads((found.folder / "index.json").read_text())
    assert 12 == len(index["cells"])
    for cell in index["cells"]:
        if cell["state"] == "proven":
            ledger_file = found.folder / cell["run"] / "ledger.json"
            told = json.loads(ledger_file.read_text())["messages"][0]["totals"]
            assert told["guest_cpu_copies"] == cell["facts"]["copies"]
        else:
            assert cell["reason"]
    assert sweep.render(found) == (found.folder / "table.txt").read_text()
    assert not (tmp_path / "runs" / "last").exists()


def test_a_guest_that_dies_costs_one_cell(bench: FakeBench, tmp_path: Path) -> None:
    bench.spoil[1000] = "lost"

    found = measure(tmp_path)

    assert ["up", "up"] == bench.stands
    failed = [one for one in found.results if one.state == sweep.FAILED]
    assert ["GuestLost: sender: QEMU died"] == [one.reason for one in failed]
    assert 7 == sum(one.state == sweep.PROVEN for one in found.results)
    assert not found.proven


@pytest.mark.parametrize(("slow", "failed"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_a_bring_up_that_fails_is_tried_once_more(
    bench: FakeBench, tmp_path: Path, slow: int, failed: int
) -> None:
    bench.slow = slow

    found = measure(tmp_path)

    assert failed == sum(one.state == sweep.FAILED for one in found.results)
    assert 8 - failed == sum(one.state == sweep.PROVEN for one in found.results)
    assert slow + 1 == len(bench.stands)


def test_a_cell_that_is_not_proven_is_exit_code_6(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.spoil[1000] = "incomplete"
    asked(tmp_path)

    with pytest.raises(LedgerIncomplete, match="4 of 12 cells") as caught:
        sweep_command(
            Console(json=False, journal=quiet()), "x", str(tmp_path / "many.yaml"), Options()
        )

    assert 6 == caught.value.exit_code
    assert "_copy_to_iter was left out" in " ".join(capsys.readouterr().out.split())


def test_a_program_reads_the_sweep_as_json(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(tmp_path)

    sweep_command(Console(json=True, journal=quiet()), "x", str(tmp_path / "many.yaml"), Options())

    told = json.loads(capsys.readouterr().out)
    assert told["proven"]
    assert Path(told["sweep"]).is_dir()


def test_lab_run_refuses_a_sweep(tmp_path: Path) -> None:
    assert asked(tmp_path).sweep != Sweep()

    with pytest.raises(PlaybookError, match="asks for many runs"):
        run_command(
            Console(json=False, journal=quiet()), "x", str(tmp_path / "many.yaml"), Options()
        )
