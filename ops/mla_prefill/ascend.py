"""Ascend lowering: a block for each head and window of query rows, walking its sequences.

A window's runs are pieces of one sequence each; rows outside of all sequences belong to one more
that has no key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tvm.script.ir_builder import tirx as T

from .._ascend import attention
from .._ascend.casts import narrowed, word
from .._ascend.grouped import FIELDS, pieces_of_runs
from .._ascend.tile import constant, kernel
from ..space import Config, Space
from ..spec import Kernel, Outputs, Shape

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def space(target: AscendTarget, shape: Shape) -> Space:
    """Query rows and keys of a tile, and the compiler's switches."""
    tokens, wide = int(shape["tokens"]), shape["dtype"] == "float32"
    first = next((b for b in (16, 32, 64) if b >= tokens), 64)
    first = min(first, 32) if wide or int(shape["d_v"]) > 128 else first
    return Space({"block_m": (first, *(b for b in (16, 32, 64, 128) if b != first)),
                  "block_n": (64, 128, 32) if not wide else (32, 64, 16),
                  "double_buffer": (True, False), "workspace_buffers": (2, 1, 4)})


def program(target: AscendTarget, shape: Shape, config: Config) -> Any:
    """prefill(lists, room, pieces, lengths, tq, tk, sequences, count [n, 4], q, k, v, o, lse)."""
    heads, d_qk, d_v = (int(shape[a]) for a in ("heads", "d_qk", "d_v"))
    rows, keys, dtype = int(config["block_m"]), int(config["block_n"]), str(shape["dtype"])
    with kernel("mla_prefill") as k:
        lists, room = k.scalar("lists"), k.scalar("room")
        pieces = k.tensor("pieces", (lists, room, FIELDS), "int32")
        lengths = k.tensor("lengths", (lists,), "int32")
        tq, tk, count_ = k.scalar("tq"), k.scalar("tk"), k.scalar("count")
        scale = k.float_scalar("scale")
        sequences = k.tensor("sequences", (count_, 4), "int32")
        q = k.tensor("q", (tq, heads, d_qk), dtype)
        key = k.tensor("k", (tk, heads, d_qk), dtype)
        value = k.tensor("v", (tk, heads, d_v), dtype)
        o, lse = k.tensor("o", (tq, heads, d_v), dtype), k.tensor("lse", (heads, tq), "float32")
        at, head = k.block("x", lists), k.block("y", heads)
        with k.loop(lengths[at]) as turn:
            first, count, which = (pieces[at, turn, f] for f in range(FIELDS))
            q_start, q_length, k_start, k_length = (sequences[which, f] for f in range(4))

            def there(i: Any, *_: Any) -> Any:
                return i < count

            query = k.new((rows, d_qk), dtype, lambda i, j: q[first + i, head, j], there)
            state = attention.start(k, rows, [d_v], dtype)
            sees = k_length - q_length + 1 + first - q_start     # of the tile's first row
            needed = (T.max(T.min(k_length, sees + count - 1), 0) if shape["causal"]
                      else k_length)
            with k.loop(T.ceildiv(needed, keys)) as step:
                token = step * keys
                known = k_length - token

                def load(source: Any, width: int) -> Any:
                    return k.new((keys, width), dtype, lambda i, j: T.if_then_else(
                        i < known, source[k_start + token + i, head, j], constant(0, dtype)))

                def seen(i: Any, j: Any) -> Any:
                    return j < i + (sees - token) if shape["causal"] else j < known

                raw = attention.scores(k, [query], [load(key, d_qk)], [None])
                attention.add(k, state, raw, scale, seen, [load(value, d_v)], [None])
            done, = attention.divided(k, state)
            k.store(o, (rows, d_v), lambda i, j: (first + i, head, j),
                    lambda i, j: narrowed(done[i, j], dtype), there)
            sums = attention.log_sum(k, state, -float("inf"))
            k.store(lse, (rows,), lambda i: (head, first + i), lambda i: sums[i], there)
    return k.func


def _sequences(cu_q: Tensor, cu_k: Tensor, tq: int, tk: int) -> tuple[Tensor, Tensor]:
    """(q start, q length, k start, k length) of each sequence and of none; each row's sequence."""
    ends_q, ends_k = (c.clamp(0, n).cummax(0).values for c, n in ((cu_q, tq), (cu_k, tk)))
    table = torch.stack((ends_q[:-1], ends_q.diff(), ends_k[:-1], ends_k.diff()), 1)
    row = torch.arange(tq, dtype=torch.int32, device=cu_q.device)
    which = torch.searchsorted(ends_q[1:].contiguous(), row, right=True)
    none = cu_q.shape[0] - 1
    which = torch.where(row < ends_q[0], none, which)
    return torch.nn.functional.pad(table, (0, 0, 0, 1)).int(), which.int()


def build(target: AscendTarget, shape: Shape, config: Config) -> Kernel:
    """Tables of sequences are made on the device; nothing waits for the host."""
    made, rows = program(target, shape, config), int(config["block_m"])
    flags = {"enable_auto_multi_buffer": word(config["double_buffer"]),
             "set_workspace_multibuffer": str(config["workspace_buffers"])}

    def run(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
            softmax_scale: float, causal: bool, *, out: Outputs) -> None:
        o, lse = out
        if not q.shape[0]:
            return
        table, which = _sequences(cu_seqlens_q, cu_seqlens_k, q.shape[0], k.shape[0])
        pieces, lengths = pieces_of_runs(which, table.shape[0], rows)
        target.launch(made, (pieces.shape[0], q.shape[1]), *pieces.shape[:2], pieces.contiguous(),
                      lengths, q.shape[0], k.shape[0], table.shape[0], float(softmax_scale), table,
                      q.contiguous(), k.contiguous(), v.contiguous(), o, lse, **flags)

    return run
