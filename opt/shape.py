"""The tune of one shape: try candidates, race the best with the default, decide."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..ops.space import Config, config_text
from ..ops.spec import Operator, Shape
from ..targets.base import Target
from ..tuning_db.key import Key, key_of
from ..tuning_db.reasons import size_step
from ..tuning_db.record import Record
from ..tuning_db.store import TuningDB, config_hash
from .budget import covers
from .decide import Verdict, decide
from .floor import floor_us
from .outcome import Event, Outcome
from .pool import Pool
from .provenance import provenance
from .search import Search
from .session import Site
from .stats import low, speedup
from .workers import Tried, Workers

FEWEST_TRIALS = 3                    # even when making the inputs took the whole budget
RACE_SHARE = 0.2                     # of a time budget, kept for the finalists
CANDIDATE_S = 0.6                    # at most, to time a candidate (more for very slow kernels)
NEIGHBOURS = 4                       # other sizes' winners as seeds; more crowd out random ones
_EVIDENCE = {"build_error": "L0 described", "illegal": "L0 described",
             "wrong": "L3 executed and checked", "ok": "L4 timed", "noisy": "L4 timed"}

Tell = Callable[[Event], None]


@dataclass
class Job:
    """What the tune of one shape works with."""

    op: Operator
    target: Target
    shape: Shape
    db: TuningDB
    workers: Workers
    budget: dict[str, float]         # this shape's nominal share: stored with the winner
    trials: int | None               # limit on candidates, or
    seconds: float | None            # limit on time
    seed: int
    command: str
    tell: Tell
    index: int
    shapes: int
    key: Key = field(init=False)
    rows: dict[str, Record] = field(default_factory=dict)   # candidates by config text
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.key = key_of(self.op, self.target, self.shape)

    def left(self) -> float:
        """Seconds that the search still has."""
        if self.seconds is None:
            return math.inf
        return self.started + (1 - RACE_SHARE) * self.seconds - time.monotonic()


def tune_shape(job: Job) -> Outcome:
    """The outcome for one shape, from the database when a tune of this budget has finished."""
    pool = Pool(job.target.space(job.op, job.shape))
    before = job.db.winner(job.key)
    if before is not None and covers(before.provenance, job.budget, len(pool)):
        return Outcome(before, before.provenance.trials, resumed=True)
    _event(job, pool, "shape")
    for row in job.db.records(key=job.key, role="candidate"):
        if config_text(row.config) in pool.index:
            job.rows[config_text(row.config)] = row
    limit = min(len(pool), job.trials or len(pool))
    search = Search(pool, job.seed, _seeds(job), budget=job.trials)
    for row in job.rows.values():
        search.tell(row.config, _log_ratio(row))
    site = Site(job.target.recipe(), job.op.name, dict(job.shape), job.seed)
    default = pool.configs[0]
    if config_text(default) not in job.rows:
        _try(job, pool, search, site, [default])
    if job.rows[config_text(default)].status != "ok":
        return Outcome(job.rows[config_text(default)], len(job.rows), resumed=False)
    while len(job.rows) < limit and (job.left() > 0 or len(job.rows) < FEWEST_TRIALS):
        batch = [c for _ in range(_batch(job, limit)) if (c := _next(job, search)) is not None]
        if not batch:
            break
        _try(job, pool, search, site, batch)
    _event(job, pool, "race")
    verdict = decide(list(job.rows.values()), default, before, _racer(job, site))
    return _conclude(job, pool, verdict)


def _next(job: Job, search: Search) -> Config | None:
    while (config := search.ask()) is not None:
        if config_text(config) not in job.rows:
            return config
    return None


def _batch(job: Job, limit: int) -> int:
    """How many candidates to compile together: no more than the budget has room for."""
    room = max(1, limit - len(job.rows))
    if job.seconds is not None:
        each = (time.monotonic() - job.started) / max(len(job.rows), 1)
        room = min(room, max(1, int(job.left() / max(each, 1e-3))))
    return min(job.workers.batch, room)


def _seeds(job: Job) -> list[Config]:
    """Winners of the nearest other sizes, whatever the compiler or the source was."""
    near = []
    for row in job.db.records(op=job.key.op, arch=job.key.arch, role="winner"):
        if row.key.static == job.key.static and row.decision == "tuned":
            step = size_step(row.key.dynamic, job.key.dynamic)
            near.append((step[1] if step else math.inf, config_text(row.config), row.config))
    near.sort(key=lambda n: n[:2])
    return [config for _, _, config in near[:NEIGHBOURS]]


def _try(job: Job, pool: Pool, search: Search, site: Site, batch: list[Config]) -> None:
    """Build a batch in parallel, then check and time one after the other; a row each at once."""
    default = pool.configs[0]
    legal = {}
    for i, config in enumerate(batch):
        verdict = job.target.legal(job.op, job.shape, config)
        if not verdict.legal:
            legal[i] = Tried("illegal", verdict.reason)
    to_build = [i for i in range(len(batch)) if i not in legal]
    built = dict(zip(to_build, job.workers.build(site, [batch[i] for i in to_build]), strict=True))
    for i in _by_model(legal | built):
        config, tried = batch[i], (legal | built)[i]
        failed_build = tried.status != "ok"
        if not failed_build:
            baseline = None if config is default else default
            tried = job.workers.measure(site, config, baseline, CANDIDATE_S)
        row = _row(job, config, tried, failed_build)
        job.db.add(row)
        job.rows[config_text(config)] = row
        search.tell(config, _log_ratio(row))
        _event(job, pool, "trial", row)


def _by_model(built: dict[int, Tried]) -> list[int]:
    """Candidates in the order of measuring: best modelled first, so that a budget ends well."""
    def time_of(i: int) -> float:
        us = built[i].modelled_us
        return math.inf if us is None else us

    return sorted(built, key=lambda i: (time_of(i), i))


def _row(job: Job, config: Config, tried: Tried, failed_build: bool) -> Record:
    ok = tried.status == "ok"
    evidence = "L0 described" if failed_build else _EVIDENCE.get(tried.status, "L2 native object")
    us, default_us = (low(tried.samples), low(tried.baseline)) if ok else (None, None)
    return Record(
        key=job.key, config=dict(config), status=tried.status,  # type: ignore[arg-type]
        role="candidate", evidence=min(evidence, job.target.evidence()),
        kind="measured" if job.target.computes else "modelled",
        provenance=provenance(job.target, job.seed, job.command), us=us, default_us=default_us,
        speedup=default_us / us if us and default_us else None,
        samples=_rounded(tried.samples), default_samples=_rounded(tried.baseline),
        error=tried.error)


def _rounded(samples: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{s:.6g}") for s in samples)


def _log_ratio(row: Record) -> float | None:
    return None if row.us is None or row.default_us is None else math.log(row.us / row.default_us)


def _racer(job: Job, site: Site) -> Callable[[list[Config], int], list[list[float]] | None]:
    """Builds what a resumed tune did not build, then races; about RACE_SHARE of the budget."""
    seconds = 5.0 if job.seconds is None else min(10.0, RACE_SHARE * job.seconds / 2)

    def race(configs: list[Config], rounds: int) -> list[list[float]] | None:
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
                              len(pool)),
        decision=verdict.decision, us=us if tuned else default_us, default_us=default_us,
        floor_us=floor, speedup=ratio.value if ratio else 1.0,
        speedup_ci=(ratio.low, ratio.high) if ratio else None,
        samples=_rounded(verdict.samples), default_samples=_rounded(verdict.baseline),
        equivalents=tuple(sorted(verdict.equivalents, key=config_hash)), error=verdict.note)
    job.db.add(record)
    _event(job, pool, "done", record)
    return Outcome(record, len(job.rows), resumed=False)


def _event(job: Job, pool: Pool, kind: str, row: Record | None = None) -> None:
    ok = [r for r in job.rows.values() if r.us is not None]
    best = min(ok, key=lambda r: _log_ratio(r) or 0.0, default=None)
    default = job.rows.get(config_text(pool.configs[0]))
    of = min(len(pool), job.trials or len(pool))
    left = job.left()
    if math.isinf(left):
        each = (time.monotonic() - job.started) / max(len(job.rows), 1)
        left = each * (of - len(job.rows))
    job.tell(Event(kind, job.index, job.shapes, job.op.name, job.shape,  # type: ignore[arg-type]
                   len(job.rows), of, row.status if row else "", row.us if row else None,
                   best.us if best else None, default.us if default else None, max(left, 0.0)))
