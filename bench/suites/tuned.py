"""Tuned configs against defaults: what the records say, and whether it holds in another process.

    python -m expertile.bench.suites.tuned tuning_db/records/x86-avx2.jsonl --minutes 4
    python -m expertile.bench.suites.tuned records.sqlite --no-measure

Each record that says "tuned" is timed again with data that the tune never saw, default and tuned
taking turns. Exit code 1 when one loses, or when less than half of the ladder gains --factor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import settings
from ...targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from ...targets.cpu.levels import LEVELS
from ...targets.cpu.pages import ENVIRONMENT
from ...tuning_db.record import Record
from ...tuning_db.shipped import read_lines
from ...tuning_db.store import TuningDB
from . import jobs
from .case import Turn, rounds, side
from .goals import Spread, over
from .runner import call

_MOST = 20                           # rounds of a record
_SEED = 1_000_003                    # far from a tune's, which counts up from its own
_LOSES = 0.98                        # less than the default's speed, beyond a re-run's noise


@dataclass(frozen=True)
class Line:
    """One record of the ladder; ratios are default over tuned, 1 for a default that was kept."""

    op: str
    device: str
    shape: dict[str, Any]
    decision: str
    recorded: float
    again: Spread | None = None      # in this run, quartiles over rounds
    error: str = ""

    @property
    def ratio(self) -> float:
        """What is known of the gain: measured again where that was done."""
        return self.again.value if self.again else self.recorded

    @property
    def loses(self) -> bool:
        """Slower than the default in most rounds, by more than noise."""
        return bool(self.error) or self.ratio < _LOSES and (
            self.again is None or self.again.high < 1.0)


def ladder(source: Path) -> list[Record]:
    """The measured winners of CPUs in a database or a file of records."""
    if source.suffix == ".jsonl":
        found, problems = read_lines(source)
        if problems:
            raise ValueError(problems[0])
    else:
        with TuningDB(source, read_only=True) as db:
            found = db.records(role="winner")
    return [r for r in found if r.role == "winner" and r.key.arch in LEVELS and not r.is_modelled]


def said(record: Record) -> Line:
    """What the record itself says."""
    gain = record.speedup if record.decision == "tuned" and record.speedup else 1.0
    return Line(record.key.op, record.key.device, record.key.shape, str(record.decision), gain)


def again(record: Record, child: Child, cache_dir: str, seconds: float) -> Line:
    """Default and tuned in turns on fresh data."""
    unit = f"{record.key.arch}:{record.key.device.rpartition('-t')[2]}"
    line = said(record)
    try:
        default = call(child, jobs.default_config, op=record.key.op, shape=record.key.shape,
                       unit=unit, cache_dir=cache_dir)
        made = call(child, jobs.prepare_configs, op=record.key.op, shape=record.key.shape,
                    unit=unit, cache_dir=cache_dir,
                    configs={"default": default, "tuned": dict(record.config)}, seed=_SEED)
        turns = [Turn(n, side(child, n, m["first_us"])) for n, m in made.items()]
        rounds(turns, seconds, _MOST)
    except (ChildCrashed, ChildFailed, ChildTimeout) as e:
        return Line(**{**vars(line), "error": str(e)[-300:]})
    return Line(**{**vars(line), "again": over(turns[0].found, turns[1].found)})


def measured(records: Sequence[Record], minutes: float, cache_dir: str) -> list[Line]:
    """Every line, tuned ones measured again; a process for each device, for it has one pool."""
    found: list[Line] = []
    todo = sum(r.decision == "tuned" for r in records)
    end = time.monotonic() + 60.0 * minutes
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for record in records:
            if record.decision != "tuned":
                found.append(said(record))
                continue
            if record.key.device not in children:
                children[record.key.device] = child = Child(0, env=ENVIRONMENT)
                stack.callback(child.close)
            found.append(again(record, children[record.key.device], cache_dir,
                               (end - time.monotonic()) / max(todo, 1)))
            todo -= 1
            print(text(found[-1]), flush=True)
    return found


def text(line: Line) -> str:
    """A line of the listing."""
    sizes = ",".join(f"{k}={v}" for k, v in line.shape.items())
    held = (f", again {line.again.value:.2f}x ({line.again.low:.2f}-{line.again.high:.2f})"
            if line.again else "")
    return (f"{line.op} {line.device} {line.decision}, {line.recorded:.2f}x recorded{held}"
            f"{', LOSES ' + line.error if line.loses else ''}  [{sizes}]")


def summary(lines: Sequence[Line], factor: float) -> tuple[list[str], bool]:
    """What the ladder shows, by device and in all, and whether the claim holds."""
    told, holds = [], True
    for device in (*sorted({line.device for line in lines}), ""):
        mine = [x for x in lines if device in ("", x.device)]
        ratios = sorted((x.ratio for x in mine), reverse=True)
        half = ratios[(len(ratios) + 1) // 2 - 1]    # at least half of the ladder has this much
        losers = [x for x in mine if x.loses]
        tuned = sum(x.decision == "tuned" for x in mine)
        told.append(f"{device or 'all'}: {len(mine)} records, {tuned} tuned, the others keep the "
                    f"default; half of the ladder gains {half:.2f}x or more, geometric mean "
                    f"{statistics.geometric_mean(ratios):.2f}x, most {ratios[0]:.2f}x, least "
                    f"{ratios[-1]:.2f}x; {len(losers)} lose")
        holds = holds and not losers and half >= factor
    return told, holds


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="a records file (.jsonl) or a tuning database")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--device", default="", help="only this one, for example x86-avx2-t2")
    parser.add_argument("--factor", type=float, default=1.0, help="what half must gain at least")
    parser.add_argument("--no-measure", action="store_true", help="only what the records say")
    parser.add_argument("--out", type=Path, help="write the lines as JSON")
    args = parser.parse_args()
    records = [r for r in ladder(args.source) if args.device in ("", r.key.device)]
    if not records:
        raise SystemExit(f"{args.source} has no measured CPU records; make some with "
                         "bench/cpu_records.sh")
    cache_dir = str(settings.read().cache_dir)
    lines = ([said(r) for r in records] if args.no_measure
             else measured(records, args.minutes, cache_dir))
    told, holds = summary(lines, args.factor)
    print("\n".join([*(text(x) for x in lines if args.no_measure), *told]))
    if args.out:
        args.out.write_text(json.dumps([asdict(x) for x in lines], indent=1) + "\n")
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
