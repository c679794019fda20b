"""A link of taps: made where that is allowed, refused with what to try, gone with its files."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import dpkt
import pytest

from lab import capture, doctor, tap
from lab.deadline import Deadline, wait_until
from lab.errors import ToolMissing
from lab.guest import PAIR
from lab.tap import captured
from tests import namespaces

TOP = Path(__file__).parents[2]
MACS = [bytes.fromhex(me.link_mac.replace(":", "")) for me in PAIR]
FRAME = MACS[1] + MACS[0] + b"\x08\x00" + bytes(range(100))


@pytest.fixture
def ends() -> list[str]:
    if why := tap.absent():
        pytest.skip(why)
    return ["one", "other"]


def test_what_one_end_sends_the_other_has_and_nothing_else(ends: list[str]) -> None:
    with tap.joined(ends) as fds:
        for fd in fds.values():
            os.set_blocking(fd, False)
        # IPv4 that is none: a host with br_netfilter must not look into it.
        os.write(fds["one"], bytes(10) + FRAME)
        assert bytes(10) + FRAME == os.read(fds["other"], 1 << 17)
        for fd in fds.values():
            with pytest.raises(BlockingIOError):  # no IPv6, no STP: nobody else speaks
                os.read(fd, 1 << 17)


def test_a_packet_of_64_kib_goes_over_uncut(ends: list[str]) -> None:
    """TSO: the header says how to cut it, and nobody on the way has to."""
    tunsetoffload, checksum, tso4 = 0x400454D0, 1, 2
    big = bytes([0x45, 0]) + struct.pack(">HHHBBHII", 65_000, 1, 0, 64, 6, 0, 1, 2)
    big += struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 16, 512, 0, 0) + bytes(65_000 - 40)
    # flags NEEDS_CSUM, TCPv4, 54 of headers, cut to 1448, checksum at 16 of what begins at 34
    header = struct.pack("<BBHHHH", 1, 1, 54, 1448, 34, 16)
    with tap.joined(ends) as fds:
        for fd in fds.values():
            fcntl.ioctl(fd, tunsetoffload, checksum | tso4)
            os.set_blocking(fd, False)
        os.write(fds["one"], header + FRAME[:14] + big)
        arrived = os.read(fds["other"], 1 << 17)
    assert FRAME[:14] + big == arrived[10:]
    assert 1448 == struct.unpack("<BBHHHH", arrived[:10])[3]


def test_the_namespace_lives_by_the_taps_alone(ends: list[str]) -> None:
    before = namespaces.links()
    with tap.joined(ends) as fds:
        with namespaces.opened(fds["one"]) as one, namespaces.opened(fds["other"]) as other:
            names = {str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (one, other)}
        assert 1 == len(names)
        assert not names & namespaces.in_use()
        assert before == namespaces.links()
        mark = namespaces.number(fds["one"]) if os.geteuid() == 0 else None
        assert mark is None or namespaces.alive(mark)
    assert before == namespaces.links()
    if mark is not None:
        wait_until(lambda: not namespaces.alive(mark), what="its end", deadline=Deadline(10))


def test_without_rights_it_is_refused_with_what_to_try() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to give up root's rights")
    program = (
        "from lab import tap\nfrom lab.errors import HostError\n"
        "try:\n    with tap.joined(['one']): pass\n"
        "except HostError as error: print(error.exit_code, *error.lines())"
    )
    done = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", program],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("3 HostError: no link of taps can be made here: "), done.stderr
    assert "Operation not permitted" in done.stdout
    assert "try: as root; or with /dev/net/tun open to you" in done.stdout


def test_a_host_without_the_tools_says_which_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, *, package: str) -> str:
        raise ToolMissing(f"{name} is not installed", hint=f"apt-get install {package}")

    monkeypatch.setattr(tap, "tool", none)
    with pytest.raises(ToolMissing, match="ip is not installed"), tap.joined(["one"]):
        pass


def test_the_doctor_says_that_it_cannot_be_had_and_lacks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tap, "absent", lambda: "no link of taps can be made here: no")
    found = doctor._tap()
    text = doctor.render([found])
    assert text.startswith("no   backend tap   no link of taps can be made here: no")
    assert tap.HINT in text
    doctor.require_fit([found])


# --- Captures --------------------------------------------------------------------------------


def pcap(path: Path, packets: list[bytes]) -> bytes:
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for number, packet in enumerate(packets):
            writer.writepkt(packet, ts=number)
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 10, 12, 20])
def test_a_capture_has_bare_frames_whatever_the_header(size: int, tmp_path: Path) -> None:
    path = tmp_path / "wire.pcap"
    frames = [FRAME, MACS[0] + MACS[1] + b"\x08\x00" + bytes(65_000), FRAME[:20]]
    # Who else speaks, such as a guest's own program with an address it made up, is in the minority.
    frames.append(b"\xff" * 6 + b"\x02made!" + bytes(40))
    headers = [bytes([1] * size), bytes(size), bytes(size), bytes(size)]
    kept = pcap(path, [head + frame for head, frame in zip(headers, frames, strict=True)])

    path.write_bytes(captured.bare(kept, MACS))

    assert frames == [frame.data for frame in capture.read(path)]
    assert [0, 10**9, 2 * 10**9, 3 * 10**9] == [frame.time_ns for frame in capture.read(path)]


def test_an_empty_capture_and_one_cut_short_stay_what_they_are(tmp_path: Path) -> None:
    whole = pcap(tmp_path / "wire.pcap", [bytes(12) + FRAME] * 2)
    assert whole[:24] == captured.bare(whole[:24], MACS)
    assert b"" == captured.bare(b"", MACS)
    cut = captured.bare(whole[:-5], MACS)
    assert cut.endswith(whole[-len(FRAME) - 12 - 16 : -5])
