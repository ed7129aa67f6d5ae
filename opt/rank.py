"""The ranking of one shape by the target's model: candidates are compiled, and none is run.

For devices that are not here. What it stores is `modelled`: the best few configs, for a tune on the
device to measure first. A measured record is never replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ..ops.space import Config, config_text
from ..targets.base import BuildError, Evidence, Examined
from ..tuning_db.record import Record
from .budget import covers
from .cpu_model import estimate_us
from .decide import GAIN
from .floor import floor_us
from .job import Job, log_ratio, say
from .outcome import Outcome
from .pool import Pool
from .provenance import provenance
from .search import Search
from .seeds import seeds
from .session import Site
from .workers import Tried

TOP = 4                              # kept for the device to measure
MOST_VERIFIED = 2 * TOP


def rank_shape(job: Job) -> Outcome:
    """The outcome for one shape, from the database when it was ranked or measured before."""
    if job.method.storage is not None:
        raise ValueError("a ranking is not shared: leave out --storage or --no-measure")
    pool = Pool(job.target.space(job.op, job.shape))
    before = job.db.winner(job.key)
    if before is not None and (not before.is_modelled
                               or covers(before.provenance, job.budget, len(pool))):
        return Outcome(before, before.provenance.trials, resumed=True)
    say(job, pool, "shape")
    job.read_rows(pool)
    known = len(job.rows)
    _explore(job, pool)
    say(job, pool, "race")
    return replace(_conclude(job, pool, _best(job, pool)), known=known)


def _explore(job: Job, pool: Pool) -> None:
    """Compile candidates until the budget or the pool is done; a row each at once."""
    search = Search(pool, job.seed, seeds(job, pool), job.method.sampler, job.trials)
    for row in job.rows.values():
        search.tell(row.config, log_ratio(row))
    site = Site(job.target.recipe(), job.op.name, dict(job.shape), job.seed)
    default = pool.configs[0]
    if config_text(default) not in job.rows:
        _try(job, pool, search, site, [default])
    limit = min(len(pool), job.trials or len(pool))
    while len(job.rows) < limit and job.left() > 0:
        batch: list[Config] = []
        while len(batch) < min(job.workers.batch, limit - len(job.rows)):
            if (config := search.ask()) is None:
                break
            if config_text(config) not in job.rows:
                batch.append(config)
        if not batch:
            return
        _try(job, pool, search, site, batch)
        if job.method.stop_gain and search.is_done_within(job.method.stop_gain):
            return


def _try(job: Job, pool: Pool, search: Search, site: Site, batch: Sequence[Config]) -> None:
    measured = {config_text(r.config) for r in job.db.records(key=job.key, role="candidate")
                if not r.is_modelled}
    for config, tried in zip(batch, job.workers.build(site, batch, warm=False),
                             strict=True):
        row = _row(job, pool, config, tried)
        if config_text(config) not in measured:      # what was measured stays
            job.db.add(row)
        job.rows[config_text(config)] = row
        search.tell(config, log_ratio(row))
        say(job, pool, "trial", row)


def _row(job: Job, pool: Pool, config: Config, tried: Tried) -> Record:
    us = tried.modelled_us
    if tried.status == "ok" and us is None:
        us = estimate_us(job.op, job.target, job.shape, config)
    if tried.status == "ok" and us is None:
        raise ValueError(f"{job.target.name} has no model of its kernels on {job.target.arch}, so "
                         "nothing can be ranked without measuring; leave out --no-measure")
    default = job.rows.get(config_text(pool.configs[0]))
    ok = tried.status == "ok"
    # where the default does not compile, the first that does is the measure of the others
    base = default if default is not None and default.us else next(
        (r for r in job.rows.values() if r.us), None)
    return Record(
        key=job.key, config=dict(config), status=tried.status,  # type: ignore[arg-type]
        role="candidate", evidence=_evidence(job) if ok else "L0 described",
        kind="modelled", provenance=provenance(job.target, job.seed, job.command),
        us=us if ok else None,
        default_us=(base.us if base is not None else us) if ok else None,
        error=tried.error)


def _evidence(job: Job) -> Evidence:
    """Of what was compiled and not run, also where it could be."""
    return min("L2 native object", job.target.evidence())


def _best(job: Job, pool: Pool) -> list[tuple[Record, str]]:
    """The best few that the target's own gates let through, and what these said."""
    scored = sorted((r for r in job.rows.values() if r.us),
                    key=lambda r: (r.us, pool.index[config_text(r.config)]))
    default = job.rows.get(config_text(pool.configs[0]))
    if default is not None and default.us:           # what it is compared with, and wins ties
        ahead = [r for r in scored if (r.us or 0.0) < default.us * (1.0 - GAIN)]
        scored = [*ahead, default, *(r for r in scored if r not in ahead and r is not default)]
    if getattr(job.target, "verify", None) is None:
        return [(row, "") for row in scored[:TOP]]
    passed: list[tuple[Record, str]] = []
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2))) as threads:
        for first in range(0, min(len(scored), MOST_VERIFIED), TOP):
            rows = scored[first:first + TOP]
            for row, said in zip(rows, threads.map(lambda r: _verified(job, r), rows),
                                 strict=True):
                if said.ok:
                    passed.append((row, said.note))
                    continue
                bad = replace(row, error=said.reason)        # a gate that could not be run
                if said.wrong:
                    bad = replace(bad, status="wrong", us=None, default_us=None)
                job.rows[config_text(row.config)] = bad
                job.db.add(bad)
                say(job, pool, "trial", bad)
            if len(passed) >= TOP or passed and time.monotonic() > job.started + (
                    job.seconds or float("inf")):
                break
    return passed[:TOP]


def _verified(job: Job, row: Record) -> Any:
    """What the target's own gates say of a config (targets/ascend/verify.py)."""
    return job.target.verify(job.op, job.shape, row.config)  # type: ignore[attr-defined]


def _conclude(job: Job, pool: Pool, best: list[tuple[Record, str]]) -> Outcome:
    """Store the winner: the default, unless something is modelled faster."""
    default = job.rows[config_text(pool.configs[0])]
    if not best:
        refused = default if not default.us or default.error else next(
            r for r in job.rows.values() if r.error)
        say(job, pool, "done", refused)
        return Outcome(refused, len(job.rows), resumed=False)
    row, note = best[0]
    record = Record(
        key=job.key, config=dict(row.config), status="ok", role="winner",
        evidence=_evidence(job), kind="modelled",
        provenance=provenance(job.target, job.seed, job.command, job.budget, len(job.rows),
                              len(pool)),
        decision="default kept" if config_text(row.config) == config_text(default.config)
        else "ranked",
        us=row.us, default_us=default.us, floor_us=floor_us(job.op, job.target, job.shape),
        ranked=tuple(dict(r.config) for r, _ in best), parts=_parts(job, row.config), error=note)
    job.db.add(record)
    say(job, pool, "done", record)
    return Outcome(record, len(job.rows), resumed=False)


def _parts(job: Job, config: Config) -> Mapping[str, Any]:
    """What the modelled time is made of, flat: "moe_up us", "moe_up bound" ..."""
    try:
        examined: Examined = job.target.examine(job.op, job.shape, config)
    except BuildError:
        return {}
    return {f"{kernel['name']} {part}": value for kernel in examined.kernels
            for part, value in kernel.get("model", {}).items()
            if isinstance(value, int | float | str)}
