"""The shapes of `cpu-ops` that records are tuned for, in the form that `expertile tune --collected`
takes.

    python -m expertile.bench.suites.ladder x86-avx2 --only moe-decode > shapes.json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ...targets.cpu.levels import LEVELS
from .points import Point, cpu_ops

ROWS = ("casts", "moe-decode-fp8", "moe-decode-bf16", "dense-fp8", "mla-decode-16",
        "mla-decode-128", "mla-prefill", "moe-prefill", "moe-int8")


def picked(points: list[Point]) -> list[Point]:
    """Ends and middle of every series; a record answers for the sizes between."""
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.series or point.name, []).append(point)
    found = []
    for members in series.values():
        last = len(members) - 1
        found += [members[i] for i in sorted({0, last // 2, last})]
    return found


def shapes(arch: str, only: str = "") -> list[dict[str, Any]]:
    """Operators and shapes of the rows that begin with `only`, none twice."""
    points = cpu_ops((1,), False, "bf16" in LEVELS[arch].dots)
    found: dict[str, dict[str, Any]] = {}
    for point in picked([p for p in points if p.row.startswith(only or ROWS)]):
        for shape in point.shapes.values():
            row = {"op": point.op, "shape": dict(shape)}
            found[json.dumps(row, sort_keys=True)] = row
    return list(found.values())


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", choices=tuple(LEVELS))
    parser.add_argument("--only", default="", help="rows that begin so, for example moe-decode")
    args = parser.parse_args()
    if not (found := shapes(args.arch, args.only)):
        raise SystemExit(f"--only must begin one of {', '.join(ROWS)}, got {args.only!r}")
    print(json.dumps({"shapes": found}))


if __name__ == "__main__":
    main()
