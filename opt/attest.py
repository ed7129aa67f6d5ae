"""What a device really did: every operator compiled, run, checked and timed, as one document.

An owner of a device runs it and sends the document back; opt/attest_check.py reads such a one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..ops import has_lowering
from ..ops.source import source_hash
from ..ops.space import Config
from ..ops.spec import Operator, Shape
from ..targets.base import BuildError, Target
from ..targets.child import ChildCrashed
from .budget import Guard
from .provenance import machine
from .session import Site
from .stats import low, speedup
from .workers import Tried, Workers

KIND, FORMAT = "expertile-attestation", 1
PACKAGES = ("expertile", "torch", "apache-tvm", "triton", "ascendnpu-ir", "torch-npu")
# What a status of the measuring process proves; a timed one that is right is L4.
_RAN = ("ok", "wrong")


@dataclass(frozen=True)
class Row:
    """One operator at one shape; plain JSON. None: it was not tried, and `why` says why."""

    op: str
    shape: dict[str, Any]
    source: str                      # hash of the lowering and what it imports
    config: dict[str, Any] | None
    answered_by: str                 # "default", or the kind of the record whose config it is
    compiles: bool | None
    runs: bool | None
    matches: bool | None
    us: float | None
    default_us: float | None
    speedup: float | None            # default's time / us; 1.0 where the default answers
    samples: tuple[float, ...]
    evidence: str
    status: str
    why: str


# Which config answers a shape, and who says so; None: the default does.
Answers = Callable[[Operator, Shape], tuple[Config, str] | None]


def attest(target: Target, tasks: Sequence[tuple[Operator, Shape]], others: Sequence[Mapping[
        str, Any]], answers: Answers = lambda op, shape: None, seconds: float = 0.5,
        done: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """The document for a target.

    Args:
        tasks: operators and shapes, each compiled, run on its hostile cases and timed.
        others: what the other targets of this machine said, shown beside it.
        answers: configs from the tuning database, timed against the default.
        seconds: how long each is timed.
        done: told of each row.
    """
    why = target.available()
    rows = []
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(Guard(), target)) if why is None else None
        for op, shape in tasks:
            rows.append(_row(target, op, shape, workers, why or "", answers, seconds))
            done(rows[-1])
    document: dict[str, Any] = {
        "kind": KIND, "format": FORMAT, "made": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(), "python": platform.python_version(), "packages": packages(),
        "target": {"name": target.name, "arch": target.arch, "device": target.device,
                   "toolchain": target.toolchain(), "why_not": why, "evidence": target.evidence()},
        "operators": [asdict(row) for row in rows], "others": [dict(o) for o in others]}
    document = json.loads(json.dumps(document))  # tuples as lists, as a reader will find them
    return {**document, "sha256": digest(document)}


def digest(document: Mapping[str, Any]) -> str:
    """Of all but itself: what is sent is what was made, or one sees that it is not."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def packages() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _row(target: Target, op: Operator, shape: Shape, workers: Workers | None, why: str,
         answers: Answers, seconds: float) -> Row:
    blank = Row(op.name, dict(shape), "", None, "default", None, None, None, None, None, None, (),
                "L0 described", "unsupported", "")
    if not has_lowering(op.name, target.lang):
        return _with(blank, why=f"{op.name} has no {target.lang} lowering")
    blank = _with(blank, source=source_hash(op.name, target.lang))
    try:
        default = dict(target.space(op, shape).default())
        config, by = answers(op, shape) or (default, "default")
    except BuildError as e:
        return _with(blank, status=e.status, why=str(e))
    blank = _with(blank, config=dict(config), answered_by=by)
    if workers is None:
        return _compiled(target, op, shape, blank, why)
    site = Site(target.recipe(), op.name, dict(shape), 0)
    baseline = default if dict(config) != default else None
    wanted = [dict(config), *([baseline] if baseline is not None else [])]
    built = workers.build(site, wanted)
    failed = next((tried for tried in built if tried.status != "ok"), None)
    if failed is not None:
        return _with(blank, compiles=False, status=failed.status, why=failed.error)
    return _ran(target, blank, workers.measure(site, config, baseline, seconds),
                baseline is not None)


def _compiled(target: Target, op: Operator, shape: Shape, blank: Row, why: str) -> Row:
    """What the compiler says where nothing can run."""
    assert blank.config is not None
    try:
        seen = target.examine(op, shape, blank.config)
    except (BuildError, ChildCrashed) as e:
        return _with(blank, compiles=False, status=getattr(e, "status", "build_error"), why=str(e))
    if not seen.legal:
        return _with(blank, compiles=False, status="illegal", why=seen.reason)
    return _with(blank, compiles=True, status="not run", why=f"not run: {why}",
                 evidence=min(seen.evidence, target.evidence()))


def _ran(target: Target, blank: Row, tried: Tried, has_baseline: bool) -> Row:
    built = _with(blank, compiles=True, status=tried.status, why=tried.error,
                  evidence=min("L2 native object", target.evidence()))
    if tried.status not in _RAN:
        return _with(built, runs=False)
    ran = _with(built, runs=True, matches=tried.status == "ok",
                evidence=min("L3 executed and checked", target.evidence()))
    if tried.status != "ok" or not tried.samples:
        return ran
    us, default_us = low(tried.samples), low(tried.baseline)
    ratio = speedup(tried.samples, tried.baseline).value if has_baseline else 1.0
    return _with(ran, us=us, default_us=default_us, speedup=ratio, samples=tuple(
        float(f"{s:.6g}") for s in tried.samples), evidence=min("L4 timed", target.evidence()))


def _with(row: Row, **changes: Any) -> Row:
    return Row(**{**asdict(row), **changes})
