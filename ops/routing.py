"""How tokens spread over experts: evenly, by Zipf's law, or as counted in a running model."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNIFORM = "uniform"
MAX_ZIPF = 8.0                       # beyond that one expert has all tokens


@dataclass(frozen=True)
class Routing:
    """The load of experts, heaviest first: which expert is the heavy one does not matter.

    `name` is what keys of the tuning database say: "uniform", "zipf-1.2", "recorded-3f2a81c0".
    """

    name: str = UNIFORM
    zipf: float = 0.0                # the i-th expert's load goes with i^-zipf
    recorded: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data: the arguments of `Routing`."""
        return {"name": self.name, "zipf": self.zipf, "recorded": list(self.recorded)}

    def shares(self, experts: int) -> Tensor | None:
        """Each expert's share of the tokens, [experts] float32; None when they are even.

        Raises:
            ValueError: the recorded load is of another number of experts.
        """
        if self.name == UNIFORM:
            return None
        if not self.recorded:
            load = torch.arange(1, experts + 1, dtype=torch.float32) ** -self.zipf
            return load / load.sum()
        if len(self.recorded) != experts:
            raise ValueError(f"the routing {self.name} was recorded for {len(self.recorded)} "
                             f"experts, got a layer of {experts}; record it in that model")
        return torch.tensor(self.recorded)


def recorded(counts: list[float] | tuple[float, ...]) -> Routing:
    """The routing of counted tokens: one count an expert, in any order."""
    total = math.fsum(counts)
    if not counts or min(counts) < 0 or not (math.isfinite(total) and total > 0):
        raise ValueError(f"a recorded routing needs one count >= 0 an expert and some tokens, got "
                         f"{str(list(counts))[:80]}")
    shares = tuple(float(f"{c / total:.6g}") for c in sorted(counts, reverse=True))
    digest = hashlib.sha256(json.dumps(shares).encode()).hexdigest()[:8]
    return Routing(f"recorded-{digest}", recorded=shares)


def parse(text: str) -> Routing:
    """"uniform", "zipf-S" with an exponent S, or the path of what `expertile collect` wrote."""
    if text == UNIFORM:
        return Routing()
    if text.startswith("zipf-"):
        try:
            exponent = float(text.removeprefix("zipf-"))
        except ValueError:
            exponent = math.nan
        if not 0 < exponent <= MAX_ZIPF:
            raise ValueError(f"zipf-S takes an exponent S in (0, {MAX_ZIPF:g}], got {text!r}")
        return Routing(f"zipf-{exponent:g}", zipf=exponent)
    if not Path(text).is_file():
        raise ValueError(f"a routing is uniform, zipf-S or a file of `expertile collect`, got "
                         f"{text!r}, which is no file")
    return from_json(json.loads(Path(text).read_text()), text)


def name_of(text: str) -> str:
    """What keys say of a routing: its name as it stands, or that of what `parse` takes."""
    return text if re.fullmatch("recorded-[0-9a-f]{8}", text) else parse(text).name


def from_json(data: object, where: str) -> Routing:
    """The routing in what `expertile collect` wrote."""
    counts = data.get("routing", {}).get("counts") if isinstance(data, dict) else None
    if not isinstance(counts, list) or not all(
            isinstance(c, int | float) and not isinstance(c, bool) for c in counts):
        raise ValueError(f"{where} must hold routing.counts, one number an expert, as `expertile "
                         "collect` writes it")
    return recorded(counts)


def draw(tokens: int, top_k: int, experts: int, seed: int, shares: Tensor | None) -> Tensor:
    """Distinct experts of each token, [tokens, top_k] int64, heavier ones more often.

    Adding Gumbel noise to log shares and taking the top k draws without replacement (Kool et al.,
    "Stochastic Beams and Where to Find Them", 2019).
    """
    g = torch.Generator().manual_seed(seed)
    drawn = torch.rand(tokens, experts, generator=g)
    if shares is not None:           # -log(-log u) + log share, in a monotone form
        drawn = shares.clamp_min(1e-30) / -drawn.clamp(1e-7, 1 - 1e-7).log()
        drawn = drawn[:, torch.randperm(experts, generator=g)]   # another layer's heavy experts
    return drawn.topk(min(top_k, experts), -1).indices
