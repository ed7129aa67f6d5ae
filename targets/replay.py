"""Answers from a stored landscape: every config's status and time as once measured elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..ops.space import Config, Space, config_text
from ..ops.spec import Kernel, Operator, Shape
from ._virtual import Clock, Virtual, elapsed_us
from .base import BuildError, Examined, Recipe, RunFailed

FORMAT = "expertile-landscape-1"
_BUILD = ("build_error",)
_RUN = ("wrong", "illegal", "run_error", "timeout", "oom")


@dataclass(frozen=True)
class Entry:
    """What became of one config."""

    status: str
    us: float | None
    error: str


@dataclass(frozen=True)
class ReplayTarget(Virtual):
    """A landscape file played as a device; the same for every operator."""

    path: Path
    knobs: Mapping[str, tuple[Any, ...]]
    entries: Mapping[str, Entry] = field(repr=False)     # by config text
    sleep_s: float = 0.0             # real time that each sample takes
    name: str = "replay"
    lang: str = "replay"
    torch_device: str = "cpu"
    aliases: tuple[str, ...] = ()
    computes: bool = False
    _clock: Clock = field(default_factory=Clock, compare=False, repr=False)

    @cached_property
    def device(self) -> str:
        """The landscape's name."""
        return f"replay-{self.path.stem}"

    @property
    def arch(self) -> str:
        """Landscapes are a family of their own: their times are not this machine's."""
        return "replay"

    def space(self, op: Operator, shape: Shape) -> Space:
        """The configs that were tried, failed ones included."""
        return Space(self.knobs, lambda config: config_text(config) in self.entries)

    def build_kernel(self, op: Operator, shape: Shape, config: Config) -> Kernel:
        """A kernel that fails as it once failed, or moves the virtual clock."""
        entry = self.entries[config_text(config)]
        if entry.status in _BUILD:
            raise BuildError(entry.error or "build failed when recorded", "build_error")

        def run(*args: Any, out: Any) -> None:
            if entry.us is None:
                raise RunFailed(entry.error or "failed when recorded", entry.status)  # type: ignore[arg-type]
            self._clock.now += entry.us

        return run

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Nothing compiles, but what once failed to build fails again."""
        self.build_kernel(op, shape, config)
        return self.examine(op, shape, config)

    def recipe(self) -> Recipe:
        """How a child process makes this target again."""
        return f"{__name__}:target", {"unit": str(self.path), "sleep_s": self.sleep_s}

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Virtual time of one of `inner` calls, in microseconds."""
        return elapsed_us(self._clock, self.sleep_s, fn, inner)


def target(unit: str = "", sleep_s: float = 0.0, cache_dir: object = None) -> ReplayTarget:
    """The landscape in the file `unit` ("replay:PATH")."""
    if not unit:
        raise ValueError("the replay target needs a landscape file: replay:PATH")
    path = Path(unit)
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} must be a landscape in JSON: {e}") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} must be a landscape with format {FORMAT!r}")
    knobs = {str(name): tuple(choices) for name, choices in data["knobs"].items()}
    entries = {config_text(e["config"]): _entry(path, e) for e in data["entries"]}
    return ReplayTarget(path, knobs, entries, sleep_s)


def _entry(path: Path, data: Mapping[str, Any]) -> Entry:
    status, us = data.get("status", "ok"), data.get("us")
    if status not in ("ok", *_BUILD, *_RUN):
        raise ValueError(f"{path}: status must be ok or a kind of failure, got {status!r}")
    good = isinstance(us, int | float) and math.isfinite(us) and us > 0
    if good != (status == "ok"):
        raise ValueError(f"{path}: an entry has us > 0 if and only if it is ok, got {dict(data)}")
    return Entry(status, float(us) if good and us is not None else None, str(data.get("error", "")))
