"""The cost model of Ascend kernels: what it counts is the simulator's, and its sense is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from expertile import ops, targets
from expertile.ops.spec import Shape

from ..ops.ascend_cases import need_tools

need_tools()

from expertile.targets.ascend.artifact import Artifact  # noqa: E402
from expertile.targets.ascend.compiler import compile_module  # noqa: E402
from expertile.targets.ascend.devices import find  # noqa: E402
from expertile.targets.ascend.emit import emit  # noqa: E402
from expertile.targets.ascend.launches import Launch, record  # noqa: E402
from expertile.targets.ascend.model import Modelled, model, typical, unmodelled  # noqa: E402
from expertile.targets.ascend.simulator import simulate  # noqa: E402
from expertile.targets.ascend.simulator.clocks import Pipes  # noqa: E402

TARGET = targets.load("ascend910b3")


def _artifact(launch: Launch) -> Artifact:
    made = compile_module(emit(launch.program, "device").text, TARGET.npu, launch.flags)
    assert isinstance(made, Artifact), made
    return made


def _modelled(name: str, shape: Shape, device: str = "910B3", **config: Any) -> Modelled:
    """The first launch of a config of an operator."""
    op = ops.load(name)
    full = {**TARGET.space(op, shape).default(), **config}
    assert TARGET.space(op, shape).why_not(full) is None
    launch = record(TARGET, op, shape, full, typical(op, shape))[0]
    return model(_artifact(launch), launch, find(device))


def _gemm(tokens: int = 16, n: int = 1024, k: int = 1024, **config: Any) -> Mapping[str, Any]:
    shape = {"n": n, "k": k, "a_dtype": "bfloat16", "w_dtype": "bfloat16",
             "out_dtype": "bfloat16", "block_n": 128, "block_k": 128, "tokens": tokens}
    return _modelled("gemm_nt", shape, **config).parts


@pytest.mark.parametrize(("name", "at"), [
    ("gemm_nt", 1), ("silu_mul", 0), ("per_token_group_quant_fp8", 0),
    ("m_grouped_gemm_nt_masked", 1), ("fused_moe", 1)])
def test_it_counts_the_operations_that_the_simulator_issues(
        monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    op = ops.load(name)
    shape = op.odd_shapes[at]
    launches: list[Launch] = []
    kernel = TARGET.recording(launches).build_kernel(op, shape, TARGET.space(op, shape).default())
    args = op.inputs(shape, 0)
    kernel(*args, out=op.empty(*args))
    issued: Counter[str] = Counter()
    original = Pipes.issue

    def issue(self: Pipes, pipe: str) -> Any:
        issued[pipe] += 1
        return original(self, pipe)

    monkeypatch.setattr(Pipes, "issue", issue)
    for launch in launches[:2]:
        artifact = _artifact(launch)
        issued.clear()
        simulate(artifact, launch.args, launch.grid)
        counted: Counter[str] = Counter()
        for pipe, count in model(artifact, launch, TARGET.npu).parts["operations"].items():
            counted[pipe.split()[1]] += round(count)
        assert {p: n for p, n in counted.items() if n} == dict(issued), artifact.name


def test_more_work_and_more_bytes_take_longer() -> None:
    assert _gemm(k=1024)["us"] < _gemm(k=2048)["us"] < _gemm(k=4096)["us"]
    assert _gemm(n=8192)["us"] < _gemm(n=16384)["us"]
    few, many = (_modelled("silu_mul", {"h": 2048, "dtype": "bfloat16", "tokens": t}).parts
                 for t in (512, 4096))
    assert few["us"] < many["us"] and 8 * few["gm_bytes"] == many["gm_bytes"]
    # the rounds that are not walked count: 64 steps of K twice those of 32
    assert _gemm(k=8192)["flops"] == 2 * _gemm(k=4096)["flops"]


def test_a_larger_tile_does_not_cost_less_work() -> None:
    small, large = (_gemm(block_m=m, tokens=256) for m in (16, 128))
    assert large["busy_us"]["AIC M"] > small["busy_us"]["AIC M"] and (
        large["flops"] == small["flops"])
    # a whole tile of L1 is filled, for however few rows
    small, large = (_gemm(block_m=m) for m in (16, 128))
    assert large["gm_bytes"] == small["gm_bytes"] and large["us"] >= small["us"]


def test_two_buffers_hide_copies_behind_work() -> None:
    two, one = (_gemm(n=8192, k=4096, double_buffer=b) for b in (True, False))
    assert two["us"] < 0.95 * one["us"] and two["busy_us"] == pytest.approx(one["busy_us"])


def test_rows_are_counted_as_the_tables_of_a_typical_call_have_them() -> None:
    shape = {"e": 16, "n": 512, "k": 512, "a_dtype": "bfloat16", "w_dtype": "bfloat16",
             "out_dtype": "bfloat16", "block_n": 128, "block_k": 128}
    for tokens in (16, 512):
        made = _modelled("m_grouped_gemm_nt_contiguous", {**shape, "tokens": tokens}, block_m=16)
        assert made.parts["flops"] == pytest.approx(2 * tokens * 512 * 512, rel=0.05)


def test_a_device_without_figures_says_whose_it_was_ranked_with() -> None:
    shape = {"h": 2048, "dtype": "bfloat16", "tokens": 512}
    assert _modelled("silu_mul", shape).parts["figures_of"] == "Ascend910B3"
    other = _modelled("silu_mul", shape, device="910B1").parts
    assert "Ascend910B1 has no public bandwidth" in other["figures_of"]
    assert unmodelled(find("950PR_9599")) is not None and unmodelled(find("910B4")) is None
