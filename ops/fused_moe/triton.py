"""GPU lowering: pairs by expert, GEMM 1 with SwiGLU, GEMM 2, weighted sum; nothing waits for the
host.

    [cast]                  w8a8 with cast "apart": hidden states to FP8 or int8
    [count, scan, place]    align "sorted": which rows each tile takes
    GEMM 1                  gate and up in one tile, rows gathered; SwiGLU and its cast behind it
    [act]                   where GEMM 1 could not: K is split, or tiles cut scale groups
    GEMM 2                  y[pair]
    add up                  out[token] = sum of weight * y in slot order

A decode step (512 pairs at most, align "led") is 3 launches, 4 where K must be split to fill the
device; it reads the weights of every expert reached once, and besides moves 2 * pairs * (hidden +
inter) activations and, split, 8 * splits * pairs * inter bytes of partial sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from .._triton.gemm import KINDS, held, modes, scale_strides
from .._triton.gemm_space import options
from .._triton.moe import LED_PAIRS, Plan, sort_pairs
from ..numerics import as_dtype
from ..per_token_group_quant_fp8 import triton as cast_fp8
from ..per_token_group_quant_int8 import triton as cast_int8
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape
from .triton_kernels import act, add_up, gemm_down, gemm_up
from .triton_space import moe_space, power

if TYPE_CHECKING:
    from ...targets.base import GridTarget

_SCRATCH_BYTES = 2 << 30             # more tokens run in several passes
_SUMMED = 512                        # columns of a program that only adds up,
_SUMMED_ROWS = 1                     # and its tokens: one already keeps 8 loads in flight


def space(target: GridTarget, shape: Shape) -> Space:
    """Tiles of both GEMMs, splits of the first, how pairs find their expert."""
    return moe_space(target, shape)


@dataclass(frozen=True)
class _Rows:
    """How the GEMMs find the rows of a tile: from all ids, or from a plan."""

    ids: Tensor
    table: Tensor                    # the plan's; ids again where there is none
    plan: Plan
    led: bool

    @property
    def tiles(self) -> int:
        """The most there can be: the grid does not wait for the device."""
        return self.plan.pairs if self.led else self.plan.tiles

    @property
    def args(self) -> tuple[int, ...]:
        """pairs, tiles, table, order of a kernel."""
        return self.plan.pairs, self.tiles, self.plan.table, self.plan.order


@dataclass(frozen=True)
class _Moe:
    """One config bound to the static axes."""

    target: GridTarget
    shape: Shape
    config: Config

    def size(self, axis: str) -> int:
        """A static axis, or an integer knob."""
        return int(self.config[axis] if axis in self.config else self.shape[axis])

    @property
    def w8a8(self) -> bool:
        """Activations are quantised."""
        return bool(self.shape["w8a8"])

    @property
    def group(self) -> int:
        """Columns that a scale covers."""
        return int(self.shape["block_k"])

    @cached_property
    def part(self) -> int:
        """Columns of K that a split of GEMM 1 sums."""
        tiles = -(-self.size("hidden") // self.size("block_k"))
        return max(-(-tiles // self.size("split_k")), 1) * self.size("block_k")

    @cached_property
    def splits(self) -> int:
        """Parts of GEMM 1's K that are not empty."""
        return max(-(-self.size("hidden") // self.part), 1)

    @cached_property
    def fused(self) -> bool:
        """The activation stands in GEMM 1's epilogue: a tile holds all its sums and groups."""
        half = self.size("block_n") // 2
        whole = self.group == power(self.group) and half % self.group == 0
        return self.splits == 1 and (not self.w8a8 or whole)

    @cached_property
    def casting(self) -> bool:
        """GEMM 1 casts hidden states itself."""
        return (self.w8a8 and self.config["cast"] == "fused"
                and self.size("block_k") == self.group)

    def rows(self, ids: Tensor) -> _Rows:
        """By looking at all ids where they are few enough at run time too."""
        plan = Plan(ids.numel(), self.size("e"), self.size("block_m"))
        if self.config["align"] == "led" and plan.pairs <= LED_PAIRS.value:
            return _Rows(ids, ids, plan, True)
        return _Rows(ids, sort_pairs(self.target, ids, plan), plan, False)

    def gemm(self, a: Tensor, w: Tensor, out: torch.dtype, k: int) -> dict[str, Any]:
        """What both GEMMs are compiled with."""
        block_k = self.size("block_k")
        launch = options(self.config)
        # more stages than K tiles only keep other programs off the multiprocessor
        launch["num_stages"] = min(launch["num_stages"], max(-(-k // block_k) + 1, 2))
        return {"E": self.size("e"), "GROUP_M": self.size("group_m"),
                "SCALE_N": int(self.shape["block_n"]), "SCALE_K": self.group,
                "BLOCK_M": self.size("block_m"), "BLOCK_N": self.size("block_n"),
                "BLOCK_K": block_k, "EVEN_K": k % block_k == 0,
                "SWAP": bool(self.config["swap"]),
                **modes(self.target, a.dtype, w.dtype, out, self.group, block_k,
                        str(self.config["precision"]), k), **launch}

    @cached_property
    def codes(self) -> torch.dtype:
        """What activations are quantised to: what the weights are."""
        return as_dtype(str(self.shape["w_dtype"]))

    @cached_property
    def cast(self) -> Callable[[Tensor, Outputs], None]:
        """Rows to codes with a scale per group: an operator of its own."""
        shape = {"k": self.size("hidden"), "group_size": self.group, "dtype": self.shape["dtype"],
                 "tokens": self.shape["tokens"]}
        if self.codes == torch.int8:
            kernel = cast_int8.build(self.target, shape,
                                     cast_int8.space(self.target, shape).default())
            return lambda x, out: kernel(x, self.group, 1e-10, out=out)
        shape |= {"ue8m0": False}
        fp8 = cast_fp8.build(self.target, shape, cast_fp8.space(self.target, shape).default())
        return lambda x, out: fp8(x, self.group, 1e-10, False, False, False, out=out)

    def quantised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states in codes, and their scales."""
        q = torch.empty(x.shape, dtype=self.codes, device=x.device)
        scale = torch.empty((x.shape[0], -(-x.shape[1] // self.group)), dtype=torch.float32,
                            device=x.device)
        self.cast(x, (q, scale))
        return q, scale

    def up(self, x: Tensor, x_scale: Tensor | None, w: Tensor, w_scale: Tensor | None, rows: _Rows,
           dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """SwiGLU of GEMM 1 for every pair, as GEMM 2 takes it."""
        pairs, inter, k = rows.plan.pairs, self.size("inter"), self.size("hidden")
        groups, splits = triton.cdiv(inter, self.group), self.splits
        h = torch.empty((pairs, inter), dtype=self.codes if self.w8a8 else dtype,
                        device=x.device)
        h_scale = torch.empty((pairs, groups), dtype=torch.float32,
                              device=x.device) if self.w8a8 else None
        to = held(h, self.target.fp8)
        if not self.fused:
            to = torch.empty((splits, pairs, 2 * inter), dtype=torch.float32, device=x.device)
        self.target.launch(
            gemm_up, (rows.tiles * triton.cdiv(inter, self.size("block_n") // 2), splits),
            held(x, self.target.fp8), x_scale, held(w, self.target.fp8), w_scale,
            rows.ids, rows.table, to, h_scale, *rows.args, inter, k, groups,
            *x.stride(), scale_strides(x_scale, 2)[0], *w.stride(), *scale_strides(w_scale, 3),
            pairs * 2 * inter, TOP_K=self.size("top_k"), LED=rows.led,
            SPLIT_K=self.part if splits > 1 else 0, FUSED=self.fused,
            GROUP=self.group if self.w8a8 else 0, CAST=self.casting,
            **self.gemm(h, w, dtype, k))
        if not self.fused:
            group = min(self.group, inter) if self.w8a8 else 128
            width = triton.next_power_of_2(group)
            count = max(_SUMMED // width, 1)
            self.target.launch(
                act, (pairs, triton.cdiv(triton.cdiv(inter, group), count)), to, rows.ids,
                held(h, self.target.fp8), h_scale, inter, groups,
                pairs * 2 * inter, E=self.size("e"), SPLITS=splits, GROUP=group, WIDTH=width,
                COUNT=count, KIND=KINDS[h.dtype], FP8=self.target.fp8, num_warps=4)
        return h, h_scale

    def down(self, h: Tensor, h_scale: Tensor | None, w: Tensor, w_scale: Tensor | None,
             rows: _Rows, dtype: torch.dtype) -> Tensor:
        """GEMM 2 of every pair."""
        n, inter = self.size("hidden"), self.size("inter")
        y = torch.empty((rows.plan.pairs, n), dtype=dtype, device=h.device)
        self.target.launch(
            gemm_down, (rows.tiles * triton.cdiv(n, self.size("block_n")),),
            held(h, self.target.fp8), h_scale, held(w, self.target.fp8), w_scale,
            rows.ids, rows.table, y, *rows.args, n, inter,
            triton.cdiv(inter, self.group), *w.stride(), *scale_strides(w_scale, 3),
            LED=rows.led, **self.gemm(h, w, dtype, inter))
        return y

    def __call__(self, hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor,
                 w1_scale: Tensor | None, w2_scale: Tensor | None, out: Tensor) -> None:
        """One pass over some tokens."""
        x, x_scale = (hidden, None)
        if self.w8a8 and not self.casting:
            x, x_scale = self.quantised(hidden)
        rows = self.rows(ids)
        h, h_scale = self.up(x, x_scale, w1, w1_scale, rows, hidden.dtype)
        y = self.down(h, h_scale, w2, w2_scale, rows, hidden.dtype)
        tokens, n = out.shape
        self.target.launch(add_up, (triton.cdiv(tokens, _SUMMED_ROWS), triton.cdiv(n, _SUMMED)),
                           y, weights, ids, out, tokens, n, *out.stride(), E=self.size("e"),
                           TOP_K=self.size("top_k"), ROWS=_SUMMED_ROWS, BLOCK=_SUMMED,
                           num_warps=4)


def build(target: GridTarget, shape: Shape, config: Config) -> Kernel:
    """Many tokens run in several passes, so that the scratch stays bounded."""
    moe = _Moe(target, shape, config)
    size = as_dtype(str(shape["dtype"])).itemsize
    per_pair = moe.size("hidden") * size + moe.size("inter") * (size if moe.fused else 8)
    at_most = max(_SCRATCH_BYTES // max(per_pair * moe.size("top_k"), 1) // 64 * 64, 64)

    def run(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
            w1_scale: Tensor | None, w2_scale: Tensor | None, block_n: int, block_k: int,
            w8a8: bool, *, out: Outputs) -> None:
        weights, ids = topk_weights.contiguous(), topk_ids.contiguous()
        for first in range(0, hidden.shape[0] if out[0].numel() else 0, at_most):
            part = slice(first, first + at_most)
            moe(hidden[part], w1, w2, weights[part], ids[part], w1_scale, w2_scale, out[0][part])

    return run
