"""GPU lowering: split-KV over blocks of (query, head) rows, then one merge of the splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from .._triton.fp8 import codes
from ..space import Config, Knob, Space
from ..spec import Kernel, Outputs, Shape
from . import FP8_GROUP, fp8_row_bytes
from .triton_kernels import mla_decode_combine, mla_decode_split

if TYPE_CHECKING:
    from ...targets.base import GridTarget

_KNOBS = ("form", "block_h", "block_n", "chunk", "split_v", "warps", "stages")


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles, who holds which part of the output, splits of the keys.

    form "transposed" puts the keys on the side of the matrix unit that wants 64 rows; split_v gives
    each program that share of the output, while it reads all of the latent for its scores; chunk is
    how many features a product takes at a time, an FP8 scale's 128 at most.
    """
    default = dict(zip(_KNOBS, _default(target, shape), strict=True))
    if shape["kv_dtype"] == "fp8":   # at most four chunks of one scale each
        share = triton.next_power_of_2(int(shape["head_dim_v"])) // (4 * FP8_GROUP)
        default["split_v"] = max(int(default["split_v"]), share)
    default["chunk"] = _chunk(shape, int(default["chunk"]), int(default["split_v"]))
    splits = _splits(target, shape, default)
    amd, wide = target.arch.startswith("gfx"), "float32" in (shape["dtype"], shape["kv_dtype"])
    choices: dict[str, tuple[Knob, ...]] = {
        "form": ("plain", "transposed"), "block_h": (16, 32, 64, 128), "block_n": (16, 32, 64, 128),
        "chunk": tuple(sorted({_chunk(shape, c, 1) for c in (128, 256, 512)})),
        "split_v": (1, 2, 4), "warps": (4, 8), "stages": (1, 2) if amd or wide else (2, 3)}
    near = (splits // 2, splits * 2, *((1,) if splits <= 4 else ()))
    knobs = {**{name: (default[name], *(c for c in choices[name] if c != default[name]))
                for name in _KNOBS},
             "splits": (splits, *sorted({s for s in near if 1 <= s <= 128} - {splits})),
             "combine_rows": (1, 4)}
    if wide and not amd:
        knobs["float32"] = ("tf32x3", "ieee")

    def where(config: Config) -> bool:
        if all(config[k] == default[k] for k in _KNOBS):
            return True
        return config["combine_rows"] == 1 and _worth_it(target, shape, config)

    return Space(knobs, where)


def _default(target: GridTarget, shape: Shape) -> tuple[Knob, ...]:
    """The tile, in the order of _KNOBS: of the few that were compiled for 512 + 64 features, the
    largest without a spill (docs/facts.md)."""
    rows, fp8 = int(shape["heads"]) * int(shape["s_q"]), shape["kv_dtype"] == "fp8"
    if "float32" in (shape["dtype"], shape["kv_dtype"]):
        return "plain", 16, 16, 128, 1, 8 if int(shape["head_dim_v"]) > 256 else 4, 1
    if target.arch.startswith("gfx"):
        return "plain", 64 if rows > 32 else 16, 16 if rows > 32 else 32, 128, 1, 4, 1
    if not _has_wide_mma(target):
        block_h = 16 if rows <= 16 else 64 if rows > 32 and not fp8 and _fits(target, 64) else 32
        return "plain", block_h, 32, 128, 1, 8, 2
    if rows <= 16 or fp8 and rows <= 32:
        return "transposed", 16, 64, 512, 1, 8, 2
    if rows <= 32:
        return "transposed", 32, 64, 512, 1, 8, 2
    if rows <= 64 and not fp8:
        return "plain", 64, 64, 128, 2, 8, 2
    # Each of two warpgroups has 64 rows and half of the output: the work of 64 rows with all of
    # it, where both warpgroups compute all scores. FP8: 64 rows spilled 48 bytes where 128 do not.
    return "plain", 128, 16 if fp8 else 32, 128, 2, 8, 2


def _has_wide_mma(target: GridTarget) -> bool:
    """Whether the matrix unit reads shared memory and wants 64 rows: wgmma, tcgen05."""
    return target.arch.startswith(("sm_90", "sm_100", "sm_103"))


def _fits(target: GridTarget, block_h: int) -> bool:
    """Whether block_h rows of 576 features fit beside two tiles of 32 keys."""
    return 2 * 576 * (block_h + 64) <= target.shared_bytes


def _share(shape: Shape, split_v: int) -> int:
    """Features of the output that a program holds."""
    return max(16, 1 << (-(-int(shape["head_dim_v"]) // split_v) - 1).bit_length())


def _chunk(shape: Shape, chunk: int, split_v: int) -> int:
    """Features of a product: a power of two, of one scale if there are scales, and no more than
    a program's share of the output. A program holds at most four of them."""
    share = _share(shape, split_v)
    return min(share, FP8_GROUP if shape["kv_dtype"] == "fp8" else max(chunk, share // 4))


def _splits(target: GridTarget, shape: Shape, config: Config) -> int:
    """Enough splits for a program on nine of ten cores, none shorter than a step; a power of two.

    Twice as many, for the last cores' sake, would make a second round that is nearly empty.
    """
    rows = int(shape["heads"]) * int(shape["s_q"])
    programs = max(1, int(shape["batch"])) * -(-rows // int(config["block_h"])) * int(
        config["split_v"])
    steps = max(1, int(shape["ctx"]) // int(config["block_n"]))
    want = 1 << (-(-target.cores * 9 // (10 * programs)) - 1).bit_length()
    return min(want, 1 << (steps.bit_length() - 1), 128)


def _worth_it(target: GridTarget, shape: Shape, config: Config) -> bool:
    """Keeps out what cannot run, what computes for nobody and what must spill."""
    rows, rope = int(shape["heads"]) * int(shape["s_q"]), int(shape["rope"])
    dv, fp8 = int(shape["head_dim_v"]), shape["kv_dtype"] == "fp8"
    block_h, block_n = int(config["block_h"]), int(config["block_n"])
    parts, threads = int(config["split_v"]), int(config["warps"]) * target.warp_size
    chunk, width = int(config["chunk"]), _share(shape, parts)
    if not rows // (4 if rows > 64 else 2) <= block_h <= max(16, triton.next_power_of_2(rows)):
        return False
    if chunk != _chunk(shape, chunk, parts) or width > 4 * chunk:
        return False
    if config["form"] == "transposed" and (rows > 32 or block_n < 64):
        return False
    if block_h > 32 and block_n > (32 if target.arch.startswith("gfx") else 64):
        return False
    # float32 values a thread keeps through the loop; gfx9 has 512 registers a lane, NVIDIA 255
    held = block_h * (width + block_n) // threads
    if held > (288 if target.arch.startswith("gfx") else 160):
        return False
    if parts > 1 and block_h * width * parts // threads < 64:
        return False                 # there is room for the whole output
    if parts > 2 and block_h < 128 and width < 512:
        return False                 # scores four times for few rows
    size = 4 if "float32" in (shape["dtype"], shape["kv_dtype"]) else 2
    row = fp8_row_bytes(dv, rope) if fp8 else size * (dv + rope)
    loaded = block_n * row * max(1, int(config["stages"]) - 1)
    used = size * (dv + rope) * (block_h + (block_n if fp8 else 0)) + loaded
    if target.arch.startswith("gfx"):    # queries stay in registers there, chunks share the memory
        used = loaded if int(config["stages"]) > 1 else size * chunk * max(block_h, block_n)
    return used <= target.shared_bytes


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Views of the call's tensors, scratch for the parts of more than one split."""
    heads, dv, s_q, rope = (int(shape[a]) for a in ("heads", "head_dim_v", "s_q", "rope"))
    page, fp8 = int(shape["page"]), shape["kv_dtype"] == "fp8"
    splits, parts, block_h = (int(config[k]) for k in ("splits", "split_v", "block_h"))
    rows, chunk, tile = heads * s_q, int(config["chunk"]), int(config["combine_rows"])
    assert not fp8 or chunk == FP8_GROUP or dv <= FP8_GROUP, "a chunk has one scale"
    columns = min(512, triton.next_power_of_2(dv))
    static: dict[str, Any] = {
        "HEADS": heads, "S_Q": s_q, "DV": dv, "ROPE": rope, "PAGE": page,
        "CAUSAL": bool(shape["causal"]), "FP8": target.fp8 if fp8 else "none",
        "WIDE": "float32" in (shape["dtype"], shape["kv_dtype"]), "BLOCK_H": block_h,
        "BLOCK_N": int(config["block_n"]), "CHUNK": chunk, "PARTS": parts,
        "OWN": _share(shape, parts) // chunk,
        "DR": max(16, triton.next_power_of_2(rope)),
        "TRANSPOSED": config["form"] == "transposed", "DIRECT": splits == 1,
        "PRECISION": config.get("float32", "ieee"), "num_warps": int(config["warps"]),
        "num_stages": int(config["stages"])}

    def run(q: Tensor, kv_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor,
            head_dim_v: int, softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        o, lse = out
        batch, pages = q.shape[0], kv_cache.shape[0]
        if not batch:
            return
        part_o, part_lse = o, lse
        if splits > 1:
            part_o = torch.empty(batch * rows, splits, dv, device=q.device)
            part_lse = torch.empty(batch * rows, splits, device=q.device)
        kv = scales = ropes = kv_cache
        if fp8:
            kv = codes(kv_cache.view(torch.float8_e4m3fn), target.fp8)
            scales, ropes = kv_cache.view(torch.float32), kv_cache.view(torch.bfloat16)
        # what the table can hold; far below 2^31, so that no sum with a tile size overflows
        capacity = min(block_table.shape[1] * page, 2**30) if pages else 0
        target.launch(mla_decode_split, (batch * -(-rows // block_h) * parts, splits),
                      q.contiguous(), kv, scales, ropes, block_table.contiguous(),
                      cache_seqlens.contiguous(), part_o, part_lse, softmax_scale, splits, pages,
                      capacity, block_table.shape[1], **static)
        if splits > 1:
            target.launch(mla_decode_combine, (-(-batch * rows // tile), -(-dv // columns)),
                          part_o, part_lse, o, lse, batch * rows, HEADS=heads, S_Q=s_q, DV=dv,
                          SPLITS=splits, TILE=tile, COLUMNS=columns, num_warps=4)

    return run
