"""The paged latent cache of MLA decode: plain rows, or FlashMLA's bytes with scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from .attention import Block, Buffer, Expr, Tile, put
from .attention_feed import Lines, Part, plain
from .attention_rows import code_pair, copy
from .fp8 import decode_e4m3
from .registers import local

_HALF_SHIFT = 256.0                  # an e4m3 code's bits moved by 7 are a float16 of value / 256
_HALF_MASK = -0x4080                 # its sign, four bits of the exponent, mantissa


@dataclass(frozen=True)
class LatentCache:
    """How the rows of a cache are read; its memory in three views of one dimension.

    Views of an fp8 cache have the types of its codes (or pairs), scales and rope; of a plain one
    only the first is used.
    """

    t: Tile
    views: tuple[Buffer, Buffer, Buffer]
    types: tuple[str, str, str]
    widths: tuple[int, int, int]     # elements of a row
    fp8: bool
    group: int                       # features that share a scale of the fp8 cache

    @property
    def lines(self) -> Lines:
        """What a row is fetched by."""
        return Lines(self.views[0], self.widths[0], self.types[0])

    @property
    def _groups(self) -> int:
        return -(-self.t.d_v // self.group)

    def _rows(self, row: Expr) -> tuple[Callable[[Expr], Expr], ...]:
        return tuple((lambda c, view=view, w=w: view[row * w + c])
                     for view, w in zip(self.views, self.widths, strict=True))

    def load_pairs(self, block: Block, k: Expr, row: Expr) -> None:
        """keys[k] = a row in pairs of features, and its scales."""
        t, keys = self.t, block.keys
        codes, scales, rope = self._rows(row)
        if not self.fp8:
            copy(t, keys, (k,), codes, 0, t.q_steps)
            return
        latent, groups = t.d_v // 2, self._groups
        copy(t, keys, (k,), lambda c: code_pair(T.Cast("int32", codes(c))), 0, latent)
        copy(t, keys, (k,), lambda c: rope(t.d_v // 4 + groups + c), latent, t.q_steps)
        for g in range(groups):
            put(block.scales, (k, g), scales(t.d_v // 4 + g))

    def parts(self) -> tuple[Part, ...]:
        """How the elements of a row become float32."""
        if not self.fp8:
            return (plain(self.lines),)
        t, groups = self.t, self._groups
        half = t.lanes >= 8          # such x86 has an instruction for float16; no other product
        scale = local(t.nk * groups)

        def begin(j: int, row: Expr) -> None:
            for g in range(groups):
                put(scale, j * groups + g, self._rows(row)[1](t.d_v // 4 + g)
                    * T.float32(_HALF_SHIFT if half else 1))

        def latent(j: int, row: Expr, c: Expr, l: Expr) -> Expr:
            code = self._rows(row)[0](c + l)
            return (half_of(code) if half else decode_e4m3(code)) * scale[
                j * groups + c // self.group]

        def rope(j: int, row: Expr, c: Expr, l: Expr) -> Expr:
            return T.Cast("float32", self._rows(row)[2](t.d_v // 2 + 2 * groups + (c + l)))

        return (Part(0, t.d_v, self.lines.each, latent, begin),
                Part(t.d_v, t.d_qk, 2 * t.lanes, rope))


def half_of(code: Any) -> Any:
    """The float32 value of an e4m3 code (int8) / 256 through float16; NaN codes read as 480.

    A second shift would cost 7 % of MLA decode: the units that shift also multiply.
    """
    moved = T.Cast("int16", code) << T.int16(7)          # the sign came along twice
    return T.Cast("float32", T.reinterpret("float16", moved & T.int16(_HALF_MASK)))
