"""The accelerator's verdict: taken once for what it depends on, and forced only in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import accelerator, qemu
from lab.errors import HostError
from lab.image import Image
from lab.journal import Journal


def image(digest: str) -> Image:
    nowhere = Path("/nowhere")
    return Image(
        series="6.12", digest=digest, kernel=nowhere, kernel_sha256="", initramfs=nowhere,
        release="r", headers=nowhere, drifted=(), packages=(),
    )  # fmt: skip


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the boots under KVM, all of which fail."""
    tried: list[str] = []

    def trial(one: Image) -> str:
        tried.append(one.digest)
        return "it was silent"

    monkeypatch.setattr(accelerator, "_trial", trial)
    monkeypatch.setattr(accelerator, "_unusable", lambda: None)
    monkeypatch.setattr(qemu, "digest_of_binary", lambda: "this QEMU")
    return tried


def test_the_verdict_of_each_image_is_remembered(trials: list[str]) -> None:
    for digest in ("a", "b", "a", "b"):
        speed = accelerator.choose(image(digest), journal=Journal())
        assert ("tcg", "it was silent") == (speed.name, speed.why)
    assert ["a", "b"] == trials


def test_another_qemu_is_tried_anew(trials: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator.choose(image("a"), journal=Journal())
    monkeypatch.setattr(qemu, "digest_of_binary", lambda: "another QEMU")
    accelerator.choose(image("a"), journal=Journal())
    assert ["a", "a"] == trials


def test_a_garbled_memory_is_no_memory(trials: list[str]) -> None:
    for text in ("{", "[]", '{"verdicts": 3}', '{"verdicts": {"a": 1}}'):
        accelerator._memory().write_text(text)
        accelerator.choose(image("a"), journal=Journal())
    assert ["a"] * 4 == trials


def test_kvm_that_works_is_used(trials: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_trial", lambda _: "")
    assert "kvm" == accelerator.choose(image("a"), journal=Journal()).name


def test_kvm_that_is_demanded_and_broken_is_an_error(
    trials: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_ACCEL", "kvm")
    with pytest.raises(HostError, match="it was silent"):
        accelerator.choose(image("a"), journal=Journal())


def test_tcg_that_is_demanded_tries_nothing(
    trials: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_ACCEL", "tcg")
    assert "tcg" == accelerator.choose(image("a"), journal=Journal()).name
    assert [] == trials


def test_a_word_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_ACCEL", "fast")
    with pytest.raises(HostError, match="fast"):
        accelerator.choose(image("a"), journal=Journal())
