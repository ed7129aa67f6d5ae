"""Is the gate as good as it says? Proofs on a quiet machine: `python -m expertile.bench.prove`.

    noise OUT.json --sets 4                              record this machine's noise
    inject OUT.jsonl --percent 0,3,5,10 --count 10       gate trees that are really slower

`noise` times equal code in three processes, anew for every set: what `expertile bench power` draws
its simulated CI runs from. `inject` gates a tree in which one operator does x % of its work a
second time, each run a whole gate with fresh processes and retests; it appends a line a run, goes
on where it stopped, and ends after --seconds. The exit status is 1 when 10 % was caught in less
than 99 % of its runs, 5 % in less than 90 %, or an alarm was false in more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from .. import settings
from ..ops.spec import Shape
from .against import SIDES, gated
from .gate import Outcome
from .measure import Plan, measure
from .result import Case, Result, write
from .suite import CaseSpec, Suite, case_name
from .tree import Tree, checked_out, top
from .verdict import Rules

_COMMAND = "python -m expertile.bench.prove"
_GEMM: Shape = {"k": 256, "a_dtype": "float32", "out_dtype": "float32", "block_n": 128,
                "block_k": 128}
_FP8: Shape = {**_GEMM, "n": 1536, "w_dtype": "float8_e4m3fn", "tokens": 64}
# What is slowed down takes milliseconds on one thread, for a second call of a kernel costs some
# 20 us, and is bound by arithmetic: rows that are read again come from the cache (of moe_route
# 10 % more rows took 5 to 7 % more time).
SLOWED: Mapping[str, Shape] = {
    "gemm_nt": {**_GEMM, "n": 1024, "w_dtype": "bfloat16", "tokens": 1200},
    "m_grouped_gemm_nt_contiguous": {**_GEMM, "e": 4, "n": 512, "w_dtype": "float32",
                                     "tokens": 2400}}
_BESIDE: Sequence[tuple[str, Shape]] = (
    ("per_token_group_quant_fp8", {"k": 256, "group_size": 128, "dtype": "float32",
                                   "ue8m0": False, "tokens": 1000}),
    ("mla_prefill", {"heads": 4, "d_qk": 96, "d_v": 64, "dtype": "float32", "causal": True,
                     "tokens": 128, "ctx": 128, "batch": 1}))
_NOISE: Sequence[tuple[str, Shape]] = (
    ("gemm_nt", _FP8), ("moe_route", {
        "experts": 16, "top_k": 4, "scoring": "sigmoid", "n_group": 4, "topk_group": 2,
        "group_score": "top2_sum", "norm": True, "has_bias": True, "dtype": "float32",
        "tokens": 4000}), ("silu_mul", {"h": 768, "dtype": "float32", "tokens": 64}),
    ("mla_decode", {"heads": 4, "head_dim_v": 128, "rope": 32, "page": 64, "s_q": 1,
                    "dtype": "float32", "kv_dtype": "float32", "causal": True, "batch": 16,
                    "ctx": 256}))
INJECTED = (*SLOWED.items(), *_BESIDE)
_SLOWER = '''

_build = build


def build(target, shape, config):
    """The same kernel, and {percent} % of its rows a second time."""
    kernel, rows = _build(target, shape, config), shape["tokens"]
    again = round(rows * {percent} / 100)

    def first(x):
        return x[:again] if hasattr(x, "shape") and x.shape[:1] == (rows,) else x

    def slower(*args, out):
        kernel(*args, out=out)
        kernel(*map(first, args), out=tuple(map(first, out)))

    return slower
'''
# percent -> share of runs that must be called slower, or for 0 that may be
GOALS = {10.0: 0.99, 5.0: 0.90}
FALSE_ALARMS = 0.01


def suite_of(which: Sequence[tuple[str, Shape]]) -> Suite:
    """Cases on one thread, default configs."""
    cases = tuple(CaseSpec(case_name(op, shape), op, shape) for op, shape in which)
    return Suite(cases, "cpu:1", cache_dir=str(settings.read().cache_dir))


@contextmanager
def trees(percent: float, op: str) -> Iterator[tuple[Tree, Tree]]:
    """The committed code twice, one of them with an operator that does more work."""
    root = top(Path.cwd())
    with checked_out(root, "HEAD", sys.executable) as base, \
            checked_out(root, "HEAD", sys.executable) as head:
        if percent:
            with (head.root / "ops" / op / "tvm.py").open("a") as file:
                file.write(_SLOWER.format(percent=percent))
        yield base, head


def record(sets: int, rounds: int) -> Result:
    """Three processes of equal code, anew for every set; times to four digits."""
    taken: list[Result] = []
    suite = suite_of((*INJECTED, *_NOISE))
    with trees(0, "") as (base, _):
        for number in range(sets):
            found = measure(suite, dict.fromkeys(SIDES, base), Plan(rounds, seed=number),
                            dict(os.environ), f"{_COMMAND} noise --sets {sets} --rounds {rounds}")
            taken.append(replace(found, cases=tuple(_short(c, number) for c in found.cases)))
    return replace(taken[0], cases=tuple(c for r in taken for c in r.cases),
                   anchor=tuple(block for r in taken for block in r.anchor))


def _short(case: Case, number: int) -> Case:
    samples = {side: tuple(tuple(float(f"{us:.5g}") for us in block) for block in blocks)
               for side, blocks in case.samples.items()}
    return replace(case, name=f"{case.name} set {number}", samples=samples)


def inject(percent: float, number: int, rounds: int, threshold: float) -> dict[str, Any]:
    """One gate; what it said of the slower operator's case, or of the worst when none is slower."""
    op = list(SLOWED)[number % len(SLOWED)]
    began = time.monotonic()
    with trees(percent, op) as (base, head):
        outcome = gated(suite_of(INJECTED), base, head, Plan(rounds, seed=number),
                        Rules(threshold / 100), dict(os.environ), f"{_COMMAND} inject")
    return {"percent": percent, "op": op, "number": number, "rounds": rounds,
            "threshold": threshold,
            **_said(outcome, op if percent else ""), "exit_code": outcome.code,
            "noise": outcome.judgement.noise_floor, "power": outcome.first.power,
            "machine": outcome.result.machine.model, "created": outcome.result.created,
            "seconds": round(time.monotonic() - began, 1)}


def _said(outcome: Outcome, op: str) -> dict[str, Any]:
    ours = {c.name: c.group for c in outcome.result.cases}
    slow = [c for c in outcome.judgement.cases if ours[c.name] == op]
    others = [c for c in outcome.judgement.cases if ours[c.name] != op]
    said = slow[0] if slow else max(others, key=lambda c: c.ratio)
    return {"verdict": said.verdict, "ratio": said.ratio,
            "false_alarms": sum(c.verdict == "SLOW" for c in others),
            "verdicts": {c.name.partition("[")[0]: f"{c.verdict} {c.ratio:.4f}"
                         for c in outcome.judgement.cases}}


def summary(rows: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """A table of all runs, and whether the goals are met."""
    lines = ["injected | runs | called slower | ambiguous | ratio seen (median) | s a run"]
    good = True
    for percent in sorted({r["percent"] for r in rows}):
        mine = [r for r in rows if r["percent"] == percent]
        caught = sum(r["exit_code"] == 1 if not percent else r["verdict"] == "SLOW" for r in mine)
        doubt = sum(r["exit_code"] == 3 for r in mine)
        good &= (caught >= GOALS.get(percent, 0.0) * len(mine) if percent
                 else caught <= FALSE_ALARMS * len(mine))
        lines.append(f"{percent:g} % | {len(mine)} | {caught} | {doubt} | "
                     f"{median(r['ratio'] for r in mine):.4f} | "
                     f"{median(r['seconds'] for r in mine):.0f}")
    others = sum(r["false_alarms"] for r in rows if r["percent"])
    lines.append(f"false alarms of cases that were not slowed down: {others}")
    return "\n".join(lines), good and not others


def _inject_all(out: Path, percents: Sequence[float], count: int, rounds: int, seconds: float,
                threshold: float) -> bool:
    rows = [json.loads(t) for t in out.read_text().splitlines()] if out.exists() else []
    done = {(r["percent"], r["number"], r["rounds"], r["threshold"]) for r in rows}
    end, longest = time.monotonic() + seconds, max((r["seconds"] for r in rows), default=0.0)
    for number in range(count):
        for percent in percents:
            if (percent, number, rounds, threshold) in done:
                continue
            if time.monotonic() + longest > end:
                break
            rows.append(inject(percent, number, rounds, threshold))
            longest = max(longest, rows[-1]["seconds"])
            with out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    text, good = summary(rows)
    print(text)
    return good


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    noise = what.add_parser("noise")
    noise.add_argument("out", type=Path)
    noise.add_argument("--sets", type=int, default=4)
    slow = what.add_parser("inject")
    slow.add_argument("out", type=Path)
    slow.add_argument("--percent", default="0,3,5,10")
    slow.add_argument("--count", type=int, default=10, help="runs of each size")
    slow.add_argument("--seconds", type=float, default=1e9,
                      help="begin no run that would end later")
    slow.add_argument("--threshold", type=float, default=3.0, help="percent, of one case")
    for one in (noise, slow):
        one.add_argument("--rounds", type=int, default=40 if one is slow else 100)
    args = parser.parse_args()
    if args.what == "noise":
        write(args.out, record(args.sets, args.rounds))
        return
    percents = [float(p) for p in args.percent.split(",")]
    sys.exit(not _inject_all(args.out, percents, args.count, args.rounds, args.seconds,
                             args.threshold))


if __name__ == "__main__":
    main()
