"""Public operators: opcheck, torch.compile, equality with the reference, errors on misuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import expertile as et
from expertile import ops
from expertile.ops.numerics import mismatches, same_bits
from expertile.ops.spec import Args

from ..conformance import run_once

NAMES = ops.names()


def small_args(name: str) -> Args:
    """The typical call of the first odd shape."""
    op = ops.load(name)
    return next(iter(op.cases(op.odd_shapes[0], 0)))[1]


def overload(name: str) -> Any:
    """The registered torch operator."""
    return getattr(torch.ops.expertile, name).default


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_is_a_custom_op(name: str) -> None:
    """Fake kernel, schema, aliasing and autograd registration are right."""
    args = small_args(name)
    utils = ["test_schema", "test_autograd_registration", "test_faketensor",
             "test_aot_dispatch_dynamic"]
    if any(isinstance(a, torch.Tensor) and a.dtype == torch.float8_e4m3fn for a in args):
        utils.remove("test_schema")      # torch 2.13 cannot compare fp8 inputs; done below
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        overload(name)(*args)
        for a, b in zip(args, before, strict=True):
            assert not isinstance(a, torch.Tensor) or same_bits(a, b).all()
    torch.library.opcheck(overload(name), args, test_utils=utils)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_fullgraph_equals_the_reference(name: str) -> None:
    torch._dynamo.reset()
    op, args = ops.load(name), small_args(name)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*args: Any) -> Any:
        return overload(name)(*args)

    call = tuple(a.clone() if i in op.mutates else a for i, a in enumerate(args))
    out = compiled(*call)
    out = () if out is None else (out,) if isinstance(out, torch.Tensor) else tuple(out)
    got = (*out, *(call[i] for i in op.mutates))
    want = run_once(op.reference, op, args)
    if name == "m_grouped_gemm_nt_masked":      # rows past masked_m are nobody's: compare the rest
        keep = torch.arange(want[0].shape[1])[None] < args[4].clamp(0)[:, None]
        got, want = (got[0][keep],), (want[0][keep],)
    elif name == "silu_mul_quant_fp8_masked":
        keep = torch.arange(args[0].shape[1])[None] < args[1].clamp(0)[:, None]
        assert not any(o[~keep].float().any() for o in got), "rows past masked_m are zero"
        got, want = tuple(o[keep] for o in got), tuple(o[keep] for o in want)
    elif name == "m_grouped_gemm_nt_contiguous":
        keep = (args[4] >= 0) & (args[4] < args[2].shape[0])
        assert not got[0][~keep].any(), "skipped rows of a fresh output are zero"
        got, want = (got[0][keep],), (want[0][keep],)
    why = mismatches(got, want, op.rtol)
    assert why is None, why


def test_public_functions_compile_without_a_graph_break() -> None:
    """A MoE layer as a user writes it, compiled, equals the same one in eager mode."""
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(0)
    x, gate = torch.randn(5, 96, generator=g), torch.randn(6, 96, generator=g)
    w1, w2 = torch.randn(6, 64, 96, generator=g), torch.randn(6, 96, 32, generator=g)

    def layer(x: torch.Tensor) -> torch.Tensor:
        weights, ids = et.moe_route(et.gemm_nt(x, gate), top_k=2, norm_topk_prob=True)
        q, s = et.per_token_group_quant_fp8(et.fused_moe(x, w1, w2, weights, ids), 32)
        return q.float() * s.repeat_interleave(32, -1)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def bad(call: Callable[[], object], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        call()


def test_misuse_states_the_rule_and_the_values() -> None:
    x = torch.randn(3, 256)
    w = torch.randn(5, 256)
    q, s = et.per_block_quant_fp8(w)
    bad(lambda: et.per_token_group_quant_fp8(x.int()), TypeError, "float")
    bad(lambda: et.per_token_group_quant_fp8(x, group_size=0), ValueError, "group_size")
    bad(lambda: et.gemm_nt(x, w[:, :200]), ValueError, "200")
    bad(lambda: et.gemm_nt(x, q), TypeError, "pair")
    bad(lambda: et.fp8_gemm_nt(x, (q, s)), TypeError, "pair")  # type: ignore[arg-type]
    bad(lambda: et.int8_gemm_nt((q, s), (q, s)), TypeError, "int8, got torch.float8_e4m3fn")
    bad(lambda: et.per_token_group_quant_int8(x, group_size=0), ValueError, "group_size")
    bad(lambda: et.convert_fp8_weight(w, s), TypeError, "float8_e4m3fn")
    bad(lambda: et.convert_fp8_weight(q, s[:, :1]), ValueError, r"must be \[1, 2\]")
    bad(lambda: et.convert_fp8_weight(q, s, to="fp4"), ValueError, "fp4")  # type: ignore[arg-type]
    bad(lambda: et.per_block_quant_int8(w, (0, 128)), ValueError, "at least")
    bad(lambda: et.fused_moe(x, w[None], w[None], x, x, use_int8_w8a8=True), TypeError, "int8")
    bad(lambda: et.gemm_nt(x, w, out=torch.empty(3, 4)), ValueError, "out must be")
    bad(lambda: et.gemm_nt(x, (q, s[:, :1])), ValueError, "scale")
    bad(lambda: et.moe_route(torch.randn(2, 6), top_k=7), ValueError, "top_k")
    bad(lambda: et.moe_route(torch.randn(2, 6), top_k=2, scoring="relu"), ValueError, "scoring")
    bad(lambda: et.Runtime("tpu"), ValueError, "tpu")


def test_out_is_written_and_returned() -> None:
    a, b = torch.randn(5, 96), torch.randn(7, 96)
    out = torch.full((5, 7), 7.0)
    assert et.gemm_nt(a, b, out=out) is out
    assert torch.allclose(out, a @ b.T, rtol=1e-4, atol=1e-4)


def test_skipped_rows_of_a_given_out_are_left_alone() -> None:
    a, b = torch.randn(4, 64), torch.randn(2, 8, 64)
    out = torch.full((4, 8), 7.0)
    et.m_grouped_gemm_nt_contiguous(a, b, torch.tensor([0, -1, 1, -1], dtype=torch.int32), out=out)
    assert (out[[1, 3]] == 7.0).all()
    assert torch.allclose(out[[0, 2]], torch.stack([b[0] @ a[0], b[1] @ a[2]]), rtol=1e-4,
                          atol=1e-4)


def test_runtime_reports_what_answered() -> None:
    runtime = et.Runtime("cpu")
    with et.use_runtime(runtime):
        et.silu_mul(torch.randn(3, 64))
        et.silu_mul(torch.randn(3, 64))
    row, = runtime.report()
    assert (row["op"], row["calls"]) == ("silu_mul", 2)
    assert row["answered_by"] in ("tuned", "default kept", "default")


def test_without_a_compiler_the_reference_answers_and_says_so_once(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EXPERTILE_DISABLE", "1")
    runtime = et.Runtime("cpu")
    x = torch.randn(3, 64)
    with et.use_runtime(runtime), caplog.at_level("WARNING", logger="expertile"):
        first, again = et.silu_mul(x), et.silu_mul(x[:2])
    gate, up = x.double().chunk(2, -1)
    want = (torch.nn.functional.silu(gate) * up).float()
    assert torch.equal(first, want) and torch.equal(again, want[:2])
    assert len([r for r in caplog.records if "reference" in r.message]) == 1
    assert runtime.report()[0]["answered_by"] == "reference"
