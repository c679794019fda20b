"""report.html in a real browser: it renders, complains of nothing, and draws the ledger."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
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


WIDTHS = (1280, 390)


@dataclass(frozen=True)
class Shown:
    """A page, what it was made of, and what a browser made of it at each width."""

    page: Path
    built: Ledger | None = None
    at: dict[int, browser.Seen] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        assert self.built is not None
        return self.built


def serve(path: Path, cook: Callable[[Path], Cook]) -> Shown:
    run = cook(path / "run").serve()
    built = ledger.build(run)
    return Shown(run.write_text("report.html", report.page(built, run)), built)


def cut(path: Path) -> Shown:
    """Return a page with a table that is too wide."""
    made = serve(path, cooked.nic)
    text = made.page.read_text()
    made.page.write_text(text.replace('class="fields"', 'class="fields" style="width:900px"'))
    return made


def broken(path: Path) -> Shown:
    """Return a page that lacks an arrow, has words over others, and a script that is none."""
    made = serve(path, cooked.nic)
    whole = made.page.read_text()
    lacking, found = re.subn(r'data-kind="dma-read" data-movements="1"', "", whole)
    assert found == 2  # the wide drawing and the narrow one
    lacking = lacking.replace(">CPU copy #1 ", f">CPU copy #1 {'that was long ' * 9}")
    made.page.write_text(lacking.replace("<main>", "<main><script>let x = </script>"))
    return made


def sheet(path: Path) -> Shown:
    run = cooked.nic(path / "run").serve()
    return Shown(run.write_text("report.html", report.sheet(run, SHEET, good=False)))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """Make all pages, and look at each at every width, in one browser."""
    folder = tmp_path_factory.mktemp("shown")
    made = {name: serve(folder / name, cook) for name, cook in RUNS.items()}
    makers = (cut, broken, sheet, socket, another_pointer, markup_said)
    made |= {make.__name__: make(folder / make.__name__) for make in makers}
    views = [(one, width) for one in made.values() for width in WIDTHS]
    seen = browser.look_at([(one.page, width) for one, width in views], folder)
    for (one, width), found in zip(views, seen, strict=True):
        one.at[width] = found
    return made


def expected(built: Ledger) -> list[tuple[str, int]]:
    """Return kind and number of each movement of the message that is drawn first."""
    first = min(built.messages, key=lambda message: (message.complete, message.id))
    return sorted((movement.kind, n) for n, movement in enumerate(first.movements))


def drawn(seen: browser.Seen) -> list[list[tuple[str, int]]]:
    return [
        sorted((kind, number) for kind, numbers in arrows for number in numbers)
        for arrows in seen.arrows
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RUNS)
def test_it_draws_every_movement_of_the_ledger_once(
    shown: dict[str, Shown], name: str, width: int
) -> None:
    seen = shown[name].at[width]

    assert drawn(seen)[0] == expected(shown[name].ledger)
    assert seen.gaps[0] == (1 if name == "left-out" else 0)
    assert seen.complaints == []
    assert seen.spilt == []
    assert seen.wider == 0
    assert seen.cut == []
    # On a narrow page a table has no head: each cell says of what it is.
    assert all(seen.labels) if width == 390 else not any(seen.labels)


def test_a_table_that_is_cut_is_seen_to_be(shown: dict[str, Shown]) -> None:
    assert shown["cut"].at[390].cut


def test_a_page_that_is_broken_is_seen_to_be(shown: dict[str, Shown]) -> None:
    seen = shown["broken"].at[1280]

    assert drawn(seen)[0] != expected(shown["broken"].ledger)
    assert seen.complaints
    assert seen.spilt


def socket(path: Path, spoil: Callable[[Cooked], None] = lambda _: None) -> Shown:
    run = cooked_socket.cook(path / "run")
    spoil(run)
    out = run.serve()
    socket_experiment.analyse(out, spec.Expect(), journal=Journal())
    return Shown(out.file("report.html"))


def another_pointer(path: Path) -> Shown:
    def spoil(run: Cooked) -> None:
        run.at("fd_install", Kind.ENTRY)["src_phys"] += 64  # file->private_data

    return socket(path, spoil)


def markup_said(path: Path) -> Shown:
    def spoil(run: Cooked) -> None:
        for event in run.latency:
            if event["comm"] == "ping":
                event["comm"] = "<img src=x>"

    return socket(path, spoil)


POINTERS: list[list[str | bool]] = [
    [name, True] for name in ("[3]", "private_data", "sk", "file", "sk_socket")
]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_socket_is_drawn_with_every_pointer_and_every_call(
    shown: dict[str, Shown], width: int
) -> None:
    seen = shown["socket"].at[width]

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


def test_a_pointer_that_does_not_hold_is_drawn_broken(shown: dict[str, Shown]) -> None:
    seen = shown["another_pointer"].at[1280]

    assert ["private_data", False] in seen.pointers
    assert "NOT PROVEN" in seen.text
    assert "✗ another" in seen.text


def test_what_a_guest_said_stays_text_on_the_page_of_a_socket(shown: dict[str, Shown]) -> None:
    seen = shown["markup_said"].at[1280]

    assert "<img src=x" not in shown["markup_said"].page.read_text()
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


@pytest.mark.parametrize("width", WIDTHS)
def test_blocks_make_a_page_that_escapes_them(shown: dict[str, Shown], width: int) -> None:
    seen = shown["sheet"].at[width]

    assert "<script>alert" not in shown["sheet"].page.read_text()
    for text in ("DISAGREEMENT", "<b>7</b> copies", "<i>probe</i>", "The module's word",
                 "<script>alert(1)</script>", "✗ it does not hold"):  # fmt: skip
        assert text in seen.text
    assert seen.complaints == []
    assert seen.wider == 0
    assert seen.cut == []


def test_it_is_dark_where_people_want_it_dark(shown: dict[str, Shown], tmp_path: Path) -> None:
    page = shown["nic"].page
    (dark,) = browser.look_at([(page, 1280)], tmp_path, dark=True)

    assert shown["nic"].at[1280].background == "rgb(251, 250, 246)"
    assert dark.background == "rgb(20, 23, 26)"


@pytest.mark.parametrize("name", ["nic", "socket"])
def test_it_prints(shown: dict[str, Shown], tmp_path: Path, name: str) -> None:
    assert browser.print_pdf(shown[name].page, tmp_path).startswith(b"%PDF-")


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
