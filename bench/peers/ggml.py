"""MoE layers and absorbed attention in ggml, as llama.cpp computes them on a CPU."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...ops.spec import Args
from . import ggml_library as g
from .torch_moe import wide

_KINDS = {"q8_0": g.Q8_0, "bf16": g.BF16}
_SPARE = 64 << 20
Forms = Iterator[tuple[str, Callable[[], Any]]]


class Experts:
    """w1 and w2 of a fused_moe call as ggml tensors of one type, plain or repacked."""

    def __init__(self, args: Args, kind: str, repacked: bool):
        _, w1, w2, _, _, s1, s2, block_n, block_k, _ = args
        self._made: list[tuple[str, Any]] = []
        self.up = self._load(w1, s1, (block_n, block_k), kind, repacked)
        self.down = self._load(w2, s2, (block_n, block_k), kind, repacked)

    def _load(self, w: Tensor, scale: Tensor | None, block: tuple[int, int], kind: str,
              repacked: bool) -> Any:
        lib, (e, n, k) = g.library(), w.shape
        per = lib.ggml_row_size(_KINDS[kind], k) * n
        ctx = g.context((0 if repacked else e * per) + (1 << 20), no_alloc=repacked)
        self._made.append(("ggml_free", ctx))
        made = g.tensor(ctx, _KINDS[kind], (k, n, e))
        if repacked:
            self._interleave(made, kind)     # before the work of quantising: it may be refused
        raw = torch.empty(e * per, dtype=torch.uint8)
        for i in range(e):
            part = wide(w[i:i + 1], None if scale is None else scale[i:i + 1], block,
                        torch.float32)[0].contiguous()
            lib.ggml_quantize_chunk(_KINDS[kind], part.data_ptr(), raw.data_ptr() + i * per, 0, n,
                                    k, None)
        if repacked:
            lib.ggml_backend_tensor_set(made, raw.data_ptr(), 0, raw.numel())
        else:
            g.fill(made, raw)
        return made

    def _interleave(self, made: Any, kind: str) -> None:
        """Give a tensor memory that ggml keeps in the order of the CPU's dot products."""
        lib, buft = g.library(), g.repack_type()
        buffer = lib.ggml_backend_buft_alloc_buffer(
            buft, lib.ggml_backend_buft_get_alloc_size(buft, made) + 4096)
        self._made.append(("ggml_backend_buffer_free", buffer))
        lib.ggml_backend_tensor_alloc(buffer, made, lib.ggml_backend_buffer_get_base(buffer))
        if not g.is_repacked(made):
            self.close()
            raise ValueError(f"this ggml has no interleaved layout of {kind} for this CPU")

    def close(self) -> None:
        """Free the weights."""
        for free, what in reversed(self._made):
            getattr(g.library(), free)(what)


class Layer:
    """Both products and SwiGLU; without the weighted sum, which is in ggml's favour."""

    def __init__(self, experts: Experts, sets: list[Args], threads: int):
        lib, hidden, ids = g.library(), sets[0][0], sets[0][4]
        (tokens, k), top_k = hidden.shape, ids.shape[1]
        inter = sets[0][2].shape[2]
        self.ctx = g.context(4 * tokens * (k + top_k * (3 * inter + k + 1)) + _SPARE)
        x = g.tensor(self.ctx, g.F32, (k, 1, tokens))
        self._ids = g.tensor(self.ctx, g.I32, (top_k, tokens))
        g.fill(x, hidden.float().contiguous())
        self._fill([a[4].contiguous() for a in sets])
        up = lib.ggml_mul_mat_id(self.ctx, experts.up, x, self._ids)
        y = lib.ggml_mul_mat_id(self.ctx, experts.down, lib.ggml_swiglu(self.ctx, up), self._ids)
        self._graph = g.Graph(self.ctx, y, threads)
        self._size = tokens, top_k, k

    def _fill(self, ids: list[Tensor]) -> None:
        self._all, self._next = ids, 0
        g.fill(self._ids, ids[0])

    def __call__(self) -> None:
        """The layer on the next argument set's experts."""
        g.fill(self._ids, self._all[self._next])
        self._next = (self._next + 1) % len(self._all)
        self._graph.run()

    def output(self) -> Tensor:
        """[tokens, top_k, K]: each expert's share, unweighted."""
        return read(self._graph.output, self._size)

    def close(self) -> None:
        """Free everything but the weights."""
        g.library().ggml_free(self.ctx)


def read(output: Any, size: tuple[int, ...]) -> Tensor:
    """A float32 result as a torch tensor of its own."""
    out = torch.empty(size)
    C.memmove(out.data_ptr(), g.library().ggml_get_data(output), out.numel() * 4)
    return out


class Decode:
    """llama.cpp's absorbed attention alone: one flash attention over a float16 latent cache."""

    def __init__(self, sets: list[Args], threads: int):
        lib = g.library()
        q, cache, table, lengths, dv, scale, _ = sets[0]
        batch, _, heads, d = q.shape
        n = int(lengths.max())
        self._size = batch, heads, dv
        self.ctx = g.context(len(sets) * batch * (d * (4 * heads + 2 * n) + 4 * heads * dv)
                             + _SPARE)
        self._graphs = []
        for q, cache, table, *_ in sets:
            rows = cache[table.long()].flatten(1, 2)[:, :n, 0].half().contiguous()
            kv = g.tensor(self.ctx, g.F16, (d, n, 1, batch))
            g.fill(kv, rows)
            query = g.tensor(self.ctx, g.F32, (d, 1, heads, batch))
            g.fill(query, q[:, 0].float().contiguous())
            v = lib.ggml_view_4d(self.ctx, kv, dv, n, 1, batch, 2 * d, 2 * d * n, 2 * d * n, 0)
            out = lib.ggml_flash_attn_ext(self.ctx, query, kv, v, None, scale, 0.0, 0.0)
            self._graphs.append(g.Graph(self.ctx, out, threads))
        self._next = 0

    def __call__(self) -> None:
        """Attention on the next argument set."""
        self._graphs[self._next].run()
        self._next = (self._next + 1) % len(self._graphs)

    def output(self) -> Tensor:
        """[B, H, dv] of the first argument set."""
        return read(self._graphs[0].output, self._size)

    def close(self) -> None:
        """Free all tensors."""
        g.library().ggml_free(self.ctx)
