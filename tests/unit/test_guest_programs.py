"""Agent, sender and receiver as they behave on a host: over pipes and loopback."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from lab import fnv, message, paths
from lab.deadline import Deadline, wait_until
from lab.message import Messages

ANSWER_S = 10.0  # far more than any answer takes
SEED = 0x29A1B2C3D4E5F607
COUNT = 23
SIZE = 4099
LINE_SIZE = 65536


class Program:
    """A program on pipes; what it says is read line by line, each with a deadline."""

    def __init__(self, *argv: str | Path, env: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        command = [str(word) for word in argv]
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream is not None:
                stream.close()
        self.child.wait(5)

    def write(self, data: bytes) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def say(self, text: str) -> None:
        self.write(text.encode() + b"\n")

    def hear(self, within_s: float = ANSWER_S) -> str:
        """Return the next line without its newline; "" at the end of what it says."""
        assert self.child.stdout is not None
        deadline = Deadline(within_s)
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.child.stdout], [], [], deadline.remaining)
            if not ready:
                pytest.fail(f"said nothing in {within_s} s after {self._rest[:200]!r}")
            piece = os.read(self.child.stdout.fileno(), 1 << 16)
            if not piece:
                break
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def ask(self, text: str) -> str:
        self.say(text)
        return self.hear()

    def step(self, word: str, within_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the JSON of a step, which must be the next thing said."""
        line = self.hear(within_s)
        assert line.startswith(f"{word} "), line or self.errors()
        found: dict[str, Any] = json.loads(line.partition(" ")[2])
        return found

    def go(self, word: str, within_s: float = ANSWER_S) -> dict[str, Any]:
        self.say("go")
        return self.step(word, within_s)

    def end(self) -> int:
        """Close its stdin and return its exit status."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        return self.child.wait(5)

    def errors(self) -> str:
        assert self.child.stderr is not None
        return self.child.stderr.read().decode()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build with the Makefile a person would use; return the folder of the programs."""
    folder = tmp_path_factory.mktemp("guest")
    source = paths.data() / "guest"
    made = ("agent", "sender", "receiver", "xdp")
    for name in ("Makefile", "message.h", "workload.h", *(f"{one}.c" for one in made)):
        shutil.copy(source / name, folder)
    command = ["make", "-C", str(folder), *(f"build/{one}" for one in made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "build"


@pytest.fixture
def agent(programs: Path) -> Iterator[Program]:
    with Program(programs / "agent", "--stdio") as started:
        assert started.hear() == f"hello 1 {os.uname().release}"
        yield started


def argv(size: int = SIZE, count: int = COUNT, **options: str | bool) -> list[str]:
    """Return a workload's arguments; an option given as False is left out."""
    given: dict[str, str | bool] = {
        "protocol": "udp",
        "address": "127.0.0.1",
        "port": "9999",
        "size": str(size),
        "count": str(count),
        "seed": f"{SEED:x}",
        "idle-ms": "2000",
    }
    given.update({name.replace("_", "-"): value for name, value in options.items()})
    words: list[str] = []
    for name, value in given.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words += [f"--{name}", str(value)]
    return words


def port_of(local: str) -> str:
    return local.rpartition(":")[2]


# ---- the programs as they are built


def functions(disassembly: str) -> dict[str, list[str]]:
    """Return the instructions of each function."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in disassembly.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.+)>:", line):
            name = start[1]
            found[name] = []
        elif name and "\t" in line:
            found[name].append(line.split("\t", 1)[1])
    return found


def disassembled(folder: Path, program: str, *flags: str) -> dict[str, list[str]]:
    """Compile one program to an object (no library in it) and take it apart."""
    source = paths.data() / "guest" / f"{program}.c"
    target = folder / f"{program}.o"
    command = ["gcc", "-std=gnu11", "-O2", "-fPIE", *flags, "-c", "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=60)
    done = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(target)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return functions(done.stdout)


MESSAGE_FLAGS = ("-mgeneral-regs-only", "-fno-builtin", "-fno-tree-loop-distribute-patterns")
VECTOR = re.compile(r"%[xyz]mm")


@pytest.mark.parametrize("program", ["sender", "receiver"])
def test_no_vector_register_is_touched(tmp_path: Path, program: str) -> None:
    makefile = (paths.data() / "guest" / "Makefile").read_text()
    assert all(flag in makefile for flag in MESSAGE_FLAGS)

    ours = disassembled(tmp_path, program, *MESSAGE_FLAGS)

    assert "main" in ours
    assert not [line for lines in ours.values() for line in lines if VECTOR.search(line)]


def test_the_search_for_vector_registers_finds_them(tmp_path: Path) -> None:
    ours = disassembled(tmp_path, "sender")

    assert [line for lines in ours.values() for line in lines if VECTOR.search(line)]


def test_deriving_spills_nothing_and_zeroes_its_registers(tmp_path: Path) -> None:
    lines = disassembled(tmp_path, "sender", *MESSAGE_FLAGS)["lab_message_derive"]

    assert not [line for line in lines if "(%rsp" in line or "(%rbp" in line]
    assert not [line for line in lines if line.startswith("call")]
    end = lines.index("ret")
    zeroed = {line.split(",")[-1] for line in lines[:end] if re.match(r"xor +(%\w+),\1$", line)}
    assert {"%eax", "%edx", "%ecx", "%esi", "%edi", "%r8d", "%r9d"} <= zeroed


# ---- the agent: commands


def test_hello_is_said_at_start_and_when_asked(agent: Program) -> None:
    assert agent.ask("hello") == f"hello 1 {os.uname().release}"


def test_ping_says_a_tsc_that_grows(agent: Program) -> None:
    first = agent.ask("ping 41").split(" ")
    second = agent.ask("ping 42").split(" ")

    assert first[:2] == ["pong", "41"]
    assert second[:2] == ["pong", "42"]
    assert 0 < int(first[2]) < int(second[2])


def test_the_nonce_is_kept(agent: Program) -> None:
    assert agent.ask("nonce-get") == "nonce -"
    assert agent.ask("nonce-set 00ffAA") == "ok nonce-set"
    assert agent.ask("nonce-get") == "nonce 00ffAA"
    assert agent.ask("nonce-set xyz").startswith("error nonce-set 22 ")
    assert agent.ask("nonce-set " + "0" * 129).startswith("error nonce-set 22 ")
    assert agent.ask("nonce-get") == "nonce 00ffAA"


def test_put_and_get_a_file(agent: Program, tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "key"
    quoted = urllib.parse.quote(str(path))
    content = bytes(range(256))

    assert agent.ask(f"put 600 {quoted} {content.hex()}") == f"ok put {quoted}"

    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]
    assert agent.ask(f"get {quoted}") == f"file {quoted} {content.hex()}"


def test_put_takes_the_place_of_a_file_and_may_be_empty(agent: Program, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    assert agent.ask(f"put 644 {path} ") == f"ok put {path}"

    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o7777 == 0o644
    assert agent.ask(f"get {path}") == f"file {path} "


def test_get_reads_files_that_say_they_are_empty(agent: Program) -> None:
    line = agent.ask("get /proc/sys/kernel/ostype")

    assert bytes.fromhex(line.split(" ")[2]) == b"Linux\n"


def test_get_shows_the_first_24_kib(agent: Program, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"ab" * 50000)

    assert bytes.fromhex(agent.ask(f"get {path}").split(" ")[2]) == b"ab" * (12 * 1024)


def test_the_largest_file_that_a_line_can_put(agent: Program, tmp_path: Path) -> None:
    start = f"put 600 {tmp_path}/file "
    content = bytes(range(256)) * 128
    content = content[: (LINE_SIZE - 1 - len(start)) // 2]

    assert agent.ask(start + content.hex()).startswith("ok put ")
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("bogus 1 2", "error bogus 38 "),
        ("ping", "error ping 22 "),
        ("ping x", "error ping 22 "),
        ("ping 99999999999999999999", "error ping 22 "),
        ("ping 1 2", "error ping 22 "),
        ("clock 1", "error clock 22 "),
        ("clock 1 1000000000", "error clock 22 "),
        ("entropy 0", "error entropy 22 "),
        ("entropy " + "00" * 513, "error entropy 22 "),
        ("put 9 /tmp/x 00", "error put 22 MODE"),
        ("put 644 x 00", "error put 22 PATH"),
        ("put 644 /%zz 00", "error put 22 PATH"),
        ("put 644 /%00 00", "error put 22 PATH"),
        ("put 644 /nonexistent/x 0", "error put 22 HEX"),
        ("put 644 /nonexistent/x 0g", "error put 22 HEX"),
        ("put 644 /proc/no-such-file 00", "error put 2 "),
        ("get x", "error get 22 PATH"),
        ("get /no/such/file", "error get 2 /no/such/file"),
        ("get /proc", "error get 21 "),
        ("start a/b /bin/true", "error start 22 NAME"),
        ("start " + "a" * 32 + " /bin/true", "error start 22 NAME"),
        ("start a /no/such/program", "error start 2 "),
        ("start a /bin/true %4", "error start 22 ARG1"),
        ("tell nobody x", "error tell 3 "),
        ("kill nobody 9", "error kill 3 "),
        ("kill nobody NOSUCH", "error kill 22 SIGNAL"),
        ("kill nobody 0", "error kill 22 SIGNAL"),
        ("beat x", "error beat 22 "),
        ("start a " + "x " * 600, "error start 7 "),
        ("a\0b", "error - 22 "),
    ],
)
def test_a_fault_is_answered_and_the_next_command_obeyed(
    agent: Program, line: str, answer: str
) -> None:
    found = agent.ask(line)

    assert found.startswith(answer)
    assert len(found.split(" ")) == 4
    assert agent.ask("nonce-get") == "nonce -"


def test_an_empty_line_is_nothing(agent: Program) -> None:
    agent.say("")

    assert agent.ask("nonce-get") == "nonce -"


@pytest.mark.parametrize("excess", [0, 1, 200_000])
def test_a_line_that_is_too_long_is_refused_once(agent: Program, excess: int) -> None:
    start = "put 600 /nonexistent-folder-never-made"
    line = start + "x" * (LINE_SIZE - len(start) - 1 + excess)
    assert len(line) + 1 == LINE_SIZE + excess

    found = agent.ask(line)

    assert found.startswith("error put 90 " if excess else "error put 22 ")
    assert agent.ask("nonce-get") == "nonce -"


def test_nothing_of_a_host_is_changed(agent: Program) -> None:
    before = time.time()

    assert agent.ask("clock 86400 0").startswith("error clock 1 ")
    assert agent.ask("entropy 00ff").startswith("error entropy 1 ")
    assert agent.ask("scrub").startswith("error scrub 1 ")

    assert abs(time.time() - before) < 60


def test_scrub_touches_as_much_as_it_may(programs: Path) -> None:
    most = 3 << 20
    with Program(programs / "agent", "--stdio", "--scrub-max", str(most)) as agent:
        agent.hear()
        agent.write(b"scrub\nscrub\n")
        answers = {agent.hear(), agent.hear()}

        assert answers == {f"ok scrub {most}", "error scrub 16 at%20it%20already"}
        assert agent.ask("nonce-get") == "nonce -"


def test_beats_come_until_they_are_stopped(agent: Program) -> None:
    assert agent.ask("beat 20") == "ok beat"
    beats = [agent.hear().split(" ") for _ in range(3)]
    assert [(word, n) for word, n, _ in beats] == [
        ("heartbeat", "1"),
        ("heartbeat", "2"),
        ("heartbeat", "3"),
    ]
    assert int(beats[0][2]) < int(beats[2][2])

    agent.say("beat 0")
    while agent.hear() != "ok beat":
        pass
    time.sleep(0.1)
    assert agent.ask("nonce-get") == "nonce -"


# ---- the agent: children


def hear_all(agent: Program, count: int) -> list[str]:
    return [agent.hear() for _ in range(count)]


def test_a_child_is_told_says_and_ends(agent: Program) -> None:
    script = urllib.parse.quote('read x; echo "got $x"; echo bad >&2; printf end; exit 7')
    words = agent.ask(f"start it sh -c {script}").split(" ")
    assert words[:3] == ["ok", "start", "it"]
    assert int(words[3]) > 1

    assert agent.ask("tell it a%20b%25") == "ok tell it"

    said = hear_all(agent, 4)
    assert [line for line in said if line.startswith("out")] == [
        "out it got%20a%20b%25",
        "out+ it end",
    ]
    assert [line for line in said if line.startswith("err")] == ["err it bad"]
    assert said[-1] == "exit it 7"
    # The name is free again.
    assert agent.ask("start it /bin/true").startswith("ok start it ")
    assert agent.hear() == "exit it 0"


@pytest.mark.parametrize("name", ["9", "KILL", "SIGKILL"])
def test_a_child_is_killed_with_its_own_children(agent: Program, name: str) -> None:
    pid = agent.ask("start it sh -c sleep%20100%20&%20echo%20$!;%20wait").split(" ")[3]
    grandchild = agent.hear().split(" ")[2]
    assert Path(f"/proc/{grandchild}").exists()

    assert agent.ask(f"kill it {name}") == "ok kill it"

    assert agent.hear() == "exit it -9"
    assert not Path(f"/proc/{pid}").exists()
    wait_until(
        lambda: _gone(int(grandchild)), what="the grandchild to end", deadline=Deadline(ANSWER_S)
    )


def _gone(pid: int) -> bool:
    # Nobody may be there to bury a grandchild: a zombie is gone enough.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_child_that_ends_is_announced_though_its_pipes_are_held(agent: Program) -> None:
    assert agent.ask("start it sh -c sleep%20100%20&%20echo%20$!").startswith("ok start")
    holder = int(agent.hear().split(" ")[2])
    try:
        assert agent.hear() == "exit it 0"
    finally:
        os.kill(holder, signal.SIGKILL)


def test_names_and_children_are_bounded(agent: Program) -> None:
    for number in range(16):
        assert agent.ask(f"start c{number} sleep 100").startswith(f"ok start c{number} ")

    assert agent.ask("start c3 sleep 100").startswith("error start 17 ")
    assert agent.ask("start c16 sleep 100").startswith("error start 11 ")

    assert agent.ask("kill c3 15") == "ok kill c3"
    assert agent.hear() == "exit c3 -15"
    assert agent.ask("start c16 sleep 100").startswith("ok start c16 ")


def test_failed_starts_leave_nothing(agent: Program) -> None:
    fds = Path(f"/proc/{agent.child.pid}/fd")
    before = len(list(fds.iterdir()))

    for _ in range(40):
        assert agent.ask("start a /no/such/program").startswith("error start 2 ")

    assert len(list(fds.iterdir())) == before


def test_what_is_told_is_bounded(agent: Program) -> None:
    assert agent.ask("start it cat").startswith("ok start")

    assert agent.ask("tell it " + "x" * 4095) == "ok tell it"
    assert agent.hear() == "out it " + "x" * 4095
    assert agent.ask("tell it " + "x" * 4096).startswith("error tell 90 ")
    assert agent.ask("tell it") == "ok tell it"
    assert agent.hear() == "out it "


def test_a_child_that_does_not_read_does_not_block_the_agent(agent: Program) -> None:
    assert agent.ask("start it sleep 100").startswith("ok start")

    answers = [agent.ask("tell it " + "x" * 4000) for _ in range(20)]

    assert answers[0] == "ok tell it"
    assert answers[-1].startswith("error tell 11 ")


def test_a_childs_long_line_is_said_in_parts(agent: Program) -> None:
    script = urllib.parse.quote(
        "import sys;sys.stdout.write('x'*200000+'\\n'+'%'*30000+'\\n\\nend')"
    )
    assert agent.ask(f"start it {sys.executable} -c {script}").startswith("ok start")

    said = []
    while not (line := agent.hear()).startswith("exit"):
        assert len(line) < LINE_SIZE
        said.append(line.partition(" it ")[::2])

    assert ["out+"] * 3 + ["out", "out+", "out", "out", "out+"] == [kind for kind, _ in said]
    assert "x" * 200_000 == "".join(text for _, text in said[:4])
    assert "%25" * 30_000 == said[4][1] + said[5][1]
    assert ["", "end"] == [text for _, text in said[6:]]
    assert "exit it 0" == line


def test_a_child_that_says_much_waits_for_the_host_and_loses_nothing(agent: Program) -> None:
    assert agent.ask("start it seq 200000").startswith("ok start")
    time.sleep(0.3)  # the queue and the pipe fill

    for number in range(1, 200001):
        assert agent.hear() == f"out it {number}"
    assert agent.hear() == "exit it 0"
    assert agent.ask("stats") == "stats dropped 0"


def test_a_host_that_does_not_read_loses_whole_lines_and_it_is_counted(agent: Program) -> None:
    # 16 bytes of question make about 36 of answer; a pipe and the queue hold 320 KiB.
    asked = 40000
    agent.write(b"".join(b"ping %d\n" % number for number in range(asked)))
    agent.write(b"nonce-set 77\n")
    assert agent.child.stdout is not None
    heard = []
    while b"\n" in agent._rest or select.select([agent.child.stdout], [], [], 0.5)[0]:
        heard.append(agent.hear())

    pongs = [int(line.split(" ")[1]) for line in heard if line.startswith("pong ")]
    dropped = int(agent.ask("stats").split(" ")[2])
    assert dropped > 0
    assert len(heard) + dropped == asked + 1
    assert pongs == sorted(set(pongs))
    # It went on obeying.
    assert agent.ask("nonce-get") == "nonce 77"


def test_the_end_of_stdin_ends_the_agent_and_its_children(agent: Program) -> None:
    pid = int(agent.ask("start it sleep 100").split(" ")[3])

    assert agent.end() == 0

    wait_until(lambda: _gone(pid), what="the child to end", deadline=Deadline(ANSWER_S))


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["--root"], ["--scrub-max", "x"], ["--key-wait-ms", "-1"]]
)
def test_the_agents_own_arguments(programs: Path, arguments: list[str]) -> None:
    with Program(programs / "agent", *arguments) as agent:
        assert agent.child.wait(5) == 2
        assert agent.errors().startswith(f"agent: {arguments[0]}: ")


# ---- the agent: the SSH server


class Root:
    """A guest's /etc below a folder, and a dropbearkey that shows what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "etc/dropbear/hostkey"
        self.key.parent.mkdir(parents=True)
        self.start = folder / "etc/lab/ssh-start"
        self.start.parent.mkdir(parents=True)
        (folder / "bin").mkdir()

    def dropbearkey(self, script: str) -> None:
        path = self.folder / "bin" / "dropbearkey"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def agent(self, programs: Path, *more: str) -> Program:
        env = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        started = Program(programs / "agent", "--stdio", "--root", self.folder, *more, env=env)
        started.hear()
        return started


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_hostkey_is_what_dropbearkey_shows(programs: Path, root: Root) -> None:
    root.dropbearkey(
        f'test "$*" = "-y -f {root.key}" || exit 1\n'
        "echo Public key portion is:\necho ssh-ed25519 AAAA/+= root@guest\necho Fingerprint: x"
    )
    with root.agent(programs) as agent:
        assert agent.ask("hostkey").startswith("error hostkey 2 ")
        root.key.write_bytes(b"key")
        assert agent.ask("hostkey") == "hostkey ssh-ed25519 AAAA/+="
        assert agent.ask("hostkey") == "hostkey ssh-ed25519 AAAA/+="


@pytest.mark.parametrize("script", ["exit 3", "echo nothing of use", "head -c 100000 /dev/zero"])
def test_a_key_that_cannot_be_shown_is_a_fault(programs: Path, root: Root, script: str) -> None:
    root.dropbearkey(script)
    root.key.write_bytes(b"key")
    with root.agent(programs) as agent:
        assert agent.ask("hostkey").startswith("error hostkey 5 ")
        assert agent.ask("nonce-get") == "nonce -"


def test_ssh_start_waits_for_the_key_and_blocks_nothing(programs: Path, root: Root) -> None:
    root.start.write_text(f"sh\n-c\ntouch '{root.folder}/started'; sleep 100\n")
    with root.agent(programs) as agent:
        agent.say("ssh-start")
        assert agent.ask("ssh-start").startswith("error ssh-start 16 ")
        assert agent.ask("nonce-get") == "nonce -"
        root.key.write_bytes(b"key")
        assert agent.hear() == "ok ssh-start"
        wait_until((root.folder / "started").exists, what="the server", deadline=Deadline(ANSWER_S))
        # It runs, so there is nothing to start.
        assert agent.ask("ssh-start") == "ok ssh-start"
        assert agent.end() == 0


def test_ssh_start_without_a_key_gives_up(programs: Path, root: Root) -> None:
    root.start.write_text("true\n")
    with root.agent(programs, "--key-wait-ms", "100") as agent:
        assert agent.ask("ssh-start").startswith("error ssh-start 2 ")
        root.key.write_bytes(b"key")
        assert agent.ask("ssh-start") == "ok ssh-start"


def test_a_server_that_fails_is_said(programs: Path, root: Root) -> None:
    root.key.write_bytes(b"key")
    with root.agent(programs) as agent:
        assert agent.ask("ssh-start").startswith("error ssh-start 2 ")
        root.start.write_text("")
        assert agent.ask("ssh-start").startswith("error ssh-start 22 ")
        root.start.write_text("/no/such/server\n")
        assert agent.ask("ssh-start").startswith("error ssh-start 2 ")
        root.start.write_text("sh\n-c\nexit 3\n")
        assert agent.ask("ssh-start") == "ok ssh-start"
        assert agent.hear() == "error ssh-start 10 the%20server%20ended%20with%203"
        root.start.write_text("true\n")
        assert agent.ask("ssh-start") == "ok ssh-start"


# ---- sender and receiver


class Pair:
    """A receiver, then a sender that sends to it."""

    def __init__(self, programs: Path, **options: Any) -> None:
        self.receiver = Program(programs / "receiver", *argv(port="0", **options))
        self.receiver_ready = self.receiver.step("ready")
        port = port_of(self.receiver_ready["local"])
        self.sender = Program(programs / "sender", *argv(port=port, **options))
        self.sender_ready = self.sender.step("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.__exit__()
        self.receiver.__exit__()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def family(address: str) -> str:
    if address == "::1" and not has_ipv6():
        pytest.skip("this host has no IPv6 loopback")
    return address


def check_buffer(ready: dict[str, Any]) -> None:
    """Compare what `ready` says of the buffer with itself."""
    buffer = ready["buffer"]
    virtual, size = int(buffer["virtual"], 16), buffer["size"]
    low, high = (int(word, 16) for word in buffer["mapping"].split(" ")[0].split("-"))
    assert size == ready["slots"] * ready["slot_size"]
    assert low <= virtual < virtual + size <= high
    assert f"[{buffer['region']}]" in buffer["mapping"]
    pages = [int(page["virtual"], 16) for page in buffer["pages"]]
    assert pages == list(range(virtual & -4096, virtual + size, 4096))
    physical = [int(page["physical"], 16) for page in buffer["pages"]]
    assert all(address % 4096 == 0 for address in physical)
    assert len(set(physical)) == len(pages) or set(physical) == {0}


@pytest.mark.parametrize(
    ("protocol", "address", "connect"),
    [
        ("udp", "127.0.0.1", False),
        ("udp", "127.0.0.1", True),
        ("udp", "::1", False),
        ("udp", "::1", True),
        ("tcp", "127.0.0.1", False),
        ("tcp", "::1", False),
    ],
)
def test_all_steps(programs: Path, protocol: str, address: str, connect: bool) -> None:  # noqa: FBT001
    options = {"protocol": protocol, "address": family(address), "connect": connect}
    expected = [message.derive(SEED, index, SIZE) for index in range(COUNT)]
    with Pair(programs, **options) as pair:
        for role, ready, region in (
            ("sender", pair.sender_ready, "heap"),
            ("receiver", pair.receiver_ready, "heap"),
        ):
            assert ready["role"] == role
            assert (ready["protocol"], ready["size"], ready["count"]) == (protocol, SIZE, COUNT)
            assert (ready["slots"], ready["slot_size"]) == (COUNT, 4160)
            assert ready["buffer"]["region"] == region
            check_buffer(ready)
        assert pair.sender_ready["pid"] == pair.sender.child.pid
        assert pair.sender_ready["peer"] == pair.receiver_ready["local"]

        pair.receiver.say("go")
        sent = pair.sender.go("sent")
        queued = pair.receiver.step("queued")
        received = pair.receiver.go("received")
        done = [pair.sender.go("done"), pair.receiver.go("done")]

        assert sent["messages"] == [
            {"index": i, "slot": i, "size": SIZE, "returned": SIZE, "errno": 0}
            for i in range(COUNT)
        ]
        assert (sent["sent"], sent["failed"], sent["bytes"]) == (COUNT, 0, COUNT * SIZE)
        assert queued["first"] == SIZE if protocol == "udp" else queued["first"] >= SIZE
        assert "timed_out" not in queued
        assert (received["received"], received["bytes"]) == (COUNT, COUNT * SIZE)
        assert not received["timed_out"]
        for index, entry in enumerate(received["messages"]):
            assert (entry["index"], entry["slot"]) == (index, index)
            assert (entry["returned"], entry["errno"]) == (SIZE, 0)
            assert entry["peer"].rpartition(":")[0] == (
                f"[{address}]" if ":" in address else address
            )
        for end in done:
            assert [entry["digest"] for entry in end["messages"]] == [
                f"{fnv.digest(text):016x}" for text in expected
            ]
            assert [entry["hex"] for entry in end["messages"]] == [
                text[:64].hex() for text in expected
            ]
            assert (end["first"], end["held"]) == (0, COUNT)
            assert end["all"] == f"{fnv.digest(b''.join(expected)):016x}"
        assert pair.sender.end() == 0
        assert pair.receiver.end() == 0


def run_all(pair: Pair) -> dict[str, dict[str, Any]]:
    """Take a pair through all its steps; return what was said."""
    pair.receiver.say("go")
    said = {"sent": pair.sender.go("sent")}
    said["queued"] = pair.receiver.step("queued")
    said["received"] = pair.receiver.go("received")
    said["sender"] = pair.sender.go("done")
    said["receiver"] = pair.receiver.go("done")
    return said


@pytest.mark.parametrize("size", [1, 5, 16, 64, 65])
def test_small_messages_lie_on_the_receivers_stack(programs: Path, size: int) -> None:
    with Pair(programs, size=size) as pair:
        assert pair.sender_ready["buffer"]["region"] == "heap"
        assert pair.receiver_ready["buffer"]["region"] == "stack"
        check_buffer(pair.receiver_ready)
        said = run_all(pair)

    for role in ("sender", "receiver"):
        assert [bytes.fromhex(entry["hex"]) for entry in said[role]["messages"]] == [
            message.derive(SEED, index, size)[:64] for index in range(COUNT)
        ]


@pytest.mark.parametrize(
    ("protocol", "size", "count"), [("udp", 65507, 17), ("tcp", message.MAX_SIZE, 2)]
)
def test_the_largest_messages(programs: Path, protocol: str, size: int, count: int) -> None:
    with Pair(programs, protocol=protocol, size=size, count=count) as pair:
        check_buffer(pair.sender_ready)
        # The receiver is let go before the sender is asked: 2 MiB may not fit its socket.
        pair.receiver.say("go")
        pair.sender.say("go")
        pair.receiver.step("queued")
        received = pair.receiver.go("received")
        assert pair.sender.step("sent")["bytes"] == size * count
        assert received["bytes"] == size * count
        done = pair.receiver.go("done")

    slots = max(1, (1 << 20) // ((size + 63) // 64 * 64))
    assert [entry["index"] for entry in done["messages"]] == list(
        range(max(0, count - slots), count)
    )
    for entry in done["messages"]:
        text = message.derive(SEED, entry["index"], size)
        assert entry["digest"] == f"{fnv.digest(text):016x}"


def test_slots_are_used_again_and_the_last_messages_are_held(programs: Path) -> None:
    count = 300  # of 4160 bytes each, 252 fit into 1 MiB
    with Pair(programs, protocol="tcp", count=count) as pair:
        assert pair.sender_ready["slots"] == 252
        said = run_all(pair)

    for role in ("sender", "receiver"):
        entries = said[role]["messages"]
        assert [entry["index"] for entry in entries] == list(range(48, 300))
        assert [entry["slot"] for entry in entries] == [i % 252 for i in range(48, 300)]
        for entry in (entries[0], entries[-1]):
            text = message.derive(SEED, entry["index"], SIZE)
            assert entry["digest"] == f"{fnv.digest(text):016x}"


def test_steps_of_many_messages_fit_in_a_line(programs: Path) -> None:
    count = 5000
    with Pair(programs, size=16, count=count) as pair:
        said = run_all(pair)

    texts = [message.derive(SEED, index, 16) for index in range(count)]
    for name, data in said.items():
        assert len(json.dumps(data, separators=(",", ":"))) <= 60000, name
    assert 500 < len(said["sent"]["messages"]) <= 1024
    assert 500 < len(said["received"]["messages"]) <= 1024
    assert said["received"]["received"] == count
    for role in ("sender", "receiver"):
        assert 500 < len(said[role]["messages"]) <= 1024
        assert said[role]["held"] == count
        assert said[role]["all"] == f"{fnv.digest(b''.join(texts)):016x}"
        assert [bool(entry["hex"]) for entry in said[role]["messages"][:65]] == [True] * 64 + [
            False
        ]


@pytest.mark.parametrize("size", [16, 40])
def test_a_payload_arrives(programs: Path, size: int) -> None:
    payload = b"HELLO_SEND_TRACE"
    masked = message.mask(payload)
    with Pair(programs, seed=False, payload_masked=masked, size=size, count=3) as pair:
        said = run_all(pair)

    text = message.from_payload(payload, size)
    assert [entry["hex"] for entry in said["receiver"]["messages"]] == [text.hex()] * 3


def test_what_the_kernel_refuses_is_data(programs: Path) -> None:
    with Pair(programs, size=70000, count=2, idle_ms="200") as pair:
        sent = pair.sender.go("sent")
        assert (sent["sent"], sent["failed"], sent["bytes"]) == (0, 2, 0)
        assert [(entry["returned"], entry["errno"]) for entry in sent["messages"]] == [(-1, 90)] * 2
        # The slots hold what was not sent.
        assert pair.sender.go("done")["held"] == 2


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_receiver_that_gets_nothing_says_so(programs: Path, protocol: str) -> None:
    options = argv(protocol=protocol, port="0", idle_ms="50")
    with Program(programs / "receiver", *options) as receiver:
        receiver.step("ready")
        assert receiver.go("queued") == {"first": 0, "timed_out": True}
        assert receiver.go("received") == {
            "messages": [],
            "received": 0,
            "bytes": 0,
            "timed_out": True,
        }
        assert receiver.go("done")["messages"] == []
        assert receiver.end() == 0


def test_a_receiver_that_gets_too_few_says_so(programs: Path) -> None:
    with Pair(programs, count=2, idle_ms="100") as pair:
        pair.sender.go("sent")
        pair.sender.end()
        late = Program(programs / "receiver", *argv(port="0", count=3, size=SIZE, idle_ms="100"))
        with late:
            ready = late.step("ready")
            with Program(
                programs / "sender", *argv(port=port_of(ready["local"]), count=2)
            ) as sender:
                sender.step("ready")
                sender.go("sent")
            late.go("queued")
            received = late.go("received")
            assert (received["received"], received["timed_out"]) == (2, True)
            assert [entry["index"] for entry in late.go("done")["messages"]] == [0, 1]


def test_a_datagram_of_another_size_is_said_with_its_size(programs: Path) -> None:
    with Program(programs / "receiver", *argv(size=16, count=2, port="0")) as receiver:
        port = int(port_of(receiver.step("ready")["local"]))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"x" * 100, ("127.0.0.1", port))
            other.sendto(b"y" * 3, ("127.0.0.1", port))
        assert receiver.go("queued")["first"] == 100
        received = receiver.go("received")
        assert [entry["returned"] for entry in received["messages"]] == [100, 3]
        done = receiver.go("done")
        assert [bytes.fromhex(e["hex"]) for e in done["messages"]] == [b"x" * 16, b"yyy"]


def test_a_stream_that_ends_early_is_said(programs: Path) -> None:
    with Program(
        programs / "receiver", *argv(size=16, count=2, port="0", protocol="tcp")
    ) as receiver:
        port = int(port_of(receiver.step("ready")["local"]))
        with socket.create_connection(("127.0.0.1", port)) as other:
            other.sendall(b"x" * 20)
        assert receiver.go("queued")["first"] >= 16
        received = receiver.go("received")
        assert [entry["returned"] for entry in received["messages"]] == [16, 4]
        assert (received["received"], received["bytes"]) == (1, 20)
        assert not received["timed_out"]
        assert receiver.go("done")["messages"][1]["hex"] == b"xxxx".hex()


def test_a_sender_does_not_wait_forever_for_a_receiver_held_back(programs: Path) -> None:
    options = {"protocol": "tcp", "size": 1 << 20, "count": 64, "idle_ms": "300"}
    with Pair(programs, **options) as pair:
        sent = pair.sender.go("sent")

        assert sent["failed"] == 1
        assert sent["messages"][-1]["errno"] == 11
        assert sent["messages"][-1]["returned"] < 1 << 20
        assert pair.sender.go("done")["held"] == 1


# ---- sender and receiver: where the message's bytes are


def scan(pid: int, messages: Messages) -> list[int]:
    """Search all memory of a process for the messages; return the addresses of the runs."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            low, high = (int(word, 16) for word in line.split(" ")[0].split("-"))
            if "r" not in line.split(" ")[1] or "[v" in line:
                continue
            memory.seek(low)
            found += [low + run.start for run in messages.runs(memory.read(high - low))]
    return found


# The names are given: pytest puts a test's name into the environment, which is memory too.
@pytest.mark.parametrize("payload", [None, b"HELLO_SEND_TRACE"], ids=["seed", "payload"])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_no_copy_of_a_message_lies_beside_the_buffer(
    programs: Path, protocol: str, payload: bytes | None
) -> None:
    if payload is None:
        options: dict[str, Any] = {}
        messages = Messages(seed=SEED, size=100, count=COUNT)
    else:
        options = {"seed": False, "payload_masked": message.mask(payload)}
        messages = Messages(payload=payload, size=100, count=COUNT)
    with Pair(programs, protocol=protocol, size=100, **options) as pair:

        def slots(ready: dict[str, Any]) -> list[int]:
            return [int(ready["buffer"]["virtual"], 16) + 128 * i for i in range(COUNT)]

        sender = (pair.sender.child.pid, messages)
        receiver = (pair.receiver.child.pid, messages)
        assert scan(*sender) == slots(pair.sender_ready)
        assert scan(*receiver) == []

        pair.receiver.say("go")
        pair.sender.go("sent")
        pair.receiver.step("queued")
        assert scan(*sender) == slots(pair.sender_ready)
        assert scan(*receiver) == []

        pair.receiver.go("received")
        assert scan(*receiver) == slots(pair.receiver_ready)


def test_the_scan_finds_a_copy_beside_the_buffer(programs: Path) -> None:
    payload = b"HELLO_SEND_TRACE"
    options = argv(size=16, count=1, seed=False, payload_masked=message.mask(payload))
    env = {**os.environ, "COPY": payload.decode()}
    with Program(programs / "sender", *options, env=env) as sender:
        buffer = int(sender.step("ready")["buffer"]["virtual"], 16)

        found = scan(sender.child.pid, Messages(payload=payload, size=16, count=1))

    assert buffer in found
    assert len(found) == 2


def test_physical_addresses_are_zero_for_who_may_not_know_them(programs: Path) -> None:
    command: list[str | Path] = [programs / "sender", *argv(size=16, count=1)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-sys_admin", *command]
    with Program(*command) as sender:
        ready = sender.step("ready")

    assert [page["physical"] for page in ready["buffer"]["pages"]] == ["0x0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is told physical addresses")
def test_physical_addresses_are_told_to_root(programs: Path) -> None:
    with Program(programs / "sender", *argv()) as sender:
        ready = sender.step("ready")

    physical = {page["physical"] for page in ready["buffer"]["pages"]}
    assert len(physical) == len(ready["buffer"]["pages"])
    assert "0x0" not in physical


# ---- sender and receiver: what they refuse

BAD: list[tuple[str, dict[str, str | bool]]] = [
    ("--protocol", {"protocol": "sctp"}),
    ("--protocol", {"protocol": False}),
    ("--address", {"address": "localhost"}),
    ("--address", {"address": "127.0.0.1.5"}),
    ("--address", {"address": "fe80::1%no-such-dev"}),
    ("--address", {"address": False}),
    ("--port", {"port": "65536"}),
    ("--port", {"port": "x"}),
    ("--port", {"port": False}),
    ("--seed", {"seed": "xyz"}),
    ("--seed", {"seed": "0" * 17}),
    ("--seed", {"seed": ""}),
    ("--payload-masked", {"seed": False, "payload_masked": "123"}),
    ("--payload-masked", {"seed": False, "payload_masked": "zz"}),
    ("--payload-masked", {"seed": False, "payload_masked": ""}),
    ("--payload-masked", {"payload_masked": "12"}),
    ("--idle-ms", {"idle_ms": "0"}),
    ("--bogus", {"bogus": "1"}),
]


@pytest.mark.parametrize("program", ["sender", "receiver"])
@pytest.mark.parametrize(("option", "change"), BAD)
def test_a_bad_argument_is_named(
    programs: Path, program: str, option: str, change: dict[str, Any]
) -> None:
    refused(programs / program, argv(**change), option)


@pytest.mark.parametrize("program", ["sender", "receiver"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "0"),
        ("--size", str(message.MAX_SIZE + 1)),
        ("--size", "-1"),
        ("--size", "16k"),
        ("--count", "0"),
        ("--count", str(message.MAX_COUNT + 1)),
    ],
)
def test_a_size_or_count_out_of_range_is_named(
    programs: Path, program: str, option: str, value: str
) -> None:
    # The last of two is the one that counts.
    refused(programs / program, [*argv(), option, value], option)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (argv(seed=False), "--seed"),
        (argv(port="0"), "--port"),
        ([*argv(), "--size"], "--size"),
        (argv()[:6], "--size"),
    ],
)
def test_a_missing_argument_is_named(programs: Path, arguments: list[str], option: str) -> None:
    refused(programs / "sender", arguments, option)


def refused(program: Path, arguments: list[str], option: str) -> None:
    with Program(program, *arguments) as started:
        assert started.child.wait(5) == 2
        assert started.hear() == ""
        assert started.errors().startswith(f"{program.name}: {option}: ")


def test_a_port_in_use_is_named(programs: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        with Program(programs / "receiver", *argv(port=port)) as receiver:
            assert receiver.child.wait(5) == 1
            assert receiver.errors() == (
                f"receiver: bind 127.0.0.1 port {port}: Address already in use\n"
            )


def test_a_receiver_that_is_not_there_is_named(programs: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        port = str(bound.getsockname()[1])
        with Program(programs / "sender", *argv(protocol="tcp", port=port)) as sender:
            assert sender.child.wait(5) == 1
            assert sender.errors() == (
                f"sender: connect 127.0.0.1 port {port}: Connection refused\n"
            )


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        (lambda program: program.say("stop"), 2, "expected go, found 'stop'"),
        (lambda program: program.child.stdin.close(), 1, "stdin ended"),
    ],
)
@pytest.mark.parametrize("program", ["sender", "receiver"])
def test_only_go_lets_a_step_go(
    programs: Path, program: str, act: Callable[[Program], None], code: int, words: str
) -> None:
    port = "9999" if program == "sender" else "0"
    with Program(programs / program, *argv(port=port)) as started:
        started.step("ready")
        act(started)
        assert started.child.wait(5) == code
        assert words in started.errors()
        assert started.hear() == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["lab0"], 2, "usage: xdp NETDEV pass\n"),
        (["lab0", "drop"], 2, "usage: xdp NETDEV pass\n"),
        (["not-there", "pass"], 1, "xdp: not-there: No such device\n"),
    ],
)
def test_an_xdp_program_that_cannot_be_put_is_told(
    programs: Path, words: list[str], code: int, said: str
) -> None:
    with Program(programs / "xdp", *words) as program:
        assert code == program.child.wait(5)
        assert said == program.errors()
