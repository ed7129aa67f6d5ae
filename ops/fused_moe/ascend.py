"""Ascend lowering: pairs sorted by expert; gather + GEMM 1 + SwiGLU, GEMM 2 + scatter, sum.

Each row of the first GEMM is fetched through the table of tokens, each row of the second goes to
its pair's place, and a last kernel adds a token's pairs by their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import narrowed, silu_mul, word
from .._ascend.fp8 import codes
from .._ascend.gemm import FP8, gemm_flags, gemm_of, operands, product, write
from .._ascend.grouped import FIELDS, grouped_space, pieces_of_runs
from .._ascend.tile import Kernel as Tiles
from .._ascend.tile import kernel
from ..fp8 import AMAX_FLOOR, scale_count
from ..per_token_group_quant_fp8.ascend import build as build_quant
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_SUM_TILE = 8, 512                   # tokens and columns of the last kernel


def _gemms(shape: Shape) -> tuple[Shape, Shape]:
    """Both products as shapes of a grouped GEMM."""
    act = FP8 if shape["w8a8"] else shape["dtype"]
    both: Shape = {"e": shape["e"], "a_dtype": act, "w_dtype": shape["w_dtype"],
                   "out_dtype": shape["dtype"], "block_n": shape["block_n"],
                   "block_k": shape["block_k"]}
    inter, hidden = int(shape["inter"]), shape["hidden"]
    # rounded twice, the activation would often get another code than its definition says
    h = "float32" if shape["w8a8"] else shape["dtype"]
    return ({**both, "n": 2 * inter, "k": hidden, "out_dtype": h},
            {**both, "n": hidden, "k": inter})


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles of both GEMMs."""
    pairs = int(shape["tokens"]) * int(shape["top_k"])
    rows = -(-pairs // max(int(shape["e"]), 1))
    return grouped_space(target, {**_gemms(shape)[0], "n": shape["inter"]}, rows,
                         -(-min(pairs, 128) // max(rows, 1)))


def _walk(k: Tiles) -> tuple[Any, Any, Any]:
    """Declare the lists of pieces: how many, their entries, their lengths."""
    lists, room = k.scalar("lists"), k.scalar("room")
    pieces = k.tensor("pieces", (lists, room, FIELDS), "int32")
    lengths = k.tensor("lengths", (lists,), "int32")
    return lists, pieces, lengths


def first_program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """moe_up(lists, room, pieces, lengths, tokens, pairs, token [pairs], a ..., h [pairs, I])."""
    g, inter, lanes = gemm_of(target, _gemms(shape)[0], config), int(shape["inter"]), int(
        config["lanes"])
    with kernel("moe_up") as k:
        lists, pieces, lengths = _walk(k)
        tokens, pairs = k.scalar("tokens"), k.scalar("pairs")
        token = k.tensor("token", (pairs,), "int32")
        t = operands(k, target, g, tokens, int(shape["e"]), (pairs, inter))
        at = k.block("x", lists)
        column = k.block("y", -(-inter // g.block_n)) * g.block_n
        lane = k.block("z", lanes)
        aligned = inter % g.scale_n == 0 and inter % g.block_n == 0
        with k.loop(T.max(lengths[at] - lane + lanes - 1, 0) // lanes) as turn:
            first, count, expert = (pieces[at, turn * lanes + lane, f] for f in range(FIELDS))

            def half(start: int) -> Any:
                return product(k, g, t, lambda i: token[first + i], count, expert, start + column,
                               None if aligned else inter - column)

            act = silu_mul(k, half(0), half(inter))
            k.store(t.out, (g.block_m, g.block_n), lambda i, j: (first + i, column + j),
                    lambda i, j: narrowed(act[i, j], g.out),
                    lambda i, j: T.And(i < count, column + j < inter))
    return k.func


def second_program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """moe_down(lists, room, pieces, lengths, pairs, pair [pairs], h ..., y [pairs, K])."""
    g, lanes = gemm_of(target, _gemms(shape)[1], config), int(config["lanes"])
    with kernel("moe_down") as k:
        lists, pieces, lengths = _walk(k)
        pairs = k.scalar("pairs")
        pair = k.tensor("pair", (pairs,), "int32")
        t = operands(k, target, g, pairs, int(shape["e"]))
        at = k.block("x", lists)
        column = k.block("y", -(-g.n // g.block_n)) * g.block_n
        lane = k.block("z", lanes)
        with k.loop(T.max(lengths[at] - lane + lanes - 1, 0) // lanes) as turn:
            first, count, expert = (pieces[at, turn * lanes + lane, f] for f in range(FIELDS))
            acc = product(k, g, t, lambda i: first + i, count, expert, column)
            write(k, g, t, acc, lambda i: pair[first + i], count, column)
    return k.func


def sum_program(shape: Shape) -> Any:
    """moe_sum(tokens, weights [tokens, top_k], y [tokens, top_k, K], out [tokens, K])."""
    hidden, top_k, dtype = int(shape["hidden"]), int(shape["top_k"]), str(shape["dtype"])
    tile = _SUM_TILE
    with kernel("moe_sum") as k:
        tokens = k.scalar("tokens")
        weights = k.tensor("weights", (tokens, top_k), "float32")
        y = k.tensor("y", (tokens, top_k, hidden), dtype)
        out = k.tensor("out", (tokens, hidden), dtype)
        r = k.block("x", T.ceildiv(tokens, tile[0])) * tile[0]
        c = k.block("y", -(-hidden // tile[1])) * tile[1]

        def inside(i: Any, j: Any) -> Any:
            return T.And(r + i < tokens, c + j < hidden) if hidden % tile[1] else r + i < tokens

        acc = k.fill(tile, "float32", 0)
        with k.loop(top_k) as slot:
            w = k.new(tile[:1], "float32", lambda i: weights[r + i, slot], lambda i: r + i < tokens)
            x = k.new(tile, dtype, lambda i, j: y[r + i, slot, c + j], inside)
            k.put(acc, lambda i, j: acc[i, j] + (T.Cast("float32", x[i, j]) if dtype != "float32"
                                                 else x[i, j]) * w[i])
        k.store(out, tile, lambda i, j: (r + i, c + j), lambda i, j: narrowed(acc[i, j], dtype),
                inside)
    return k.func


def _cast(target: AscendTarget, shape: Shape, k: int, dtype: str) -> Kernel:
    """The per-token-group cast of w8a8, in its default config."""
    from ..per_token_group_quant_fp8.ascend import space as quant_space

    quant: Shape = {"k": k, "group_size": shape["block_k"], "dtype": dtype,
                    "ue8m0": False, "tokens": shape["tokens"]}
    return build_quant(target, quant, quant_space(target, quant).default())


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Foreign expert ids take no part; nothing waits for the host."""
    up, down = (first_program(target, shape, config), second_program(target, shape, config))
    add, flags = sum_program(shape), gemm_flags(config)
    e, inter, hidden_size, top_k, group = (int(shape[a]) for a in (
        "e", "inter", "hidden", "top_k", "block_k"))
    block_m, block_n, lanes = (int(config[c]) for c in ("block_m", "block_n", "lanes"))
    casts = (_cast(target, shape, hidden_size, str(shape["dtype"])),
             _cast(target, shape, inter, "float32")) if shape["w8a8"] else None

    def quantised(x: Tensor, which: int) -> list[Tensor]:
        if casts is None:
            return [x]
        q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
        s = torch.empty((x.shape[0], scale_count(x.shape[1], group)), dtype=torch.float32,
                        device=x.device)
        casts[which](x, group, AMAX_FLOOR, False, False, False, out=(q, s))
        return [codes(target, q), s]

    def weight(w: Tensor, scale: Tensor | None) -> list[Tensor]:
        flat = [codes(target, w.flatten(0, 1).contiguous())]
        return flat if scale is None else [*flat, scale.flatten(0, 1).contiguous()]

    def run(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
            w1_scale: Tensor | None, w2_scale: Tensor | None, scale_n: int, scale_k: int,
            use_fp8_w8a8: bool, *, out: Outputs) -> None:
        tokens = hidden.shape[0]
        if not out[0].numel():
            return
        known = (topk_ids >= 0) & (topk_ids < e)
        sorted_ids, order = torch.where(known, topk_ids, e).flatten().sort(stable=True)
        pairs = order.shape[0]
        h = torch.empty((pairs, inter), dtype=hidden.dtype if casts is None else torch.float32,
                        device=hidden.device)
        y = torch.zeros((pairs, hidden_size), dtype=hidden.dtype, device=hidden.device)
        if pairs and inter:
            pieces, lengths = pieces_of_runs(sorted_ids.int(), e, block_m)
            lists = *pieces.shape[:2], pieces.contiguous(), lengths.contiguous()
            windows = pieces.shape[0]
            target.launch(up, (windows, -(-inter // block_n), lanes), *lists, tokens, pairs,
                          (order // top_k).int(), *quantised(hidden.contiguous(), 0),
                          *weight(w1, w1_scale), h, **flags)
            target.launch(down, (windows, -(-hidden_size // block_n), lanes), *lists, pairs,
                          order.int(), *quantised(h, 1), *weight(w2, w2_scale), y, **flags)
        target.launch(add, (-(-tokens // _SUM_TILE[0]), -(-hidden_size // _SUM_TILE[1])), tokens,
                      torch.where(known, topk_weights, 0.0), y, out[0],
                      enable_auto_multi_buffer=word(config["double_buffer"]))

    return run
