"""No bytes break a reader: what others wrote is taken, or refused with an error of ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab import capture, ledger, record, report
from lab.report import frames
from lab.rundir import RunDir
from tests.unit import cooked, counted
from tests.unit.hostile import Eater, readers

CASES = Path(__file__).parent / "hostile_cases"
Edit = tuple[float, int, bytes]
# Where (a share of the length), how many bytes go, what comes in their place.
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from([0, 1, 1, 2, 4, 8, 64, 1 << 20]),
        st.one_of(
            st.binary(max_size=9),
            st.sampled_from(
                [b"-1", b"99999999999999999999", b"null", b"[", b'"', b"\xff" * 8, b"\n"]
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def eaters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Eater]:
    return readers(tmp_path_factory.mktemp("hostile"))


def changed(data: bytes, edits: list[Edit]) -> bytes:
    for share, less, more in edits:
        at = int(share * len(data))
        data = data[:at] + more + data[at + less :]
    return data


def test_what_they_like_they_eat(eaters: dict[str, Eater]) -> None:
    refused = [name for name, eater in eaters.items() if not eater.eat(eater.likes)]
    assert ["agent"] == refused  # it is asked for more than is said on its line


def test_hardly_anything_is_eaten_unread(eaters: dict[str, Eater]) -> None:
    """A reader that looked at nothing would pass every other test here."""
    garbage = b"\x01\x02garbage{"
    eaten = {name for name, eater in eaters.items() if eater.eat(garbage)}
    # Logs are text, symbols are lines that are or are not understood; a playbook's faults
    # are a list and no error.
    listed = {name for name in eaten if name.startswith(("results/", "descriptors"))}
    assert all(name.endswith((".log", "symbols")) for name in eaten - listed - {"playbook"})
    # A list of runs leaves out what it cannot read, and any bytes are descriptors.
    for name in listed:
        assert eaters[name].read(garbage) != eaters[name].read(eaters[name].likes)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_a_file_breaks_its_reader(
    data: st.DataObject, eaters: dict[str, Eater]
) -> None:
    name = data.draw(st.sampled_from(sorted(eaters)))
    eater = eaters[name]
    eater.eat(changed(eater.likes, data.draw(EDITS)))


OTHERS: list[Any] = [None, True, -1, 10**30, 1e308, "x", "", [], {}, [1], [None], {"a": 1}]
Step = tuple[str | int, ...]


def places(value: Any, here: Step = ()) -> Iterator[Step]:
    """Yield the way to each value in a document, itself included."""
    yield here
    keys: Iterable[str | int] = ()
    if isinstance(value, (dict, list)):
        keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield from places(value[key], (*here, key))


def put(document: Any, way: Step, other: Any) -> Any:
    """Return a document with another value at the end of a way."""
    if not way:
        return other
    out = copy.copy(document)
    out[way[0]] = put(out[way[0]], way[1:], other)
    return out


@pytest.mark.parametrize("name", ["crash/receiver/observations.json", "crash/manifest.json"])
def test_no_value_of_another_kind_breaks_a_post_mortem(name: str, eaters: dict[str, Eater]) -> None:
    document = json.loads(eaters[name].likes)
    refused = 0
    for way in places(document):
        for other in OTHERS:
            refused += not eaters[name].eat(json.dumps(put(document, way, other)).encode())
    assert refused or name == "crash/manifest.json"  # of which everything may be missing


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_value_of_another_kind_breaks_a_reader(
    data: st.DataObject, eaters: dict[str, Eater]
) -> None:
    name = data.draw(st.sampled_from([one for one in sorted(eaters) if one.endswith(".json")]))
    document = json.loads(eaters[name].likes)
    way = data.draw(st.sampled_from(list(places(document))))
    changed_one = put(document, way, data.draw(st.sampled_from(OTHERS)))
    eaters[name].eat(json.dumps(changed_one).encode())


@pytest.mark.parametrize("case", sorted(CASES.glob("*")), ids=lambda path: path.name)
def test_what_once_broke_a_reader_does_not(case: Path, eaters: dict[str, Eater]) -> None:
    """Cases that a fuzzer found: READER with -- for /, then the number of the case."""
    name = case.name.rpartition(".")[0].replace("--", "/")
    eaters[name].eat(case.read_bytes())


@pytest.mark.long
@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_breaks_a_reader_the_long_way(
    data: st.DataObject, eaters: dict[str, Eater]
) -> None:
    eater = eaters[data.draw(st.sampled_from(sorted(eaters)))]
    eater.eat(changed(eater.likes, data.draw(EDITS)))


# Records that tell of gigabytes, of which nobody has moved any.
FAR = (1 << 31) - 1


def calls(run: RunDir) -> int:
    """Return how many calls of functions a ledger and a report take."""
    return counted.calls(lambda: report.render(ledger.build(run), run))


@pytest.mark.parametrize("fields", [("size", "ret"), ("skb_len",), ("size", "ret", "skb_len")])
@pytest.mark.parametrize("cook", [cooked.loopback, cooked.nic, cooked.tcp])
def test_what_a_record_says_of_its_size_costs_nothing(
    tmp_path: Path, cook: Callable[..., cooked.Cook], fields: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run = cook(folder, count=8).serve()
    report.render(ledger.build(run), run)  # what is imported late
    whole = calls(run)
    for guest in run.guests():
        trace = record.read(guest.trace, guest=guest.name)
        sections = b""
        for section in trace.sections:
            mine = [record.values_of(one) for one in trace.records if one.module == section.name]
            far = [event | dict.fromkeys(fields, FAR) for event in mine]
            sections += record.encode_section(far, name=section.name, hooks=section.header.hooks)
        guest.trace.write_bytes(sections)

    assert calls(run) < 4 * whole


@pytest.mark.parametrize("column", [1, 2])  # address, length
@pytest.mark.parametrize("value", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 40])
def test_a_descriptor_may_say_anything(tmp_path: Path, column: int, value: int) -> None:
    run = cooked.nic(tmp_path, size=3000).serve()

    def change(rings: Any) -> None:
        for queue in rings["queues"]:
            for gate in queue["gates"].values():
                for row in gate["descriptors"]:
                    if row[column]:
                        row[column] = value if column == 2 else hex(value)

    for guest in ("sender", "receiver"):
        cooked.edit(run, f"{guest}/rings.json", change)

    assert "\n" in report.render(ledger.build(run), run)


def test_no_frame_holds_an_address_past_the_last() -> None:
    data = cooked.ethernet(bytes(range(64)))
    frame = capture.Frame(index=0, time_ns=0, data=data)
    assert not frames.holds(frame, 1 << 64)
    assert frames.holds(frame, int.from_bytes(bytes(range(8, 16)), "big"))
