"""The history of runs, in tables beside the tuning database's records."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, MetaData, Table, Text

from ..tuning_db.errors import told
from ..tuning_db.store import TuningDB
from .changepoint import Change, change_points
from .result import Result

METADATA = MetaData()
RUNS = Table(
    "bench_runs", METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),     # a result is stored once
    Column("created", Text, nullable=False, index=True),
    Column("revision", Text, nullable=False),
    Column("context", Text, nullable=False))     # JSON: what opens a new segment when it changes
POINTS = Table(
    "bench_points", METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", Integer, ForeignKey("bench_runs.id"), nullable=False, index=True),
    Column("name", Text, nullable=False, index=True),
    Column("us", Float, nullable=False),
    Column("floor_us", Float),
    Column("samples", LargeBinary, nullable=False))          # float32, this machine's byte order


@dataclass(frozen=True)
class Point:
    """One case of one run."""

    created: str
    revision: str
    us: float
    context: str
    floor_us: float | None = None    # what the machine's measured limits allowed

    @property
    def percent_of_floor(self) -> float | None:
        """How much of what the machine allows was reached."""
        return 100.0 * self.floor_us / self.us if self.floor_us else None


@dataclass(frozen=True)
class Segment:
    """Runs of one case in one context, and the changes among them."""

    points: tuple[Point, ...]
    opened_by: str                   # what changed against the segment before; "" for the first
    changes: tuple[Change, ...]

    def regression(self, recent: int) -> Change | None:
        """The last slow-down, if it began among the last `recent` runs."""
        slower = [c for c in self.changes
                  if c.ratio > 1 and c.at >= len(self.points) - recent]
        return slower[-1] if slower else None


def context_of(result: Result) -> str:
    """What must be the same for two runs to form a series."""
    return json.dumps({**asdict(result.machine), **{
        f"tool {k}": v for k, v in result.toolchain.get("head", {}).items() if k != "expertile"},
        "configs": result.settings.get("configs", "")}, sort_keys=True)


class History(TuningDB):
    """A tuning database that is asked for runs."""

    def __init__(self, where: str | Path):
        super().__init__(where)
        with told(self.where), self._engine.begin() as c:
            METADATA.create_all(c)

    def __enter__(self) -> History:
        return self

    def append(self, result: Result) -> int:
        """Store a run in one transaction; returns its cases, 0 when it is already there."""
        text = json.dumps(result.to_json(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        timed = [(c, us) for c in result.cases if (us := c.us("head")) is not None]
        with told(self.where), self._engine.begin() as c:
            if c.execute(sa.select(RUNS.c.id).where(RUNS.c.digest == digest)).first():
                return 0
            made = c.execute(RUNS.insert().values(
                digest=digest, created=result.created, revision=result.revision.get("head", ""),
                context=context_of(result)))
            assert made.inserted_primary_key is not None
            run = made.inserted_primary_key[0]
            for case, us in timed:
                c.execute(POINTS.insert().values(
                    run=run, name=case.name, us=us, floor_us=case.floor_us,
                    samples=array("f", case.flat("head")).tobytes()))
        return len(timed)

    def names(self) -> list[str]:
        """All cases that were ever stored."""
        with told(self.where), self._engine.connect() as c:
            return list(c.scalars(sa.select(POINTS.c.name).distinct().order_by(POINTS.c.name)))

    def series(self, name: str) -> list[Point]:
        """A case's runs, oldest first."""
        query = (sa.select(RUNS.c.created, RUNS.c.revision, POINTS.c.us, RUNS.c.context,
                           POINTS.c.floor_us)
                 .join(RUNS, RUNS.c.id == POINTS.c.run).where(POINTS.c.name == name)
                 .order_by(RUNS.c.created, RUNS.c.id))
        with told(self.where), self._engine.connect() as c:
            return [Point(*row) for row in c.execute(query)]


def segments(points: Sequence[Point], least: float = 0.02) -> list[Segment]:
    """A series cut where machine, driver or compiler changed: there a jump is no alarm."""
    found: list[list[Point]] = []
    for point in points:
        if not found or found[-1][-1].context != point.context:
            found.append([])
        found[-1].append(point)
    opened = [""] + [_what_changed(a[-1].context, b[0].context)
                     for a, b in zip(found, found[1:], strict=False)]
    return [Segment(tuple(part), why, tuple(change_points([p.us for p in part], least)))
            for part, why in zip(found, opened, strict=True)]


def _what_changed(before: str, after: str) -> str:
    old, new = json.loads(before), json.loads(after)
    return ", ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in sorted({*old, *new})
                     if old.get(k) != new.get(k))


def otava_config(names: Sequence[str], csv_file: Path) -> str:
    """What tells Apache Otava 0.8 how to read that CSV: its YAML, of which JSON is a part."""
    return json.dumps({"tests": {"expertile": {
        "type": "csv", "file": str(csv_file.resolve()), "time_column": "time",
        "attributes": ["commit"], "csv_options": {"delimiter": ",", "quote_char": '"'},
        "metrics": {name: {"column": name, "direction": -1} for name in names}}}}, indent=1) + "\n"


def otava_csv(history: History, names: Sequence[str]) -> str:
    """All runs as Apache Otava reads them: time, commit, a column a case; absent stays empty."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name in names:
        for point in history.series(name):
            rows.setdefault((point.created, point.revision), {})[name] = point.us
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time", "commit", *names])
    for (created, revision), values in sorted(rows.items()):
        writer.writerow([created, revision, *(f"{values[n]:.6g}" if n in values else ""
                                              for n in names)])
    return text.getvalue()
