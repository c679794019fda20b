"""Which of several functions of one name a built-in driver's is: the one among its neighbours."""

from __future__ import annotations

import pytest

from lab import drivers

BASE = 0xFFFF_FFFF_8100_0000
TTY = ["tty_ldisc_receive_buf", "receive_buf", "tty_port_default_receive_buf", "start_xmit"]
VIRTIO = ["virtnet_stats", "skb_xmit_done", "virtnet_poll_tx", "start_xmit", "virtnet_open",
          "page_to_skb", "receive_buf", "virtnet_poll"]  # fmt: skip
REST = ["udp_sendmsg", "ip_rcv", "page_to_skb"]
HOOKS = ["virtio_net:receive_buf", "virtio_net:start_xmit", "virtio_net:page_to_skb",
         "virtio_net:xdp_linearize_page", "e1000e:e1000_xmit_frame", "udp_sendmsg"]  # fmt: skip


def kallsyms(*names: str, module: str = "") -> bytes:
    """Return symbols 16 bytes apart, between those that say where the text begins and ends."""
    tag = f"\t[{module}]" if module else ""
    every = ["_stext", *names, "_etext", "virtnet_late_init", "receive_buf"]
    lines = [f"{BASE + 16 * at:016x} t {name}{tag}" for at, name in enumerate(every)]
    return "\n".join(lines).encode()


def at(number: int) -> int:
    return BASE + 16 * (1 + number)


def found(text: bytes) -> dict[str, int]:
    return {name: place.address for name, place in drivers.built_in(text, HOOKS).items()}


@pytest.mark.parametrize("before", [TTY, [], [*TTY, *REST]], ids=["tty", "alone", "many"])
def test_the_one_among_its_neighbours_is_the_driver_s(before: list[str]) -> None:
    first = len(before)

    assert {
        "virtio_net:start_xmit": at(first + 3),
        "virtio_net:page_to_skb": at(first + 5),
        "virtio_net:receive_buf": at(first + 6),
    } == found(kallsyms(*before, *VIRTIO, *REST))


def test_it_is_said_whether_the_name_is_its_alone() -> None:
    places = drivers.built_in(kallsyms(*TTY, *VIRTIO), HOOKS)

    assert {
        "virtio_net:receive_buf": False,
        "virtio_net:start_xmit": False,
        "virtio_net:page_to_skb": True,
    } == {name: place.unique for name, place in places.items()}


def test_a_module_s_functions_are_found_by_its_name() -> None:
    assert {} == found(kallsyms(*VIRTIO, module="virtio_net"))


def test_a_kernel_without_the_driver_has_none() -> None:
    assert {} == found(kallsyms(*TTY, *REST))


def test_a_function_that_lies_there_twice_is_not_guessed() -> None:
    assert "virtio_net:receive_buf" not in found(
        kallsyms(*VIRTIO[:-1], "receive_buf", "virtnet_poll")
    )


def test_where_the_driver_does_not_lie_together_nothing_is_guessed() -> None:
    apart = [f"other_{number}" for number in range(drivers.SPREAD * len(VIRTIO))]

    assert {} == found(kallsyms(*VIRTIO[:3], *apart, *VIRTIO[3:]))


def test_parts_and_padding_are_no_functions_of_their_own() -> None:
    names = [name for one in VIRTIO for name in (f"__pfx_{one}", one)]

    assert 3 == len(found(kallsyms(*names, *REST, "receive_buf.cold", "virtnet_poll.cold")))
