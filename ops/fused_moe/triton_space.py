"""Configs of the fused MoE: one tile for both GEMMs, chosen by the rows that an expert has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._triton.gemm_space import BYTES, FP8, INT8, scaled_by_tiles, wgmma
from .._triton.moe import LED_PAIRS
from ..space import Config, Knob, Space
from ..spec import Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget


def power(value: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(value - 1, 0).bit_length()


@dataclass(frozen=True)
class _Gemm:
    """GEMM 1 as one expert sees it."""

    n: int
    k: int
    a: str                           # dtypes
    w: str
    scale_k: int
    rows: int                        # of an expert that is reached, on average

    @property
    def quantised(self) -> bool:
        """Scales are applied tile by tile: a second accumulator lives beside the first."""
        return scaled_by_tiles(self.a, self.w, self.scale_k, self.k)

    def wide(self, block_k: int) -> bool:
        """Whether the dot is a float32 one (`modes` decides)."""
        return "float32" in (self.a, self.w) or (self.quantised and self.scale_k % block_k != 0)

    def loaded(self, config: Config) -> int:
        """Bytes of the operands' tiles in one pipeline stage."""
        return int(config["block_k"]) * (int(config["block_m"]) * BYTES[self.a]
                                         + int(config["block_n"]) * BYTES[self.w])


def _gemm_1(shape: Shape) -> _Gemm:
    reached = max(min(_pairs(shape), int(shape["e"])), 1)
    return _Gemm(2 * int(shape["inter"]), int(shape["hidden"]),
                 str(shape["w_dtype"] if shape["w8a8"] else shape["dtype"]), str(shape["w_dtype"]),
                 int(shape["block_k"]), -(-_pairs(shape) // reached))


def _pairs(shape: Shape) -> int:
    return int(shape["tokens"]) * int(shape["top_k"])


def _block_ks(g: _Gemm) -> tuple[int, ...]:
    """K tiles, best first: 128 bytes of the weights, made of whole scale blocks."""
    widest = max(BYTES[g.a], BYTES[g.w])
    sizes: tuple[int, ...] = {1: (128, 64, 256), 2: (64, 128, 32), 4: (32, 64, 16)}[widest]
    if g.quantised:
        if widest == 2:
            sizes = (128, 64, 256)
        sizes = tuple(s for s in sizes if g.scale_k % s == 0) or (32,)
    most = max(power(g.k), 32)
    return tuple(s for s in sizes if s <= most) or (32,)


def _splits(target: GridTarget, shape: Shape, g: _Gemm, block_n: int, block_k: int
            ) -> tuple[int, ...]:
    """Parts of GEMM 1's K: as many as fill the device once, of four K tiles at least."""
    if g.rows > 16:
        return (1,)
    tiles = max(min(_pairs(shape), int(shape["e"])) * -(-g.n // block_n), 1)
    most = max(-(-g.k // block_k) // 4, 1)
    best = 1
    while best * 2 <= min(target.cores // tiles, most, 16):
        best *= 2
    return tuple(s for s in dict.fromkeys((best, 2 * best, best // 2, 1))
                 if 1 <= s <= most and (s == best or s * tiles <= 4 * target.cores))


def _fits(target: GridTarget, g: _Gemm, config: Config) -> bool:
    """Shared memory for every stage, registers for the accumulators, WGMMA where it is."""
    block_m, block_n, swap = int(config["block_m"]), int(config["block_n"]), bool(config["swap"])
    wide = g.wide(int(config["block_k"]))
    tile = block_m * block_n // (int(config["warps"]) * target.warp_size)
    # accumulators of a thread, from what compiled without spills
    roomy = target.arch.startswith("gfx") or (wgmma(target) and g.a == g.w)
    most = 128 if not (g.quantised or wide or (g.a == INT8 and not roomy)) else 64 if roomy else 48
    if not 2 <= tile <= most or g.loaded(config) * int(config["stages"]) > target.shared_bytes:
        return False
    if config["align"] == "led" and block_m > 64:
        return False
    if config["cast"] == "fused" and (block_m > 32 or config["block_k"] != g.scale_k):
        return False
    if swap and (block_n < 64 or not wgmma(target)):
        return False
    if wgmma(target) and block_m < 64 and not swap and not wide:
        return False                 # weights on the N side, few rows on the M side: no WGMMA
    return block_n // 2 <= max(power(g.n // 2), 16)


def _default(target: GridTarget, shape: Shape, g: _Gemm) -> dict[str, Knob]:
    nvidia, block_k = target.arch.startswith("sm_"), _block_ks(g)[0]
    wide = g.wide(block_k)
    # experts are not reached evenly: room for a third more rows than they have on average
    block_m = min(max(power(g.rows * 4 // 3), 16), 32 if wide else 64 if g.quantised else 128)
    block_n = 64 if wide else 128
    # a whole scale group of each half in a tile: the activation is quantised in the epilogue
    if g.a in (FP8, INT8) and g.scale_k <= 128 and block_m >= 64 and not wide:
        block_n = min(max(2 * power(g.scale_k), 128), 256)
    block_n = min(block_n, max(2 * power(g.n // 2), 32))
    swap = wgmma(target) and not wide and block_n >= 64 and (
        block_m < 64 or (g.a == "bfloat16" and g.w in (FP8, INT8)))
    few = _pairs(shape) <= LED_PAIRS.value and block_m <= 64
    # in a decode step the cast hides behind the weights' loads, where it is an instruction, and a
    # launch of its own would show
    cast = (g.a in (FP8, INT8) and few and block_m == 16 and block_k == g.scale_k
            and target.fp8 != "bits")
    made: dict[str, Knob] = {
        "align": "led" if few else "sorted", "swap": swap,
        "cast": "fused" if cast else "apart",
        "block_m": block_m, "block_n": block_n, "block_k": block_k,
        "group_m": 1 if g.rows <= 16 else 8,
        "warps": 8 if block_m * block_n >= 64 * 256 else 4, "stages": 4 if nvidia else 2,
        "precision": "tf32x3" if nvidia else "ieee"}
    pool = ({**made, "block_m": m, "block_n": n, "warps": w, "stages": stages}
            for m in (block_m, 64, 32, 16) for n in (block_n, 128, 64, 32)
            for w in (made["warps"], 8, 2, 1) for stages in (made["stages"], 3, 2, 1)
            if m <= block_m and n <= block_n)
    return next(c for c in pool if _fits(target, g, c))


def moe_space(target: GridTarget, shape: Shape) -> Space:
    """Tiles, operand order, splits of GEMM 1, alignment, pipelining."""
    g = _gemm_1(shape)
    first = _default(target, shape, g)
    nvidia, wide = target.arch.startswith("sm_"), g.wide(int(first["block_k"]))
    block_m, block_n = int(first["block_m"]), int(first["block_n"])

    def around(name: str, *others: Knob) -> tuple[Knob, ...]:
        return tuple(dict.fromkeys((first[name], *others)))

    most: int = LED_PAIRS.value
    casts = ("fused", "apart") if g.a in (FP8, INT8) else ("apart",)
    knobs: dict[str, tuple[Knob, ...]] = {
        "cast": around("cast", *casts),
        "align": around("align", *(("led", "sorted") if 64 < _pairs(shape) <= most else ())),
        "swap": around("swap", *((True, False) if wgmma(target) and not wide else ())),
        "block_m": around("block_m", *(m for m in (16, 32, 64, 128)
                                       if block_m // 2 <= m <= 2 * block_m)),
        "block_n": around("block_n", *(n for n in (128, 64, 256) if n <= 2 * power(g.n // 2))),
        "block_k": _block_ks(g)[:2 if wide or not nvidia else 3],
        "group_m": (1,) if g.rows <= 16 else (8, 1),
        "split_k": _splits(target, shape, g, block_n, int(first["block_k"])),
        "warps": around("warps", 4, 8),
        "stages": around("stages", *((4, 3, 2, 5)[:3 if wide else 4] if nvidia else (2, 1))),
        "precision": ("tf32x3", "ieee") if nvidia and wide else (first["precision"],)}
    if not nvidia and not wide:
        knobs |= {"waves_per_eu": (0, 2), "matrix_instr_nonkdim": (0, 16)}
    return Space(knobs, lambda c: _fits(target, g, c))
