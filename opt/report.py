"""What a database says of a tune: the data of `expertile tune report`, without any drawing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ops.space import Config, Knob, Space, config_text
from ..tuning_db.key import Key
from ..tuning_db.record import Record
from .importance import Importance, importance, share_of
from .pool import Pool
from .stats import Ratio, speedup

REFUSED = ("illegal", "build_error")             # the compiler or a rule said no
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")
MOST_REASON = 160                                # characters that tell reasons apart

Spaces = Callable[[Key], Space | None]


@dataclass(frozen=True)
class Value:
    """One choice of a knob: how often it was tried and what came of it."""

    knob: str
    value: str
    ok: int
    failed: int                      # built, and then wrong, crashed, too slow or out of memory
    refused: int                     # illegal, or not compiled
    best: float | None               # the shortest time with it, as a share of the default's
    is_default: bool
    valid: int | None = None         # configs of the pool with it, where the space is known

    @property
    def tried(self) -> int:
        """Configs with this choice."""
        return self.ok + self.failed + self.refused


@dataclass(frozen=True)
class Finalist:
    """A config of the last race, against the default."""

    config: Config
    ratio: Ratio                     # how many times faster than the default, 95 %
    rounds: int
    tied: bool                       # a member of the equivalence set
    picked: bool
    is_default: bool


@dataclass(frozen=True)
class Refusal:
    """Configs that came to nothing for the same reason, numbers aside."""

    status: str
    count: int
    example: str
    config: Config


@dataclass(frozen=True)
class ShapeReport:
    """All that is known of the tune of one key."""

    key: Key
    winner: Record | None
    trials: tuple[Record, ...]       # in the order in which they were stored
    default: Config | None
    best_so_far: tuple[float | None, ...]        # share of the default's time after each trial
    importance: Importance
    coverage: tuple[Value, ...]
    finalists: tuple[Finalist, ...]
    refusals: tuple[Refusal, ...]
    pool: int | None                 # valid configs that there were

    @property
    def is_modelled(self) -> bool:
        """Whether the times come from a model, so that nothing here was measured."""
        rows = [self.winner] if self.winner is not None else [r for r in self.trials if r.us]
        return bool(rows) and all(r is not None and r.is_modelled for r in rows)

    @property
    def default_us(self) -> float | None:
        """The default's time, in the final race when there was one."""
        if self.winner is not None and self.winner.default_us:
            return self.winner.default_us
        return next((r.default_us for r in self.trials if r.default_us), None)


def read(rows: Sequence[Record], spaces: Spaces = lambda key: None) -> list[ShapeReport]:
    """One report a key, in the order of operators and keys.

    Args:
        rows: records of a database, oldest first, candidates and winners.
        spaces: the space of a key where it is known: shows choices that were never tried.
    """
    by_key: dict[str, list[Record]] = {}
    for row in rows:
        by_key.setdefault(row.key.hash, []).append(row)
    found = [_shape(group, spaces(group[0].key)) for group in by_key.values()]
    return sorted(found, key=lambda r: (r.key.op, r.key.device, str(sorted(r.key.static.items())),
                                        [str(v).rjust(12) for v in r.key.dynamic.values()],
                                        r.key.routing))


def _shape(rows: Sequence[Record], space: Space | None) -> ShapeReport:
    winner = next((r for r in rows if r.role == "winner"), None)
    trials = tuple(r for r in rows if r.role == "candidate")
    default = _default(trials, winner, space)
    return ShapeReport(
        rows[0].key, winner, trials, default, _best_so_far(trials), importance(trials),
        _coverage(trials, default, space), _finalists(winner, default), _refusals(trials),
        winner.provenance.pool if winner is not None and winner.provenance.pool else None)


def _default(trials: Sequence[Record], winner: Record | None, space: Space | None
             ) -> Config | None:
    """The space's first config; else the one that was timed against itself."""
    if space is not None:
        return space.default()
    if winner is not None and winner.decision == "default kept":
        return winner.config
    same = (r.config for r in trials if r.us and r.us == r.default_us
            and r.samples == r.default_samples)
    return next(same, None)


def _best_so_far(trials: Sequence[Record]) -> tuple[float | None, ...]:
    best: float | None = None
    found = []
    for row in trials:
        share = share_of(row)
        if share is not None and (best is None or share < best):
            best = share
        found.append(best)
    return tuple(found)


def _coverage(trials: Sequence[Record], default: Config | None, space: Space | None
              ) -> tuple[Value, ...]:
    """Every choice that is in a valid config (where the space is known) or that was tried."""
    pool = Pool(space).configs if space is not None and trials else []
    valid = Counter((knob, str(value)) for config in pool for knob, value in config.items())
    choices: dict[str, list[Knob]] = {}
    for config in [*pool, *(r.config for r in trials)]:
        for knob, value in config.items():
            if value not in choices.setdefault(knob, []):
                choices[knob].append(value)
    return tuple(_value(trials, knob, value, default, valid[knob, str(value)] if pool else None)
                 for knob, values in choices.items() for value in _sorted(values))


def _sorted(values: list[Knob]) -> list[Knob]:
    numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    return sorted(values) if numbers else values


def _value(trials: Sequence[Record], knob: str, value: Knob, default: Config | None,
           valid: int | None) -> Value:
    rows = [r for r in trials if r.config.get(knob) == value]
    ok = sum(r.us is not None for r in rows)
    refused = sum(r.status in REFUSED for r in rows)
    shares = [s for r in rows if (s := share_of(r)) is not None]
    return Value(knob, str(value), ok, len(rows) - ok - refused, refused,
                 min(shares, default=None), default is not None and default.get(knob) == value,
                 valid)


def _finalists(winner: Record | None, default: Config | None) -> tuple[Finalist, ...]:
    """The race as it was stored; the default, which ran in all rounds, is its last."""
    if winner is None or not winner.race:
        return ()
    texts = {text: taken for text, taken in winner.race.items()}
    last = config_text(default) if default is not None else ""
    base = texts.get(last) or list(texts.values())[-1]
    tied = {config_text(c) for c in winner.equivalents}
    configs = {config_text(c): c for c in (*winner.equivalents, winner.config,
                                           *([default] if default is not None else []))}
    found = [Finalist(configs.get(text) or _decoded(text), speedup(taken, base), len(taken),
                      text in tied, text == config_text(winner.config), taken is base)
             for text, taken in texts.items()]
    return tuple(sorted(found, key=lambda f: -f.ratio.value))


def _decoded(text: str) -> Config:
    decoded: Config = json.loads(text)
    return decoded


def _refusals(trials: Sequence[Record]) -> tuple[Refusal, ...]:
    """What came to nothing, the most frequent reason first."""
    bad = [r for r in trials if r.us is None]

    def reason(row: Record) -> tuple[str, str]:
        line = next(iter(row.error.strip().splitlines()), "")
        return row.status, _NUMBER.sub("#", line)[:MOST_REASON]

    first = {reason(r): r for r in reversed(bad)}
    return tuple(Refusal(status, count, first[status, why].error.strip() or "no reason was given",
                         first[status, why].config)
                 for (status, why), count in Counter(map(reason, bad)).most_common())
