"""pytest plugin: tests that time something, and fail when it is slower than a stored result.

    pytest -p expertile.bench.pytest_plugin --expertile-bench-out head.json
    pytest -p expertile.bench.pytest_plugin --expertile-bench-base base.json

A test marked `expertile_bench` hands the call to the fixture of that name. Without the options it
is called once, so that the test stays a test.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from . import machine, result
from .gate import decide, join
from .verdict import Rules

ROUNDS, BLOCK, SAMPLE_US = 40, 2, 1000.0
_MARK = "expertile_bench(threshold=3.0): time the call given to the fixture; percent of slow-down"


class Bench:
    """What a session measured, and what it is compared with."""

    def __init__(self, base: Path | None, out: Path | None):
        self.base = result.read(base) if base else None
        self.out = out
        self.cases: list[result.Case] = []

    @property
    def on(self) -> bool:
        """Whether anything is timed."""
        return self.base is not None or self.out is not None

    def so_far(self) -> result.Result:
        """Everything so far."""
        import numpy

        tools = {"python": sys.version.split()[0], "numpy": numpy.__version__}
        return result.Result(
            machine.here("wall clock", os.cpu_count() or 0), {"head": tools}, tuple(self.cases),
            datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "pytest",
            settings={"rounds": ROUNDS, "block": BLOCK, "configs": "pytest",
                      "sample_us": SAMPLE_US})

    def time(self, name: str, group: str, call: Callable[[], object], threshold: float) -> None:
        """Time a call beside itself, and fail the test when its base was faster."""
        for _ in range(3):
            us = _sample(call, 1)
        inner = max(1, min(10_000, round(SAMPLE_US / max(us, 1e-3))))
        sides: dict[str, list[tuple[float, ...]]] = {"head": [], "head_again": []}
        for number in range(ROUNDS):
            for side in sorted(sides, reverse=bool(number % 2)):
                _sample(call, inner)
                sides[side].append(tuple(_sample(call, inner) for _ in range(BLOCK)))
        case = result.Case(name, group, "ok", {s: tuple(b) for s, b in sides.items()}, inner=inner)
        self.cases.append(case)
        if self.base is not None:
            self._compare(case, threshold)

    def _compare(self, case: result.Case, threshold: float) -> None:
        assert self.base is not None
        mine = result.Result(**{**vars(self.so_far()), "cases": (case,)})
        said = decide(join(self.base, mine), Rules(threshold / 100)).verdict(case.name)
        if said is not None and said.verdict == "SLOW":
            pytest.fail(f"{case.name} is {100 * (said.ratio - 1):.1f} % slower than the base "
                        f"(95 %: {100 * (said.low - 1):.1f} to {100 * (said.high - 1):.1f} %, "
                        f"limit {100 * said.delta:.1f} %)", pytrace=False)


def _sample(call: Callable[[], object], inner: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(inner):
        call()
    return (time.perf_counter_ns() - start) / inner / 1e3


_BENCH = pytest.StashKey[Bench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two files."""
    group = parser.getgroup("expertile bench")
    group.addoption("--expertile-bench-out", type=Path, default=None,
                    help="write what marked tests measured here")
    group.addoption("--expertile-bench-base", type=Path, default=None,
                    help="fail marked tests that are slower than in this result")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; a base that cannot be used ends the run with code 5."""
    config.addinivalue_line("markers", _MARK)
    try:
        config.stash[_BENCH] = Bench(config.getoption("--expertile-bench-base"),
                                     config.getoption("--expertile-bench-out"))
        base = config.stash[_BENCH].base
        if base is not None:
            join(base, config.stash[_BENCH].so_far())        # the machine, before anything runs
    except (result.NoBaseline, result.BadResult) as e:
        pytest.exit(f"no comparable baseline: {e}", returncode=5)


@pytest.fixture
def expertile_bench(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    """Times a call; returns what it returned."""
    bench = request.config.stash[_BENCH]
    mark = request.node.get_closest_marker("expertile_bench")
    threshold = float(mark.kwargs.get("threshold", 3.0)) if mark else 3.0

    def run(call: Callable[[], Any]) -> Any:
        answer = call()
        if bench.on:
            bench.time(request.node.name, request.node.nodeid.partition("::")[0], call, threshold)
        return answer

    return run


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the result."""
    bench = session.config.stash.get(_BENCH, None)
    if bench is not None and bench.out is not None and bench.cases:
        result.write(bench.out, bench.so_far())
