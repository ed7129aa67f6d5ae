"""What may vary in a lowering: a finite set of configs with a predicate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

Knob = int | str | bool
Config = Mapping[str, Knob]          # one point of a space; plain JSON


def always(config: Config) -> bool:
    """The predicate of a space without constraints."""
    return True


def config_text(config: Config) -> str:
    """The canonical JSON text of a config: its identity everywhere."""
    return json.dumps(dict(config), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Space:
    """All valid configs of a lowering. The first choice of each knob is the default."""

    knobs: Mapping[str, tuple[Knob, ...]]
    where: Callable[[Config], bool] = always

    def __post_init__(self) -> None:
        first = {name: choices[0] for name, choices in self.knobs.items()}
        if not self.where(first):
            raise ValueError(f"the first choice of every knob must be a valid config, got {first}")

    def default(self) -> dict[str, Knob]:
        """The config that is used with no record, and the one that a tuned config must beat."""
        return {name: choices[0] for name, choices in self.knobs.items()}

    def __iter__(self) -> Iterator[dict[str, Knob]]:
        for values in product(*self.knobs.values()):
            config = dict(zip(self.knobs, values, strict=True))
            if self.where(config):
                yield config

    def product_size(self) -> int:
        """How many points the knobs span before the predicate."""
        return prod(len(choices) for choices in self.knobs.values())

    def why_not(self, config: Config) -> str | None:
        """The rule that a config from outside breaks, or None when it belongs to the space."""
        if set(config) != set(self.knobs):
            return f"knobs must be {sorted(self.knobs)}, got {sorted(config)}"
        for name, value in config.items():
            choices = self.knobs[name]
            if not any(type(value) is type(c) and value == c for c in choices):
                return f"{name} must be one of {list(choices)}, got {value!r}"
        return None if self.where(config) else f"the space's predicate refuses {dict(config)}"
