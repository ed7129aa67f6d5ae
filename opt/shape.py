"""The tune of one shape: try candidates, race the best with the default, decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..ops.space import Config, config_text
from ..tuning_db.record import Record
from ..tuning_db.store import config_hash
from .budget import covers
from .candidates import blocklist, rounded, try_batch
from .decide import Verdict, decide
from .floor import floor_us
from .job import RACE_SHARE, Job, log_ratio, say
from .outcome import Outcome
from .pool import Pool
from .provenance import provenance
from .search import Search
from .search.listed import Listed
from .seeds import seeds
from .session import Site
from .stats import low, speedup
from .workers import Raced

if TYPE_CHECKING:
    from .shared import SharedSearch

FEWEST_TRIALS = 3                    # even when making the inputs took the whole budget


def tune_shape(job: Job) -> Outcome:
    """The outcome for one shape, from the database when a tune of this budget has finished."""
    pool = Pool(job.target.space(job.op, job.shape))
    before = _measured(job.db.winner(job.key))
    if before is not None and covers(before.provenance, job.budget, len(pool)):
        return Outcome(before, before.provenance.trials, resumed=True)
    say(job, pool, "shape")
    job.read_rows(pool)
    job.blocked = blocklist(job)
    search = _search(job, pool)
    site = Site(job.target.recipe(), job.op.name, dict(job.shape), job.seed,
                job.method.routing.to_json() if job.op.is_routed else {})
    try:
        while True:
            _explore(job, pool, search, site)
            if search.wait() or job.left() <= 0:     # what a dead worker left stays untried
                break
        with search.alone():
            return _decide(job, pool, search, site)
    finally:
        search.close()


def _search(job: Job, pool: Pool) -> Search | SharedSearch:
    method = job.method
    if method.listed:
        return Listed(pool, method.listed)
    if method.storage is not None:
        from .shared import SharedSearch

        return SharedSearch(method.storage, f"expertile {job.key.hash}", pool, job.seed,
                            seeds(job, pool), method.sampler, job.trials)
    return Search(pool, job.seed, seeds(job, pool), method.sampler, job.trials)


def _explore(job: Job, pool: Pool, search: Search | SharedSearch, site: Site) -> None:
    """Try candidates until the budget or the pool is done.

    A search that was stopped is gone through again with the stored answers, so that it goes on as
    it would have. When it asks for nothing stored any more, it is told what else there is.
    """
    default, behind = pool.configs[0], job.method.storage is None
    if behind:
        if config_text(default) not in job.rows:
            _try(job, pool, search, site, [default])
        else:
            _tell(job, search, [default])
        if job.rows[config_text(default)].status != "ok":
            return
    while job.left() > 0 or len(job.rows) < FEWEST_TRIALS:
        batch = [c for _ in range(_batch(job, search)) if (c := search.ask()) is not None]
        if not batch:
            return
        new = [c for c in batch if config_text(c) not in job.rows]
        if behind and len(new) == len(batch):
            _tell(job, search, [r.config for r in job.rows.values() if not search.has(r.config)])
            behind = False
        _tell(job, search, [c for c in batch if c not in new])
        if new:
            _try(job, pool, search, site, new)
        if job.method.stop_gain and search.is_done_within(job.method.stop_gain):
            return


def _tell(job: Job, search: Search | SharedSearch, configs: list[Config]) -> None:
    """What the database knows of configs."""
    for config in configs:
        search.tell(config, log_ratio(job.rows[config_text(config)]))


def _decide(job: Job, pool: Pool, search: Search | SharedSearch, site: Site) -> Outcome:
    """The verdict, unless another worker has stored it."""
    before = _measured(job.db.winner(job.key))
    if before is not None and covers(before.provenance, job.budget, len(pool)):
        return Outcome(before, before.provenance.trials, resumed=True)
    job.read_rows(pool)
    default = pool.configs[0]
    if config_text(default) not in job.rows:         # its worker died, and time is over
        _try(job, pool, search, site, [default])
    of_default = job.rows[config_text(default)]
    if of_default.status != "ok":
        return Outcome(of_default, len(job.rows), resumed=False)
    say(job, pool, "race")
    race = _racer(job, site)

    def elsewhere(configs: list[Config], rounds: int) -> Raced | None:
        job.workers.renew()
        return race(configs, rounds)

    on_cpu = job.target.computes and job.target.torch_device == "cpu"
    return _conclude(job, pool, decide(list(job.rows.values()), default, before, race,
                                       elsewhere if on_cpu else None))


def _measured(record: Record | None) -> Record | None:
    """A winner, unless only a model has chosen it."""
    return None if record is None or record.is_modelled else record


def _batch(job: Job, search: Search | SharedSearch) -> int:
    """How many candidates to compile together: no more than the budget has room for."""
    room = max(1, search.room())
    if job.seconds is not None:
        each = (time.monotonic() - job.started) / max(len(job.rows), 1)
        room = min(room, max(1, int(job.left() / max(each, 1e-3))))
    return min(job.workers.batch, room)


def _try(job: Job, pool: Pool, search: Search | SharedSearch, site: Site, batch: list[Config]
         ) -> None:
    """Try a batch; the search hears of every row at once."""
    for row in try_batch(job, site, batch, pool.configs[0]):
        job.rows[config_text(row.config)] = row
        search.tell(row.config, log_ratio(row))
        say(job, pool, "trial", row)


def _racer(job: Job, site: Site) -> Callable[[list[Config], int], Raced | None]:
    """Builds what a resumed tune did not build, then races; about RACE_SHARE of the budget."""
    seconds = 5.0 if job.seconds is None else min(10.0, RACE_SHARE * job.seconds / 2)

    def race(configs: list[Config], rounds: int) -> Raced | None:
        if any(tried.status != "ok" for tried in job.workers.build(site, configs)):
            return None
        return job.workers.race(site, configs, rounds, seconds)

    return race


def _conclude(job: Job, pool: Pool, verdict: Verdict) -> Outcome:
    """Store the winner."""
    floor = floor_us(job.op, job.target, job.shape)
    us, default_us = low(verdict.samples), low(verdict.baseline)
    tuned = verdict.decision == "tuned"
    ratio = speedup(verdict.samples, verdict.baseline) if tuned else None
    record = Record(
        key=job.key, config=dict(verdict.config), status=verdict.status, role="winner",
        evidence=min("L4 timed", job.target.evidence()),
        kind="measured" if job.target.computes else "modelled",
        provenance=provenance(job.target, job.seed, job.command, job.budget, len(job.rows),
                              len(pool), job.method.origin),
        decision=verdict.decision, us=us if tuned else default_us, default_us=default_us,
        floor_us=floor, speedup=ratio.value if ratio else 1.0,
        speedup_ci=(ratio.low, ratio.high) if ratio else None,
        samples=rounded(verdict.samples), default_samples=rounded(verdict.baseline),
        equivalents=tuple(sorted(verdict.equivalents, key=config_hash)), error=verdict.note,
        race={text: rounded(taken) for text, taken in verdict.race.items()},
        anchor=rounded(verdict.anchor), noise=verdict.noise.to_json() if verdict.noise else {})
    job.db.add(record)
    say(job, pool, "done", record)
    return Outcome(record, len(job.rows), resumed=False)
