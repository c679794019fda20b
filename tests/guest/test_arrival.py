"""How a message arrives on live guests of both kernels, and the rings it went through."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Invoke


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_the_lookup_finds_the_receivers_own_socket(invoke: Invoke, kernel: str) -> None:
    done = invoke("lab.run", "arrival", "--kernel", kernel, "--json")
    assert 0 == done.code, done.out + done.err
    first = done.value["messages"][0]
    assert {done.value["sock"]} == {first["socks"][name] for name in ("lookup", "queue", "read")}
    assert 9999 == done.value["port"]
    steps = [step["what"] for step in first["steps"]]
    ordered = ["interrupt", "NAPI poll", "driver", "IP, for us", "UDP lookup", "readable", "copy"]
    assert ordered == [what for what in steps if what in ordered]

    rings = invoke("lab.rings", done.value["run"], "--json")
    filled = [
        entry
        for table in rings.value
        if (table["guest"], table["queue"]) == ("receiver", "rx")
        for entry in table["entries"]
        if entry["movements"]
    ]
    assert 1 == len(filled)
    assert "given" in filled[0]["before"]
    assert "used #" in filled[0]["after"]
