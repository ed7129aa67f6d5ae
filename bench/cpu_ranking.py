"""How well the CPU's model orders recorded landscapes: `python -m expertile.bench.cpu_ranking`.

Its first eight configs, which a tune tries right after the default, against any eight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import ops, targets
from ..opt.cpu_model import estimate_us
from ..opt.replay_record import load, shipped
from ..opt.seeds import MODELLED
from ..targets.base import Target

WITHIN = (1.02, 1.05, 1.10)
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Ranking:
    """One landscape: how near to its optimum the model's favourites come."""

    name: str
    configs: int
    spearman: float                  # of modelled and measured times
    best: float                      # the best favourite's time over the optimum
    found: Mapping[str, bool]        # whether a favourite is within 2, 5, 10 %
    chance: Mapping[str, float]      # that one of as many random configs is


def rank(name: str, data: Mapping[str, Any], target: Target, count: int = MODELLED) -> Ranking:
    """The model's favourites of a landscape."""
    from scipy.stats import spearmanr

    op = ops.load(data["op"])
    times = [float(e.get("us", math.inf)) for e in data["entries"]]
    modelled = [estimate_us(op, target, data["shape"], e["config"]) or math.inf
                for e in data["entries"]]
    first = sorted(range(len(times)), key=lambda i: modelled[i])[:count]
    optimum, best = min(times), min(times[i] for i in first)
    near = {f"{100 * w - 100:.0f} %": sum(t <= w * optimum for t in times) for w in WITHIN}
    return Ranking(
        name, len(times), float(spearmanr(modelled, times).statistic), best / optimum,
        {k: best <= w * optimum for k, w in zip(near, WITHIN, strict=True)},
        {k: 1 - comb(len(times) - n, count) / comb(len(times), count) for k, n in near.items()})


def rank_all(files: Mapping[str, Path]) -> list[Ranking]:
    """Every landscape of a CPU whose operator has a model."""
    found = []
    for name, path in files.items():
        data = load(path)
        arch, _, threads = str(data["device"]).rpartition("-t")
        target = targets.load(f"{arch}:{threads}")
        if estimate_us(ops.load(data["op"]), target, data["shape"],
                       data["entries"][0]["config"]) is not None:
            found.append(rank(name, data, target))
    return found


def totals(rankings: Sequence[Ranking]) -> dict[str, dict[str, float]]:
    """Of how many landscapes the favourites hold a good config, and how many chance would have."""
    return {k: {"model": sum(r.found[k] for r in rankings),
                "random": round(sum(r.chance[k] for r in rankings), 2), "of": len(rankings)}
            for k in rankings[0].chance}


@app.command()
def main(files: Annotated[list[Path] | None, typer.Argument(
        help="Landscapes; those that ship by default.")] = None) -> None:
    """Print a JSON line for each landscape, then the totals."""
    named = {p.name.split(".")[0]: p for p in files} if files else shipped()
    rankings = rank_all(named)
    for ranking in rankings:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v
                          for k, v in asdict(ranking).items()}))
    print(json.dumps(totals(rankings)))


if __name__ == "__main__":
    app()
