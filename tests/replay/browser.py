"""A real, headless Chromium that says what it made of a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
LIMIT_S = 240  # beside guests

# A page under test has no script and allows none, so the page around them looks into each.
FRAME = """<iframe src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
"""
PROBE = """<!doctype html><body style="margin:0"><pre id="found">nothing</pre>
{frames}
<script>
const look = doc => {{
  const seen = e => e.getClientRects().length > 0;
  const things = [...doc.querySelectorAll("svg.objects, svg.spans")].filter(seen);
  const drawings = [...doc.querySelectorAll("svg.journey")].filter(seen);
  const crossed = (a, b) => a.left < b.right - 2 && b.left < a.right - 2
    && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  const spilt = [];
  for (const svg of [...drawings, ...things]) {{
    const area = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text:not(.g)")].map(
      t => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([text, r], i) => {{
      if (r.right > area.right + 1 || r.left < area.left - 1) spilt.push(text);
      for (const [other, o] of texts.slice(i + 1))
        if (crossed(r, o)) spilt.push(text + " / " + other);
    }});
  }}
  return {{
    wider: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
    arrows: drawings.map(svg => [...svg.querySelectorAll(".arrow[data-movements]")].filter(seen)
      .map(a => [a.dataset.kind, a.dataset.movements.split(" ").map(Number)])),
    gaps: drawings.map(svg => svg.querySelectorAll("[data-gap]").length),
    pointers: things.flatMap(svg => [...svg.querySelectorAll("[data-pointer]")])
      .map(p => [p.dataset.pointer, p.dataset.holds === "yes"]),
    calls: things.flatMap(svg => [...svg.querySelectorAll("[data-call]")])
      .map(c => [c.dataset.call, c.querySelector("rect").getBoundingClientRect().width]),
    spilt: spilt,
    cut: [...doc.querySelectorAll("table.fields")].filter(seen)
      .filter(t => t.parentElement.scrollWidth > t.parentElement.clientWidth + 1)
      .map(t => t.textContent.trim().slice(0, 40)),
    labels: [...doc.querySelectorAll("table.fields td")].filter(seen)
      .map(td => getComputedStyle(td, "::before").content == "none" ? "" : td.dataset.th || ""),
    background: getComputedStyle(doc.documentElement).backgroundColor,
    text: doc.body.innerText,
  }};
}};
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(one => look(one.contentDocument));
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script></body>
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser showed: what is drawn, text, complaints.

    Arrows of a journey are (kind, numbers of movements).
    """

    wider: int  # pixels by which the page is wider than the window
    arrows: list[list[tuple[str, list[int]]]]
    gaps: list[int]
    pointers: list[list[str | bool]]  # of kernel objects, as drawn: name, and whether it holds
    calls: list[list[Any]]  # as bars: name, pixels
    cut: list[str]  # tables wider than their frames
    labels: list[str]  # what stands before the cells of tables
    spilt: list[str]  # words of drawings that cover others or leave the drawing
    background: str
    text: str
    complaints: list[str]


def find(*names: str) -> str:
    """Return the first of these programs; without one skip the test, or fail where it must run."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        why = f"{names[0]} is not installed"
        must = os.environ.get("LAB_MUST_RUN", "").split(",")
        if names[0] in map(str.strip, must):
            pytest.fail(f"{why}, and LAB_MUST_RUN asks for it", pytrace=False)
        pytest.skip(why)
    return found


def look_at(pages: Sequence[tuple[Path, int]], folder: Path, *, dark: bool = False) -> list[Seen]:
    """Open pages, each in a window of its width, in one browser: to start one takes seconds."""
    around = folder / "around.html"
    frames = "".join(FRAME.format(page=page.as_uri(), width=width) for page, width in pages)
    around.write_text(PROBE.format(frames=frames), encoding="utf-8")
    widest = max(width for _, width in pages)
    argv = [
        find(*NAMES), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000",
        "--allow-file-access-from-files", f"--window-size={max(widest, 500)},1000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        "--dump-dom", around.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(
        argv,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, done.stdout[:2000]
    assert told[1] != "nothing", done.stderr[-2000:]
    plain = told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    uris = [page.as_uri() for page, _ in pages]
    # One that names no page is of all of them.
    nobodys = [line for line in complaints if not any(uri in line for uri in uris)]
    return [
        Seen(**found, complaints=[*nobodys, *(line for line in complaints if uri in line)])
        for uri, found in zip(uris, json.loads(plain), strict=True)
    ]


def print_pdf(page: Path, folder: Path) -> bytes:
    """Print a page and return the PDF."""
    out = folder / "page.pdf"
    argv = [
        find(*NAMES), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--no-pdf-header-footer",
        f"--print-to-pdf={out}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(argv, capture_output=True, timeout=LIMIT_S, check=True)
    return out.read_bytes()
