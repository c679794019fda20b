"""The line to the agent: answers matched, deaths and deadlines typed, nothing hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.agent import Agent, quote
from lab.deadline import Deadline
from lab.errors import DeadlineExceeded, GuestError, GuestLost, GuestPanicked

Answer = Callable[[str], str | None]


class FakeGuest:
    """A socket that answers lines as an agent would; None: it hangs up."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.answer = answer
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        self.line: socket.socket | None = None

    def serve(self) -> None:
        try:
            self.line, _ = self.server.accept()
            with self.line.makefile("rb") as lines:
                for raw in lines:
                    said = self.answer(raw.decode().rstrip("\n"))
                    if said is None:
                        self.line.shutdown(socket.SHUT_RDWR)
                        return
                    self.line.sendall(said.encode())
        except OSError:
            return

    def say(self, text: str) -> None:
        assert self.line is not None
        self.line.sendall(text.encode())

    def close(self) -> None:
        self.server.close()
        if self.line is not None:
            self.line.close()


ANSWERS = {
    "hello": "hello 1 6.12-test\n",
    "ping": "pong 1 12345\n",
    "nonce-get": "nonce abc\n",
    "get": "file /x 4142\n",
    "start": "ok start sender 77\n",
    "tell": 'ok tell sender\nout sender sent%20{"bytes":%2016}\nexit sender 0\n',
}


def usual(line: str) -> str | None:
    word = line.partition(" ")[0]
    return ANSWERS.get(word, f"error {word} 22 what%20is%20that\n")


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., tuple[Agent, FakeGuest]]]:
    made: list[tuple[Agent, FakeGuest]] = []

    def make(
        answer: Answer = usual, check: Callable[[], None] = lambda: None
    ) -> tuple[Agent, FakeGuest]:
        path = tmp_path / "agent"
        fake = FakeGuest(path, answer)
        agent = Agent("sender", path, check=check)
        made.append((agent, fake))
        assert "6.12-test" == agent.connect(deadline=Deadline(5))
        return agent, fake

    yield make
    for agent, fake in made:
        agent.close()
        fake.close()


def test_a_conversation(connect: Callable[..., tuple[Agent, FakeGuest]]) -> None:
    agent, _ = connect()
    sample = agent.ping(deadline=Deadline(5))
    assert 12345 == sample.tsc
    assert sample.before_ns <= sample.after_ns
    assert b"AB" == agent.get("/x", deadline=Deadline(5))
    assert 77 == agent.start("sender", "/usr/bin/sender", deadline=Deadline(5))
    agent.tell("sender", "go", deadline=Deadline(5))
    assert '{"bytes": 16}' == agent.wait_said("sender", "sent", deadline=Deadline(5))
    assert 0 == agent.wait_exit("sender", deadline=Deadline(5))


def test_a_refusal_is_an_error(connect: Callable[..., tuple[Agent, FakeGuest]]) -> None:
    agent, _ = connect()
    with pytest.raises(GuestError, match="what is that"):
        agent.ask("scrub", expect="ok scrub", deadline=Deadline(5))


def test_silence_ends_at_the_deadline(connect: Callable[..., tuple[Agent, FakeGuest]]) -> None:
    agent, _ = connect(lambda line: usual(line) if line == "hello" else "")
    with pytest.raises(DeadlineExceeded, match="scrub"):
        agent.ask("scrub", expect="ok scrub", deadline=Deadline(0.2))


def test_a_hang_up_is_a_lost_guest(connect: Callable[..., tuple[Agent, FakeGuest]]) -> None:
    agent, _ = connect(lambda line: usual(line) if line == "hello" else None)
    with pytest.raises(GuestLost, match="hung up"):
        agent.ask("scrub", expect="ok scrub", deadline=Deadline(5))


def test_a_panic_ends_a_wait_at_once(connect: Callable[..., tuple[Agent, FakeGuest]]) -> None:
    dead = threading.Event()

    def check() -> None:
        if dead.is_set():
            raise GuestPanicked("sender", "kernel BUG")

    agent, _ = connect(check=check)
    dead.set()
    deadline = Deadline(30)
    with pytest.raises(GuestPanicked):
        agent.wait_said("receiver", "queued", deadline=deadline)
    assert deadline.elapsed < 2


def test_a_program_that_ends_early_says_what_it_said(
    connect: Callable[..., tuple[Agent, FakeGuest]],
) -> None:
    agent, fake = connect()
    fake.say("err sender size:%20too%20large\nexit sender 2\n")
    with pytest.raises(GuestError, match=r"ended with 2 before 'ready'.*size: too large"):
        agent.wait_said("sender", "ready", deadline=Deadline(5))


def test_quoting_keeps_a_line_a_line() -> None:
    assert "a%20b%0Ac%25" == quote("a b\nc%")


def test_a_flood_is_heard_to_its_end_and_kept_in_part(
    connect: Callable[..., tuple[Agent, FakeGuest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.agent.MOST_SAID", 1000)
    monkeypatch.setattr("lab.agent.MOST_ANSWERS", 10)
    agent, fake = connect()
    fake.say(f"out x {'a' * 90}\n" * 500 + "noise\n" * 500 + "exit x 0\n")
    assert 0 == agent.wait_exit("x", deadline=Deadline(5))
    assert len(agent.said("x")) < 1300
    assert "was not kept" in agent.said("x")
    assert len(agent._answers) <= 10


@pytest.mark.parametrize("answer", ["pong 1\n", "pong 1 x\n", "pong 1 \xff\n"])
def test_an_answer_without_its_number_is_the_guest_s_fault(
    connect: Callable[..., tuple[Agent, FakeGuest]], answer: str
) -> None:
    agent, _ = connect(lambda line: answer if line.startswith("ping") else usual(line))
    with pytest.raises(GuestError, match="the agent said 'pong 1"):
        agent.ping(deadline=Deadline(5))


def test_what_is_told_of_a_program_s_words_is_short_and_plain(
    connect: Callable[..., tuple[Agent, FakeGuest]],
) -> None:
    agent, fake = connect()
    fake.say(f"out x {'%00' * 5000}\nexit x 3\n")
    with pytest.raises(GuestError, match="x ended with 3 before 'ready'") as wrong:
        agent.wait_said("x", "ready", deadline=Deadline(5))
    assert len(str(wrong.value)) < 700
    assert "\0" not in str(wrong.value)


@pytest.mark.parametrize(
    ("said", "out", "err"),
    [
        ("", "", ""),
        ("out x hi\n", "hi\n", ""),
        ("out+ x hi\n", "hi", ""),
        ("out x \n", "\n", ""),
        ("out x \nout x \n", "\n\n", ""),
        ("out x a\nout+ x b\nerr x c\n", "a\nb", "c\n"),
        ("out+ x a\nerr+ x e\nout+ x b\nout x \n", "ab\n", "e"),
        ("out+ x %C3\nout+ x %A4\n", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", ""),
        ("out x %FF%0A\n", "\N{REPLACEMENT CHARACTER}\n\n", ""),
    ],
)
def test_what_a_program_printed_is_told_to_the_byte(
    connect: Callable[..., tuple[Agent, FakeGuest]], said: str, out: str, err: str
) -> None:
    agent, fake = connect()
    fake.say(f"{said}exit x 0\n")
    agent.wait_exit("x", deadline=Deadline(5))

    assert (out, err) == (agent.printed("x", "out"), agent.printed("x", "err"))
    agent._forget("x")
    assert ("", "") == (agent.printed("x", "out"), agent.printed("x", "err"))


def test_a_line_without_end_is_bounded(
    connect: Callable[..., tuple[Agent, FakeGuest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.agent.MOST_SAID", 1000)
    agent, fake = connect()
    fake.say(f"out+ x {'a' * 90}\n" * 500 + "exit x 0\n")
    agent.wait_exit("x", deadline=Deadline(5))

    assert 900 < len(agent.printed("x", "out")) < 1300
    assert "was not kept" in agent.printed("x", "err")
