"""triton-ascend's way to the same compiler, against a stub of it in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expertile import ops, targets
from expertile.ops.space import Space
from expertile.targets.ascend.target import AscendTarget
from expertile.targets.ascend.triton_route.compare import NoRoute, Route, compare, difference
from expertile.targets.ascend.triton_route.worker import plain_configs

from ..front.test_cli import refused

HERE = Path(__file__).parent
STUB = os.pathsep.join(str(HERE / name) for name in ("stub_triton_ascend", "stub_vendor"))
OP = ops.load("silu_mul")
SHAPE = OP.odd_shapes[0]


@pytest.fixture
def routes(target: AscendTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
           ) -> Iterator[Any]:
    """Makes routes through the stub; ends their processes."""
    made: list[Route] = []

    def route(how: str = "") -> Route:
        monkeypatch.setenv("PYTHONPATH", STUB)
        monkeypatch.setenv("STUB_VENDOR", how)
        made.append(Route(target.npu, sys.executable, tmp_path / (how or "well")))
        return made[-1]

    yield route
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> AscendTarget:
    """A device that is not here."""
    made = targets.load("ascend910b3", cache_dir=tmp_path_factory.mktemp("npu"))
    assert isinstance(made, AscendTarget)
    return made


def test_both_ways_are_compared(routes: Any, target: AscendTarget) -> None:
    ours = target.compile_here(OP, SHAPE, target.space(OP, SHAPE).default()).kernels
    route = routes()
    found = compare(route, OP, SHAPE, ours)
    assert found["stops_at"] is None and found["triton"] == route.version
    kernel, = found["kernels"]
    assert kernel["name"] == "silu_mul_rows" and kernel["task_type"] == "vector"
    # 32 x 128: f16 in, f32 out, no loop that would want them twice
    assert kernel["ub_bytes"] == 32 * 128 * (2 + 4)
    both = found["against_ours"]
    assert both["kernels"] == [1, 1] and both["ub_bytes"] == [ours[0]["ub_bytes"],
                                                             kernel["ub_bytes"]]
    assert both["blocks"] == [7, kernel["grid"][0]]
    assert "load_gm_to_ubuf_1d_half" in both["calls_only_theirs"]
    assert {"vexp_1d_float"} <= set(both["calls_only_ours"])
    json.dumps(found)


def test_it_says_where_it_stops(routes: Any) -> None:
    for how, where, why in (("adapter", "triton-ascend", "k.mlir:3:5: error: no such lowering"),
                            ("huge", "bishengir-compile", "ub overflow: needs "),
                            ("crash in compile", "triton-ascend", "SIGABRT")):
        found = compare(routes(how), OP, SHAPE, [])
        assert found["stops_at"] == where and why in found["why"], found
        assert "against_ours" not in found and found["kernels"] == []
        # what does not fit is tried with other tiles, what is not understood is not
        assert bool(found["refused"]) == (how == "huge")


def test_differences() -> None:
    ours = [{"grid": [2, 3, 1], "task_type": "cube", "ub_bytes": 1, "l1_bytes": 5, "l0c_bytes": 0,
             "workspace_bytes": 10, "calls": {"a": "AIC", "b": "AIC"}},
            {"grid": [4, 1, 1], "task_type": "vector", "ub_bytes": 7, "l1_bytes": 0, "l0c_bytes": 0,
             "workspace_bytes": 0, "calls": {"c": "AIV"}}]
    theirs = [{**ours[0], "grid": [6], "calls": {"b": "AIC", "d": "AIV"}, "workspace_bytes": 20}]
    assert difference(ours, theirs) == {
        "kernels": [2, 1], "blocks": [10, 6], "task_types": [["cube", "vector"], ["cube"]],
        "ub_bytes": [7, 1], "l1_bytes": [5, 5], "l0c_bytes": [0, 0], "workspace_bytes": [60, 120],
        "calls_shared": ["b"], "calls_only_ours": ["a", "c"], "calls_only_theirs": ["d"]}


def test_what_only_nvidia_knows_is_not_taken() -> None:
    space = Space({"precision": ("tf32x3", "ieee"), "rows": (2, 1)})
    assert plain_configs(space, 1) == [{"precision": "ieee", "rows": 2}]
    assert plain_configs(space, 8) == [{"precision": "ieee", "rows": r} for r in (2, 1)]
    assert plain_configs(Space({"precision": ("tf32x3",)}), 8) == [{"precision": "tf32x3"}]
    assert plain_configs(Space({"rows": tuple(range(100))}), 4) == [
        {"rows": r} for r in (0, 25, 50, 75)]


def test_without_it_the_reason_is_one_line(target: AscendTarget, tmp_path: Path) -> None:
    with pytest.raises(NoRoute, match="EXPERTILE_WORKER_PYTHON, got None"):
        Route(target.npu, None, tmp_path)
    with pytest.raises(NoRoute, match="it is not triton-ascend"):
        Route(target.npu, sys.executable, tmp_path)
    refused("check", "--device", "ascend910b3", "--preset", "tiny", "--op", "silu_mul", "--route",
            "triton-ascend", "--worker-python", "/nowhere/python", says="'/nowhere/python'")
    refused("check", "--device", "sm_90", "--preset", "tiny", "--op", "silu_mul", "--route",
            "triton-ascend", says="compares kernels for Ascend devices")
