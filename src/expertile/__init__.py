"""expertile: tuned operators for MoE/MLA models.

    import expertile as et
    out = et.fused_moe(hidden, w1, w2, topk_weights, topk_ids)

Every operator answers from the tuning database of this device when it holds a record, from the
default config otherwise, and from the plain torch reference where there is no compiler.
`expertile explain` says which, and why. Inference only: operators have no backward.
"""

from .casts import (
    per_block_quant_fp8,
    per_token_group_quant_fp8,
    per_token_group_quant_int8,
    silu_mul,
    silu_mul_quant_fp8,
    silu_mul_quant_fp8_masked,
    weight_dequant,
)
from .gemm import (
    fp8_gemm_nt,
    gemm_nt,
    int8_gemm_nt,
    m_grouped_gemm_nt_contiguous,
    m_grouped_gemm_nt_masked,
)
from .mla import mla_decode, mla_kv_append, mla_prefill
from .moe import fused_moe, moe_route
from .runtime import Runtime, use_runtime
from .weights import convert_fp8_weight, per_block_quant_int8

__version__ = "0.1.0"
__all__ = [
    "Runtime", "convert_fp8_weight", "fp8_gemm_nt", "fused_moe", "gemm_nt", "int8_gemm_nt",
    "m_grouped_gemm_nt_contiguous", "m_grouped_gemm_nt_masked", "mla_decode", "mla_kv_append",
    "mla_prefill", "moe_route", "per_block_quant_fp8", "per_block_quant_int8",
    "per_token_group_quant_fp8", "per_token_group_quant_int8", "silu_mul", "silu_mul_quant_fp8",
    "silu_mul_quant_fp8_masked", "use_runtime", "weight_dequant",
]
