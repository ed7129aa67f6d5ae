"""The network that is trained: DeepSeek-V3, small, with the release's tensor names."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import MLP, Attention, Config, Norm, linear


class Gate(nn.Module):
    """Sigmoid router with group-limited top-k and the loss-free balancing bias."""

    e_score_correction_bias: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's expert ids and their weights."""
        # x [n, hidden] -> int64 [n, top_k], [n, top_k]
        c = self.c
        scores = F.linear(x, self.weight).sigmoid()
        with torch.no_grad():  # the bias chooses experts; it never weighs them
            choice = scores + self.e_score_correction_bias
            per_group = c.n_routed_experts // c.n_group
            group = choice.view(-1, c.n_group, per_group).topk(2, -1)[0].sum(-1)
            kept = torch.zeros_like(group).scatter_(1, group.topk(c.topk_group, -1)[1], 1)
            kept = kept.repeat_interleave(per_group, 1)
            ids = choice.masked_fill(kept == 0, -math.inf).topk(c.num_experts_per_tok, -1)[1]
        weights = scores.gather(1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * c.routed_scaling_factor


class MoE(nn.Module):
    """Routed experts, stacked so that tokens sorted by expert meet one matrix each."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        experts, inner, hidden = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
        self.gate = Gate(c)
        self.w13 = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, inner))
        self.shared_experts = MLP(hidden, inner * c.n_shared_experts)
        self.load = torch.zeros(experts)  # tokens per expert of the last batch

    def forward(self, x: Tensor) -> Tensor:
        """Return the shared expert's output plus the chosen experts' weighted ones."""
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        ids, weights = self.gate(x)
        flat = ids.flatten()
        order = flat.argsort(stable=True)
        rows = order // ids.shape[1]
        count = torch.bincount(flat, minlength=len(self.w13))
        self.load = count.float()
        parts = torch.split(x[rows], count.tolist())
        out = []
        for part, w13, w2 in zip(parts, self.w13, self.w2, strict=True):
            gate, up = F.linear(part, w13).chunk(2, -1)
            out.append(F.linear(F.silu(gate) * up, w2))
        routed = torch.cat(out) * weights.flatten()[order, None]
        y: Tensor = self.shared_experts(x)
        return y.index_add(0, rows, routed).view(shape)


class Block(nn.Module):
    """One pre-norm layer; the first ones have a dense MLP."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        dense = index < c.first_k_dense_replace
        self.self_attn = Attention(c)
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dropout: float) -> Tensor:
        """Add attention's output, then the MLP's."""
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), cos, sin), dropout)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), dropout)


class Trunk(nn.Module):
    """The tensors under the release's prefix `model.`."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)


class Network(nn.Module):
    """Embedding, layers and head; `dropout` acts on what each half of a layer adds."""

    def __init__(self, c: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.c, self.dropout = c, dropout
        self.model = Trunk(c)
        self.lm_head = linear(c.hidden_size, c.vocab_size)
        self._initialise()

    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                std = 0.02 if "embed" in name else weight.shape[-1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight", "w2")):
                    # Keeps the residual sum at one size for any depth.
                    std /= math.sqrt(2 * self.c.num_hidden_layers)
                nn.init.normal_(weight, 0.0, std, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the next token's logits at every position."""
        # tokens [b, t] -> [b, t, vocab]
        size = self.c.qk_rope_head_dim
        frequency = self.c.rope_theta ** -(torch.arange(0, size, 2) / size)
        angle = torch.outer(torch.arange(tokens.shape[1]).float(), frequency)
        dropout = self.dropout if self.training else 0.0
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, angle.cos(), angle.sin(), dropout)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits

    def moe_layers(self) -> list[MoE]:
        """Return the layers that route."""
        return [block.mlp for block in self.model.layers if isinstance(block.mlp, MoE)]


def release_tensors(network: Network) -> dict[str, Tensor]:
    """Return the weights under the release's names, one tensor per expert and projection."""
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        mlp, _, leaf = name.rpartition(".")
        if leaf not in ("w13", "w2"):
            tensors[name] = value.clone()
            continue
        parts = value.chunk(2, 1) if leaf == "w13" else (value,)
        projections = ("gate_proj", "up_proj") if leaf == "w13" else ("down_proj",)
        for projection, part in zip(projections, parts, strict=True):
            for expert, weight in enumerate(part):
                tensors[f"{mlp}.experts.{expert}.{projection}.weight"] = weight.clone()
    return tensors


def from_release(c: Config, tensors: dict[str, Tensor]) -> Network:
    """Return a float32 network with the weights of release_tensors."""

    def stacked(mlp: str, projection: str) -> Tensor:
        names = (f"{mlp}.experts.{e}.{projection}.weight" for e in range(c.n_routed_experts))
        return torch.stack([tensors[name].float() for name in names])

    network = Network(c)
    state = {}
    for name in network.state_dict():
        mlp, _, leaf = name.rpartition(".")
        if leaf == "w13":
            state[name] = torch.cat((stacked(mlp, "gate_proj"), stacked(mlp, "up_proj")), 1)
        elif leaf == "w2":
            state[name] = stacked(mlp, "down_proj")
        else:
            state[name] = tensors[name].float()
    network.load_state_dict(state)
    return network
