"""The trap on live guests of both kernels, read from RAM."""

from __future__ import annotations

import json

import pytest

from tests.guest.conftest import Once


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_traps_are_in_text_and_on_the_stack_while_armed(once: Once, kernel: str) -> None:
    done = once("lab.run-trap", "--kernel", kernel)
    assert 0 == done.code, done.out + done.err
    assert json.loads((done.run / "manifest.json").read_text())["kernel"].startswith(f"{kernel}.")
    found = json.loads((done.run / "result.json").read_text())
    kinds = {(one["moment"], one["place"].partition("+")[0]): one["kind"]
             for one in found["text"] if "+" not in one["place"]}  # fmt: skip
    assert "fentry call" == kinds["armed", "__sys_socket"]
    assert kinds["armed", "_copy_from_iter"] in {
        "breakpoint (int3)",
        "optimised jump",
        "fentry call",
    }
    assert {"as built"} == {kind for (moment, _), kind in kinds.items() if moment == "after"}
    before, armed = found["stack"]
    assert "trampoline" not in before["symbol"]
    assert "rethook_trampoline" in armed["symbol"]
