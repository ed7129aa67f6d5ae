"""Head against base, for real: measure, judge, and measure what is in doubt again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from .gate import RETEST_ROUNDS, Outcome, decide
from .measure import Plan, measure
from .result import Case, Result
from .suite import Suite
from .tree import Tree
from .verdict import Rules

SIDES = ("base", "base_again", "head")
Progress = Callable[[int], AbstractContextManager[Callable[[Case], None]]]


def _quiet(cases: int) -> AbstractContextManager[Callable[[Case], None]]:
    return nullcontext(lambda case: None)


def gated(suite: Suite, base: Tree, head: Tree, plan: Plan, rules: Rules, env: Mapping[str, str],
          command: str, retest: bool = True, progress: Progress = _quiet) -> Outcome:
    """The outcome of a gate; `retest` in fresh processes, with more rounds."""
    trees = dict(zip(SIDES, (base, base, head), strict=True))

    def take(wanted: Suite, how: Plan) -> Result:
        with progress(len(wanted.cases)) as done:
            return measure(wanted, trees, how, env, command, done)

    def again(names: Iterable[str]) -> Result:
        chosen = set(names)
        return take(replace(suite, cases=tuple(c for c in suite.cases if c.name in chosen)),
                    replace(plan, rounds=RETEST_ROUNDS * plan.rounds, seed=plan.seed + 1000,
                            check=False))        # its answers were checked before

    return decide(take(suite, plan), rules, again if retest else None)
