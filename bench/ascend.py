"""The long proofs of the Ascend target, none on an NPU: `python -m expertile.bench.ascend WHAT`.

    configs --count 200              random configs of every operator: MLIR on this CPU = reference
    configs --dtype float16 --op gemm_nt     of one dtype only
    configs --simulate --count 20    what the compiler made of random configs, in the simulator:
                                     each one that is not right is a false alarm or a bug
    mutations --each 6               corrupted modules: does the simulator notice
    tiles --count 500                random programs: the legality model against the compiler

Every draw is seeded: the same command finds the same. The exit status is 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from . import ascend_configs, ascend_corrupt, ascend_tiles

_CAUGHT = 0.95                       # of the corruptions that are not proven harmless


def _configs(args: argparse.Namespace) -> bool:
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for name in ascend_configs.wanted(args.op):
            found = ascend_configs.tally(name, args.device, args.count, args.seed,
                                         "simulate" if args.simulate else "emulate",
                                         Path(scratch), args.skip, args.dtype)
            print(f"{name}: {found.right} right, {len(found.wrong)} wrong, {len(found.refused)} "
                  f"refused, {len(found.unknown)} not modelled, {found.seconds:.0f} s", flush=True)
            for line in (*found.wrong, *found.unknown):
                print(f"  {line}", flush=True)
            if args.json:
                print(json.dumps(asdict(found)), flush=True)
            good &= not found.wrong
    return good


def _mutations(args: argparse.Namespace) -> bool:
    total: Counter[tuple[str, str]] = Counter()
    missed = []
    for number in args.module or range(len(ascend_corrupt.MODULES)):
        module = ascend_corrupt.MODULES[number]
        seen, not_seen = ascend_corrupt.count((number,), args.each, args.seed)
        total += seen
        missed += not_seen
        print(f"{module.op}: {sum(seen.values())} corruptions, {len(not_seen)} missed", flush=True)
    for kind in sorted({kind for kind, _ in total}):
        said = ", ".join(f"{n} {how or 'missed'}" for (k, how), n in sorted(total.items())
                         if k == kind)
        print(f"  {kind}: {said}")
    for m in missed:
        print(f"  missed, {'proven harmless' if m.equivalent else 'NOT EXPLAINED'}: {m.kind} at "
              f"line {m.line} of {m.call}: {m.text}")
    corruptions = sum(total.values())
    harmless = sum(m.equivalent for m in missed)
    rate = (corruptions - len(missed)) / (corruptions - harmless)
    print(f"{corruptions} corruptions: {corruptions - len(missed)} caught, {harmless} proven "
          f"harmless, {len(missed) - harmless} missed: {100 * rate:.1f} % caught")
    return rate >= _CAUGHT


def _tiles(args: argparse.Namespace) -> bool:
    seen: Counter[str] = Counter()
    for t in ascend_tiles.tiles(args.device, ascend_configs.wanted(args.op), args.count, args.seed,
                                args.skip):
        said = ascend_tiles.said_fits(t)
        verdict = "accepted" if t.accepted else f"refused ({t.space})" if t.space else "error"
        seen[f"model says {'fits' if said else 'may not fit'}, compiler {verdict}"] += 1
        if args.json:
            print(json.dumps({**asdict(t), "shape": dict(t.shape)}), flush=True)
        if said and not t.accepted:
            print(f"{t.op} {dict(t.shape)} {t.config} {t.kernel}: {t.why}", flush=True)
    for line, count in sorted(seen.items()):
        print(f"{count:5d} {line}")
    return not any(line.startswith("model says fits, compiler refused") for line in seen)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], bool], count: int
                ) -> argparse.ArgumentParser:
        made = what.add_parser(name)
        made.set_defaults(run=run)
        made.add_argument("--op", action="append", default=[], help="again for more; all")
        made.add_argument("--device", default="910b3")
        made.add_argument("--count", type=int, default=count)
        made.add_argument("--seed", type=int, default=0)
        made.add_argument("--skip", type=int, default=0, help="draws before the first: in parts")
        made.add_argument("--json", action="store_true")
        return made

    configs = command("configs", _configs, 200)
    configs.add_argument("--simulate", action="store_true")
    configs.add_argument("--dtype", help="only shapes with it: float16")
    command("tiles", _tiles, 500)
    mutate = what.add_parser("mutations")
    mutate.set_defaults(run=_mutations)
    mutate.add_argument("--each", type=int, default=6, help="of every kind and module")
    mutate.add_argument("--seed", type=int, default=1)
    mutate.add_argument("--module", type=int, action="append", default=[],
                        choices=range(len(ascend_corrupt.MODULES)), help="again for more; all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(0 if args.run(args) else 1)


if __name__ == "__main__":
    main()
