"""Do something at the moment a step of a run begins: what faults are made of."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab.journal import Journal


class AtStep(Journal):
    """A journal that acts once, when the step called `wanted` begins."""

    def __init__(self, wanted: str, act: Callable[[], object]) -> None:
        super().__init__(stream=io.StringIO())
        self.wanted = wanted
        self.act: Callable[[], object] | None = act

    @contextmanager
    def step(self, name: str, *, guest: str = "host", scale: int = 0) -> Iterator[None]:
        """Act, then do the step."""
        if name == self.wanted and self.act is not None:
            act, self.act = self.act, None
            act()
        with super().step(name, guest=guest, scale=scale):
            yield

    @property
    def acted(self) -> bool:
        """Whether the step came at all."""
        return self.act is None
