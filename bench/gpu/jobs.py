"""What runs in a child process on the GPU, so that a hang or a fault costs one case."""

from __future__ import annotations

import random
from typing import Any

from ... import ops
from ...ops.space import Config
from ...opt.jobs import session_of
from ...opt.pool import Pool
from ...opt.session import make_target
from .libraries import library_peers
from .peers import peers

_CALLS = 20


def configs(site: dict[str, Any], count: int, seed: int) -> list[Config]:
    """The default config of a shape, and others drawn from its pool."""
    target = make_target(tuple(site["recipe"]))
    first, *others = Pool(target.space(ops.load(site["op"]), site["shape"])).configs
    return [first, *random.Random(seed).sample(others, min(count, len(others)))]


def check(site: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The first adversarial case on which a config is wrong, or None."""
    session = session_of(site)
    session.keep(config)
    return session.why_wrong(config)


def time_config(site: dict[str, Any], config: dict[str, Any]) -> float:
    """Device microseconds of a config, L2 cold, rotating through argument sets."""
    session = session_of(site)
    session.keep(config)
    return session.target.time_us(session.caller(config, 0), _CALLS)


def time_peers(site: dict[str, Any]) -> dict[str, float | str]:
    """The same for what torch has, and the libraries that are installed; else why not."""
    session = session_of(site)
    others, absent = library_peers(session.op.name, session.args[0])
    found: dict[str, float | str] = dict(absent)
    known = peers(session.op.name, session.shape, session.args[0])
    for name, call in (*known.items(), *others.items()):
        try:
            call()
            call()
            found[name] = session.target.time_us(call, _CALLS)
        except Exception as e:           # a peer that cannot do this shape
            found[name] = f"{type(e).__name__}: {str(e)[:200]}"
    return found


def modelled(site: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What examining a config says: legal, spills, modelled microseconds."""
    target = make_target(tuple(site["recipe"]))
    seen = target.compile_here(ops.load(site["op"]), site["shape"], config)
    return {"legal": seen.legal, "spill_bytes": seen.spill_bytes, "modelled_us": seen.modelled_us}


def describe(recipe: list[Any]) -> dict[str, Any]:
    """The device, its toolchain and its measured ceilings (GB/s and GFLOP/s)."""
    target = make_target((recipe[0], recipe[1]))
    limits = {name: f.value for name, f in target.limits().items() if f.confidence == "measured"}
    return {"device": target.device, "arch": target.arch, "toolchain": target.toolchain(),
            "evidence": target.evidence(), "measured": limits}
