"""The measurement of a bundle on its device: checked and timed, compiled only where it must be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import ops
from ..ops.routing import Routing
from ..ops.source import source_hash
from ..ops.space import Config, config_text
from ..targets.base import Target
from ..tuning_db.key import canonical
from ..tuning_db.record import Record
from ..tuning_db.store import TuningDB
from .budget import Guard
from .bundle import COMPILED, BundleError, Candidate, For, Planned
from .bundle_file import Bundle, binaries, unpack
from .job import Job, Method
from .outcome import Outcome, Progress
from .provenance import provenance, tool_version
from .session import Site
from .shape import tune_shape
from .workers import Tried, Workers

_LIMITS = "limits"                   # what a machine reaches, measured once, below its own cache


@dataclass(frozen=True)
class Ran:
    """What came of a bundle."""

    outcomes: list[Outcome]
    compiled: int | None             # kernels that had to be compiled here after all, of a bundle
                                     # whose kernels are used


def why_not(bundle: Bundle, target: Target, recompile: bool = False) -> str | None:
    """Why a bundle cannot be run on a target, and what to do; None when it can."""
    here, there = For.of(target, ""), bundle.manifest.target
    name, tool = bundle.path.name, bundle.manifest.tool
    if here.lang != there.lang:
        return (f"{name} holds configs of {there.name} ({there.arch}), which mean nothing to "
                f"{here.name}: run it with --device {there.asked}")
    for planned in bundle.manifest.shapes:
        if planned.op not in ops.names():
            return (f"{name} has {planned.op}, which this version does not know; run it with "
                    f"expertile {tool}")
        op = ops.load(planned.op)
        if lacking := {*op.static, *op.dynamic} - {*planned.shape}:
            return f"{name}: the shape of {planned.op} lacks {sorted(lacking)}; plan it again"
    if not recompile and (why := _differs(bundle, here)):
        return why
    if why := target.available():
        return (f"{name} is for {there.arch} ({there.device}) and cannot be measured here: {why}; "
                "run it on a machine that has one")
    return None


def _differs(bundle: Bundle, here: For) -> str | None:
    there, name = bundle.manifest.target, bundle.path.name
    if (here.arch, here.device) != (there.arch, there.device):
        return (f"{name} is compiled for {there.arch} ({there.device}), and --device names "
                f"{here.arch} ({here.device}); plan it for that one, or compile its configs here "
                "with --recompile")
    versions = [f"{tool} {was}, here {here.toolchain.get(tool, 'absent')}"
                for tool, was in there.toolchain.items()
                if was not in ("absent", here.toolchain.get(tool))]  # absent: left to the device
    if versions:
        return (f"{name} was compiled with {'; '.join(versions)}; install the same, plan it again "
                "with what is here, or compile its configs here with --recompile")
    changed = [p.op for p in bundle.manifest.shapes if p.source != source_hash(p.op, here.lang)]
    if changed:
        return (f"the kernels of {', '.join(dict.fromkeys(changed))} are not those that {name} was "
                f"compiled from; plan it again with this version ({tool_version()}), run it with "
                f"the one that made it ({bundle.manifest.tool}), or use --recompile")
    return None


def run_bundle(bundle: Bundle, load: Callable[[Path | None], Target], cache_dir: Path,
               db: TuningDB, seconds: float | None = None, recompile: bool = False,
               progress: Progress = lambda event: None, command: str = "",
               guard: Guard | None = None) -> Ran:
    """Measure what a bundle planned, into a database; every candidate is a row at once.

    Args:
        load: makes the target with its caches below a folder; None: where they are as a rule.
        cache_dir: the bundle's kernels are unpacked below it, and stay for a run that is repeated.
        seconds: for all shapes together; without it all candidates are measured.
        recompile: use the configs only, and compile them here.

    Raises:
        BundleError: the bundle is not for this device, these versions or these kernels.
    """
    if why := why_not(bundle, load(None), recompile):
        raise BundleError(why)
    place = cache_dir if recompile else unpack(bundle, cache_dir / "bundles")
    if not recompile:
        _share_limits(cache_dir, place)
    target = load(None if recompile else place)
    before, start, outcomes = binaries(place), time.monotonic(), list[Outcome]()
    shapes = bundle.manifest.shapes
    with Unbuilt(guard or Guard(), target, {} if recompile else _compiled(shapes)) as workers:
        for i, planned in enumerate(shapes):
            left = None
            if seconds is not None:
                left = max(0.0, start + seconds - time.monotonic()) / (len(shapes) - i)
            outcomes.append(_one(bundle, planned, target, db, workers, left, recompile, command,
                                 i, progress))
    return Ran(outcomes, None if recompile else len(binaries(place) - before))


def _share_limits(cache_dir: Path, place: Path) -> None:
    """The machine's limits are measured once, whichever bundle asks: they are no kernels of it."""
    (cache_dir / _LIMITS).mkdir(parents=True, exist_ok=True)
    link = place / _LIMITS
    if not link.is_symlink():
        link.symlink_to((cache_dir / _LIMITS).absolute(), target_is_directory=True)


def _one(bundle: Bundle, planned: Planned, target: Target, db: TuningDB, workers: Workers,
         seconds: float | None, recompile: bool, command: str, index: int,
         progress: Progress) -> Outcome:
    manifest, op = bundle.manifest, ops.load(planned.op)
    tried = len(planned.candidates)
    budget: dict[str, float] = ({"trials": tried} if seconds is None else
                                {"seconds": round(seconds, 3)})
    job = Job(op, target, planned.shape, db, workers, budget, tried, seconds, manifest.seed,
              command, progress, index, len(manifest.shapes), Method(
                  routing=_routing(bundle), origin=bundle.origin.versions(),
                  listed=tuple(c.config for c in planned.wanted)))
    if not recompile:
        _store_refused(job, planned)
    return tune_shape(job)


def _routing(bundle: Bundle) -> Routing:
    try:
        data = dict(bundle.manifest.routing)
        return Routing(str(data["name"]), float(data["zipf"]), tuple(map(float, data["recorded"])))
    except (KeyError, TypeError, ValueError) as e:
        raise BundleError(f"the routing in {bundle.path.name} is damaged ({e}); plan it again"
                          ) from e


def _store_refused(job: Job, planned: Planned) -> None:
    """What the compiler refused is a row like any other, unless there is one."""
    space = job.target.space(job.op, job.shape)
    have = {config_text(r.config) for r in job.db.records(key=job.key, role="candidate")}
    default = config_text(space.default())
    rows = [_refused(job, c) for c in planned.candidates
            if c.status not in ("ok", "spills") and config_text(c.config) not in have
            and space.why_not(c.config) is None and config_text(c.config) != default]
    if rows:
        job.db.add(*rows)


def _refused(job: Job, candidate: Candidate) -> Record:
    return Record(
        key=job.key, config=dict(candidate.config), status=candidate.status,  # type: ignore[arg-type]
        role="candidate", evidence="L0 described",
        kind="measured" if job.target.computes else "modelled",
        provenance=provenance(job.target, job.seed, job.command, origin=job.method.origin),
        error=f"when planned: {candidate.reason}"[:2000])


# By operator and shape: the configs that are compiled already, and the model's times of them.
_Known = dict[tuple[str, str], dict[str, float | None]]


def _compiled(shapes: Sequence[Planned]) -> _Known:
    return {(p.op, canonical(dict(p.shape))): {config_text(c.config): c.modelled_us
                                               for c in p.wanted if c.evidence >= COMPILED}
            for p in shapes}


class Unbuilt(Workers):
    """Takes for built what a bundle has compiled; the rest is compiled here."""

    def __init__(self, guard: Guard, target: Target, known: _Known):
        super().__init__(guard, target)
        self._known = known

    def build(self, site: Site, configs: Sequence[Config], warm: bool = True) -> list[Tried]:
        """Nothing to do for a config of the bundle: its kernels are in the cache."""
        known = self._known.get((site.op, canonical(site.shape)), {})
        rest = [c for c in configs if config_text(c) not in known]
        built = dict(zip(map(config_text, rest), super().build(site, rest, warm) if rest else (),
                         strict=True))
        return [built.get(config_text(c)) or Tried("ok", modelled_us=known[config_text(c)])
                for c in configs]


def summary(bundle: Bundle) -> list[tuple[Planned, dict[str, int]]]:
    """Each shape, and how many candidates have which status."""
    return [(p, {s: sum(c.status == s for c in p.candidates)
                 for s in dict.fromkeys(c.status for c in p.candidates)})
            for p in bundle.manifest.shapes]

