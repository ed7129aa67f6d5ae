"""What is static about a GEMM on the CPU: its sizes, its storage and its tile parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from ..space import Config

FP8 = "float8_e4m3fn"
QUANTISED = (FP8, "int8")            # weights and activations that come with block scales
_FOLDED = 32                         # columns under a scale for which that is a trifle
INNER = 256                          # 256 by 32 bfloat16 of a panel stay in the first cache: 16 KB
VECTORS = {16: 32, 8: 16, 4: 16}     # registers of a machine with so many lanes
Expr = Any                           # a TVM expression


def storage(dtype: str) -> str:
    """The element type in which a kernel takes a tensor: fp8 as signed bytes."""
    return "int8" if dtype == FP8 else dtype


def bits_of(dtype: str) -> str:
    """The same for operands of the tiles: bfloat16 as its bits, too."""
    return "int16" if dtype == "bfloat16" else storage(dtype)


def takes_pairs(dots: tuple[str, ...], x_dtype: str, w_dtype: str, k: int, block_k: int) -> bool:
    """Whether bfloat16 dot products compute X @ W^T: exact products, float32 sums.

    Only where X is bfloat16 already, or FP8 as W is; codes of eight bits are exact in bfloat16.
    """
    even = block_k % 2 == 0 or block_k >= k or w_dtype == "bfloat16"
    exact = x_dtype == "bfloat16" and w_dtype != "float32" or x_dtype == w_dtype == FP8
    return "bf16" in dots and exact and even


def unit(dtype: str) -> float:
    """What `widen` of a dtype must be multiplied by: an fp8 element comes divided by 256.

    Two to the power of float16's exponent bias (15) less that of e4m3 (7).
    """
    return 256.0 if dtype == FP8 else 1.0


@dataclass(frozen=True)
class Tiles:
    """All that is static about one GEMM: its sizes and its tile parameters."""

    n: int                           # columns (of each half)
    k: int
    dtype: str                       # of the weights
    block_n: int                     # rows and columns of W per scale
    block_k: int
    lanes: int                       # float32 lanes of a vector register
    mr: int                          # rows and columns of a tile
    nr: int
    wide: int                        # a tile of fewer rows gets up to this many columns
    chunk: int                       # columns of a task
    kc: int                          # columns of K whose rows of X are packed at once at most
    unroll: int
    pm: int                          # rows of a panel's tile, and vectors of columns
    pn: int
    panel_rows: int                  # items of more rows convert a panel first
    rows: int                        # rows of an item at most
    ahead: int                       # bytes by which a stream of weights is fetched early; 0: not
    halves: int = 1                  # 2: gate and up, W is [E, 2n, K]
    pairs: bool = False              # bfloat16 dot products; X is bfloat16
    quarters: bool = False           # tiles of few rows take FP8 codes as in `quarters.py`

    @property
    def quantised(self) -> bool:
        """Whether W has block scales."""
        return self.dtype in QUANTISED

    @property
    def step_k(self) -> int:
        """Columns of K under one scale."""
        return min(self.block_k, self.k) if self.quantised else self.k

    @property
    def k_blocks(self) -> int:
        """Scales along K."""
        return -(-self.k // self.step_k)

    @property
    def folds(self) -> bool:
        """Whether scales are multiplied into the few rows of X, once for all columns of a block."""
        return self.quarters and self.k_blocks > 1 and self.block_n >= _FOLDED

    @property
    def run(self) -> int:
        """Elements of K that a tile of few rows takes at once."""
        if self.quarters:
            return 4 * self.lanes
        return 64 if self.pairs and self.quantised else 32 if self.pairs else self.lanes

    @property
    def ragged(self) -> bool:
        """Whether some run along K is not made of whole vectors."""
        return bool(self.k % self.run or self.step_k % self.run)

    @property
    def width(self) -> int:
        """Columns of a task: whole tiles, about `chunk`, such that tasks are about equal.

        The last chunk overlaps its neighbour rather than being narrower.
        """
        tiles = -(-self.n // self.tile_n)
        wanted = max(self.chunk // self.tile_n, 1)

        def waste(width: int) -> tuple[int, int]:
            return -(-tiles // width) * width - tiles, abs(width - wanted)

        best = min(range(max(wanted // 2, 1), wanted * 3 // 2 + 1), key=waste)
        return min(best * self.tile_n, self.n)

    @property
    def tile_n(self) -> int:
        """Columns of a panel's tile."""
        return self.pn * self.lanes

    @property
    def padded(self) -> int:
        """Columns of one half in the scratch: whole tiles of panels."""
        return -(-self.width // self.tile_n) * self.tile_n

    @property
    def chunks(self) -> int:
        """Tasks per item."""
        return -(-self.n // self.width)

    @property
    def across(self) -> int:
        """Tiles of panels in one half of a task."""
        return self.padded // self.tile_n

    @property
    def parts(self) -> int:
        """Parts of K, `inner` columns each, whose rows of X are packed at once at most."""
        return min(max(self.kc // self.inner, 1), -(-self.k // self.inner))

    @property
    def block(self) -> int:
        """Columns of K of a part under one scale."""
        return min(self.step_k, self.inner) if self.quantised else self.inner

    @property
    def inner(self) -> int:
        """Columns of K that a panel's tile sums at once: that part stays in the first cache."""
        late = self.pairs and self.quantised     # scales are applied to the sums
        if self.k_blocks == 1 and not late:
            return min(self.k, INNER)
        if self.step_k <= INNER and not late:
            return min(self.k, INNER // self.step_k * self.step_k)
        splits = -(-self.step_k // INNER)
        even = self.step_k % splits == 0 and self.step_k // splits % 2 == 0
        return self.step_k // splits if even else self.step_k

    @property
    def per_step(self) -> int:
        """Elements of K in a lane of a panel."""
        return 2 if self.pairs else 1

    def steps(self, length: Expr) -> Expr:
        """Lanes that so many columns of K take."""
        return (length + (self.per_step - 1)) // self.per_step

    @property
    def stored(self) -> str:
        """What `widen` takes as the weights' dtype."""
        return "int16" if self.dtype == "bfloat16" else self.dtype

    @property
    def element_bytes(self) -> int:
        """Bytes of a stored weight."""
        return {"float32": 4, "bfloat16": 2, "float16": 2}.get(self.dtype, 1)

    @property
    def panel_run(self) -> int:
        """Columns of K that are transposed at once."""
        return self.lanes * 4 // self.element_bytes

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """Rows of the tiles that panels have code for.

        A tile of fewer than eight sums waits for them: it takes as long as one of eight.
        """
        return tuple(range(self.pm, -(-8 // self.pn) - 1, -1 if self.pm <= 6 else -2))

    def columns(self, rows: int) -> int:
        """Columns of a tile of that many rows."""
        most = max(self.nr, self.wide // rows // self.nr * self.nr)
        if self.pairs and self.quantised:    # two sets of sums, and the weights
            most = min(most, max((VECTORS[self.lanes] - 2) // (2 * rows + 1), 1))
        return min(most, self.width)

    def column(self, chunk: Expr) -> Expr:
        """The first column of a chunk."""
        return T.min(chunk * self.width, self.n - self.width)


def tiles(n: int, k: int, dtype: str, block: tuple[int, int], lanes: int, config: Config,
          halves: int = 1, pairs: bool = False, quarters: bool = False) -> Tiles:
    """The tiles of a config."""
    mr, nr = (int(x) for x in str(config["tile"]).split("x"))
    pm, pn = (int(x) for x in str(config["panel"]).split("x"))
    return Tiles(n=n, k=k, dtype=dtype, block_n=block[0], block_k=block[1], lanes=lanes, mr=mr,
                 nr=nr, pm=pm, pn=pn, halves=halves, pairs=pairs, quarters=quarters,
                 **{name: int(config[name])
                    for name in ("wide", "chunk", "kc", "unroll", "panel_rows", "rows", "ahead")})
