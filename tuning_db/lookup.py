"""Which record answers: a frozen snapshot of all layers, asked without any file or SQL."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ..ops.routing import UNIFORM
from ..ops.space import Config
from ..ops.spec import Operator, Shape, Value
from . import TuningDBError
from .key import SERVED, TIERS, Difference, Key, Tier, differences, key_of, tier_of
from .reasons import MAX_SIZE_RATIO, UNMEASURED, size_step, why_none, why_served
from .record import Record
from .shipped import read_lines, shipped_files
from .store import TuningDB

if TYPE_CHECKING:
    from ..targets.base import Target

Layer = Literal["override", "project", "user", "shipped"]
LAYERS: tuple[Layer, ...] = ("override", "project", "user", "shipped")


@dataclass(frozen=True)
class Answer:
    """What a look-up gives: a config (None: the default one) and the reasons."""

    config: Config | None
    tier: Tier
    layer: Layer | None = None
    record: Record | None = None
    differs: tuple[Difference, ...] = ()
    expected_loss: float | None = None   # fraction of speed; None: not known
    why: str = ""


@dataclass(frozen=True)
class Candidate:
    """One record of an operator, as `explain` shows it."""

    record: Record
    layer: Layer
    tier: Tier
    differs: tuple[Difference, ...]
    serves: bool
    why_not: str = ""


@dataclass(frozen=True)
class Explanation:
    """An answer and every record that could have been one, nearest first."""

    wanted: Key
    answer: Answer
    candidates: tuple[Candidate, ...]


_NEARER = "another record is nearer"
_Rows = tuple[tuple[Layer, Record], ...]
_Index = Mapping[tuple[str, str, tuple[tuple[str, Value], ...]], _Rows]


class Snapshot:
    """All winners of all layers, by operator and static axes."""

    def __init__(self, layers: Mapping[Layer, Iterable[Record]] | None = None,
                 problems: tuple[str, ...] = (), modelled: bool = False):
        """`modelled`: modelled records answer even where the device could measure."""
        index: dict[tuple[str, str, tuple[tuple[str, Value], ...]], list[tuple[Layer, Record]]] = {}
        for layer in LAYERS:
            for record in (layers or {}).get(layer, ()):
                if record.role == "winner":
                    index.setdefault(_slot(record.key), []).append((layer, record))
        self._index: _Index = MappingProxyType({k: tuple(v) for k, v in index.items()})
        self._modelled = modelled
        self.problems = problems     # lines and rows that were refused

    def __len__(self) -> int:
        return sum(map(len, self._index.values()))

    def answer(self, op: Operator, target: Target, shape: Shape, routing: str = UNIFORM) -> Answer:
        """The best record for a shape on a target, or the default config and why."""
        rows = self._index.get((op.name, target.arch, tuple(sorted(op.static_of(shape).items()))))
        if not rows:
            return Answer(None, "none", why=f"no record of {op.name} with these static axes on "
                                            f"{target.arch}; the default config answers")
        wanted = key_of(op, target, shape, routing)
        refused = ""
        held_back = not self._modelled and target.available() is None
        for _, layer, record, tier in self._ranked(op, target, wanted, rows):
            if record.is_modelled and held_back:
                return Answer(None, tier, why=f"of the {tier} record {UNMEASURED}; the default "
                                              f"config answers{refused}")
            if why := target.space(op, shape).why_not(record.config):
                refused = refused or f"; a record was refused: {why}"
                continue
            differs = differences(record.key, wanted)
            exact = not differs
            return Answer(dict(record.config), tier, layer, record, differs,
                          0.0 if exact else None, why_served(record, layer, tier, differs))
        nearest = min((tier_of(r.key, wanted, target.aliases) for _, r in rows), key=TIERS.index)
        return Answer(None, nearest, why=why_none(nearest) + refused)

    def explain(self, op: Operator, target: Target, shape: Shape, routing: str = UNIFORM
                ) -> Explanation:
        """Which record answers, and for every other one of the operator why it does not."""
        wanted = key_of(op, target, shape, routing)
        answer = self.answer(op, target, shape, routing)
        found = []
        for layer, record in (row for slot, rows in self._index.items() if slot[0] == op.name
                              for row in rows):
            tier = tier_of(record.key, wanted, target.aliases)
            serves = record is answer.record
            why_not = "" if serves else self._why_not(op, target, shape, record, tier)
            if record.is_modelled and not serves and why_not == _NEARER and answer.record is None:
                why_not = UNMEASURED
            found.append(Candidate(record, layer, tier, differences(record.key, wanted), serves,
                                   why_not))
        found.sort(key=lambda c: (not c.serves, TIERS.index(c.tier), len(c.differs),
                                  LAYERS.index(c.layer)))
        return Explanation(wanted, answer, tuple(found))

    @staticmethod
    def _ranked(op: Operator, target: Target, wanted: Key, rows: _Rows
                ) -> list[tuple[tuple[float, ...], Layer, Record, Tier]]:
        """Rows that may serve: the wanted size first, then tier, distance in size, layer."""
        ranked: list[tuple[tuple[float, ...], Layer, Record, Tier]] = []
        regime = op.regime(wanted.shape)
        for order, (layer, record) in enumerate(rows):
            tier = tier_of(record.key, wanted, target.aliases)
            if tier not in SERVED:
                continue
            step = size_step(record.key.dynamic, wanted.dynamic)
            if step is None or step[1] and op.regime({**wanted.static, **record.key.dynamic}
                                                     ) != regime:
                continue
            rank = (float(record.is_modelled), float(step[1] > 0), record.kind == "modelled",
                    TIERS.index(tier), *step, LAYERS.index(layer), -order)
            ranked.append((rank, layer, record, tier))
        ranked.sort(key=lambda r: r[0])
        return ranked

    @staticmethod
    def _why_not(op: Operator, target: Target, shape: Shape, record: Record, tier: Tier) -> str:
        if tier not in SERVED:
            return why_none(tier)
        if size_step(record.key.dynamic, op.dynamic_of(shape)) is None:
            return f"its size is more than {MAX_SIZE_RATIO:g}x away"
        if op.regime(record.key.shape) != op.regime(shape):
            return f"it was tuned in the regime {op.regime(record.key.shape)!r}"
        if why := target.space(op, shape).why_not(record.config):
            return why
        return _NEARER


def _slot(key: Key) -> tuple[str, str, tuple[tuple[str, Value], ...]]:
    return key.op, key.arch, tuple(sorted(key.static.items()))


def _read(path: str | Path) -> tuple[list[Record], list[str]]:
    if str(path).endswith(".jsonl"):
        try:
            return read_lines(Path(path))
        except OSError as e:
            raise TuningDBError(f"{path} cannot be read ({e.strerror}); give another path") from e
    with TuningDB(path, read_only=True) as db:
        return db.records(role="winner"), db.damaged


def load_snapshot(db: str | Path | None = None, user: Path | None = None,
                  project: Path | None = None, shipped: bool = True, modelled: bool = False
                  ) -> Snapshot:
    """Read all layers once.

    A layer that was asked for by argument (`db`) must be usable: TuningDBError otherwise. What is
    wrong with another layer is warned about, and the next layer answers.
    """
    layers: dict[Layer, Iterable[Record]] = {}
    problems: list[str] = []
    if db is not None:
        layers["override"], bad = _read(db)
        problems += bad
    below: tuple[tuple[Layer, list[Path]], ...] = (
        ("project", [project] if project else []), ("user", [user] if user else []),
        ("shipped", shipped_files() if shipped else []))
    for layer, paths in below:
        rows: list[Record] = []
        for path in paths:
            if not path.exists():
                continue
            try:
                found, bad = _read(path)
            except TuningDBError as e:
                problems.append(f"the {layer} layer is left out: {e}")
                continue
            rows += found
            problems += bad
        layers[layer] = rows
    for problem in problems:
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    return Snapshot(layers, tuple(problems), modelled)
