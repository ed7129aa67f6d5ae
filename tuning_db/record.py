"""One measured config: what was tried, what came of it, and how it was found out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NoReturn, get_args

from ..ops.space import Config
from .key import Key, canonical, checked_fields, is_flat

Status = Literal["ok", "wrong", "illegal", "build_error", "run_error", "timeout", "oom", "noisy"]
Role = Literal["candidate", "winner"]
Decision = Literal["tuned", "default kept", "ranked"]     # the last: by a model, unmeasured
Kind = Literal["measured", "modelled"]

# As in targets.base.Evidence, which this room may not import; a test holds them together.
EVIDENCE = ("L0 described", "L1 lowered", "L2 native object", "L3 executed and checked", "L4 timed")
_OMITTED = ("race", "anchor", "noise")     # when empty: records older than these stay as they were
MAX_TEXT = 1 << 20                   # characters of one record; a larger one is damage or an attack


@dataclass(frozen=True)
class Provenance:
    """Who measured, with what, when: enough to repeat it, nothing that names a host or a user."""

    tool: str                        # version of this package
    time: str                        # UTC, ISO 8601
    command: str = ""
    seed: int = 0
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)  # of a winner: what it had
    trials: int = 0                  # of a winner: candidates that were tried
    pool: int = 0                    # of a winner: valid configs that there were

    def __post_init__(self) -> None:
        for name in ("tool", "time", "command", "machine"):
            _check(isinstance(getattr(self, name), str), f"provenance.{name} must be a string",
                   getattr(self, name))
        for name in ("seed", "trials", "pool"):
            _check(type(getattr(self, name)) is int, f"provenance.{name} must be an integer",
                   getattr(self, name))
        for name in ("versions", "budget"):
            _check(is_flat(getattr(self, name)), f"provenance.{name} must map names to values",
                   getattr(self, name))


@dataclass(frozen=True)
class Record:
    """A candidate that was tried, or the winner that answers look-ups."""

    key: Key
    config: Config
    status: Status
    role: Role
    evidence: str
    kind: Kind
    provenance: Provenance
    decision: Decision | None = None           # winners only
    us: float | None = None                    # low quantile of the samples
    default_us: float | None = None            # of the default, interleaved with it
    floor_us: float | None = None              # what the machine's limits allow
    speedup: float | None = None               # default_us / us
    speedup_ci: tuple[float, float] | None = None          # 95 %
    samples: tuple[float, ...] = ()            # raw, microseconds per call
    default_samples: tuple[float, ...] = ()    # in the same rounds
    equivalents: tuple[Config, ...] = ()       # configs that cannot be told from the winner
    ranked: tuple[Config, ...] = ()            # of a modelled winner: the best few, to be measured
    parts: Mapping[str, Any] = field(default_factory=dict)     # what a modelled time is made of
    race: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of a winner: the
                                               # finalists' raw samples by config text
    anchor: tuple[float, ...] = ()             # a fixed kernel's, one sample a round
    noise: Mapping[str, Any] = field(default_factory=dict)     # of a winner: what the anchor says
    error: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("status", get_args(Status)), ("role", get_args(Role)),
                              ("evidence", EVIDENCE), ("kind", get_args(Kind)),
                              ("decision", (None, *get_args(Decision)))):
            value = getattr(self, name)
            _check(value in allowed, f"{name} must be one of {list(allowed)}", value)
        for name in ("us", "default_us", "floor_us", "speedup"):
            value = getattr(self, name)
            _check(value is None or _is_time(value), f"{name} must be a finite number > 0", value)
        for name in ("samples", "default_samples", "speedup_ci", "anchor"):
            _check_times(name, getattr(self, name) or ())
        for text, taken in self.race.items():
            _check_times(f"race of {text}", taken)
        _check(self.speedup_ci is None or len(self.speedup_ci) == 2,
               "speedup_ci must be [low, high]", self.speedup_ci)
        for config in (self.config, *self.equivalents, *self.ranked, self.parts, self.noise):
            _check(is_flat(config), "a config must map knobs to plain values", config)
        _check(isinstance(self.error, str), "error must be a string", self.error)
        _check((self.decision is None) == (self.role == "candidate"),
               "a winner, and nothing else, has a decision", self.decision)
        _check(self.decision != "ranked" or self.is_modelled,
               "only what nobody measured is ranked", self.kind)
        _check(self.status != "ok" or self.us is not None, "a record that is ok must have us", None)

    @property
    def is_modelled(self) -> bool:
        """Whether its time comes from a model alone: it orders configs, and was never measured."""
        return self.kind == "modelled" and not self.samples

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives the same record back."""
        return {k: v for k, v in asdict(self).items() if v or k not in _OMITTED}

    @property
    def text(self) -> str:
        """Canonical JSON on one line."""
        return canonical(self.to_json())

    @classmethod
    def from_json(cls, data: object) -> Record:
        """The record in decoded JSON; ValueError names what is unknown, missing or wrong."""
        have = dict(checked_fields(cls, data, "record"))
        have["key"] = Key.from_json(have["key"])
        have["provenance"] = Provenance(
            **checked_fields(Provenance, have["provenance"], "provenance"))
        for name in ("samples", "default_samples", "equivalents", "ranked", "speedup_ci", "anchor"):
            value = have.get(name)
            if value is not None:
                _check(isinstance(value, list | tuple), f"{name} must be a list", value)
                have[name] = tuple(value)
        race = have.get("race", {})
        _check(isinstance(race, dict), "race must map configs to samples", race)
        have["race"] = {str(k): tuple(v) if isinstance(v, list) else v for k, v in race.items()}
        return cls(**have)

    @classmethod
    def from_text(cls, text: str) -> Record:
        """The record on one line of JSON; ValueError when it is damaged."""
        if len(text) > MAX_TEXT:
            raise ValueError(f"a record must have at most {MAX_TEXT} characters, got {len(text)}")
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except RecursionError:
            raise ValueError("a record must be flat JSON, got deep nesting") from None
        return cls.from_json(data)


def _is_time(value: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)
            and math.isfinite(value) and value > 0)


def _check_times(name: str, value: object) -> None:
    _check(isinstance(value, tuple) and all(map(_is_time, value)),
           f"{name} must be finite numbers > 0", value)


def _check(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {str(value)[:200]!r}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, got {name}")
