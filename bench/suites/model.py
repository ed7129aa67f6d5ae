"""The suite `model`: prefill, decode and end to end of whole checkpoints, against transformers."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...model import checkpoint
from ...ops.models import preset
from ...targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from ...targets.cpu.pages import ENVIRONMENT
from .. import random_checkpoint
from ..result import Case, Result
from . import model_jobs
from .runner import Options, Runner, result

ENGINES = ("ours", "transformers float32", "transformers bfloat16")
_FEWEST, _MOST, _ROUND_S = 3, 12, 300.0
_LAYERS, _VOCAB = 2, 1024            # of the slice: one dense layer and one of experts


@dataclass(frozen=True)
class Load:
    """A prompt of `ctx` tokens, then `count` tokens one by one."""

    model: str
    ctx: int
    count: int
    quick: bool = False


LOADS = (Load("bundled", 128, 32, True), Load("bundled", 768, 32),
         Load("v2-lite-slice", 128, 16, True), Load("v2-lite-slice", 1024, 16))


def run(options: Options, quick: bool, only: Sequence[str], say: Callable[[str], None],
        command: str) -> Result:
    """Engines take turns, each in a process of its own; three cases come of every load."""
    loads = [load for load in LOADS if (load.quick or not quick)
             and (not only or any(text in load.model for text in only))]
    if not loads:
        raise ValueError(f"--only must name a model of the suite (bundled, v2-lite-slice), got "
                         f"{list(only)}")
    engines = ENGINES if find_spec("transformers") else ENGINES[:1]
    runner = Runner(options, say)
    cases: list[Case] = []
    if len(engines) == 1:
        runner.missing["transformers"] = "not installed; run: pip install transformers"
    skipped: list[str] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        try:
            runner.open(stack)
            _all(runner, loads, engines, Path(scratch), cases, skipped)
        except KeyboardInterrupt:
            runner.interrupted = True
            say("interrupted: the report has what was measured so far")
    return result(runner, tuple(cases), command, "model", skipped, ())


def _all(runner: Runner, loads: Sequence[Load], engines: Sequence[str],
         scratch: Path, cases: list[Case], skipped: list[str]) -> None:
    """Every load at every thread count; what finds no time is named in `skipped`."""
    options = runner.options
    end = time.monotonic() + options.seconds
    left = len(options.threads) * len(loads)
    for name in dict.fromkeys(load.model for load in loads):
        paths = _checkpoints(scratch, name)
        for threads in options.threads:
            with ExitStack() as inner:
                sides = _loaded(inner, runner, paths, engines, threads)
                for load in (x for x in loads if x.model == name):
                    seconds = (end - time.monotonic()) / max(left, 1)
                    left -= 1
                    if seconds <= 0 and cases:
                        skipped.append(f"{name} {load.ctx} {threads}T")
                        continue
                    cases += _measure(sides, load, threads, seconds, runner.say)


def _checkpoints(scratch: Path, name: str) -> tuple[Path, Path]:
    """Ours and transformers' directory of a model."""
    if name == "bundled":
        ours = Path(checkpoint.__path__[0]) / "tiny-v3"
        model_jobs.plain_copy(str(ours), str(scratch / name))
        return ours, scratch / name
    random_checkpoint.write(preset("v2-lite"), scratch / name, _LAYERS, _VOCAB)
    return scratch / name, scratch / name


def _loaded(stack: ExitStack, runner: Runner, paths: tuple[Path, Path], engines: Sequence[str],
            threads: int) -> dict[str, Child]:
    """A child for each engine that can hold the model."""
    found = {}
    for engine in engines:
        child = Child(0, env=ENVIRONMENT)
        stack.callback(child.close)
        try:
            _call(child, model_jobs.load, path=str(paths[engine != "ours"]), engine=engine,
                  threads=threads)
            found[engine] = child
        except (ChildFailed, ChildCrashed, ChildTimeout) as e:
            runner.missing[engine] = str(e)[-200:]
    return found


def _call(child: Child, job: Callable[..., Any], **arguments: Any) -> Any:
    return child.call(f"{model_jobs.__name__}:{job.__name__}", _ROUND_S, **arguments)


def _measure(sides: dict[str, Child], load: Load, threads: int, seconds: float,
             say: Callable[[str], None]) -> list[Case]:
    """Rounds of all engines, cut into the prompt, the tokens after it, and both together."""
    start = time.monotonic()
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for done in range(_MOST + 1):
        for name, child in sides.items():
            found[name].append(_call(child, model_jobs.tokens, ctx=load.ctx, count=load.count,
                                     vocab=_VOCAB))
        if done >= _FEWEST and time.monotonic() - start > seconds:
            break
    kept = {name: rounds[1:] for name, rounds in found.items()}      # the first one compiled
    cuts: dict[str, Callable[[list[float]], tuple[float, ...]]] = {
        "prefill": lambda r: (r[0],), "decode": lambda r: tuple(r[2:]), "end to end":
        lambda r: (sum(r),)}
    cases = []
    for what, cut in cuts.items():
        samples = {name: tuple(cut(r) for r in rounds) for name, rounds in kept.items()}
        label = f"{load.model},ctx={load.ctx},new={load.count},{threads}T"
        cases.append(Case(f"{what}[{label}]", f"model {what}", "ok" if "ours" in samples else
                          "failed", {**({"head": samples["ours"]} if "ours" in samples else {}),
                                     **samples}, evidence="L4 timed"))
        told = ", ".join(f"{n} {statistics.median(x for b in s for x in b) / 1e3:.2f}"
                         for n, s in samples.items())
        say(f"{cases[-1].name}: {told} ms")
    return cases
