"""Are the instructions of a CPU level really in its kernels, and no others?

`python -m expertile.bench.static.audit [--level LEVEL ...] [--all] [--json]`: compiles a few
kernels for every feature level, this machine's or not, and reads the objects. A compiler falls back
to slower code without a word: a build for VNNI without one vpdpbusd has been shipped before
(docs/facts.md). Exit status 1 when a class is missing, or is there where a CPU would trap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ... import ops
from ...ops.spec import Shape
from ...targets.base import BuildError
from ...targets.cpu.levels import LEVELS, Level
from .points import Point, examine, load_target

_GEMM: Shape = {"n": 96, "k": 256, "out_dtype": "bfloat16", "block_n": 128, "block_k": 128,
                "tokens": 64}
# name -> operator and shape; sizes that AMX takes
PROBES: Mapping[str, tuple[str, Shape]] = {
    "int8": ("gemm_nt", {**_GEMM, "a_dtype": "int8", "w_dtype": "int8"}),
    "fp8": ("gemm_nt", {**_GEMM, "a_dtype": "float32", "w_dtype": "float8_e4m3fn"}),
    "half": ("gemm_nt", {**_GEMM, "a_dtype": "float32", "w_dtype": "float16"}),
    "bf16": ("mla_prefill", {"heads": 4, "d_qk": 192, "d_v": 128, "dtype": "bfloat16",
                             "causal": True, "tokens": 128, "ctx": 128, "batch": 1}),
}
# Of a level's dot products: the class of its instructions, and the probe that must have it.
_DOTS = {"vnni": ("vpdpbusd", "int8"), "bf16": ("vdpbf16ps", "bf16"), "amx": ("amx", "int8"),
         "sdot": ("dot", "int8"), "madd": ("pmaddwd", "int8")}
_ANYWHERE = "pmaddwd"                # no x86 traps on it
_F16C = 8                            # x86 levels of that many lanes convert halves


@dataclass(frozen=True)
class Row:
    """What one kernel of one level holds."""

    level: str
    probe: str
    counts: Mapping[str, int]        # instructions by class, registers by width
    missing: tuple[str, ...]         # classes that it must have
    foreign: tuple[str, ...]         # classes that a CPU of the level would trap on

    @property
    def good(self) -> bool:
        """Whether all is as it must be."""
        return not self.missing and not self.foreign


def must_have(level: Level, probe: str) -> tuple[str, ...]:
    """The classes that make a probe's kernel fast."""
    found = [kind for dot, (kind, at) in _DOTS.items() if dot in level.dots and at == probe]
    if level.machine == "x86_64":
        found += [{16: "zmm", 8: "ymm"}[level.lanes]] if level.lanes >= _F16C else []
        if level.lanes >= _F16C:     # there codes become float32 by shifts (`_tvm/quarters.py`)
            found += {"fp8": ["fma"], "half": ["half", "fma"]}.get(probe, [])
    elif probe in ("fp8", "half"):
        found += ["half", "fma"]
    return tuple(found)


def must_not_have(level: Level) -> tuple[str, ...]:
    """The classes that trap on a CPU of the level, or that no lowering of it knows."""
    found = [kind for dot, (kind, _) in _DOTS.items()
             if dot not in level.dots and kind != _ANYWHERE]
    if level.machine == "x86_64":
        found += ["zmm"] * (level.lanes < 16) + ["ymm", "half", "fma", "gather"] * (level.lanes < 8)
    return (*found, "mmla", "sme", "sve", "fmlal")


def row_of(level: str, probe: str, point: Point) -> Row:
    """The verdict on a compiled config; a compiler's refusal is an error."""
    if not point.legal:
        raise BuildError(f"{probe} for {level}: {point.reason}", "build_error")
    counts = {kind: sum(k.counts.get(kind, 0) for k in point.kernels)
              for kind in sorted({kind for k in point.kernels for kind in k.counts})}
    wanted = must_have(LEVELS[level], probe)
    return Row(level, probe, counts, tuple(k for k in wanted if not counts.get(k)),
               tuple(k for k in must_not_have(LEVELS[level]) if counts.get(k)))


def audit(levels: Iterable[str], names: Iterable[str] = tuple(PROBES), every: bool = False,
          cache_dir: Path | None = None) -> list[Row]:
    """Probes at every level; with `every`, all operators' kernels for what must not be there."""
    probes = {name: PROBES[name] for name in names}
    if every:
        for op in map(ops.load, ops.names()):
            if ops.has_lowering(op.name, "tvm"):
                probes |= {f"{op.name} {i}": (op.name, s) for i, s in enumerate(op.odd_shapes)}
    rows = []
    for level in levels:
        target = load_target(level, cache_dir)
        for probe, (name, shape) in probes.items():
            op = ops.load(name)
            config = target.space(op, shape).default()
            point = examine(target, op, shape, config)
            row = row_of(level, probe, point)
            # only the probes say what must be there: other kernels may be too small for it
            rows.append(row if probe in PROBES else Row(level, probe, row.counts, (), row.foreign))
    return rows


def text_of(rows: Sequence[Row]) -> str:
    """One line a kernel."""
    def line(row: Row) -> str:
        held = " ".join(f"{kind}:{count}" for kind, count in row.counts.items() if count)
        said = [f"NO {kind}" for kind in row.missing] + [f"{kind} TRAPS" for kind in row.foreign]
        return f"{row.level:16} {row.probe:28} {'; '.join(said) or 'ok'}  {held}"

    return "\n".join(map(line, rows))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--level", action="append", choices=list(LEVELS),
                        help="a feature level (repeatable); by default all")
    parser.add_argument("--all", action="store_true", help="all operators' kernels, too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = audit(args.level or LEVELS, every=args.all)
    print(json.dumps([asdict(r) for r in rows], indent=1) if args.json else text_of(rows))
    bad = sum(not row.good for row in rows)
    print(f"{len(rows)} kernels, {bad} not as they must be", file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
