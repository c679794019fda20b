"""Addresses to names, from kallsyms text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.symbols import Symbols

TEXT = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t helper
ffffffff81000200 D some_data
ffffffffc0200000 t page_to_skb\t[virtio_net]
ffffffffc0100000 t other\t[other_module]
not a line
"""


@pytest.fixture
def symbols(tmp_path: Path) -> Symbols:
    path = tmp_path / "symbols"
    path.write_text(TEXT)
    return Symbols(path)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000000, "_text+0x0"),
        (0xFFFFFFFF810000FF, "_text+0xff"),
        (0xFFFFFFFF81000100, "helper+0x0"),
        (0xFFFFFFFF81000150, "helper+0x50"),
        (0xFFFFFFFFC0200277, "page_to_skb+0x277 [virtio_net]"),
        (0xFFFFFFFFC0100001, "other+0x1 [other_module]"),
    ],
)
def test_an_address_has_its_name(symbols: Symbols, address: int, name: str) -> None:
    assert name == symbols.name(address)


@pytest.mark.parametrize("address", [1, 0x1000, 0xFFFFFFFF80FFFFFF, 0xFFFFFFFFFFFFFFFF])
def test_where_nothing_is_there_is_no_name(symbols: Symbols, address: int) -> None:
    assert symbols.name(address) is None
    assert f"0x{address:x}" == symbols.show(address)


def test_data_is_no_function(symbols: Symbols) -> None:
    assert "some_data" not in symbols.show(0xFFFFFFFF81000208)


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ("", 0x4000),
        ("ffffffff82004000 D __start_init_stack\nffffffff82008000 D __end_init_stack\n", 0x4000),
        # KASAN's are twice as large.
        ("ffffffff82008000 D __start_init_stack\nffffffff82010000 D __end_init_stack\n", 0x8000),
        ("ffffffff82008000 D __start_init_task\nffffffff82010000 D __end_init_task\n", 0x8000),
        # Not believed: the end of something else.
        ("ffffffff82008000 D __start_init_stack\nffffffff82010001 D __end_init_stack\n", 0x4000),
        ("ffffffff82010000 D __end_init_stack\n", 0x4000),
    ],
)
def test_the_kernel_says_how_large_a_stack_is(tmp_path: Path, lines: str, size: int) -> None:
    (tmp_path / "symbols").write_text(TEXT + lines)
    assert size == Symbols(tmp_path / "symbols").stack_size()


def test_no_address_shows_nothing(symbols: Symbols) -> None:
    assert "" == symbols.show(0)


def test_a_run_without_symbols_shows_addresses(tmp_path: Path) -> None:
    assert "0xffffffff81000000" == Symbols(tmp_path / "none").show(0xFFFFFFFF81000000)


def test_hidden_addresses_name_nothing(tmp_path: Path) -> None:
    path = tmp_path / "symbols"
    path.write_text("0000000000000000 T _text\n0000000000000000 T other\n")

    assert Symbols(path).name(0xFFFFFFFF81000000) is None


def test_text_loaded_after_the_capture_has_its_module_s_name(tmp_path: Path) -> None:
    path = tmp_path / "symbols"
    path.write_text("ffffffffc0000000 t cleanup_module\t[pvpanic_pci]\n")
    base = 0xFFFFFFFFC0008000
    later = Symbols(path, {base: "recv_trace"})

    assert "[recv_trace]+0x10" == later.name(base + 0x10)
    assert "cleanup_module+0x10 [pvpanic_pci]" == later.name(0xFFFFFFFFC0000010)
    assert Symbols(path).name(base + 0x10) is None  # too far behind to be that one's
