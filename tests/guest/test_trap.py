"""The trap on live guests of both kernels, read from RAM."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Invoke


@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_traps_are_in_text_and_on_the_stack_while_armed(invoke: Invoke, kernel: str) -> None:
    done = invoke("lab.run-trap", "--kernel", kernel, "--json")
    assert 0 == done.code, done.out + done.err
    kinds = {(one["moment"], one["place"].partition("+")[0]): one["kind"]
             for one in done.value["text"] if "+" not in one["place"]}  # fmt: skip
    assert "fentry call" == kinds["armed", "__sys_socket"]
    assert kinds["armed", "_copy_from_iter"] in {
        "breakpoint (int3)",
        "optimised jump",
        "fentry call",
    }
    assert {"as built"} == {kind for (moment, _), kind in kinds.items() if moment == "after"}
    before, armed = done.value["stack"]
    assert "trampoline" not in before["symbol"]
    assert "rethook_trampoline" in armed["symbol"]
