"""The paged latent cache of MLA decode: plain rows, or FlashMLA's bytes with scales."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from ..spec import Shape
from .attention import Block, Buffer, Expr, Tile, put
from .attention_rows import code_pair, copy, zero
from .fp8 import decode_e4m3


class LatentCache:
    """How the keys of one sequence come into the scratch."""

    def __init__(self, t: Tile, static: Shape, views: tuple[Buffer, Buffer, Buffer],
                 flat: Buffer, group: int):
        self.t, self.views, self.flat = t, views, flat
        self.dv, self.rope = int(static["head_dim_v"]), int(static["rope"])
        self.fp8 = static["kv_dtype"] == "fp8"
        self.group = group           # features that share a scale of the fp8 cache
        self.groups = -(-self.dv // group)

    def load(self, block: Block, k: Expr, p: Expr, slot: Expr) -> None:
        """keys[k] = the row of a page's slot."""
        t, keys = self.t, block.keys

        def at(buffer: Buffer) -> Callable[[Expr], Expr]:
            return lambda c: buffer[p, slot, 0, c]

        KV, KF, KH = (at(b) for b in self.views)
        latent, end = self.dv // t.step, t.q_steps
        if not self.fp8:
            copy(t, keys, (k,), lambda c: KV(c) if t.pairs else T.Cast("float32", KV(c)), 0, end)
        elif t.pairs:
            copy(t, keys, (k,), lambda c: code_pair(T.Cast("int32", KV(c))), 0, latent)
            copy(t, keys, (k,), lambda c: KH(self.dv // 4 + self.groups + c), latent, end)
            for g in range(self.groups):
                put(block.scales, (k, g), KF(self.dv // 4 + g))
        else:
            for g in range(self.groups):
                first, last = g * self.group, min((g + 1) * self.group, self.dv)

                def latent_of(c: Expr, g: int = g, first: int = first) -> Expr:
                    return decode_e4m3(KV(first + c)) * KF(self.dv // 4 + g)

                copy(t, keys, (k,), latent_of, first, last)
            copy(t, keys, (k,), lambda c: T.Cast("float32", KH(
                self.dv // 2 + 2 * self.groups + c)), latent, end)
        zero(t, keys, (k,), t.q_steps, t.key_columns)
