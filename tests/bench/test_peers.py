"""Peers compute what the operator defines: a rival that does less would win unfairly."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from expertile import ops
from expertile.bench.peers import torch_moe, torch_rest
from expertile.bench.suites.data import Data
from expertile.ops.spec import Args, Shape

BOTH = (torch.float32, torch.bfloat16)
MOE = {"e": 6, "inter": 128, "hidden": 256, "top_k": 3, "dtype": "float32", "block_n": 128,
       "block_k": 128, "w8a8": False, "tokens": 7}
DECODE = {"heads": 16, "head_dim_v": 512, "rope": 64, "page": 64, "s_q": 1, "dtype": "float32",
          "kv_dtype": "bfloat16", "causal": True, "batch": 2, "ctx": 192}
needs_ggml = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is absent")


def truth(op_name: str, args: Args) -> Tensor:
    op = ops.load(op_name)
    out = op.empty(*args)
    op.reference(*args, out=out)
    return out[0].float()


def far(got: Tensor, want: Tensor) -> float:
    """The largest error over the largest value."""
    return float((got.float() - want).abs().max() / want.abs().max())


def sets(op_name: str, shape: Shape) -> list[Args]:
    return Data().sets(ops.load(op_name), shape)[:3]


@pytest.mark.parametrize("weights", ["float8_e4m3fn", "bfloat16"])
def test_every_torch_form_of_moe_is_right_for_each_argument_set(weights: str) -> None:
    args = sets("fused_moe", {**MOE, "w_dtype": weights})
    assert not torch.equal(args[0][4], args[1][4])       # experts are drawn anew
    for name, call in torch_moe.forms(args, {}, BOTH, False):
        for one in args:
            error = far(call(), truth("fused_moe", one))
            assert error < (0.03 if "bf16" in name else 1e-5), name


def test_torch_forms_of_gemm_and_attention_are_right() -> None:
    gemm = {"n": 256, "k": 384, "a_dtype": "float32", "w_dtype": "float8_e4m3fn",
            "out_dtype": "float32", "block_n": 128, "block_k": 128, "tokens": 5}
    for name, call in torch_rest.gemm(sets("gemm_nt", gemm), BOTH, False):
        error = far(call(), truth("gemm_nt", sets("gemm_nt", gemm)[0]))
        assert error < (0.02 if "bf16" in name else 1e-5), name
    args = sets("mla_decode", DECODE)
    for name, call in torch_rest.decode(args, BOTH, False):
        error = far(call(), truth("mla_decode", args[0])[:, 0])
        assert error < (0.03 if "bf16" in name else 1e-5), name
    prefill = {"heads": 2, "d_qk": 192, "d_v": 128, "dtype": "float32", "causal": True,
               "tokens": 37, "ctx": 37, "batch": 1}
    args = sets("mla_prefill", prefill)
    for name, call in torch_rest.prefill(args, BOTH, False):
        got = call()[0].transpose(0, 1)[..., :128]
        error = far(got, truth("mla_prefill", args[0]))
        assert error < (0.03 if "bf16" in name else 1e-5), name


def test_torch_casts_are_right() -> None:
    quant = {"group_size": 128, "dtype": "bfloat16", "ue8m0": False, "tokens": 9}
    for op_name, shape in (("per_token_group_quant_fp8", {"k": 256, **quant}),
                           ("silu_mul_quant_fp8", {"h": 256, **quant}),
                           ("weight_dequant", {"k": 256, "block_size": 128, "dtype": "float32",
                                               "n": 384})):
        args = sets(op_name, shape)
        (_, call), = torch_rest.casts(op_name, args, False)
        got = call()
        want = truth(op_name, args[0])
        plain = got if isinstance(got, Tensor) else got[0].float()
        # 448 / amax of a Python number differs by an ulp: exact ties flip, one code in 10^3
        assert float((plain != want).float().mean()) < 0.01, op_name


@needs_ggml
@pytest.mark.parametrize("kind, most", [("q8_0", 0.05), ("bf16", 0.03)])
def test_ggml_computes_the_layer_it_is_timed_on(kind: str, most: float) -> None:
    from expertile.bench.peers import ggml

    args = sets("fused_moe", {**MOE, "w_dtype": "float8_e4m3fn"})
    experts = ggml.Experts(args[0], kind, repacked=False)
    layer = ggml.Layer(experts, args, threads=2)
    for one in args:
        layer()
        got = (layer.output() * one[3][..., None]).sum(1)
        assert far(got, truth("fused_moe", one)) < most
    layer.close()
    experts.close()


@needs_ggml
def test_ggml_attention_is_right_and_a_missing_layout_is_told() -> None:
    from expertile.bench.peers import ggml

    args = sets("mla_decode", DECODE)
    attention = ggml.Decode(args, threads=2)
    attention()
    assert far(attention.output(), truth("mla_decode", args[0])[:, 0]) < 0.02
    attention.close()
    with pytest.raises(ValueError, match="no interleaved layout of bf16"):
        ggml.Experts(sets("fused_moe", {**MOE, "w_dtype": "bfloat16"})[0], "bf16", repacked=True)
