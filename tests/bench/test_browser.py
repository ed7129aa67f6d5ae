"""The HTML reports in a real browser: no complaint on the console, nothing cut off, plots drawn."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from expertile.bench.gate import decide
from expertile.bench.history import Point, segments
from expertile.bench.outputs import render
from expertile.bench.outputs.trend import page
from expertile.bench.verdict import Rules

from .fakes import gate_result

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

# What the page measures of itself: texts that leave their drawing or lie on each other, its width.
PROBE = """<script>addEventListener("load", () => {
  const box = e => e.getBoundingClientRect(), cut = [], over = [];
  for (const svg of document.querySelectorAll("svg")) {
    const all = box(svg), texts = [...svg.querySelectorAll("text")];
    for (const t of texts) { const b = box(t);
      if (b.left < all.left - 1 || b.right > all.right + 1 || b.top < all.top - 1 ||
          b.bottom > all.bottom + 1) cut.push(t.textContent); }
    for (let i = 0; i < texts.length; i++) for (let j = 0; j < i; j++) {
      const a = box(texts[i]), b = box(texts[j]);
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
        over.push(texts[j].textContent + " | " + texts[i].textContent); }
  }
  document.body.dataset.probe = JSON.stringify({cut, over,
    circles: document.querySelectorAll("circle").length, loads: performance
      .getEntriesByType("resource").length, wide: document.documentElement.scrollWidth -
      document.documentElement.clientWidth});
});</script>"""


def opened(html: str, folder: Path) -> tuple[dict[str, object], list[str]]:
    """What the page says of itself after loading, and what the browser's console printed."""
    file = folder / "page.html"
    file.write_text(html.replace("</head>", PROBE + "</head>"))
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu",
         "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
         "--window-size=1200,1600",
         "--virtual-time-budget=2000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    console = [row for row in done.stderr.splitlines() if "CONSOLE" in row]
    return json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&")), console


def gate_page() -> str:
    result = gate_result({f"gemm_nt[n=2048,k={1024 * i},w_dtype=float8_e4m3fn],tokens={i}":
                          1 + i / 50 for i in range(1, 9)})
    return render("html", result, decide(result, Rules()))


def trend_page() -> str:
    points = [Point(f"2026-11-{day:02d}", f"{day:040d}", 100.0 + 8 * (day > 12) + day % 3 / 10,
                    json.dumps({"machine": "a" if day < 20 else "b"})) for day in range(1, 25)]
    return page({"mla_decode[heads=16],batch=1,ctx=4096": segments(points)})


@pytest.mark.parametrize("make", [gate_page, trend_page])
def test_opens_without_errors_and_every_label_can_be_read(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    seen, console = opened(make(), tmp_path)
    assert console == []
    assert seen["cut"] == [] and seen["over"] == []
    assert seen["loads"] == 0 and seen["wide"] <= 0
    assert int(str(seen["circles"])) >= 8


def test_the_probe_finds_what_it_is_for(tmp_path: Path) -> None:
    svg = ('<svg viewBox="0 0 100 100"><text x="90" y="50">cut off</text><text x="5" y="20">one'
           '</text><text x="6" y="20">two</text></svg><script>console.error("no")</script>')
    seen, console = opened(f"<html><head></head><body>{svg}</body></html>", tmp_path)
    assert seen["cut"] == ["cut off"] and seen["over"] == ["one | two"] and len(console) == 1
