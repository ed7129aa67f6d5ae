"""What users of DeepGEMM, FlashMLA and vLLM call instead, where those are installed.

None is a dependency of ours: each is used when it can be imported, else its row says so. Their
calls are those of DeepGEMM 2 (fp8_gemm_nt ...), FlashMLA (flash_mla_with_kvcache) and vLLM's
fused_experts with a quant_config; no GPU was at hand to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...ops.spec import Args
from .peers import Peers

_FP8 = torch.float8_e4m3fn
GROUP_ROWS = 128                     # DeepGEMM: rows of one expert fill whole blocks of so many
FLASH_MLA_PAGE = 64
# module -> its name, where it comes from
SOURCES = {
    "deep_gemm": ("DeepGEMM", "github.com/deepseek-ai/DeepGEMM, built from source"),
    "flash_mla": ("FlashMLA", "github.com/deepseek-ai/FlashMLA, built from source"),
    "vllm": ("vLLM", "pip install vllm")}


class NotForThis(ValueError):
    """The library does not take the shape or its types; the message is the row."""


def _fp8_pair(x: Tensor, scale: Tensor | None, what: str) -> tuple[Tensor, Tensor]:
    if x.dtype != _FP8 or scale is None:
        raise NotForThis(f"takes {what} in e4m3 with scales, not {x.dtype}")
    return x, scale


def _bf16_out(out_dtype: torch.dtype) -> None:
    if out_dtype != torch.bfloat16:
        raise NotForThis(f"writes bfloat16, not {out_dtype}")


def _gemm(lib: Any, a: Tensor, a_s: Tensor | None, b: Tensor, b_s: Tensor | None, block_n: int,
          block_k: int, out_dtype: torch.dtype) -> Peers:
    _bf16_out(out_dtype)
    left, right = _fp8_pair(a, a_s, "activations"), _fp8_pair(b, b_s, "weights")
    out = torch.empty(a.shape[0], b.shape[0], dtype=out_dtype, device=a.device)

    def run() -> Tensor:
        lib.fp8_gemm_nt(left, right, out)
        return out

    return {"fp8_gemm_nt": run}


def _contiguous(lib: Any, a: Tensor, a_s: Tensor | None, b: Tensor, b_s: Tensor | None,
                indices: Tensor, block_n: int, block_k: int, out_dtype: torch.dtype) -> Peers:
    _bf16_out(out_dtype)
    left, right = _fp8_pair(a, a_s, "activations"), _fp8_pair(b, b_s, "weights")
    _, lengths = torch.unique_consecutive(indices, return_counts=True)
    if bool((lengths % GROUP_ROWS).any()):
        raise NotForThis(f"takes experts of whole {GROUP_ROWS} rows, these have "
                         f"{sorted(set(lengths.tolist()))[:4]}")
    out = torch.empty(a.shape[0], b.shape[1], dtype=out_dtype, device=a.device)

    def run() -> Tensor:
        lib.m_grouped_fp8_gemm_nt_contiguous(left, right, out, indices)
        return out

    return {"m_grouped_fp8_gemm_nt_contiguous": run}


def _masked(lib: Any, a: Tensor, a_s: Tensor | None, b: Tensor, b_s: Tensor | None, rows: Tensor,
            expected_m: int | None, block_n: int, block_k: int, out_dtype: torch.dtype) -> Peers:
    _bf16_out(out_dtype)
    left, right = _fp8_pair(a, a_s, "activations"), _fp8_pair(b, b_s, "weights")
    out = torch.empty(*a.shape[:2], b.shape[1], dtype=out_dtype, device=a.device)
    expected = expected_m or int(rows.float().mean().ceil())

    def run() -> Tensor:
        lib.m_grouped_fp8_gemm_nt_masked(left, right, out, rows, expected)
        return out

    return {"m_grouped_fp8_gemm_nt_masked": run}


def _decode(lib: Any, q: Tensor, cache: Tensor, table: Tensor, lengths: Tensor, dv: int,
            scale: float, causal: bool) -> Peers:
    if q.dtype != torch.bfloat16 or cache.dtype != torch.bfloat16:
        raise NotForThis(f"takes a bfloat16 query and cache here, not {q.dtype} and {cache.dtype}")
    if cache.shape[1] != FLASH_MLA_PAGE or q.shape[-1] != 576:
        raise NotForThis(f"takes pages of {FLASH_MLA_PAGE} and rows of 576, not {cache.shape[1]} "
                         f"and {q.shape[-1]}")
    plan, splits = lib.get_mla_metadata(lengths, q.shape[1] * q.shape[2], 1)

    def run() -> Any:
        return lib.flash_mla_with_kvcache(q, cache, table, lengths, dv, plan, splits,
                                          softmax_scale=scale, causal=causal)

    return {"flash_mla_with_kvcache": run}


def _fused_moe(lib: Any, hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor,
               w1_s: Tensor | None, w2_s: Tensor | None, block_n: int, block_k: int, w8a8: bool
               ) -> Peers:
    layers = f"{lib.__name__}.model_executor.layers.fused_moe"
    moe, config = import_module(f"{layers}.fused_moe"), import_module(f"{layers}.config")
    quant = None
    if w1.dtype == _FP8:
        if not w8a8:
            raise NotForThis("quantises the activations too: its pair is w8a8")
        quant = config.fp8_w8a8_moe_quant_config(w1_scale=w1_s, w2_scale=w2_s,
                                                 block_shape=[block_n, block_k])
    elif w1.dtype != hidden.dtype:
        raise NotForThis(f"takes weights of the activations' type, not {w1.dtype}")

    def run() -> Any:
        return moe.fused_experts(hidden_states=hidden, w1=w1, w2=w2, topk_weights=weights,
                                 topk_ids=ids, quant_config=quant)

    return {"fused_experts": run}


def _group_quant(lib: Any, x: Tensor, group: int, *rest: object) -> Peers:
    fp8 = import_module(f"{lib.__name__}.model_executor.layers.quantization.utils.fp8_utils")
    return {"per_token_group_quant_fp8": lambda: fp8.per_token_group_quant_fp8(x, group)}


_MAKERS: dict[str, dict[str, Callable[..., Peers]]] = {
    "gemm_nt": {"deep_gemm": _gemm},
    "m_grouped_gemm_nt_contiguous": {"deep_gemm": _contiguous},
    "m_grouped_gemm_nt_masked": {"deep_gemm": _masked},
    "mla_decode": {"flash_mla": _decode},
    "fused_moe": {"vllm": _fused_moe},
    "per_token_group_quant_fp8": {"vllm": _group_quant}}


def library_peers(op: str, args: Args) -> tuple[Peers, dict[str, str]]:
    """Callables by name, and why a library that has such a kernel is not among them."""
    found: Peers = {}
    absent: dict[str, str] = {}
    for module, make in _MAKERS.get(op, {}).items():
        name, source = SOURCES[module]
        if find_spec(module) is None:
            absent[name] = f"not installed ({source})"
            continue
        try:
            made = make(import_module(module), *args)
        except NotForThis as e:
            absent[name] = f"not for this shape: {e}"
        except Exception as e:       # a library of another version, or one that finds no GPU
            absent[name] = f"{type(e).__name__}: {str(e)[:200]}"
        else:
            found |= {f"{name} {call}": run for call, run in made.items()}
    return found, absent
