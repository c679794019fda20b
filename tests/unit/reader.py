"""Reads a page as a person does: its words alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

SILENT = frozenset({"style", "script", "title"})
VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[bool] = []  # of each element around: whether it is silent
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.append((tag, told))
        if tag not in VOID:
            hidden = told.get("aria-hidden") == "true" or tag in SILENT
            self.open.append(hidden or bool(self.open and self.open[-1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1]):
            self.words.append(data)


def words(page: str) -> str:
    """Return the text of a page, hidden parts left out, one space between words."""
    parser = _Words()
    parser.feed(page)
    return re.sub(r"\s+", " ", " ".join(parser.words)).strip()


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Return the elements of a page with their attributes, in order."""
    parser = _Words()
    parser.feed(page)
    return parser.tags


def dead(html: str) -> set[str]:
    """Return the links within a page that lead nowhere."""
    found = tags(html)
    ids = [told["id"] for _, told in found if "id" in told]
    links = [told.get("href") or "" for _, told in found]

    assert len(ids) == len(set(ids))
    return {link for link in links if link.startswith("#")} - {f"#{one}" for one in ids}
