"""The documents: every task and option they name exists, every block says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks import ns
from tests.commands_in_docs import TOP, blocks, documents, mentions

TASKS = {name: ns[name] for name in ns.task_names}
CORE = {"--list", "--help", "-l", "-h"}  # Invoke's own


def faults(text: str) -> list[str]:
    """Return what the mentions in a text have wrong."""
    found = []
    for words in mentions(text):
        task = None
        for word in words:
            if word in TASKS:
                task = word
            elif re.fullmatch(r"lab\.[a-z-]+|test", word):
                found.append(f"there is no task {word}")
                task = None
            elif word.startswith("--") and task is not None and word not in CORE:
                known = {flag for one in TASKS[task].get_arguments() for flag in one.names}
                known |= {f"no-{name}" for name in known}
                name = word.removeprefix("--").partition("=")[0].rstrip(".,:]")
                if name.replace("-", "_") not in known and name not in known:
                    found.append(f"{task} has no option --{name}")
    return found


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_task_and_option_a_document_names_exists(path: Path) -> None:
    assert [] == faults(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("`invoke lab.run-nick`", "there is no task lab.run-nick"),
        ("    invoke lab.run-nic --sise 3\n", "lab.run-nic has no option --sise"),
        ("$ invoke lab.up lab.run --siz 3", "lab.run has no option --siz"),
        ("$ invoke lab.up --size 3", "lab.up has no option --size"),
    ],
)
def test_a_wrong_mention_is_seen(text: str, fault: str) -> None:
    assert [fault] == faults(text)


def test_right_mentions_are_left_alone() -> None:
    text = "`invoke --list`, `invoke lab.run-nic --no-reset`, `invoke lab.check --playbook FILE`"

    assert [] == faults(text)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_block_of_a_document_can_be_read(path: Path) -> None:
    list(blocks(path.read_text(encoding="utf-8"), path.name))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("console exit=six", "take exit=N or not-in-ci: why"),
        ("console not-in-ci:", "says why"),
        ("console skip", "take exit=N"),
    ],
)
def test_a_block_with_words_nobody_knows_is_refused(words: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(blocks(f"```{words}\n$ true\n```\n", "x.md"))


def test_a_console_block_without_a_command_is_refused() -> None:
    with pytest.raises(ValueError, match="without a command"):
        list(blocks("```console\nnothing\n```\n", "x.md"))


def test_blocks_are_read_with_files_status_and_reason() -> None:
    text = (
        "```c file=a/b.c\nint x;\n```\n\n```console\n$ one\nsaid\n$ two\n```\n"
        "```console exit=6\n$ three\n```\n```console not-in-ci: a person types\n$ four\n```\n"
        "```\n$ not read\n```\n"
    )
    file, plain, failing, left_out = blocks(text, "x.md")

    assert ("a/b.c", "int x;\n") == (file.file, file.text)
    assert (("one", "two"), 0, "x.md:5") == (plain.commands, plain.status, plain.where)
    assert 6 == failing.status
    assert "a person types" == left_out.not_in_ci


# --- What the README says of the claims ------------------------------------------------------

ROW = re.compile(r"^\| ([A-Z]+[0-9]+[a-z]?) \|.*?\| \*\*([a-z ]+)\*\*", re.MULTILINE)


def test_the_readmes_claims_have_the_verdicts_of_the_whole_table() -> None:
    whole = dict(ROW.findall((TOP / "docs" / "claims.md").read_text(encoding="utf-8")))
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    short = dict(ROW.findall(readme))

    assert len(short) >= 10
    assert short == {name: whole.get(name) for name in short}
    (told,) = re.findall(r"^\d+ claims: [^.\n]+", readme, re.MULTILINE)
    assert told in (TOP / "docs" / "claims.md").read_text(encoding="utf-8")
