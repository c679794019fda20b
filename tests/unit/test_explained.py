"""The worksheet's own lines: each is told by a record, and by nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import build, explained, report
from lab.claims import MEASURES
from lab.claims.evidence import Evidence
from lab.errors import EvidenceError
from lab.journal import Journal
from lab.record import HOOK_COPY, Flag, Hook, Kind, encode_section
from lab.rundir import RunDir
from tests.unit import cooked

TEXTS = {
    0xFFFFFFFF81000000: "ip_generic_getfrag",
    0xFFFFFFFF81001000: "file_tty_write.constprop.0",
    0xFFFFFFFF81002000: "copy_page_to_iter",
    0xFFFFFFFF81003000: "get_random_bytes_user",
    0xFFFFFFFF81004000: "udp_recvmsg",
    0xFFFFFFFF81005000: "copy_page_from_iter",
}
AT = {name.partition(".")[0]: address + 4 for address, name in TEXTS.items()}
UDP = cooked.ethernet(cooked.ipv4(cooked.udp(explained.MESSAGE), number=0))
OTHER_DATAGRAM = cooked.ethernet(cooked.ipv4(cooked.udp(b"HELLO"), number=0))
TCP_SEGMENT = cooked.ethernet(
    cooked.ipv4(bytes.fromhex("1e61c000") + bytes(8) + b"\x80" + bytes(19), number=0, kind=6)
)


def copied(way: str, caller: str, data: bytes, *, size: int = 0, user: int = 0) -> dict[str, Any]:
    """Return the record of a copy, of the sender out of user memory or of the receiver in."""
    out = way == "COPY1"
    return {
        "hook": "_copy_from_iter" if out else "_copy_to_iter",
        "kind": Kind.RETURN,
        "flags": Flag.SRC_USER if out else Flag.DST_USER,
        "pid": 40 if out else 41,
        "comm": "sender" if out else "receiver",
        "dst" if out else "src": 0xFF11000000003C00,
        "size": size or len(data),
        "ret": len(data),
        "bytes": data[:64],
        "caller": AT[caller],
        "user": user,
    }


def sent(frame: bytes) -> dict[str, Any]:
    return {
        "hook": "__dev_queue_xmit", "skb": 0xFF11000000009000, "head": 0xFF11000000008C00,
        "data": 0xFF11000000008CFE, "skb_len": len(frame), "dev": "lo", "bytes": frame[:64],
    }  # fmt: skip


def line_of(event: dict[str, Any]) -> str:
    if event["hook"] == "__dev_queue_xmit":
        return f"[COPY2] dev=lo skb_data={event['data']:x} skb_len={event['skb_len']}"
    out = event["hook"] == "_copy_from_iter"
    way, name, key = ("COPY1", "dest", "dst") if out else ("COPY4", "src", "src")
    who = f"PID={event['pid']} comm={event['comm']}"
    return f"[{way}] {who} {name}={event[key]:x} len={event['size']}"


GOOD = (
    copied("COPY1", "file_tty_write", b"Sender PID: 40       \n"),
    copied("COPY1", "ip_generic_getfrag", explained.MESSAGE, user=0x555500002010),
    sent(UDP),
    copied("COPY4", "udp_recvmsg", explained.MESSAGE),
)


def serve(path: Path, *events: dict[str, Any], lines: list[str] | None = None,
          **header: Any) -> RunDir:  # fmt: skip
    run = RunDir(path)
    (path / "sender").mkdir(parents=True)
    hooks = [Hook(name, 0, HOOK_COPY, 1, header.pop("missed", 0)) for name in
             ("_copy_from_iter", "_copy_to_iter", "__dev_queue_xmit")]  # fmt: skip
    numbered = [{"tsc": 1000 * at, "tgid": 1, **event} for at, event in enumerate(events, 1)]
    folder = run.guest("sender")
    folder.trace.write_bytes(
        encode_section(numbered, name="send_trace", nonce=bytes(16), hooks=hooks, **header)
    )
    folder.symbols.write_text("".join(f"{at:016x} T {name}\n" for at, name in TEXTS.items()))
    said = lines if lines is not None else [line_of(event) for event in events]
    text = "".join(f"[    1.{at:06}] {line}\n" for at, line in enumerate(said))
    folder.file(explained.LOG).write_text(text)
    return run


def test_every_line_of_a_good_run_is_told_by_its_record(tmp_path: Path) -> None:
    found = explained.explain(serve(tmp_path / "run", *GOOD))

    assert () == found.trouble
    assert ["terminal", "message", "message", "message"] == [one.what for one in found.lines]
    assert [f"sender/trace.bin#{at}" for at in range(4)] == [one.evidence for one in found.lines]
    assert "Sender PID" in found.lines[0].text
    assert "14 + 20 + 8 + 16" in found.lines[2].text
    assert verdict(found).startswith("COMPLETE: 4 lines")


@pytest.mark.parametrize(
    ("event", "what", "text"),
    [
        (copied("COPY4", "copy_page_to_iter", b"\x7fELF" + bytes(828)), "library", "ELF header"),
        (copied("COPY4", "copy_page_to_iter", explained.PT_PHDR + bytes(776)), "library",
         "program headers"),
        (copied("COPY4", "get_random_bytes_user", bytes(8), size=32), "random",
         "8 bytes for getrandom()"),
        (copied("COPY4", "copy_page_to_iter", bytes(9)), "other", "9 bytes (copy_page_to_iter)"),
        (copied("COPY1", "copy_page_from_iter", b"hello"), "pipe", "into a pipe"),
        # The message's own bytes, written to the terminal, are not the message's copy.
        (copied("COPY1", "file_tty_write", explained.MESSAGE), "terminal", "HELLO_SEND_TRACE"),
        # Other bytes through the same function are not the message either.
        (copied("COPY1", "ip_generic_getfrag", b"HELLO_SEND_TRACK"), "other", "16 bytes"),
        (sent(TCP_SEGMENT), "tcp", "port 7777 to 49152, 0 bytes of data"),
        (sent(OTHER_DATAGRAM), "udp", "another datagram"),
    ],
)  # fmt: skip
def test_what_a_line_was_is_told_by_caller_and_bytes(
    tmp_path: Path, event: dict[str, Any], what: str, text: str
) -> None:
    found = explained.explain(serve(tmp_path / "run", *GOOD, event))

    assert () == found.trouble
    assert what == found.lines[-1].what
    assert text in found.lines[-1].text


def verdict(found: explained.Explained) -> str:
    return next(iter(report.plain(explained.told(found))))


def test_a_line_without_a_record_is_not_explained(tmp_path: Path) -> None:
    lines = [*map(line_of, GOOD), "[COPY1] PID=40 comm=sender dest=ff11000000003c00 len=37"]
    found = explained.explain(serve(tmp_path / "run", *GOOD, lines=lines))

    assert ("no record of ours is of the call of sender/as_written.log#5",) == found.trouble
    assert verdict(found).startswith("INCOMPLETE: no record")


def test_a_record_tells_one_line_only(tmp_path: Path) -> None:
    lines = [*map(line_of, GOOD), line_of(GOOD[0])]

    assert explained.explain(serve(tmp_path / "run", *GOOD, lines=lines)).trouble


def test_a_loss_makes_it_incomplete(tmp_path: Path) -> None:
    found = explained.explain(serve(tmp_path / "run", *GOOD, missed=2))

    assert ("2 records were lost",) == found.trouble


def test_without_the_message_it_is_incomplete(tmp_path: Path) -> None:
    found = explained.explain(serve(tmp_path / "run", *GOOD[:1]))

    assert 3 == len(found.trouble)
    assert "no [COPY1] line is of the message" in found.trouble


@pytest.mark.parametrize(("user", "there"), [(0x10, True), (0x11, False), (0, False)])
def test_rodata_is_told_by_the_program_itself(tmp_path: Path, user: int, *, there: bool) -> None:
    source = tmp_path / "x.c"
    source.write_text('const char message[] = "HELLO_SEND_TRACE"; int main(void) { return 0; }')
    subprocess.run(["gcc", "-pie", "-o", tmp_path / "x", source], check=True, timeout=60)
    listed = subprocess.run(
        ["readelf", "-sW", tmp_path / "x"], check=True, capture_output=True, text=True
    ).stdout
    at = next(line.split()[1] for line in listed.splitlines() if line.endswith(" message"))
    events = [dict(event) for event in GOOD]
    events[1]["user"] = 0x555500000000 + int(at, 16) + user - 0x10
    run = serve(tmp_path / "run", *events)
    (run.path / "sender" / explained.PROGRAM).write_bytes((tmp_path / "x").read_bytes())

    found = explained.explain(run)

    assert there == found.rodata.startswith("sender/as_written_sender#.rodata+0x")


# --- As claims see it -----------------------------------------------------------------------


def judged(tmp_path: Path, *events: dict[str, Any]) -> Evidence:
    run = serve(tmp_path / "run", *events)
    run.write_manifest({"guests": ["sender"], "kernel": "6.12.1"})
    run.write_json(explained.RESULT, explained.explain(run).to_json())
    return Evidence("run", run)


def test_claims_read_what_the_lines_were(tmp_path: Path) -> None:
    seen = judged(tmp_path, *GOOD)

    what = MEASURES["line-what"].function(seen, "COPY1 22")
    assert ("terminal", ("sender/as_written.log#1", "sender/trace.bin#0")) == (
        what.value, what.evidence,
    )  # fmt: skip
    assert ("terminal", "message") == MEASURES["line-what"].function(seen, "COPY1").value
    assert (22, 16) == MEASURES["line-lengths"].function(seen, "COPY1").value
    assert MEASURES["sent-from-rodata"].function(seen, "").value is False
    with pytest.raises(EvidenceError, match="has no line COPY1 37"):
        MEASURES["line-what"].function(seen, "COPY1 37")


def test_lines_that_are_not_all_explained_carry_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="is not explained"):
        MEASURES["line-what"].function(judged(tmp_path, *GOOD[:1]), "COPY1 22")


# --- His programs ---------------------------------------------------------------------------


def test_his_programs_are_linked_as_he_linked_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, list[str]] = {}

    def note(argv: list[str], *, what: str, **_: object) -> str:
        seen[Path(what).stem] = argv
        Path(argv[argv.index("-o") + 1]).touch()
        return ""

    monkeypatch.setattr(build, "run", note)
    build.build_guest_programs(journal=Journal(), cache=tmp_path)

    dynamic = {name for name, argv in seen.items() if "-static-pie" not in argv}
    assert {"as_written_sender", "as_written_receiver"} == dynamic


def test_the_words_of_his_sender_are_as_long_as_his_were(tmp_path: Path) -> None:
    source = Path(build.__file__).parent.parent / "guest" / "as_written_sender.c"
    subprocess.run(["gcc", "-o", tmp_path / "sender", source], check=True, timeout=60)
    done = subprocess.run(
        [tmp_path / "sender"], capture_output=True, text=True, timeout=20, check=False
    )

    assert [22, 1, 37] == [len(line) for line in done.stdout.splitlines(keepends=True)]
