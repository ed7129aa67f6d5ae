"""The tensors that a DeepSeek-family release must hold, and their shapes."""

from __future__ import annotations

from .config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def layer(index: int) -> str:
    """Prefix of a layer's tensors."""
    return f"model.layers.{index}"


def expected_tensors(c: ModelConfig) -> Shapes:
    """Name -> shape of every tensor of the model, without multi-token-prediction layers."""
    shapes: Shapes = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size),
                      "model.norm.weight": (c.hidden_size,)}
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        prefix = layer(i)
        shapes |= {f"{prefix}.{norm}.weight": (c.hidden_size,)
                   for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= _attention(c, f"{prefix}.self_attn")
        shapes |= _moe(c, f"{prefix}.mlp") if i >= c.first_moe_layer else _mlp(
            c, f"{prefix}.mlp", c.intermediate_size)
    return shapes


def _attention(c: ModelConfig, prefix: str) -> Shapes:
    shapes: Shapes = {
        "kv_a_proj_with_mqa": (c.latent_dim, c.hidden_size),
        "kv_a_layernorm": (c.kv_lora_rank,),
        "kv_b_proj": (c.num_heads * (c.nope_dim + c.v_dim), c.kv_lora_rank),
        "o_proj": (c.hidden_size, c.num_heads * c.v_dim),
    }
    if c.q_lora_rank:
        shapes |= {"q_a_proj": (c.q_lora_rank, c.hidden_size), "q_a_layernorm": (c.q_lora_rank,),
                   "q_b_proj": (c.num_heads * c.qk_dim, c.q_lora_rank)}
    else:
        shapes["q_proj"] = (c.num_heads * c.qk_dim, c.hidden_size)
    return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}


def _mlp(c: ModelConfig, prefix: str, inter: int) -> Shapes:
    return {f"{prefix}.gate_proj.weight": (inter, c.hidden_size),
            f"{prefix}.up_proj.weight": (inter, c.hidden_size),
            f"{prefix}.down_proj.weight": (c.hidden_size, inter)}


def _moe(c: ModelConfig, prefix: str) -> Shapes:
    shapes: Shapes = {f"{prefix}.gate.weight": (c.num_experts, c.hidden_size)}
    if c.routing.has_bias:
        shapes[f"{prefix}.gate.e_score_correction_bias"] = (c.num_experts,)
    for e in range(c.num_experts):
        shapes |= _mlp(c, f"{prefix}.experts.{e}", c.moe_intermediate_size)
    if c.num_shared_experts:
        shapes |= _mlp(c, f"{prefix}.shared_experts",
                       c.moe_intermediate_size * c.num_shared_experts)
    return shapes
