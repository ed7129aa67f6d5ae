"""Multi-head latent attention on the paged cache: expanded or absorbed, chosen per step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import m_grouped_gemm_nt_masked, mla_decode, mla_kv_append, mla_prefill
from .batch import Absorbed, Batch, Expanded
from .config import LATENT_NORM_EPS, ModelConfig
from .layers import Linear, RMSNorm
from .rope import rotate


@dataclass(frozen=True)
class Attention:
    """One layer's MLA (DeepSeek-V2 report, section 2.1).

    Expanded: keys and values of all heads are rebuilt from the latents, then ordinary attention.
    Absorbed: W_UK goes into the query and W_UV after the attention, which reads latents only.
    """

    config: ModelConfig
    q_down: tuple[Linear, RMSNorm] | None
    q_up: Linear                     # [H * (nope + rope), hidden or q_lora]
    kv_a: Linear                     # [kv_lora + rope, hidden]
    kv_norm: Tensor                  # [kv_lora] float32
    kv_b: Linear                     # [H * (nope + v), kv_lora]
    w_uk: Tensor                     # [H, kv_lora, nope]
    w_uv: Tensor                     # [H, v, kv_lora]
    o_proj: Linear                   # [hidden, H * v]
    cos_sin: Tensor                  # [positions, rope] float32

    def __call__(self, x: Tensor, batch: Batch, kv_cache: Tensor) -> Tensor:
        # x [T, hidden], kv_cache [pages, page, 1, kv_lora + rope] -> [T, hidden]
        c = self.config
        mla_kv_append(self.kv_a(x), self.kv_norm, self.cos_sin, batch.positions, kv_cache,
                      batch.slots, LATENT_NORM_EPS)
        if self.q_down is not None:
            down, norm = self.q_down
            x = norm(down(x))
        q = self.q_up(x).view(-1, c.num_heads, c.qk_dim)
        q_nope, q_rope = q.split((c.nope_dim, c.rope_dim), -1)
        q_rope = rotate(q_rope, self.cos_sin.index_select(0, batch.positions))
        out = self._absorbed(q_nope, q_rope, batch.mla, kv_cache) \
            if isinstance(batch.mla, Absorbed) else \
            self._expanded(q_nope, q_rope, batch.mla, kv_cache)
        return self.o_proj(out.reshape(len(q), -1))

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, rows: Absorbed, kv_cache: Tensor) -> Tensor:
        c, dtype = self.config, q_nope.dtype
        tokens, heads = q_nope.shape[:2]
        # Heads are the groups of a grouped GEMM: [H, T, nope] x [H, kv_lora, nope].
        counts = torch.full((heads,), tokens, dtype=torch.int32, device=q_nope.device)
        latent = m_grouped_gemm_nt_masked(q_nope.transpose(0, 1).contiguous(), self.w_uk, counts,
                                          expected_m=tokens, out_dtype=dtype)
        q = torch.cat((latent.transpose(0, 1), q_rope), -1)      # [T, H, kv_lora + rope]
        out, _ = mla_decode(q.view(-1, rows.s_q, heads, c.latent_dim), kv_cache,
                            rows.block_table, rows.cache_seqlens, c.kv_lora_rank, c.softmax_scale)
        out = out.view(tokens, heads, c.kv_lora_rank).transpose(0, 1).contiguous()
        return m_grouped_gemm_nt_masked(out, self.w_uv, counts, expected_m=tokens,
                                        out_dtype=dtype).transpose(0, 1)

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, seqs: Expanded, kv_cache: Tensor) -> Tensor:
        c = self.config
        latent = kv_cache.view(-1, c.latent_dim).index_select(0, seqs.context_slots).to(
            q_nope.dtype)
        normed, k_rope = latent.split((c.kv_lora_rank, c.rope_dim), -1)
        kv = self.kv_b(normed.contiguous()).view(-1, c.num_heads, c.nope_dim + c.v_dim)
        k_nope, v = kv.split((c.nope_dim, c.v_dim), -1)
        k = torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, c.num_heads, -1)), -1)
        out, _ = mla_prefill(torch.cat((q_nope, q_rope), -1), k, v.contiguous(), seqs.cu_q,
                             seqs.cu_k, c.softmax_scale)
        return out                                               # [T, H, v]
