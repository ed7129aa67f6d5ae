"""Dispatch: operator call -> axes -> record -> compiled kernel -> launch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from . import ops, settings, targets
from .collect import collector_in
from .ops.routing import name_of
from .ops.space import config_text
from .ops.spec import Args, Kernel, Operator, Outputs, Shape
from .targets.base import BuildError, Target

if TYPE_CHECKING:
    from .tuning_db.lookup import Snapshot

log = logging.getLogger("expertile")
_DEVICES = ("cpu", "cuda", "npu", "musa", "mlu", "gcu", "txda")   # torch's names
_MEMO_LIMIT = 65_536                 # distinct call shapes remembered before starting over

AnsweredBy = Literal["tuned", "modelled", "default kept", "default", "reference"]
Choice = tuple[dict[str, Any], AnsweredBy, str, str]     # config, who says so, tier, why


@dataclass
class Bound:
    """What answers calls of one shape, and why."""

    op: Operator
    shape: Shape
    kernel: Kernel
    by: AnsweredBy
    config: dict[str, Any]
    tier: str
    why: str
    rest: Sequence[Choice] = ()      # what answers if this one's kernel does not compile after all
    calls: int = 0


class Runtime:
    """Answers operator calls on one kind of device from one stack of tuning databases.

    Args:
        device: torch device type whose tensors are served ("cpu", "cuda", "npu", "musa" ...).
        db: a tuning database (path or URL) laid over the project's, the user's and the shipped one.
        threads: CPU threads of the kernels; by default all that the process may use.
        routing: whose records are wanted: "uniform", "zipf-S", a recorded routing's name or the
            file that `expertile collect` wrote. Where it has none, uniform ones answer.
    """

    def __init__(self, device: str = "cpu", db: str | Path | None = None,
                 threads: int | None = None, routing: str | None = None):
        if device not in _DEVICES:
            raise ValueError(f"device must be one of {', '.join(_DEVICES)}, got {device!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.device = device
        self._db = db
        self._threads = threads
        self._settings = settings.read()
        self.routing = name_of(routing or self._settings.routing)
        self._by_shape: dict[tuple[Any, ...], Bound] = {}
        self._said: set[str] = set()
        self._watch = collector_in(folder) if (folder := self._settings.collect_dir) else None

    @cached_property
    def target(self) -> Target | None:
        """The device's target, or None while there is none for it."""
        family = targets.family_for(self.device)
        if family is None:
            return None
        options: dict[str, Any] = {"cache_dir": self._settings.cache_dir}
        if self._threads and family == "cpu":
            options["unit"] = str(self._threads)
        if self._settings.cann_home and targets.takes(family, "cann_home"):
            options["cann_home"] = self._settings.cann_home
        return targets.load(family, **options)

    @cached_property
    def snapshot(self) -> Snapshot:
        """The layered database, frozen in memory at first use."""
        from .tuning_db.lookup import load_snapshot

        return load_snapshot(self._db or self._settings.db, user=self._settings.user_db,
                             project=self._settings.project_db, modelled=self._settings.modelled)

    def __call__(self, op: Operator, args: Args, out: Outputs | None = None) -> Outputs:
        """Run one operator into `out` (fresh if None); a wrong call raises before anything runs."""
        shape = op.shape_of(*args)
        key = (op.name, *shape.values())
        bound = self._by_shape.get(key)
        if bound is None:
            if len(self._by_shape) >= _MEMO_LIMIT:
                self._by_shape.clear()
            bound = self._by_shape[key] = self.bind(op, shape)
        bound.calls += 1
        if self._watch is not None:
            self._watch(op, shape, args)
        if out is None:
            out = op.empty(*args)
        try:
            bound.kernel(*args, out=out)
        except BuildError as e:      # a GPU's compiler runs at the first launch
            bound = self._by_shape[key] = self._after(bound, e)
            bound.kernel(*args, out=out)
        return out

    def bind(self, op: Operator, shape: Shape) -> Bound:
        """Decide what answers a shape: its record, else the default config, else the reference."""
        if why := self._unable(op):
            return self._reference(op, shape, why)
        return self._first_built(op, shape, list(self._choices(op, shape)), "")

    def _first_built(self, op: Operator, shape: Shape, choices: Sequence[Choice], failed: str
                     ) -> Bound:
        """A record's config, then the default one, then the truth."""
        assert self.target is not None
        for place, (config, by, tier, reason) in enumerate(choices, 1):
            try:
                kernel = self.target.build_kernel(op, shape, config)
            except BuildError as e:
                failed = self._say_unbuilt(op, config, e)
            else:
                return Bound(op, shape, kernel, by, config, tier, reason, choices[place:])
        return self._reference(op, shape, failed)

    def _after(self, bound: Bound, e: BuildError) -> Bound:
        """The next choice, when a kernel turns out not to compile at its first launch."""
        why = self._say_unbuilt(bound.op, bound.config, e)
        following = self._first_built(bound.op, bound.shape, bound.rest, why)
        following.calls = bound.calls
        return following

    def _say_unbuilt(self, op: Operator, config: dict[str, Any], e: BuildError) -> str:
        why = f"its kernel could not be built ({e})"
        log.warning("%s with %s: %s", op.name, config, why)
        return why

    def _choices(self, op: Operator, shape: Shape) -> Iterator[Choice]:
        """Configs in the order in which they may answer, each with who says so, tier and why."""
        assert self.target is not None
        answer = self.snapshot.answer(op, self.target, shape, self.routing)
        default = self.target.space(op, shape).default()
        if answer.record is not None and answer.config is not None:
            kept = answer.record.decision == "default kept"
            by: AnsweredBy = "tuned" if not answer.record.is_modelled else "modelled"
            yield dict(answer.config), "default kept" if kept else by, answer.tier, answer.why
            if answer.config == default:
                return
        yield default, "default", "none", answer.why

    def report(self) -> list[dict[str, Any]]:
        """One row per operator and kernel that answered: which record, which tier, how often."""
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for bound in self._by_shape.values():
            static = bound.op.static_of(bound.shape)
            key = (bound.op.name, str(static), bound.by, config_text(bound.config), bound.tier)
            row = rows.setdefault(key, {
                "op": bound.op.name, "static": static, "answered_by": bound.by,
                "tier": bound.tier, "config": bound.config, "why": bound.why, "calls": 0,
                "shapes": 0})
            row["calls"] += bound.calls
            row["shapes"] += 1
        return sorted(rows.values(), key=lambda r: (r["op"], str(r["static"]), -r["calls"]))

    def _unable(self, op: Operator) -> str | None:
        if self._settings.disabled:
            return "EXPERTILE_DISABLE is set"
        if self.target is None:
            return f"there is no target for {self.device} devices yet"
        if why := self.target.available():
            return why
        if not ops.has_lowering(op.name, self.target.lang):
            return f"{op.name} has no {self.target.lang} lowering"
        return None

    def _reference(self, op: Operator, shape: Shape, why: str) -> Bound:
        if why not in self._said:
            self._said.add(why)
            log.warning("%s runs as the slow torch reference: %s", op.name, why)
        return Bound(op, shape, op.reference, "reference", {}, "reference", why)


_current: ContextVar[Runtime | None] = ContextVar("expertile_runtime", default=None)


@cache
def default_runtime(device: str) -> Runtime:
    """The process-wide runtime of a device type, used outside any `use_runtime`."""
    return Runtime(device)


@contextmanager
def use_runtime(runtime: Runtime) -> Iterator[Runtime]:
    """Answer all operator calls on this runtime's device inside the block from it."""
    token = _current.set(runtime)
    try:
        yield runtime
    finally:
        _current.reset(token)


def runtime_for(args: Args) -> Runtime:
    """The runtime in force for the device of the first tensor in `args`."""
    device = next(a.device.type for a in args if isinstance(a, Tensor))
    runtime = _current.get()
    return runtime if runtime is not None and runtime.device == device else default_runtime(device)


def run(op: Operator, args: Args) -> Outputs:
    """Call an operator into fresh outputs."""
    return runtime_for(args)(op, args)
