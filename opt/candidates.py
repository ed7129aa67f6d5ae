"""Candidates of one shape: built in parallel, checked and timed in turn, a row each at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..ops.space import Config, config_text
from ..targets.child import DIED
from ..tuning_db.record import Record
from .job import Job
from .provenance import provenance
from .seeds import seeds
from .session import Site
from .stats import low
from .workers import Tried

__all__ = ["blocklist", "rounded", "seeds", "try_batch"]
CANDIDATE_S = 0.6                    # at most, to time a candidate (more for very slow kernels)
_EVIDENCE = {"build_error": "L0 described", "illegal": "L0 described",
             "wrong": "L3 executed and checked", "ok": "L4 timed", "noisy": "L4 timed"}


def blocklist(job: Job) -> dict[str, Record]:
    """Configs whose kernel killed its process or its compiler at another size, by config text.

    The same code would do so again; what failed for lack of memory or time may fit another size.
    """
    found = {}
    for status in ("run_error", "build_error"):
        for row in job.db.records(op=job.key.op, arch=job.key.arch, role="candidate",
                                  status=status):
            near = replace(row.key, dynamic=job.key.dynamic, routing=job.key.routing)
            if near == job.key and row.key != job.key and DIED in row.error:
                found[config_text(row.config)] = row
    return found


def try_batch(job: Job, site: Site, batch: list[Config], default: Config) -> Iterator[Record]:
    """Build a batch in parallel, then check and time one after the other; a row each at once."""
    legal = {}
    for i, config in enumerate(batch):
        if before := job.blocked.get(config_text(config)):
            legal[i] = Tried(before.status, f"not tried: at {dict(before.key.dynamic)} it was "
                                            f"{before.status}: {before.error}"[:2000])
            continue
        verdict = job.target.legal(job.op, job.shape, config)
        if not verdict.legal:
            legal[i] = Tried("illegal", verdict.reason)
    to_build = [i for i in range(len(batch)) if i not in legal]
    built = dict(zip(to_build, job.workers.build(site, [batch[i] for i in to_build]), strict=True))
    for i in _by_model(legal | built):
        config, tried = batch[i], (legal | built)[i]
        failed_build = tried.status != "ok"
        if not failed_build:
            baseline = None if config_text(config) == config_text(default) else default
            tried = job.workers.measure(site, config, baseline, CANDIDATE_S)
        row = _row(job, config, tried, failed_build)
        job.db.add(row)
        yield row


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
        provenance=provenance(job.target, job.seed, job.command, origin=job.method.origin), us=us,
        default_us=default_us,
        speedup=default_us / us if us and default_us else None,
        samples=rounded(tried.samples), default_samples=rounded(tried.baseline),
        anchor=rounded(tried.anchor), error=tried.error)


def rounded(samples: Sequence[float]) -> tuple[float, ...]:
    """Six digits: what is stored."""
    return tuple(float(f"{s:.6g}") for s in samples)
