"""The decoder: embedding, layers, final norm and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import weight_dequant
from .attention import Attention
from .batch import Batch
from .cache import LatentCache
from .config import LATENT_NORM_EPS, ModelConfig
from .layers import MLP, Linear, MoE, RMSNorm
from .rope import cos_sin_table
from .tensor_names import layer as layer_name
from .weights import Checkpoint


@dataclass(frozen=True)
class Block:
    """One decoder layer."""

    input_norm: RMSNorm
    attention: Attention
    post_norm: RMSNorm
    mlp: MLP | MoE

    def __call__(self, x: Tensor, batch: Batch, kv_cache: Tensor) -> Tensor:
        x = x + self.attention(self.input_norm(x), batch, kv_cache)
        h = self.post_norm(x)
        return x + (self.mlp(h, batch.on_route, batch.absent) if isinstance(self.mlp, MoE)
                    else self.mlp(h))


@dataclass(frozen=True)
class Transformer:
    """Hidden states of new tokens, and logits of the rows that are asked for."""

    config: ModelConfig
    embedding: Tensor                # [vocab, hidden]
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Linear                     # [vocab, hidden]
    act_dtype: torch.dtype = torch.float32

    def hidden(self, batch: Batch, cache: LatentCache) -> Tensor:
        """Run the layers on a step; [T, hidden] before the final norm (what MTP continues)."""
        x = torch.nn.functional.embedding(batch.ids, self.embedding).to(self.act_dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, batch, cache.layer(i))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab] float32."""
        return self.head(self.norm(hidden), torch.float32)


@dataclass(frozen=True)
class _Builder:
    config: ModelConfig
    files: Checkpoint
    cos_sin: Tensor
    w8a8: bool
    act_dtype: torch.dtype

    def linear(self, name: str) -> Linear:
        return Linear(self.files.operand(f"{name}.weight"), self.files.block, self.w8a8)

    def norm(self, name: str, eps: float) -> RMSNorm:
        # In the activations' dtype, as torch's one-pass norm wants; it computes in float32.
        return RMSNorm(self.files.plain(f"{name}.weight", self.act_dtype), eps)

    def mlp(self, prefix: str) -> MLP:
        block = self.files.block
        return MLP(Linear(self.files.gate_up(prefix), block, self.w8a8),
                   Linear(self.files.down(prefix), block, self.w8a8))

    def moe(self, index: int) -> MoE:
        c, prefix = self.config, f"{layer_name(index)}.mlp"
        bias = self.files.plain(f"{prefix}.gate.e_score_correction_bias", torch.float32) \
            if c.routing.has_bias else None
        w1, w2 = self.files.experts(f"{prefix}.experts")
        return MoE(index, self.files.plain(f"{prefix}.gate.weight", torch.float32), bias, c.routing,
                   w1, w2, self.mlp(f"{prefix}.shared_experts") if c.num_shared_experts else None,
                   self.files.block, self.w8a8)

    def attention(self, index: int) -> Attention:
        c, prefix = self.config, f"{layer_name(index)}.self_attn"
        kv_b = self.linear(f"{prefix}.kv_b_proj")
        # The absorbed form takes kv_b dequantised, once (DeepSeek-V3 inference/model.py).
        plain = self._plain(kv_b)
        w_uk, w_uv = plain.view(c.num_heads, -1, c.kv_lora_rank).split((c.nope_dim, c.v_dim), 1)
        q_down = (self.linear(f"{prefix}.q_a_proj"),
                  self.norm(f"{prefix}.q_a_layernorm", LATENT_NORM_EPS)) if c.q_lora_rank else None
        return Attention(
            c, q_down, self.linear(f"{prefix}.{'q_b_proj' if c.q_lora_rank else 'q_proj'}"),
            self.linear(f"{prefix}.kv_a_proj_with_mqa"),
            self.files.plain(f"{prefix}.kv_a_layernorm.weight", torch.float32), kv_b,
            w_uk.transpose(1, 2).contiguous(), w_uv.contiguous(), self.linear(f"{prefix}.o_proj"),
            self.cos_sin)

    def _plain(self, linear: Linear) -> Tensor:
        if isinstance(linear.weight, Tensor):
            return linear.weight
        q, scale = linear.weight
        if q.dtype == torch.int8:    # a scale for each row and run of columns
            wide = scale.repeat_interleave(linear.block[1], 1)[:, :q.shape[1]]
            return (q.float() * wide).to(self.act_dtype)
        return weight_dequant(q, scale, block_size=linear.block[0], dtype=self.act_dtype)

    def block(self, index: int) -> Block:
        c, prefix = self.config, layer_name(index)
        return Block(
            self.norm(f"{prefix}.input_layernorm", c.rms_norm_eps), self.attention(index),
            self.norm(f"{prefix}.post_attention_layernorm", c.rms_norm_eps),
            self.moe(index) if index >= c.first_moe_layer else self.mlp(f"{prefix}.mlp"))


def load_transformer(config: ModelConfig, files: Checkpoint, device: torch.device | None = None,
                     w8a8: bool = False, act_dtype: torch.dtype = torch.float32) -> Transformer:
    """Build the model from a checked checkpoint, layer by layer; files load to `device` too."""
    cos_sin = cos_sin_table(config.rope, config.rope_dim, config.max_positions).to(device)
    build = _Builder(config, files, cos_sin, w8a8, act_dtype)
    embedding = files.plain("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else files.plain("lm_head.weight")
    return Transformer(config, embedding, tuple(build.block(i) for i in range(config.num_layers)),
                       build.norm("model.norm", config.rms_norm_eps), Linear(head), act_dtype)
