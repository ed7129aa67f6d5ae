"""Targets without a device: nothing compiles or runs; a clock of their own says what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..ops.space import Config
from ..ops.spec import Operator, Shape
from .base import Evidence, Examined, Figure, Target, Verdict
from .child import Child


@dataclass
class Clock:
    """A virtual clock that kernels move on, in microseconds."""

    now: float = 0.0


class Virtual:
    """The part of such a target that does not depend on where its times come from."""

    def toolchain(self) -> dict[str, str]:
        """Nothing compiles."""
        return {}

    def surroundings(self) -> dict[str, str]:
        """Nothing compiles."""
        return {}

    def available(self) -> str | None:
        """It is always there."""
        return None

    def evidence(self) -> Evidence:
        """Nothing runs, so nothing is ever checked."""
        return "L0 described"

    def limits(self) -> Mapping[str, Figure]:
        """It has none."""
        return {}

    def legal(self: Target, op: Operator, shape: Shape, config: Config) -> Verdict:
        """A config is legal when it belongs to the space."""
        why = self.space(op, shape).why_not(config)
        return Verdict(why is None, why or "")

    def examine(self: Target, op: Operator, shape: Shape, config: Config) -> Examined:
        """Nothing compiles, so there is nothing to see but the space's verdict."""
        verdict = self.legal(op, shape, config)
        return Examined(verdict.legal, verdict.reason, "L0 described")

    def worker(self, memory_gb: float) -> Child:
        """Any process will do."""
        return Child(memory_gb)


def elapsed_us(clock: Clock, sleep_s: float, fn: Callable[[], object], inner: int) -> float:
    """Virtual time of one of `inner` calls, in microseconds; takes `sleep_s` of real time."""
    time.sleep(sleep_s)
    start = clock.now
    for _ in range(inner):
        fn()
    return (clock.now - start) / inner
