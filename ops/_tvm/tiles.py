"""What is static about a GEMM on the CPU: its sizes, its storage and its tile parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from ..space import Config

FP8 = "float8_e4m3fn"
Expr = Any                           # a TVM expression


def storage(dtype: str) -> str:
    """The element type in which a kernel takes weights or activations: fp8 as signed bytes."""
    return "int8" if dtype == FP8 else dtype


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
    kc: int                          # columns of K in a converted panel
    unroll: int
    panel_rows: int                  # items of more rows convert a panel first
    rows: int                        # rows of an item at most
    halves: int = 1                  # 2: gate and up, W is [E, 2n, K]

    @property
    def quantised(self) -> bool:
        """Whether W has block scales."""
        return self.dtype == FP8

    @property
    def step_k(self) -> int:
        """Columns of K under one scale."""
        return min(self.block_k, self.k) if self.quantised else self.k

    @property
    def k_blocks(self) -> int:
        """Scales along K."""
        return -(-self.k // self.step_k)

    @property
    def ragged(self) -> bool:
        """Whether some run along K is not made of whole vectors."""
        return bool(self.k % self.lanes or self.step_k % self.lanes)

    @property
    def width(self) -> int:
        """Columns of a task; the last chunk overlaps its neighbour rather than being narrower."""
        return min(self.chunk, self.n)

    @property
    def padded(self) -> int:
        """Columns of one half in the scratch: whole tiles, for panels add up: no overlap."""
        return -(-self.width // self.nr) * self.nr

    @property
    def chunks(self) -> int:
        """Tasks per item."""
        return -(-self.n // self.width)

    @property
    def panel_k(self) -> int:
        """Columns of K in a panel: whole scale blocks, or whole vectors."""
        unit = self.step_k if self.quantised else self.lanes
        return min(max(self.kc // unit, 1) * unit, self.k)

    def columns(self, rows: int) -> int:
        """Columns of a tile of that many rows."""
        return min(max(self.nr, self.wide // rows // self.nr * self.nr), self.width)

    def column(self, chunk: Expr) -> Expr:
        """The first column of a chunk."""
        return T.min(chunk * self.width, self.n - self.width)


def tiles(n: int, k: int, dtype: str, block: tuple[int, int], lanes: int, config: Config,
          halves: int = 1) -> Tiles:
    """The tiles of a config."""
    mr, nr = (int(x) for x in str(config["tile"]).split("x"))
    return Tiles(n=n, k=k, dtype=dtype, block_n=block[0], block_k=block[1], lanes=lanes, mr=mr,
                 nr=nr, halves=halves,
                 **{name: int(config[name])
                    for name in ("wide", "chunk", "kc", "unroll", "panel_rows", "rows")})
