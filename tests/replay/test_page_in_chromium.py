"""report.html in a real browser: it renders, complains of nothing, and draws the ledger."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import ledger, report, spec
from lab.blocks import Heading, Lines, Paragraph, Table, paragraph
from lab.experiment import socket as socket_experiment
from lab.journal import Journal
from lab.ledger import Ledger
from lab.record import Kind
from tests.replay import browser
from tests.unit import cooked, cooked_socket
from tests.unit.cooked import Cook
from tests.unit.cooked_socket import Cooked

HOSTILE = b"</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\xff\xfe\x00"
RUNS: dict[str, Callable[[Path], Cook]] = {
    "nic": cooked.nic,
    "loopback": cooked.loopback,
    "tcp": lambda path: cooked.tcp(path, size=5000),
    "pieces": lambda path: cooked.nic(path, size=9000, count=2),
    "large": lambda path: cooked.nic(path, size=65507),
    "left-out": lambda path: cooked.nic(path, without=("virtio_net:page_to_skb>memcpy",)),
    "hostile": lambda path: cooked.nic(path, payload=HOSTILE, size=len(HOSTILE)),
}


def serve(path: Path, cook: Callable[[Path], Cook]) -> tuple[Ledger, Path]:
    run = cook(path / "run").serve()
    built = ledger.build(run)
    return built, run.write_text("report.html", report.page(built, run))


def expected(built: Ledger) -> list[tuple[str, int]]:
    """Return kind and number of each movement of the message that is drawn first."""
    first = min(built.messages, key=lambda message: (message.complete, message.id))
    return sorted((movement.kind, n) for n, movement in enumerate(first.movements))


def drawn(seen: browser.Seen) -> list[list[tuple[str, int]]]:
    return [
        sorted((kind, number) for kind, numbers in arrows for number in numbers)
        for arrows in seen.arrows
    ]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", RUNS)
def test_it_draws_every_movement_of_the_ledger_once(tmp_path: Path, name: str, width: int) -> None:
    built, page = serve(tmp_path, RUNS[name])
    seen = browser.look(page, tmp_path, width=width)

    assert drawn(seen)[0] == expected(built)
    assert seen.gaps[0] == (1 if name == "left-out" else 0)
    assert seen.complaints == []
    assert seen.spilt == []
    assert seen.wider == 0
    assert seen.cut == []
    # On a narrow page a table has no head: each cell says of what it is.
    assert all(seen.labels) if width == 390 else not any(seen.labels)


def test_a_table_that_is_cut_is_seen_to_be(tmp_path: Path) -> None:
    _, page = serve(tmp_path, cooked.nic)
    page.write_text(
        page.read_text().replace('class="fields"', 'class="fields" style="width:900px"')
    )
    seen = browser.look(page, tmp_path, width=390)

    assert seen.cut


def test_a_page_that_is_broken_is_seen_to_be(tmp_path: Path) -> None:
    built, page = serve(tmp_path, cooked.nic)
    whole = page.read_text()
    lacking, found = re.subn(r'data-kind="dma-read" data-movements="1"', "", whole)
    assert found == 2  # the wide drawing and the narrow one
    lacking = lacking.replace(">CPU copy #1 ", f">CPU copy #1 {'that was long ' * 9}")
    page.write_text(lacking.replace("<main>", "<main><script>let x = </script>"))
    seen = browser.look(page, tmp_path)

    assert drawn(seen)[0] != expected(built)
    assert seen.complaints
    assert seen.spilt


def serve_socket(path: Path, spoil: Callable[[Cooked], None] = lambda _: None) -> Path:
    run = cooked_socket.cook(path / "run")
    spoil(run)
    out = run.serve()
    socket_experiment.analyse(out, spec.Expect(), journal=Journal())
    return out.file("report.html")


POINTERS: list[list[str | bool]] = [
    [name, True] for name in ("[3]", "private_data", "sk", "file", "sk_socket")
]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_socket_is_drawn_with_every_pointer_and_every_call(tmp_path: Path, width: int) -> None:
    page = serve_socket(tmp_path)
    seen = browser.look(page, tmp_path, width=width)

    assert POINTERS == seen.pointers
    assert [name for name, _ in seen.calls] == [
        *("__sys_socket", "__sock_create", "sock_alloc", "inet_create"),
        *("get_unused_fd_flags", "sock_alloc_file", "fd_install"),
    ]
    assert all(long >= 1 for _, long in seen.calls)
    assert seen.calls[0][1] == max(long for _, long in seen.calls)
    assert "LINK_ESTABLISHED" in seen.text
    assert "emulated nanoseconds" in seen.text
    assert seen.complaints == []
    assert seen.spilt == []
    assert seen.wider == 0
    assert seen.cut == []
    assert browser.print_pdf(page, tmp_path).startswith(b"%PDF-")


def test_a_pointer_that_does_not_hold_is_drawn_broken(tmp_path: Path) -> None:
    def spoil(run: Cooked) -> None:
        run.at("fd_install", Kind.ENTRY)["src_phys"] += 64  # file->private_data

    seen = browser.look(serve_socket(tmp_path, spoil), tmp_path)

    assert ["private_data", False] in seen.pointers
    assert "NOT PROVEN" in seen.text
    assert "✗ another" in seen.text


def test_what_a_guest_said_stays_text_on_the_page_of_a_socket(tmp_path: Path) -> None:
    def spoil(run: Cooked) -> None:
        for event in run.latency:
            if event["comm"] == "ping":
                event["comm"] = "<img src=x>"

    page = serve_socket(tmp_path, spoil)
    seen = browser.look(page, tmp_path)

    assert "<img src=x" not in page.read_text()
    assert "<img src=x" in seen.text
    assert seen.complaints == []


STEP = (
    "#351", "DATA_STATE", "__netif_receive_skb_one_core+0x89", "__netif_receive_skb_one_core",
    "· " * 20 + "udp4_lib_lookup2() net=0xffffffff9fcb6540 (net), skb=0xffff8e6a9f9af100",
    "jumped to, to return to __netif_receive_skb_one_core+0x89",
)  # fmt: skip
SHEET = [
    Paragraph("DISAGREEMENT: <b>7</b> copies were seen"),
    Table(("WITNESS", "LEN", "WHAT IT WAS"), (("<i>probe</i>", "16", "  ffff888001000000"),)),
    Table(
        ("STEP", "TYPE", "FILE:LINE", "CALLER", "VALUES", "WORK"),
        (STEP,),
        shares=(0, 0, 3, 2, 7, 4),
    ),
    Heading("THE MODULE'S WORD", "sender/moves.json"),
    Lines(("  [descriptor 3] --> <script>alert(1)</script>",)),
    *paragraph("✗ it does not hold"),
]


@pytest.mark.parametrize("width", [1280, 390])
def test_blocks_make_a_page_that_escapes_them(tmp_path: Path, width: int) -> None:
    run = cooked.nic(tmp_path / "run").serve()
    page = run.write_text("report.html", report.sheet(run, SHEET, good=False))
    seen = browser.look(page, tmp_path, width=width)

    assert "<script>alert" not in page.read_text()
    for text in ("DISAGREEMENT", "<b>7</b> copies", "<i>probe</i>", "The module's word",
                 "<script>alert(1)</script>", "✗ it does not hold"):  # fmt: skip
        assert text in seen.text
    assert seen.complaints == []
    assert seen.wider == 0
    assert seen.cut == []


def test_it_is_dark_where_people_want_it_dark(tmp_path: Path) -> None:
    _, page = serve(tmp_path, cooked.nic)

    light = browser.look(page, tmp_path).background
    dark = browser.look(page, tmp_path, dark=True).background

    assert light == "rgb(251, 250, 246)"
    assert dark == "rgb(20, 23, 26)"


def test_it_prints(tmp_path: Path) -> None:
    _, page = serve(tmp_path, cooked.nic)

    assert browser.print_pdf(page, tmp_path).startswith(b"%PDF-")


def test_without_the_program_a_test_is_skipped_by_name_or_fails_where_it_must_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LAB_MUST_RUN", "guests")

    with pytest.raises(pytest.skip.Exception, match="chromium is not installed"):
        browser.find(*browser.NAMES)
    monkeypatch.setenv("LAB_MUST_RUN", "guests,chromium")
    with pytest.raises(pytest.fail.Exception, match="LAB_MUST_RUN asks for it"):
        browser.find(*browser.NAMES)
