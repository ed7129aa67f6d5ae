"""All operators' kernels for a CPU that is not here, under an emulator, against the reference.

`python -m expertile.bench.emulated [--level aarch64-dotprod] [--op OP] [--configs 3] [--json]`:
every odd shape of every operator, the default config and some others, on the operator's hostile
cases. What passes is right (L3 under emulation); nothing is said of its speed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from .. import ops, targets
from ..ops.space import Config
from ..ops.spec import Operator, Shape
from ..opt.checks import run_once, why_wrong
from ..opt.pool import Pool
from ..targets.base import BuildError, Target
from ..targets.cpu.levels import LEVELS


@dataclass(frozen=True)
class Outcome:
    """One config of one shape."""

    op: str
    shape: Shape
    config: Config
    cases: int
    why: str                         # "": right in all cases
    seconds: float                   # of the emulator and the compiler: not of the kernel


def one(op: Operator, target: Target, shape: Shape, config: Config, seed: int = 0) -> Outcome:
    """Compile a config and run it on every case."""
    start, count, why = time.monotonic(), 0, None
    try:
        kernel = target.build_kernel(op, shape, config)
        for name, args in op.cases(shape, seed):
            count += 1
            why = why or why_wrong(op, kernel, name, args, run_once(op.reference, op, args))
    except (BuildError, RuntimeError) as e:
        why = f"{type(e).__name__}: {e}"
    return Outcome(op.name, dict(shape), dict(config), count, why or "", time.monotonic() - start)


def outcomes(target: Target, names: list[str], configs: int, seed: int = 0) -> Iterator[Outcome]:
    """The default config of every odd shape, and `configs` - 1 drawn ones."""
    for op in map(ops.load, names):
        if not ops.has_lowering(op.name, target.lang):
            continue
        for shape in op.odd_shapes:
            pool = Pool(target.space(op, shape)).configs
            drawn = random.Random(seed).sample(pool[1:], min(configs - 1, len(pool) - 1))
            for config in (pool[0], *drawn):
                yield one(op, target, shape, config, seed)


def main() -> None:
    """The command; exit status 1 when a kernel is wrong, 2 when nothing can be emulated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--level", default="aarch64-dotprod",
                        choices=[name for name, level in LEVELS.items() if level.emulated])
    parser.add_argument("--op", action="append", choices=ops.names())
    parser.add_argument("--configs", type=int, default=1, help="configs of a shape")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    target = targets.load("cpu", unit="2", arch=args.level, emulate=True)
    missing = target.available()
    if missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
    found = []
    for outcome in outcomes(target, args.op or list(ops.names()), max(1, args.configs)):
        found.append(outcome)
        if not args.json:
            print(f"{outcome.op:28} {outcome.cases:3} cases {outcome.seconds:6.1f} s  "
                  f"{outcome.why or 'right'}  {outcome.shape if outcome.why else ''}", flush=True)
    wrong = sum(bool(o.why) for o in found)
    if args.json:
        print(json.dumps({"level": args.level, "evidence": target.evidence(),
                          "emulated": True, "outcomes": [asdict(o) for o in found]}, indent=1))
    print(f"{args.level}, emulated: {len(found) - wrong} of {len(found)} kernels right",
          file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
