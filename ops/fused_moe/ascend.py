"""Ascend lowering: pairs sorted by expert; gather + GEMM 1 + SwiGLU, GEMM 2 + scatter, sum.

Each row of the first GEMM is fetched through the table of tokens, each row of the second goes to
its pair's place, and a last kernel adds a token's pairs by their weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend.casts import narrowed, silu_mul, word
from .._ascend.fp8 import codes
from .._ascend.gemm import INT8, QUANTISED, gemm_flags, gemm_of, operands, product, write
from .._ascend.grouped import FIELDS, grouped_space, pieces_of_runs
from .._ascend.tile import Kernel as Tiles
from .._ascend.tile import kernel
from ..fp8 import AMAX_FLOOR, scale_count
from ..per_token_group_quant_fp8 import ascend as to_fp8
from ..per_token_group_quant_int8 import ascend as to_int8
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

_SUM_ROWS, _SUM_COLUMNS = 8, 512     # of a tile of the last kernel
_GATHER_ROWS, _GATHER_BYTES = 16, 2048           # of a tile: 32 KiB, twice with double buffering
_BYTES = {"float32": 4, "bfloat16": 2, INT8: 1}


def _gemms(shape: Shape) -> tuple[Shape, Shape]:
    """Both products as shapes of a grouped GEMM."""
    act = shape["w_dtype"] if shape["w8a8"] else shape["dtype"]
    both: Shape = {"e": shape["e"], "a_dtype": act, "w_dtype": shape["w_dtype"],
                   "out_dtype": shape["dtype"], "block_n": shape["block_n"],
                   "block_k": shape["block_k"]}
    inter, hidden = int(shape["inter"]), shape["hidden"]
    # rounded twice, the activation would often get another code than its definition says
    h = "float32" if shape["w8a8"] else shape["dtype"]
    return ({**both, "n": 2 * inter, "k": hidden, "out_dtype": h,
             "block_n": 1 if _scale_each_row(shape) else shape["block_n"]},
            {**both, "n": hidden, "k": inter})


def _halves(target: AscendTarget, shape: Shape, config: Config) -> bool:
    """Whether the activation goes on as two bfloat16 that sum to it: where weights are rounded.

    With both weights and it rounded, 4 of 1.35 M outputs were off by more than 1 % of their row's
    maximum (15 with y rounded too), and none with this (docs/ascend.md).
    """
    g = gemm_of(target, _gemms(shape)[1], config)
    return g.compute == "bfloat16" and g.w in QUANTISED and not g.late


def _scale_each_row(shape: Shape) -> bool:
    """Whether a tile of w1's second half lies in two blocks of scales: each row gets its own then.

    The device would have to copy the scales one by one.
    """
    return shape["w_dtype"] in QUANTISED and int(shape["inter"]) % int(shape["block_n"]) != 0


def space(target: AscendTarget, shape: Shape) -> Space:
    """Tiles of both GEMMs."""
    pairs = int(shape["tokens"]) * int(shape["top_k"])
    rows = -(-pairs // max(int(shape["e"]), 1))
    return grouped_space(target, {**_gemms(shape)[1], "n": shape["inter"],
                                  "k": shape["hidden"]}, rows,
                         -(-min(pairs, 128) // max(rows, 1)))


def _walk(k: Tiles) -> tuple[Any, Any, Any]:
    """Declare the lists of pieces: how many, their entries, their lengths."""
    lists, room = k.scalar("lists"), k.scalar("room")
    pieces = k.tensor("pieces", (lists, room, FIELDS), "int32")
    lengths = k.tensor("lengths", (lists,), "int32")
    return lists, pieces, lengths


def _columns(k: Tiles, width: int, most: int) -> tuple[Any, int]:
    """A block's first column, and how many: the last tile starts earlier instead of being cut.

    Two tiles then write the same values to some columns. Rows that are gathered by parts of a tile
    do not compile for the 950 ("memref.extract_strided_metadata", ascendnpu-ir 1.2.0).
    """
    columns = min(width, most)
    return T.min(k.block("y", -(-width // columns)) * columns, width - columns), columns


def gather_program(width: int, dtype: str) -> Any:
    """moe_gather(rows, pairs, row [pairs], x [rows, W], out [pairs, W]): out[i] = x[row[i]]."""
    with kernel("moe_gather") as k:
        rows, pairs = k.scalar("rows"), k.scalar("pairs")
        row = k.tensor("row", (pairs,), "int32")
        x, out = k.tensor("x", (rows, width), dtype), k.tensor("out", (pairs, width), dtype)
        r = k.block("x", T.ceildiv(pairs, _GATHER_ROWS)) * _GATHER_ROWS
        c, columns = _columns(k, width, _GATHER_BYTES // _BYTES[dtype])
        tile = _GATHER_ROWS, columns

        def inside(i: Any, j: Any) -> Any:
            return r + i < pairs

        held = k.new(tile, dtype, lambda i, j: x[row[r + i], c + j], inside)
        k.store(out, tile, lambda i, j: (r + i, c + j), lambda i, j: held[i, j], inside)
    return k.func


def first_program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """moe_up(lists, room, pieces, lengths, pairs, a [pairs, K] ..., h [pairs, I], h_rest)."""
    g, inter, lanes = gemm_of(target, _gemms(shape)[0], config), int(shape["inter"]), int(
        config["lanes"])
    halves = _halves(target, shape, config)
    with kernel("moe_up") as k:
        lists, pieces, lengths = _walk(k)
        pairs = k.scalar("pairs")
        t = operands(k, target, g, pairs, int(shape["e"]), (pairs, inter))
        rest = k.tensor("h_rest", (pairs, inter), g.out) if halves else None
        at = k.block("x", lists)
        column = k.block("y", -(-inter // g.block_n)) * g.block_n
        lane = k.block("z", lanes)
        aligned = inter % g.scale_n == 0 and inter % g.block_n == 0
        with k.loop(T.max(lengths[at] - lane + lanes - 1, 0) // lanes) as turn:
            first, count, expert = (pieces[at, turn * lanes + lane, f] for f in range(FIELDS))

            def half(start: int) -> Any:
                return product(k, g, t, lambda i: first + i, count, expert, start + column,
                               None if aligned else inter - column)

            act = silu_mul(k, half(0), half(inter))
            tile = g.block_m, g.block_n

            def keep(into: Any, value: Any) -> None:
                k.store(into, tile, lambda i, j: (first + i, column + j),
                        lambda i, j: value[i, j], lambda i, j: T.And(i < count, column + j < inter))

            kept = k.new(tile, g.out, lambda i, j: narrowed(act[i, j], g.out))
            keep(t.out, kept)
            if rest is not None:
                gap = k.new(tile, "float32", lambda i, j: act[i, j] - T.Cast("float32", kept[i, j]))
                keep(rest, k.new(tile, g.out, lambda i, j: T.Cast(g.out, gap[i, j])))
    return k.func


def second_program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """moe_down(lists, room, pieces, lengths, pairs, h [pairs, I] ..., y [pairs, K] float32)."""
    # rounded here already, a sum of top_k would be rounded twice
    g = replace(gemm_of(target, _gemms(shape)[1], config), out="float32")
    lanes = int(config["lanes"])
    with kernel("moe_down") as k:
        lists, pieces, lengths = _walk(k)
        pairs = k.scalar("pairs")
        t = operands(k, target, g, pairs, int(shape["e"]), rest=_halves(target, shape, config))
        at = k.block("x", lists)
        column = k.block("y", -(-g.n // g.block_n)) * g.block_n
        lane = k.block("z", lanes)
        with k.loop(T.max(lengths[at] - lane + lanes - 1, 0) // lanes) as turn:
            first, count, expert = (pieces[at, turn * lanes + lane, f] for f in range(FIELDS))
            acc = product(k, g, t, lambda i: first + i, count, expert, column)
            write(k, g, t, acc, lambda i: first + i, count, column)
    return k.func


def sum_program(shape: Shape) -> Any:
    """moe_sum(tokens, pairs, place, weights [tokens, top_k], y [pairs, K], out [tokens, K]).

    place [tokens, top_k] says in which row of y a token's product stands.
    """
    hidden, top_k, dtype = int(shape["hidden"]), int(shape["top_k"]), str(shape["dtype"])
    with kernel("moe_sum") as k:
        tokens, pairs = k.scalar("tokens"), k.scalar("pairs")
        place = k.tensor("place", (tokens, top_k), "int32")
        weights = k.tensor("weights", (tokens, top_k), "float32")
        y = k.tensor("y", (pairs, hidden), "float32")
        out = k.tensor("out", (tokens, hidden), dtype)
        r = k.block("x", T.ceildiv(tokens, _SUM_ROWS)) * _SUM_ROWS
        c, columns = _columns(k, hidden, _SUM_COLUMNS)
        tile = _SUM_ROWS, columns

        def inside(i: Any, *_: Any) -> Any:
            return r + i < tokens

        acc = k.fill(tile, "float32", 0)
        with k.loop(top_k) as slot:
            w = k.new(tile[:1], "float32", lambda i: weights[r + i, slot], inside)
            x = k.new(tile, "float32", lambda i, j: y[place[r + i, slot], c + j], inside)
            k.put(acc, lambda i, j: acc[i, j] + x[i, j] * w[i])
        k.store(out, tile, lambda i, j: (r + i, c + j), lambda i, j: narrowed(acc[i, j], dtype),
                inside)
    return k.func


def _cast(target: AscendTarget, shape: Shape, k: int, dtype: str) -> Kernel:
    """The per-token-group cast of w8a8 to the weights' codes, in its default config."""
    quant: Shape = {"k": k, "group_size": shape["block_k"], "dtype": dtype, "ue8m0": False,
                    "tokens": shape["tokens"]}
    cast = to_int8 if shape["w_dtype"] == INT8 else to_fp8
    made = cast.build(target, quant, cast.space(target, quant).default())
    more = () if shape["w_dtype"] == INT8 else (False, False, False)     # layouts of FP8 scales

    def run(x: Tensor, *, out: Outputs) -> None:
        made(x, int(shape["block_k"]), AMAX_FLOOR, *more, out=out)

    return run


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Foreign expert ids take no part; nothing waits for the host."""
    up, down = (first_program(target, shape, config), second_program(target, shape, config))
    add, flags = sum_program(shape), gemm_flags(config)
    halves = _halves(target, shape, config)
    e, inter, hidden_size, top_k, group = (int(shape[a]) for a in (
        "e", "inter", "hidden", "top_k", "block_k"))
    block_m, block_n, lanes = (int(config[c]) for c in ("block_m", "block_n", "lanes"))
    x_dtype = INT8 if shape["w8a8"] else str(shape["dtype"])     # codes are gathered as bytes
    gathers = {x_dtype: gather_program(hidden_size, x_dtype)}
    if shape["w8a8"]:
        gathers["float32"] = gather_program(scale_count(hidden_size, group), "float32")
    code = torch.int8 if shape["w_dtype"] == INT8 else torch.float8_e4m3fn
    casts = (_cast(target, shape, hidden_size, str(shape["dtype"])),
             _cast(target, shape, inter, "float32")) if shape["w8a8"] else None

    def quantised(x: Tensor, which: int) -> list[Tensor]:
        if casts is None:
            return [x]
        q = torch.empty(x.shape, dtype=code, device=x.device)
        s = torch.empty((x.shape[0], scale_count(x.shape[1], group)), dtype=torch.float32,
                        device=x.device)
        casts[which](x, out=(q, s))
        return [codes(target, q), s]

    def weight(w: Tensor, scale: Tensor | None) -> list[Tensor]:
        flat = [codes(target, w.flatten(0, 1).contiguous())]
        return flat if scale is None else [*flat, scale.flatten(0, 1).contiguous()]

    def sorted_rows(x: Tensor, row: Tensor) -> Tensor:
        held = x.view(torch.int8) if x.element_size() == 1 else x
        made = torch.empty((row.shape[0], x.shape[1]), dtype=held.dtype, device=x.device)
        name = str(held.dtype).removeprefix("torch.")
        grid = (-(-row.shape[0] // _GATHER_ROWS), -(-x.shape[1] * _BYTES[name] // _GATHER_BYTES))
        target.launch(gathers[name], grid, x.shape[0], row.shape[0], row, held, made)
        return made.view(x.dtype)

    def run(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
            w1_scale: Tensor | None, w2_scale: Tensor | None, scale_n: int, scale_k: int,
            use_fp8_w8a8: bool, *, out: Outputs) -> None:
        tokens = hidden.shape[0]
        if not out[0].numel():
            return
        known = (topk_ids >= 0) & (topk_ids < e)
        sorted_ids, order = torch.where(known, topk_ids, e).flatten().sort(stable=True)
        pairs = order.shape[0]
        h = [torch.empty((pairs, inter), dtype=hidden.dtype if casts is None else torch.float32,
                         device=hidden.device) for _ in range(2 if halves else 1)]
        y = torch.zeros((pairs, hidden_size), dtype=torch.float32, device=hidden.device)
        if pairs and inter:
            token = (order // top_k).int()
            x = [sorted_rows(part, token) for part in quantised(hidden.contiguous(), 0)]
            pieces, lengths = pieces_of_runs(sorted_ids.int(), e, block_m)
            lists = *pieces.shape[:2], pieces.contiguous(), lengths.contiguous()
            windows = pieces.shape[0]
            if w1_scale is not None and _scale_each_row(shape):
                w1_scale = w1_scale.repeat_interleave(scale_n, 1)[:, :2 * inter]
            target.launch(up, (windows, -(-inter // block_n), lanes), *lists, pairs, *x,
                          *weight(w1, w1_scale), *h, **flags)
            target.launch(down, (windows, -(-hidden_size // block_n), lanes), *lists, pairs,
                          *(quantised(h[0], 1) if casts else h), *weight(w2, w2_scale), y, **flags)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(
            pairs, device=order.device)).int()
        grid = -(-tokens // _SUM_ROWS), -(-hidden_size // _SUM_COLUMNS)
        target.launch(add, grid, tokens, pairs, place, torch.where(known, topk_weights, 0.0), y,
                      out[0], enable_auto_multi_buffer=word(config["double_buffer"]))

    return run
