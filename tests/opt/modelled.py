"""A target that compiles for a device that is not here, and models its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from expertile.ops.space import Config
from expertile.ops.spec import Operator, Shape
from expertile.targets.base import Evidence, Examined, Recipe
from expertile.targets.null import NullTarget, formula_us

TOO_LARGE = "kernel: L0C needs 2097152 of 1048576 bits"
WRONG = {"tile": 128, "unroll": 4, "split": 1}       # the best by the model, and wrong


@dataclass(frozen=True)
class Verified:
    """What the target's own gates say."""

    gates: Mapping[str, str]
    wrong: str
    note: str = "passed: all"

    @property
    def reason(self) -> str:
        return self.wrong

    @property
    def ok(self) -> bool:
        return not self.wrong


@dataclass(frozen=True)
class ModelledTarget(NullTarget):
    """The null target's landscape as modelled times; a tile of 16 does not compile."""

    name: str = "modelled"
    has_model: bool = True
    is_here: bool = False
    arch: str = "modelled"

    def available(self) -> str | None:
        return None if self.is_here else "no such device is here"

    def evidence(self) -> Evidence:
        return "L1 lowered"

    def examine(self, op: Operator, shape: Shape, config: Config) -> Examined:
        if config["tile"] == 16:
            return Examined(False, TOO_LARGE, "L0 described")
        us = 100.0 if self.flat else formula_us(config)
        return Examined(True, "", "L1 lowered", modelled_us=us if self.has_model else None,
                        kernels=({"name": "k", "model": {"us": us, "bound": "memory"}},))

    def verify(self, op: Operator, shape: Shape, config: Config) -> Verified:
        bad = dict(config) == WRONG and not self.flat
        return Verified({}, "simulated: bytes are read too early" if bad else "")

    def recipe(self) -> Recipe:
        return f"{__name__}:target", {"flat": self.flat, "has_model": self.has_model}


def target(flat: bool = False, has_model: bool = True) -> ModelledTarget:
    """The target in a child."""
    return ModelledTarget(flat, has_model=has_model)
