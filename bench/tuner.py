"""What the tuner promises, tried: `python -m expertile.bench.tuner kills`, `same`, `workers`."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import ops, targets
from ..ops.space import Config, Space
from ..ops.spec import Kernel, Operator, Shape
from ..opt import Budget, Event, tune
from ..targets.base import Examined, Recipe, Verdict
from ..targets.cpu import CpuTarget
from ..targets.null import NullTarget
from ..tuning_db.store import TuningDB, config_hash

app = typer.Typer(no_args_is_help=True, add_completion=False)
COPIES = 8
_OP, _WARM = "silu_mul", 1000
_SHAPES: list[Shape] = [{"h": 64 * i, "dtype": "float32", "tokens": 8} for i in range(1, 5)]


@app.command()
def victim(db: Path, seed: int) -> None:
    """Tune four shapes of a device that computes nothing (for `kills`, which kills it)."""
    target = NullTarget(sleep_s=0.001)
    tune(ops.load(_OP), target, _SHAPES, db, Budget(trials=36), seed=seed,
         progress=lambda e: print(e.kind, flush=True))


def _rows(db: Path) -> dict[str, Any]:
    """What a tune stored, without times of day."""
    with TuningDB(db, read_only=True) as opened:
        return {f"{r.key.hash} {r.role} {config_hash(r.config) if r.role == 'candidate' else ''}":
                [dict(r.config), r.status, r.decision] for r in opened.records()}


def _tune(db: Path, seed: int, killed_after: float | None) -> tuple[bool, float]:
    """One tune in a process of its own: whether it lived to its end, and how long it worked."""
    child = subprocess.Popen([sys.executable, "-m", __spec__.name, "victim", str(db), str(seed)],
                             stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()              # the tune has begun
    start = time.monotonic()
    if killed_after is not None:
        time.sleep(killed_after)
        os.killpg(child.pid, signal.SIGKILL)
    child.stdout.read()
    return child.wait() == 0, time.monotonic() - start


@app.command()
def kills(count: Annotated[int, typer.Option("--count", help="How many tunes to kill.")] = 50,
          seed: Annotated[int, typer.Option("--seed")] = 0) -> None:
    """Kill -9 a tune at random moments: the database is sound, and the resumed result the same.

    Other seeds kill at other moments: 50 kills may be several commands.
    """
    chance, bad = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.sqlite"
        lasts = _tune(whole, seed, None)[1]
        want = _rows(whole)
        for i in range(count):
            db = Path(folder) / f"{i}.sqlite"
            lived, _ = _tune(db, seed, chance.uniform(0, lasts))
            bad["killed"] += not lived
            if db.exists():
                with sqlite3.connect(db) as c:
                    bad["damaged"] += c.execute("PRAGMA integrity_check").fetchone()[0] != "ok"
            bad["not resumed"] += not _tune(db, seed, None)[0]
            bad["another result"] += _rows(db) != want
            print(f"{i + 1}/{count} {dict(bad)}", flush=True)
    print(json.dumps({"tunes": count, **bad}))
    if bad["damaged"] or bad["not resumed"] or bad["another result"]:
        raise typer.Exit(1)


@dataclass(frozen=True)
class SameTarget:
    """This CPU, with a knob that changes nothing."""

    cpu: CpuTarget
    lang: str = "same"               # not that of the CPU's lowerings: its model knows their knobs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cpu, name)

    def space(self, op: Operator, shape: Shape) -> Space:
        """Copies of the default config."""
        return Space({"copy": tuple(range(COPIES))})

    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict:
        """All of them."""
        return Verdict(True)

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """The default's kernel."""
        return self.cpu.compile_here(op, shape, self.cpu.space(op, shape).default())

    def build_kernel(self, op: Operator, shape: Shape, config: Config) -> Kernel:
        """The default's kernel."""
        return self.cpu.build_kernel(op, shape, self.cpu.space(op, shape).default())

    def recipe(self) -> Recipe:
        """How a child makes it again."""
        return f"{__spec__.name if __spec__ else __name__}:same_target", self.cpu.recipe()[1]


def same_target(**cpu: Any) -> SameTarget:
    """For children."""
    made = targets.load("cpu", **cpu)
    assert isinstance(made, CpuTarget)
    return SameTarget(made)


@app.command()
def same(count: Annotated[int, typer.Option("--count", help="How many tunes.")] = 200,
         first: Annotated[int, typer.Option(
             "--first", help="Of the tunes, which are numbered: 200 may be several commands.")] = 0,
         null: Annotated[bool, typer.Option(
             "--null", help="Simulated noise of 2 % instead of this CPU's own.")] = False) -> None:
    """Tune among copies of one kernel: nearly every verdict must be that the default is kept."""
    shapes: list[Shape] = [{"h": 64, "dtype": "float32", "tokens": 32 + i}
                           for i in range(first, first + count)]
    target: Any = NullTarget(flat=True, noise=0.02) if null else same_target(
        unit="1", cache_dir=None)

    def show(event: Event) -> None:
        if event.kind == "done":
            print(f"{event.index + 1}/{count} {event.status}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        found = tune(ops.load(_OP), target, shapes, Path(folder) / "same.sqlite",
                     Budget(trials=COPIES), progress=show)
    kept = sum(o.record.decision == "default kept" for o in found)
    print(json.dumps({"tunes": count, "first": first, "default kept": kept}))
    if kept < 0.99 * count:
        raise typer.Exit(1)


@dataclass(frozen=True)
class SlowToCompile(NullTarget):
    """No device, and a compiler that does nothing for a while: once for each config."""

    compile_s: float = 1.0
    cache: str = ""

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Sleep, unless this config was compiled before, or the shape is there to warm up."""
        done = Path(self.cache) / f"{config_hash(config)}-{shape['tokens']}"
        if not done.exists() and int(shape["tokens"]) > _WARM:
            time.sleep(self.compile_s)
            done.touch()
        return super().compile_here(op, shape, config)

    def recipe(self) -> Recipe:
        """How a child makes it again."""
        return (f"{__spec__.name if __spec__ else __name__}:SlowToCompile",
                {"compile_s": self.compile_s, "cache": self.cache})


@app.command()
def joiner(storage: str, cache: str, compile_s: float, count: int) -> None:
    """Join a study that starts all children, then the slow one (for `workers`, which counts)."""
    from ..opt.job import Method
    from ..opt.shared import Storage

    shared = Storage(storage)
    tune(ops.load(_OP), SlowToCompile(compile_s=compile_s, cache=cache),
         [{"h": 64, "dtype": "float32", "tokens": t} for t in (count, _WARM + count)], storage,
         Budget(trials=1000), progress=lambda e: print(e.kind, e.index, flush=True),
         method=Method(storage=shared))
    shared.close()


@app.command()
def workers(
    storage: Annotated[str, typer.Argument(help="postgresql://..., a database for this alone.")],
    count: Annotated[int, typer.Option("--count", help="Processes of the second tune.")] = 4,
    compile_s: Annotated[float, typer.Option(
        "--compile-seconds", help="That each config's compiler sleeps.")] = 1.0,
) -> None:
    """How much sooner several processes end a tune whose time goes into compiling.

    The compiler sleeps, so this shows what sharing a study costs and not how many cores there are.
    Counted from when all processes and their children run.
    """
    took = {}
    with tempfile.TemporaryDirectory() as cache:
        for n in (1, count):
            joined = [subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "joiner", storage, cache, str(compile_s),
                 str(n)], stdout=subprocess.PIPE, text=True) for _ in range(n)]
            for child in joined:
                assert child.stdout is not None
                while child.stdout.readline().strip() not in ("shape 1", ""):
                    pass
            start = time.monotonic()
            for child in joined:
                child.communicate()
            if any(child.returncode for child in joined):
                raise typer.Exit(1)
            took[n] = time.monotonic() - start
    with TuningDB(storage) as db:
        tried = Counter(r.key.dynamic["tokens"] for r in db.records(role="candidate"))
    print(json.dumps({"seconds": {n: round(s, 1) for n, s in took.items()},
                      "ratio": round(took[1] / took[count], 2),
                      "configs": [tried[_WARM + 1], tried[_WARM + count]]}))


if __name__ == "__main__":
    app()
