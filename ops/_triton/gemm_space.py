"""The configs of matrix kernels on a GPU: tiles that its matrix unit, registers and memory take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..space import Config, Knob, Space
from ..spec import Shape

if TYPE_CHECKING:
    from ...targets.base import GridTarget

FP8, INT8 = "float8_e4m3fn", "int8"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, FP8: 1, INT8: 1}


def fits_int32(k: int) -> bool:
    """Whether the sum of k products of int8 codes, 2^14 each at most, stays below 2^31."""
    return k < 1 << 17


def scaled_by_tiles(a: str, w: str, scale_k: int, k: int) -> bool:
    """Whether scales are applied to the product of every K tile (`modes` decides)."""
    if INT8 in (a, w) and scale_k >= k and fits_int32(k):
        return False
    return FP8 in (a, w) or INT8 in (a, w)


@dataclass(frozen=True)
class Gemm:
    """What a space depends on: a @ b.T for `rows` rows of each of some groups."""

    n: int
    k: int
    a: str                           # dtypes
    w: str
    scale_n: int
    scale_k: int
    rows: int                        # of one group, expected
    total: int                       # that programs side by side may share weights with
    tma: bool = False                # an operator has the form with tensor descriptors
    split: bool = False              # and may split K over programs

    @property
    def quantised(self) -> bool:
        """Scales are applied tile by tile: a second accumulator lives beside the first."""
        return scaled_by_tiles(self.a, self.w, self.scale_k, self.k)

    def wide(self, block_k: int) -> bool:
        """Whether the dot is a float32 one (`modes` decides)."""
        return "float32" in (self.a, self.w) or (self.quantised and self.scale_k % block_k != 0)

    @property
    def decoding(self) -> bool:
        """Whether codes become numbers of 16 bits on their way to the dot."""
        return self.a in ("bfloat16", "float16") and self.w in (FP8, INT8)

    def loaded(self, config: Config) -> int:
        """Bytes of the operands' tiles in one pipeline stage."""
        return int(config["block_k"]) * (int(config["block_m"]) * BYTES[self.a]
                                         + int(config["block_n"]) * BYTES[self.w])


def gemm_of(shape: Shape, rows: int, total: int, tma: bool = False, split: bool = False) -> Gemm:
    """From an operator's shape."""
    return Gemm(int(shape["n"]), int(shape["k"]), str(shape["a_dtype"]), str(shape["w_dtype"]),
                int(shape["block_n"]), int(shape["block_k"]), rows, total, tma, split)


def wgmma(target: GridTarget) -> bool:
    """Whether the matrix unit takes 64 rows at least on its M side (sm_120's takes 16)."""
    return target.arch in ("sm_90", "sm_100", "sm_103")


def options(config: Config) -> dict[str, int]:
    """Launch options of a config."""
    amd = {name: int(config[name]) for name in ("waves_per_eu", "matrix_instr_nonkdim")
           if config.get(name)}
    return {"num_warps": int(config["warps"]), "num_stages": int(config["stages"]), **amd}


def _power(value: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(value - 1, 0).bit_length()


def _first(default: Knob, others: Iterable[Knob]) -> tuple[Knob, ...]:
    return tuple(dict.fromkeys((default, *others)))


def _block_ks(target: GridTarget, g: Gemm) -> tuple[int, ...]:
    """K tiles, best first: those that scale blocks are made of; 128 bytes of a row if possible."""
    widest = max(BYTES[g.a], BYTES[g.w])
    sizes: tuple[int, ...] = {1: (128, 64, 32), 2: (64, 128, 32), 4: (32, 64, 16)}[widest]
    if g.quantised:
        if widest == 2 and wgmma(target):      # 128 bytes of the weights; elsewhere that spills
            sizes = (128, 64, 32)
        sizes = tuple(s for s in sizes if g.scale_k % s == 0) or (32,)
    most = max(_power(g.k), 32)
    return tuple(s for s in sizes if s <= most) or (32,)


def _splits(g: Gemm, target: GridTarget, tiles: int, block_k: int) -> tuple[int, ...]:
    """Parts of K: as many as fill the device once, of four K tiles at least."""
    if not g.split:
        return (1,)
    most = max(-(-g.k // block_k) // 4, 1)
    best = 1
    while best * 2 <= min(target.cores // max(tiles, 1), most, 32):
        best *= 2
    return tuple(s for s in dict.fromkeys((best, 2 * best, best // 2))
                 if 1 <= s <= most)


def fits(target: GridTarget, g: Gemm, config: Config) -> bool:
    """Shared memory for every stage, registers for the accumulators, work for every warp."""
    block_m, block_n, warps = (int(config[c]) for c in ("block_m", "block_n", "warps"))
    block_k, form, swap = int(config["block_k"]), config["form"], bool(config["swap"])
    # warp specialisation on sm_90 runs two groups of `warps`, half of the tile each
    threads = warps * target.warp_size * (2 if form == "tma_ws" else 1)
    tile = block_m * block_n // threads
    wide = g.wide(block_k)
    roomy = target.arch.startswith("gfx") or (wgmma(target) and g.a == g.w)
    most = 128 if not (g.quantised or wide or (g.a == INT8 and not roomy)) else 64 if roomy else 48
    if not 2 <= tile <= most or g.loaded(config) * int(config["stages"]) > target.shared_bytes:
        return False
    if swap and (block_n < 64 or not wgmma(target)):
        return False
    if wgmma(target) and not swap and block_m < 64 and g.n >= 64:
        return False                 # falls to mma.sync: HMMA instead of HGMMA or QGMMA
    if config.get("waves_per_eu") and not config["matrix_instr_nonkdim"]:
        return False
    if form == "pointer":
        return True
    side = block_n if swap else block_m
    return (block_k % 32 == 0 and not (wide and g.quantised) and side >= 64
            and (form == "tma" or warps == 4))


def _default(target: GridTarget, g: Gemm) -> dict[str, Knob]:
    """A tile for the rows that are expected; stages as memory allows."""
    nvidia, mma64 = target.arch.startswith("sm_"), wgmma(target)
    block_k = _block_ks(target, g)[0]
    wide = g.wide(block_k)
    # decoding weights on the way to mma.sync: larger tiles and more stages spill some bytes
    tight = nvidia and not mma64 and g.decoding
    block_m = min(max(_power(g.rows), 16), 64 if wide or tight else 128)
    block_n = min(64 if block_m < 64 or wide else 128, max(_power(g.n), 16))
    swap = mma64 and block_n >= 64 and (block_m < 64 or g.decoding)
    made: dict[str, Knob] = {
        "form": "pointer", "swap": swap, "block_m": block_m, "block_n": block_n,
        "block_k": block_k, "group_m": 8 if g.total > 128 else 1, "splits": 1,
        "warps": 8 if block_m * block_n >= 128 * 128 else 4,
        "stages": 2 if not nvidia else 3 if tight or block_m * block_n >= 128 * 128 else 4,
        "precision": "tf32x3" if nvidia and wide else "ieee"}
    pool = [{**made, "warps": warps, "block_n": n, "block_m": m, "stages": stages}
            for m in (block_m, 64, 32, 16) for n in (block_n, 64, 32, 16)
            for warps in (made["warps"], 8, 2, 1) for stages in (made["stages"], 3, 2, 1)]
    return next(c for c in pool if fits(target, g, c))


def _forms(target: GridTarget, g: Gemm) -> tuple[str, ...]:
    """Forms with descriptors: where rows of both operands lie on 16 bytes."""
    on_16 = all(g.k * BYTES[d] % 16 == 0 for d in (g.a, g.w))
    if not (g.tma and target.has_tma and on_16):
        return ()
    return ("tma", "tma_ws") if wgmma(target) and g.rows > 16 else ("tma",)


def gemm_space(target: GridTarget, g: Gemm) -> Space:
    """The default's neighbourhood: tiles, operand order, splits, pipelining."""
    first = _default(target, g)
    block_m, block_n = int(first["block_m"]), int(first["block_n"])
    tiles = -(-g.rows // block_m) * -(-g.n // block_n)
    splits = _splits(g, target, tiles, int(first["block_k"]))
    nvidia, wide = target.arch.startswith("sm_"), g.wide(int(first["block_k"]))
    knobs = {
        "form": _first("pointer", _forms(target, g)),
        "swap": _first(first["swap"], (True, False) if wgmma(target) else ()),
        "block_m": _first(block_m, (m for m in (16, 32, 64, 128)
                                    if block_m // 2 <= m <= 2 * block_m)),
        "block_n": _first(block_n, (n for n in ((64, 128, 32) if g.rows <= 64 else (128, 64, 256))
                                    if n <= _power(g.n))),
        "block_k": _block_ks(target, g)[:2],
        "group_m": (8, 1) if g.total > 128 else (1,),
        "splits": splits,
        "warps": _first(first["warps"], (4, 8)),
        "stages": _first(first["stages"], (4, 3, 5) if nvidia else (2, 1, 3)),
        "precision": ("tf32x3", "ieee") if nvidia and wide and g.rows <= 16 else
        (first["precision"],)}
    if target.arch.startswith("gfx"):
        knobs |= {"waves_per_eu": (0, 2), "matrix_instr_nonkdim": (0, 16)}
    return Space(knobs, lambda c: fits(target, g, c))
