"""Routing on the CPU: every config against the reference, the reference against transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from expertile import ops
from expertile.ops.models import PRESETS, TINY_LOAD
from expertile.ops.spec import Args, Outputs, Shape
from expertile.targets.base import Target
from tests.conformance import check_config
from tests.ops.test_casts import kernel, spread

OP = ops.load("moe_route")


def run(target: Target, args: Args) -> Outputs:
    """The default kernel's answer to one call."""
    out = OP.empty(*args)
    kernel(OP, target, OP.shape_of(*args))(*args, out=out)
    return out


@pytest.mark.parametrize("shape", OP.odd_shapes, ids=lambda s: str(dict(s)))
def test_configs_match_the_reference(cpu: Target, shape: Shape) -> None:
    """Default and two more; group-limited routing takes six."""
    space = ops.lowering(OP.name, "tvm").space(cpu, shape)
    for config in spread(space, 6 if shape == OP.odd_shapes[2] else 3):
        check_config(OP, cpu, shape, config)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(cpu: Target, name: str) -> None:
    """Each model's own gate at 64 tokens: one row decides nothing."""
    shape = OP.shapes(PRESETS[name], TINY_LOAD)[-1]
    check_config(OP, cpu, {**shape, "tokens": 64})
    args = OP.inputs({**shape, "tokens": 64}, 1)
    want = OP.empty(*args)
    OP.reference(*args, out=want)
    weights, ids = run(cpu, args)
    assert torch.equal(ids, want[1])
    torch.testing.assert_close(weights, want[0], rtol=1e-6, atol=0.0)


def _ranked(weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """By id: transformers leaves the order of the k open."""
    ids, order = ids.long().sort(-1)
    return weights.gather(1, order), ids


def _gate(shape: Shape, bias: Tensor | None, factor: float) -> Any:
    """transformers' own gate with an identity matrix: its hidden states are our logits."""
    pytest.importorskip("transformers")
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    e, grouped = int(shape["experts"]), int(shape["n_group"]) > 1
    kind = v2.DeepseekV2TopkRouter if shape["scoring"] == "softmax" else v3.DeepseekV3TopkRouter
    gate = kind(SimpleNamespace(
        num_experts_per_tok=shape["top_k"], num_experts=e, num_local_experts=e, hidden_size=e,
        routed_scaling_factor=factor, n_group=shape["n_group"], topk_group=shape["topk_group"],
        topk_method="group_limited_greedy" if grouped else "greedy", norm_topk_prob=shape["norm"]))
    with torch.no_grad():
        gate.weight.copy_(torch.eye(e))
        if bias is not None:
            gate.e_score_correction_bias.copy_(bias)
    return gate


@pytest.mark.parametrize("name", PRESETS)
def test_reference_is_transformers_gate(name: str) -> None:
    """Same experts, same weights to 1e-6, as the installed deepseek_v2 and deepseek_v3."""
    shape = {**OP.shapes(PRESETS[name], TINY_LOAD)[0], "tokens": 200}
    args = OP.inputs(shape, 5)
    out = OP.empty(*args)
    OP.reference(*args, out=out)
    with torch.no_grad():
        _, weights, ids = _gate(shape, args[1], args[-1])(args[0])
    got, want = _ranked(*out), _ranked(weights, ids)
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=1e-9)


def test_order_and_ties(cpu: Target) -> None:
    """Descending; among equals the lower id first, also across vector lanes."""
    logits = torch.zeros(1, 64)
    logits[0, [40, 3, 17]] = 2.0
    logits[0, 63] = 3.0
    weights, ids = run(cpu, (logits, None, 6, "softmax", 1, 1, "max", False, 1.0))
    assert ids.tolist() == [[63, 3, 17, 40, 0, 1]]
    assert bool((weights[0, :-1] >= weights[0, 1:]).all())


def test_bias_selects_and_does_not_weigh(cpu: Target) -> None:
    """All weight equal scores, whatever the bias."""
    bias = torch.zeros(20)
    bias[[4, 9]] = torch.tensor([0.25, 0.5])
    weights, ids = run(cpu, (torch.zeros(3, 20), bias, 2, "sigmoid", 1, 1, "top2_sum", True, 2.5))
    assert ids.tolist() == [[9, 4]] * 3
    torch.testing.assert_close(weights, torch.full((3, 2), 1.25), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shape", OP.odd_shapes[:3], ids=lambda s: str(dict(s)))
def test_nan_logits_give_nan_weights_and_valid_ids(cpu: Target, shape: Shape) -> None:
    """Nonsense in is nonsense out, never an index out of range."""
    args = OP.inputs({**shape, "tokens": 4}, 0)
    logits = args[0].clone()
    logits[0] = torch.nan
    logits[1, 3] = torch.nan
    logits.view(torch.int32)[2] = -1                         # a negative NaN with every bit set
    weights, ids = run(cpu, (logits, *args[1:]))
    assert bool(((ids >= 0) & (ids < int(shape["experts"]))).all())
    assert bool(weights[0].isnan().all()) and bool(weights[2].isnan().all())
    assert not bool(weights[3].isnan().any())


@pytest.mark.parametrize(("change", "rule"), [
    ({2: 0}, "top_k must be between 1 and the 32 experts"),
    ({2: 33}, "got 33"),
    ({3: "tanh"}, "scoring must be one of"),
    ({4: 7}, "n_group must divide the experts"),
    ({5: 9}, "topk_group"),
    ({6: "mean"}, "group_score must be one of"),
    ({1: torch.zeros(3)}, r"bias must be float32 \[64\]"),
    ({0: torch.zeros(64)}, "logits must be"),
    ({4: 64, 5: 64}, "at least 2 experts"),
], ids=str)
def test_wrong_calls_state_the_rule(change: dict[int, Any], rule: str) -> None:
    """ValueError or TypeError with the rule and the values."""
    args = [torch.zeros(2, 64), None, 6, "sigmoid", 8, 4, "top2_sum", True, 1.0]
    for position, value in change.items():
        args[position] = value
    with pytest.raises((ValueError, TypeError), match=rule):
        OP.shape_of(*args)
