"""The valid configs of a space, numbered: what a search searches in.

Enumerated first, searched inside: of a real GEMM's product of knobs only 22 % is valid (Kernel
Tuner's gemm on an RTX 3090), and Optuna neither knows which points are nor avoids repeating one
(optuna#2021).
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ops.space import Config, Knob, Space, config_text

MAX_POOL = 50_000
MAX_PRODUCT = 2_000_000              # points of the product that are looked at one by one


class Pool:
    """All valid configs, as rows of ordinal numbers too. The default is the first."""

    def __init__(self, space: Space, configs: list[dict[str, Knob]] | None = None):
        """`configs`: the valid ones where they are known; else the space is enumerated."""
        self.configs = _configs(space) if configs is None else configs
        self.knobs = {k: _ordered(choices) for k, choices in space.knobs.items()
                      if len(choices) > 1}
        self.index = {config_text(c): i for i, c in enumerate(self.configs)}
        # What each knob's value is called: the number of its place among the ordered choices.
        # Keys carry the type, for True == 1.
        self._places = {k: {(type(c), c): i for i, c in enumerate(choices)}
                        for k, choices in self.knobs.items()}
        self.sizes = np.array([len(c) for c in self.knobs.values()], dtype=np.int64)
        self.places: NDArray[np.int64] = np.array(
            [self.place(c) for c in self.configs], dtype=np.int64).reshape(len(self), -1)

    def __len__(self) -> int:
        return len(self.configs)

    def place(self, config: Config) -> list[int]:
        """The ordinal number of each knob's value."""
        return [places[type(config[k]), config[k]] for k, places in self._places.items()]

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        """Ordinal coordinates in [0, 1], [configs, knobs]."""
        return self.places / np.maximum(self.sizes - 1, 1)

    @cached_property
    def by_place(self) -> dict[bytes, int]:
        """A config's number by the bytes of its row of `places`."""
        return {row.tobytes(): i for i, row in enumerate(self.places)}

    def nearest(self, wanted: NDArray[np.int64],
                taken: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """For each row of places [n, knobs] the nearest valid config that is not `taken` (L1)."""
        found = np.array([self.by_place.get(row.tobytes(), -1) for row in wanted], dtype=np.int64)
        if taken is not None:
            found[(found >= 0) & taken[found]] = -1
        far = np.flatnonzero(found < 0)
        if len(far):
            steps = [np.abs(np.arange(size)[:, None] - wanted[far, j][None]) / max(size - 1, 1)
                     for j, size in enumerate(self.sizes)]
            distance = self._one_hot @ np.concatenate(steps).astype(np.float32)
            if taken is not None:
                distance[taken] = np.inf
            found[far] = distance.argmin(axis=0)
        return found

    @cached_property
    def _one_hot(self) -> NDArray[np.float32]:
        """[configs, all choices of all knobs]: distances to many points are one product."""
        table = np.zeros((len(self), int(self.sizes.sum())), dtype=np.float32)
        offsets = np.concatenate([[0], self.sizes.cumsum()[:-1]]).astype(np.int64)
        np.put_along_axis(table, self.places + offsets, 1.0, axis=1)
        return table

    @cached_property
    def distributions(self) -> dict[str, Any]:
        """The knobs as Optuna's distributions: what `study.ask` takes."""
        from optuna.distributions import CategoricalDistribution

        return {k: CategoricalDistribution(choices) for k, choices in self.knobs.items()}


def _ordered(choices: tuple[Knob, ...]) -> tuple[Knob, ...]:
    """Numbers by size, so that neighbours are alike; anything else as the space lists it."""
    if all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices):
        return tuple(sorted(choices))
    return choices


def _configs(space: Space) -> list[dict[str, Knob]]:
    """All valid configs, or of a huge space the default and a fixed random sample."""
    chance = random.Random(0)
    if space.product_size() <= MAX_PRODUCT:
        found = list(space)
        if len(found) <= MAX_POOL:
            return found
        return [found[0], *chance.sample(found[1:], MAX_POOL - 1)]
    sample = {config_text(space.default()): space.default()}
    for _ in range(MAX_PRODUCT):
        config = {k: chance.choice(choices) for k, choices in space.knobs.items()}
        if space.where(config):
            sample[config_text(config)] = config
        if len(sample) == MAX_POOL:
            break
    return list(sample.values())
