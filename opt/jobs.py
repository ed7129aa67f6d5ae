"""What runs in child processes: build a config, check it, time it. JSON in, JSON out."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .. import ops
from ..ops.space import Config
from ..targets.base import BuildError, RunFailed
from .session import Session, Site, make_target
from .stats import low

SAMPLE_US = 1000.0                   # long against the clock, short against a scheduler's slice
ROUNDS, FEWEST_ROUNDS = 12, 3
FEWEST_OF_TWO = 8                    # in a final: three rounds once called a slower config 1.07x
RACE_DROP = 1.03                     # a finalist this much behind the leader leaves the race


@lru_cache(maxsize=1)
def _session(text: str) -> Session:
    data = json.loads(text)
    return Session(Site(**{**data, "recipe": tuple(data["recipe"])}))


def session_of(site: dict[str, Any]) -> Session:
    """The session of a site in this process; the last one is kept."""
    return _session(json.dumps(site))


def _failure(e: Exception) -> dict[str, Any]:
    """An exception of a candidate as a status."""
    if isinstance(e, BuildError | RunFailed):
        return {"status": e.status, "error": str(e)[-2000:]}
    text = f"{type(e).__name__}: {e}"[-2000:]
    no_memory = isinstance(e, MemoryError) or "memory" in text and "alloc" in text
    return {"status": "oom" if no_memory else "run_error", "error": text}


def build(site: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Compile a config in this process, a compile child, into the target's cache."""
    target = make_target(tuple(site["recipe"]))
    try:
        seen = target.compile_here(ops.load(site["op"]), site["shape"], config)
    except Exception as e:               # whatever a compiler raises is one row
        failure = _failure(e)
        return failure if failure["status"] != "run_error" else {**failure, "status": "build_error"}
    if not seen.legal:
        return {"status": "illegal", "error": seen.reason}
    return {"status": "ok", "error": "", "modelled_us": seen.modelled_us}


def prepare(site: dict[str, Any]) -> dict[str, Any]:
    """Make inputs and expected outputs of a shape; the following jobs share them."""
    return {"argument_sets": len(session_of(site).args)}


def measure(site: dict[str, Any], config: dict[str, Any], baseline: dict[str, Any] | None,
            seconds: float) -> dict[str, Any]:
    """Check a config on every case, then time it interleaved with the baseline."""
    session = session_of(site)
    session.keep(baseline)
    try:
        if why := session.why_wrong(config):
            return {"status": "wrong", "error": why}
        timed, anchor = _interleave(session, [config, baseline] if baseline else [config], ROUNDS,
                                    seconds, reject=True)
    except Exception as e:               # whatever a candidate raises is one row
        return _failure(e)
    return {"status": "ok", "error": "", "samples": timed[0], "baseline": timed[-1],
            "anchor": anchor}


def race(site: dict[str, Any], configs: list[dict[str, Any]], rounds: int, seconds: float
         ) -> dict[str, Any]:
    """Samples of checked configs in shared rounds; the last one is the baseline and stays in."""
    session = session_of(site)
    session.keep(*configs)
    samples, anchor = _interleave(session, configs, rounds, seconds, reject=False)
    return {"samples": samples, "anchor": anchor}


def is_sound(site: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a config that was right still is: a bad one may have written over our inputs."""
    return session_of(site).why_wrong(config) is None


def _interleave(session: Session, configs: Sequence[Config], rounds: int, seconds: float,
                reject: bool) -> tuple[list[list[float]], list[float]]:
    """Rounds until `rounds` or `seconds` are over, each second one in the reverse order.

    The last config is the baseline. With `reject` a first one that is hopeless ends it all;
    without, finalists that fall behind the leader leave. Second: the anchor's sample of each round.
    """
    clock, callers = session.target.time_us, [
        session.caller(c, place) for place, c in enumerate(configs)]
    last = len(configs) - 1
    inner = max(1, min(1000, round(SAMPLE_US / max(clock(callers[last], 1), 1e-3))))
    samples: list[list[float]] = [[] for _ in configs]
    anchor: list[float] = []
    order, shuffler = list(range(len(configs))), random.Random(session.seed)
    fewest = FEWEST_OF_TWO if not reject and len(configs) == 2 else FEWEST_ROUNDS
    end = time.monotonic() + seconds
    for done in range(1, rounds + 1):
        if session.anchor is not None:
            anchor.append(session.anchor.sample())
        for i in order:
            samples[i].append(clock(callers[i], inner))
        if reject and _is_hopeless(samples[0], samples[last]):
            break
        if done >= fewest and time.monotonic() > end:
            break
        if not reject and done >= FEWEST_ROUNDS + 2:
            leader = min(low(samples[i]) for i in order)
            order = [i for i in order if i == last or low(samples[i]) <= RACE_DROP * leader]
            if len(order) == 1:
                break
        order = order[::-1] if done % 2 else shuffler.sample(order, len(order))
    return samples, anchor


def _is_hopeless(samples: list[float], baseline: list[float]) -> bool:
    ratio = min(samples) / min(baseline)
    return ratio > 3.0 or len(samples) >= FEWEST_ROUNDS and ratio > 1.5
