"""The GPU run, dry: its stages in Triton's interpreter, its peers on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from expertile import ops, targets
from expertile.bench.gpu import stages
from expertile.bench.gpu.cases import TIMED, Case
from expertile.bench.gpu.peers import peers
from expertile.bench.gpu.report import table
from expertile.ops.spec import Shape
from expertile.opt.checks import run_once
from expertile.targets.child import Child

FP8: dict[str, Any] = {"a_dtype": "float8_e4m3fn", "w_dtype": "float8_e4m3fn",
                       "out_dtype": "bfloat16", "block_n": 128, "block_k": 128}
SMALL: dict[str, Shape] = {
    "per_token_group_quant_fp8": {"k": 256, "group_size": 128, "dtype": "bfloat16",
                                  "ue8m0": False, "tokens": 5},
    "silu_mul_quant_fp8": {"h": 256, "group_size": 128, "dtype": "bfloat16", "ue8m0": False,
                           "tokens": 5},
    "gemm_nt": {"n": 128, "k": 256, **FP8, "tokens": 16},
    "m_grouped_gemm_nt_contiguous": {"e": 3, "n": 128, "k": 256, **FP8, "a_dtype": "bfloat16",
                                     "w_dtype": "bfloat16", "tokens": 24},
    "fused_moe": {"e": 4, "inter": 64, "hidden": 128, "top_k": 2, "w_dtype": "bfloat16",
                  "dtype": "bfloat16", "block_n": 128, "block_k": 128, "w8a8": False,
                  "tokens": 6},
    "mla_decode": {"heads": 4, "head_dim_v": 128, "rope": 32, "page": 16, "s_q": 1,
                   "dtype": "bfloat16", "kv_dtype": "bfloat16", "causal": True, "batch": 2,
                   "ctx": 48},
    "mla_prefill": {"heads": 2, "d_qk": 48, "d_v": 32, "dtype": "bfloat16", "causal": True,
                    "tokens": 24, "ctx": 24, "batch": 1},
}
# Those whose scales the peer leaves out, or which this torch has no CPU kernel for.
OTHER_FUNCTION = ("torch bf16 matmul", "torch._scaled_mm")


@pytest.mark.parametrize("name", SMALL)
def test_peers_compute_what_the_operator_does(name: str) -> None:
    op = ops.load(name)
    args = op.inputs(SMALL[name], 0)
    want = run_once(op.reference, op, args)[0].double().flatten()
    found = {n: call for n, call in peers(name, SMALL[name], args).items()
             if not n.startswith(OTHER_FUNCTION) and "compile" not in n}
    assert found or name == "gemm_nt"
    for peer, call in found.items():
        got = call()
        first = got[0] if isinstance(got, tuple) else got
        assert isinstance(first, Tensor)
        if name.startswith("mla"):               # [B, H, T, D] of SDPA
            first = first.transpose(1, 2)
        error = (first.double().flatten() - want).norm() / want.norm()
        assert error < 0.02, (peer, error)


def _interpreted() -> Any:
    recipe = "expertile.targets.cuda:target", {"unit": "sm_90", "mode": "interpret"}
    return SimpleNamespace(recipe=lambda: recipe, worker=Child)


def _cases() -> Iterator[Case]:
    for name in ("per_token_group_quant_fp8",):
        yield Case(ops.load(name), SMALL[name])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CONFIGS_CHECKED", 2)
    monkeypatch.setattr(stages, "CONFIGS_TIMED", 1)
    monkeypatch.setattr(stages.ops, "names", lambda: ("silu_mul", "weight_dequant"))


def test_stages_go_on_where_they_stopped(tmp_path: Path, few: None) -> None:
    out = tmp_path / "results.jsonl"
    cut = stages.Runner(_interpreted(), stages.Rows(out), seconds=0.0)
    stages.numerics(cut)
    cut.close()
    assert not out.exists()
    for seconds in (600.0, 600.0):
        run = stages.Runner(_interpreted(), stages.Rows(out), seconds)
        stages.describe(run)
        stages.numerics(run)
        stages.timed(run, _cases)
        run.close()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    numerics = [r for r in rows if r["key"].startswith("numerics")]
    target = targets.load("cuda:sm_90", mode="compile")
    expected = sum(min(2, len(list(target.space(op, shape)))) for op in map(
        ops.load, ("silu_mul", "weight_dequant")) for shape in op.odd_shapes)
    assert len(numerics) == expected and all(r["wrong"] is None for r in numerics)
    timed = [r for r in rows if "best" in r]
    assert len(timed) == 1 and timed[0]["default"]["us"] > 0 and timed[0]["wrong"] is None
    assert "per_token_group_quant_fp8" in table(out)


def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    script = Path(__file__).resolve().parents[2] / "bench" / "gpu" / "run.sh"
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([str(script), str(tmp_path / "out")], capture_output=True, text=True,
                          env={**os.environ, **python}, timeout=120)
    assert done.returncode == 2 and "no GPU" in done.stderr and "Traceback" not in done.stderr


def test_every_timed_shape_is_a_shape() -> None:
    for make in TIMED.values():
        for case in make():
            assert case.op.shape_of(*case.op.signature(case.shape)) == case.shape
            assert torch.device("meta") == case.op.empty(*case.op.signature(case.shape))[0].device
