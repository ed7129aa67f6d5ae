"""No device: kernels compute nothing and a formula says how long that takes. For tuner tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, log2
from typing import Any

from ..ops.space import Config, Space
from ..ops.spec import Kernel, Operator, Shape
from ._virtual import Clock, Virtual, elapsed_us
from .base import Examined, Recipe


def formula_us(config: Config) -> float:
    """A smooth landscape whose default is 1.9 times slower than its best config."""
    tile, unroll, split = (int(config[k]) for k in ("tile", "unroll", "split"))
    return 100.0 * (1 + 0.3 * abs(log2(tile / 128)) + 0.15 * abs(log2(unroll / 4))
                    + 0.1 * (split - 1))


@dataclass(frozen=True)
class NullTarget(Virtual):
    """A target without a device; the same for every operator."""

    flat: bool = False               # every config takes the same time
    noise: float = 0.0               # relative spread of a call's time
    sleep_s: float = 0.0             # real time that each sample takes
    seed: int = 0
    name: str = "null"
    lang: str = "null"
    arch: str = "null"
    device: str = "null"
    torch_device: str = "cpu"
    aliases: tuple[str, ...] = ()
    computes: bool = False
    _clock: Clock = field(default_factory=Clock, compare=False, repr=False)
    _random: random.Random = field(default_factory=random.Random, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._random.seed(self.seed)

    def space(self, op: Operator, shape: Shape) -> Space:
        """48 points, 44 of them valid."""
        return Space({"tile": (32, 16, 64, 128), "unroll": (1, 2, 4, 8), "split": (1, 2, 4)},
                     lambda c: c["tile"] != 16 or c["split"] != 4)

    def build_kernel(self, op: Operator, shape: Shape, config: Config) -> Kernel:
        """A kernel that leaves its outputs alone and moves the virtual clock."""
        us = 100.0 if self.flat else formula_us(config)

        def run(*args: Any, out: Any) -> None:
            self._clock.now += us * exp(self._random.gauss(0.0, self.noise))

        return run

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Nothing compiles."""
        return self.examine(op, shape, config)

    def recipe(self) -> Recipe:
        """How a child process makes this target again."""
        return f"{__name__}:target", {"flat": self.flat, "noise": self.noise,
                                      "sleep_s": self.sleep_s, "seed": self.seed}

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Virtual time of one of `inner` calls, in microseconds."""
        return elapsed_us(self._clock, self.sleep_s, fn, inner)


def target(flat: bool = False, noise: float = 0.0, sleep_s: float = 0.0, seed: int = 0,
           cache_dir: object = None) -> NullTarget:
    """The null target; `cache_dir` is taken for the sake of uniform loading and not used."""
    return NullTarget(flat, noise, sleep_s, seed)
