"""Peers that are libraries of others, without them: right calls, and rows that say why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from expertile import ops
from expertile.bench.gpu.libraries import SOURCES, library_peers
from expertile.bench.gpu.report import table
from expertile.ops.spec import Shape

FP8: Shape = {"a_dtype": "float8_e4m3fn", "w_dtype": "float8_e4m3fn", "out_dtype": "bfloat16",
              "block_n": 128, "block_k": 128}
CASES: dict[str, Shape] = {
    "gemm_nt": {"n": 128, "k": 256, **FP8, "tokens": 16},
    "m_grouped_gemm_nt_masked": {"e": 2, "n": 128, "k": 256, **FP8, "m_max": 8, "expected_m": 4},
    "mla_decode": {"heads": 16, "head_dim_v": 512, "rope": 64, "page": 64, "s_q": 1,
                   "dtype": "bfloat16", "kv_dtype": "bfloat16", "causal": True, "batch": 2,
                   "ctx": 64},
    "fused_moe": {"e": 4, "inter": 128, "hidden": 128, "top_k": 2, "w_dtype": "float8_e4m3fn",
                  "dtype": "bfloat16", "block_n": 128, "block_k": 128, "w8a8": True, "tokens": 4},
    "per_token_group_quant_fp8": {"k": 256, "group_size": 128, "dtype": "bfloat16",
                                  "ue8m0": False, "tokens": 5}}
LIBRARY = {"gemm_nt": "DeepGEMM", "m_grouped_gemm_nt_masked": "DeepGEMM", "mla_decode": "FlashMLA",
           "fused_moe": "vLLM", "per_token_group_quant_fp8": "vLLM"}


def args_of(name: str, **changed: Any) -> Any:
    return ops.load(name).inputs({**CASES[name], **changed}, 0)


class Recorder:
    """Stands in for each function of a library and keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def function(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return answer

        return call


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Modules with the libraries' names."""
    seen = Recorder()
    layers, vllm = "vllm.model_executor.layers", ("vllm", "vllm.model_executor")
    holds: dict[str, dict[str, Any]] = {
        "deep_gemm": {n: seen.function(n) for n in (
            "fp8_gemm_nt", "m_grouped_fp8_gemm_nt_masked", "m_grouped_fp8_gemm_nt_contiguous")},
        "flash_mla": {"get_mla_metadata": seen.function("get_mla_metadata", ("plan", "splits")),
                      "flash_mla_with_kvcache": seen.function("flash_mla_with_kvcache")},
        **{name: {} for name in (*vllm, layers, f"{layers}.fused_moe", f"{layers}.quantization",
                                 f"{layers}.quantization.utils")},
        f"{layers}.fused_moe.fused_moe": {"fused_experts": seen.function("fused_experts")},
        f"{layers}.fused_moe.config": {"fp8_w8a8_moe_quant_config": seen.function(
            "fp8_w8a8_moe_quant_config", "quant")},
        f"{layers}.quantization.utils.fp8_utils": {"per_token_group_quant_fp8": seen.function(
            "per_token_group_quant_fp8")}}
    for name, functions in holds.items():
        module = ModuleType(name)
        module.__dict__.update(functions, __spec__=type(sys.__spec__)(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_an_absent_library_is_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in SOURCES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    found, absent = library_peers(name, args_of(name))
    assert not found and absent[LIBRARY[name]].startswith("not installed (")


def test_deep_gemm_gets_pairs_and_a_place_for_the_answer(installed: Recorder) -> None:
    args = args_of("gemm_nt")
    found, absent = library_peers("gemm_nt", args)
    assert not absent and set(found) == {"DeepGEMM fp8_gemm_nt"}
    found["DeepGEMM fp8_gemm_nt"]()
    (_, ((a, a_s), (b, b_s), out), _), = installed.calls
    assert [x is y for x, y in zip((a, a_s, b, b_s), args, strict=False)] == [True] * 4
    assert out.shape == (16, 128) and out.dtype == torch.bfloat16


def test_deep_gemm_masked_is_told_how_many_rows_to_expect(installed: Recorder) -> None:
    found, _ = library_peers("m_grouped_gemm_nt_masked", args_of("m_grouped_gemm_nt_masked"))
    found["DeepGEMM m_grouped_fp8_gemm_nt_masked"]()
    _, (_, _, out, rows, expected), _ = installed.calls[0]
    assert out.shape == (2, 8, 128) and rows.dtype == torch.int32 and expected == 4


def test_flash_mla_plans_once_and_runs_often(installed: Recorder) -> None:
    found, _ = library_peers("mla_decode", args_of("mla_decode"))
    run = found["FlashMLA flash_mla_with_kvcache"]
    run()
    run()
    assert [c[0] for c in installed.calls] == ["get_mla_metadata", *["flash_mla_with_kvcache"] * 2]
    assert installed.calls[0][1][1:] == (16, 1) and installed.calls[1][1][5:] == ("plan", "splits")


def test_vllm_gets_its_own_names(installed: Recorder) -> None:
    found, _ = library_peers("fused_moe", args_of("fused_moe"))
    found["vLLM fused_experts"]()
    quant, run = installed.calls
    assert quant[2]["block_shape"] == [128, 128] and run[2]["quant_config"] == "quant"
    assert set(run[2]) == {"hidden_states", "w1", "w2", "topk_weights", "topk_ids", "quant_config"}
    found, _ = library_peers("per_token_group_quant_fp8", args_of("per_token_group_quant_fp8"))
    found["vLLM per_token_group_quant_fp8"]()
    assert installed.calls[-1][1][1] == 128


@pytest.mark.parametrize(("name", "changed", "why"), [
    ("gemm_nt", {"a_dtype": "bfloat16"}, "activations in e4m3"),
    ("gemm_nt", {"out_dtype": "float32"}, "writes bfloat16"),
    ("mla_decode", {"page": 16}, "pages of 64"),
    ("fused_moe", {"w8a8": False}, "its pair is w8a8")])
def test_what_a_library_does_not_take_is_a_row(installed: Recorder, name: str,
                                               changed: dict[str, Any], why: str) -> None:
    found, absent = library_peers(name, args_of(name, **changed))
    assert not found and why in absent[LIBRARY[name]]


def test_the_report_names_what_is_not_there(tmp_path: Path) -> None:
    row = {"key": "gemm_nt n=1", "op": "gemm_nt", "default": {"us": 4.0}, "wrong": None,
           "best": {"us": 2.0}, "floor_us": 1.0, "bytes": 1e3, "flops": 1e6,
           "peers": {"torch bf16 matmul": 3.0, "DeepGEMM": "not installed (source)"}}
    path = tmp_path / "r.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'key': 'gemm_nt n=2'})}\n")
    said = table(path)
    assert "| 3.0 | torch bf16 matmul |" in said
    assert "- DeepGEMM, 2 cases: not installed (source)" in said
