"""The results of a GPU run as one Markdown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def table(path: Path) -> str:
    """Every timed case: ours, the fastest peer, percent of the measured floor; wrong ones say
    so, and what a peer's absence is due to."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    head: dict[str, Any] = next((r for r in rows if r["key"] == "describe"), {})
    checked = [r for r in rows if r["key"].startswith("numerics ")]
    wrong = [r for r in checked if r["wrong"]]
    lines = [
        f"{head.get('device')} {head.get('toolchain')}, measured {head.get('measured')}",
        "", f"Numerics: {len(checked) - len(wrong)} of {len(checked)} configs right.",
        *(f"- WRONG {r['op']} {r['shape']} {r['config']}: {r['wrong']}" for r in wrong),
        *(f"- rank correlation of modelled and timed, {r['key']}: {r['spearman']}"
          for r in rows if r["key"].startswith("correlate ")),
        "", "| case | default us | best us | % of floor | GB/s | TFLOP/s | peer us | its name |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(r) for r in rows if "best" in r), "", *_absent(rows)]
    return "\n".join(lines)


def _absent(rows: list[dict[str, Any]]) -> list[str]:
    """Peers without a time, each reason once."""
    why: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, said in row.get("peers", {}).items():
            if isinstance(said, str):
                why[name, said] = why.get((name, said), 0) + 1
    return [f"- {name}, {count} cases: {said}" for (name, said), count in sorted(why.items())]


def _line(row: dict[str, Any]) -> str:
    best = row["best"]
    times = {n: us for n, us in row["peers"].items() if isinstance(us, float)}
    peer = min(times, key=times.__getitem__, default="none")
    cells = [row["key"], _us(row["default"]["us"])]
    if best is None or row["wrong"] or best.get("wrong"):
        return f"| {row['key']} | WRONG or failed: {row['wrong'] or best} |" + " - |" * 6
    us = best["us"]
    floor = row["floor_us"]
    cells += [_us(us), f"{100 * floor / us:.0f}" if floor else "-",
              f"{row['bytes'] / us / 1e3:.0f}", f"{row['flops'] / us / 1e6:.1f}",
              _us(times.get(peer)), peer]
    return "| " + " | ".join(cells) + " |"


def _us(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "failed"
