"""What a search is given to begin with: the model's favourites, and winners of neighbours."""

from __future__ import annotations

import math

import numpy as np

from ..ops.space import Config, config_text
from ..tuning_db.reasons import size_step
from .cpu_model import estimate_us
from .job import Job
from .pool import Pool

MODELLED = 8                         # a model's favourites
NEIGHBOURS = 4                       # other sizes' winners; more crowd out random ones
DEVICES = 4                          # of other devices: few and unlike each other, for ten of one
                                     # basin made a search worse (A4000 to A100, docs/facts.md)


def seeds(job: Job, pool: Pool | None = None) -> list[Config]:
    """Configs to try after the default, best first, each once, whatever the compiler was.

    The best few of the nearest size that a model has ranked, or of the CPU's model; winners of the
    nearest other sizes; winners on other devices, as unlike each other as they come.
    """
    pool = pool or Pool(job.target.space(job.op, job.shape))
    near: list[tuple[float, str, Config]] = []
    foreign: list[tuple[float, str, Config]] = []
    ranked: list[tuple[float, tuple[Config, ...]]] = []
    for row in job.db.records(op=job.key.op, role="winner"):
        if row.key.static != job.key.static or row.decision == "default kept" and not row.ranked:
            continue
        step = size_step(row.key.dynamic, job.key.dynamic)
        distance, here = step[1] if step else math.inf, row.key.arch == job.key.arch
        if row.is_modelled and here:
            ranked.append((distance, row.ranked))
        elif not row.is_modelled:
            (near if here else foreign).append((distance, config_text(row.config), row.config))
    near.sort(key=lambda n: n[:2])
    foreign.sort(key=lambda n: n[:2])
    found = [*(min(ranked, key=lambda m: m[0])[1] if ranked else modelled(job, pool)),
             *(config for _, _, config in near[:NEIGHBOURS]),
             *diverse([config for _, _, config in foreign], pool)]
    return list({config_text(c): c for c in found}.values())


def modelled(job: Job, pool: Pool, count: int = MODELLED) -> list[Config]:
    """The configs that the CPU's model likes best; none where there is no model."""
    if estimate_us(job.op, job.target, job.shape, pool.configs[0]) is None:
        return []
    times = [estimate_us(job.op, job.target, job.shape, c) or math.inf for c in pool.configs]
    return [pool.configs[int(i)] for i in np.argsort(times, kind="stable")[:count]]


def diverse(configs: list[Config], pool: Pool, count: int = DEVICES) -> list[Config]:
    """The first, then whichever differs in most knobs from all that were chosen."""
    left = [i for i in dict.fromkeys(pool.index.get(config_text(c)) for c in configs)
            if i is not None]
    chosen = left[:1]
    while left and len(chosen) < count:
        apart = [min(int((pool.places[i] != pool.places[j]).sum()) for j in chosen) for i in left]
        best = max(range(len(left)), key=lambda n: (apart[n], -n))
        if not apart[best]:
            break
        chosen.append(left[best])
    return [pool.configs[i] for i in chosen]
