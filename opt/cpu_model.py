"""How long a config may take on a CPU, from counts alone: to order configs, never to be believed.

Bytes over bandwidth, or vector instructions over issue slots, whichever is more, times how unevenly
the tasks fall on the threads. What it cannot tell apart (prefetch distance, unrolling, loop order)
it gives the same time. docs/tuning.md says how well it orders the recorded landscapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

from ..ops.space import Config
from ..ops.spec import Operator, Shape
from ..targets.base import Target, VectorTarget

WAKE_US = 5.0                        # to start a parallel region (mla_decode measured some 10)
TASK_US = 0.1                        # of a task, wherever it runs: its loop, its scratch
GHZ = 3.0                            # only orders configs, so no machine's own
ISSUE = 2                            # vector instructions, and loads, a cycle
GB_S = 10.0                          # a thread's share of the bandwidth
REGISTERS = {16: 32, 8: 16, 4: 32}   # vector registers by float32 lanes: AVX-512, AVX2, NEON
SPILLED = 1.6                        # a tile that does not fit its registers
WIDER = 0.1                          # for each doubling of a vector beyond the registers
L2_BYTES = 1 << 19                   # that a task's scratch should fit
OVERFLOWS = 1.15
CONVERT = {"float32": 0, "bfloat16": 1, "float8_e4m3fn": 3, "int8": 2}   # instructions a vector


def parallel_us(tasks: int, each_us: float, threads: int) -> float:
    """Equal tasks, dealt out in equal numbers before they start."""
    return WAKE_US + ceil(max(tasks, 1) / threads) * (each_us + TASK_US)


def tile_cycles(rows: int, columns: int, convert: int, lanes: int) -> float:
    """One step of a register tile: its FMAs and conversions, or its loads."""
    arithmetic = rows * columns + convert * columns
    cycles = max(arithmetic, rows + columns) / ISSUE
    held = rows * columns + columns + 1
    return cycles * (SPILLED if held > REGISTERS.get(lanes, 16) else 1.0)


def _rows_us(op: Operator, target: VectorTarget, shape: Shape, config: Config) -> float:
    """Operators that go through rows: casts, SwiGLU, routing, the cache."""
    work = op.work(shape)
    rows = _row_count(shape)
    wide = int(config["lanes"])
    run = int(shape.get("group_size", shape.get("block_size", shape.get("experts", wide))))
    waste = ceil(run / wide) * wide / run
    while wide > target.lanes:
        wide, waste = wide // 2, waste + WIDER
    if 2 * wide < target.lanes:                  # half vectors run at full speed on many machines
        waste *= target.lanes / 2 / wide
    compute = 4 * work.flops / (target.lanes * ISSUE * GHZ)      # a quarter of the peak
    each = waste * max(work.bytes / GB_S, compute) / rows / 1e3
    if "serial" in config:
        limit = int(config["serial"]) // int(shape.get("k", shape.get("h", 1)))
        if rows <= limit:
            return each * rows
    run_rows = int(config["rows"])
    return parallel_us(ceil(rows / run_rows), min(run_rows, rows) * each, target.threads)


def _blocks_us(op: Operator, target: VectorTarget, shape: Shape, config: Config) -> float:
    """Casts of whole blocks: a task takes neighbours along K."""
    down, across = ceil(int(shape["n"]) / int(shape["block_n"])), ceil(
        int(shape["k"]) / int(shape["block_k"]))
    run = min(int(config["blocks"]), across)
    each = op.work(shape).bytes / max(down * across, 1) / GB_S / 1e3
    return parallel_us(down * ceil(across / run), run * each, target.threads)


def _row_count(shape: Shape) -> int:
    rows = shape.get("tokens", shape.get("n", 1))
    return max(1, int(rows) * (int(shape["e"]) if "e" in shape and "m_max" in shape else 1))


def _gemm_us(op: Operator, target: VectorTarget, shape: Shape, config: Config) -> float:
    """Tiles of dot products: GEMM, grouped GEMM, and both GEMMs of the MoE."""
    if "tile" not in config:
        return _int8_us(target, shape, config)
    if op.name == "fused_moe":
        hidden, inter = int(shape["hidden"]), int(shape["inter"])
        return (_one_gemm(target, shape, config, inter, hidden, 2)
                + _one_gemm(target, shape, config, hidden, inter, 1))
    return _one_gemm(target, shape, config, int(shape["n"]), int(shape["k"]), 1)


def _items(shape: Shape) -> tuple[int, int]:
    """How many experts have rows, and how many rows each."""
    experts = int(shape.get("e", 1))
    rows = int(shape.get("tokens", shape.get("expected_m", 1))) * int(shape.get("top_k", 1))
    if "expected_m" in shape:
        return experts, max(1, int(shape["expected_m"]))
    busy = max(1, min(experts, rows))
    return busy, max(1, ceil(rows / busy))


def _one_gemm(target: VectorTarget, shape: Shape, config: Config, n: int, k: int, halves: int
              ) -> float:
    from ..ops._tvm.tiles import takes_pairs, tiles

    dtype = str(shape["w_dtype"])
    block = int(shape["block_n"]), int(shape["block_k"])
    x_dtype = str(shape.get("a_dtype", shape.get("dtype", "float32")))
    pairs = takes_pairs(target.dots, x_dtype, dtype, k, block[1])
    g = tiles(n, k, dtype, block, target.lanes, config, halves, pairs)
    experts, rows = _items(shape)
    of_item, items = min(rows, g.rows), experts * ceil(rows / g.rows)
    steps = k / target.lanes / (2 if pairs else 1)
    convert = 0 if pairs else CONVERT.get(dtype, 1)
    columns = g.width * halves
    if of_item > g.panel_rows:
        cycles = steps * columns * (convert + 3) / ISSUE        # into a transposed panel
        count = ceil(of_item / g.pm)                            # equal tiles of rows
        size = max(ceil(of_item / count), g.row_sizes[-1])
        cycles += (count * ceil(columns / g.tile_n) * k / (2 if pairs else 1)
                   * tile_cycles(size, g.pn, 0, target.lanes))
    else:
        cycles, left = 0.0, of_item
        while left > 0:
            size = min(g.mr, left)
            wide = g.columns(size)
            cycles += steps * columns / wide * tile_cycles(size, wide, convert, target.lanes)
            left -= size
    read = columns * k * g.element_bytes / GB_S / 1e3
    return parallel_us(items * g.chunks, max(cycles / GHZ / 1e3, read), target.threads)


def _int8_us(target: VectorTarget, shape: Shape, config: Config) -> float:
    """int8 tiles have no shape to choose, only the size of a task."""
    n, k = int(shape.get("n", shape.get("inter", 1))), int(shape.get("k", shape.get("hidden", 1)))
    experts, rows = _items(shape)
    chunk = int(config["chunk"])
    items = experts * ceil(rows / int(config["rows"]))
    each = max(chunk * k / GB_S, min(rows, int(config["rows"])) * chunk * k
               / (4 * target.lanes * ISSUE * GHZ)) / 1e3
    return parallel_us(items * ceil(n / chunk), each, target.threads)


def _pair_cycles(target: VectorTarget, config: Config, queries: float, keys: int, d_qk: int,
                 d_v: int) -> float:
    """A block of queries against a block of keys: two register tiles, and the keys' copy."""
    (hv, nk), (pr, pv) = (tuple(int(x) for x in str(config[k]).split("x"))
                          for k in ("scores", "outputs"))
    vectors = max(1, queries / int(config["lanes"]))
    score = keys * d_qk * vectors / (hv * nk) * tile_cycles(hv, nk, 0, target.lanes)
    output = keys * d_v * queries / target.lanes / (pr * pv) * tile_cycles(pr, pv, 0, target.lanes)
    return score + output + keys * d_qk / target.lanes * 2


def _prefill_us(op: Operator, target: VectorTarget, shape: Shape, config: Config) -> float:
    """Attention over whole prompts: a task is a head and a block of queries."""
    batch, d_qk, d_v = max(int(shape["batch"]), 1), int(shape["d_qk"]), int(shape["d_v"])
    rows, keys = int(config["rows"]), int(config["keys"])
    queries, seen = ceil(int(shape["tokens"]) / batch), ceil(int(shape["ctx"]) / batch)
    blocks = ceil(queries / rows)
    first = seen - queries if shape["causal"] else seen    # keys that the first query sees, less 1
    turns = sum(ceil(min(seen, max(first + (i + 1) * rows, 0)) / keys) for i in range(blocks))
    cycles = _pair_cycles(target, config, min(rows, queries), keys, d_qk, d_v)
    if 4 * keys * (d_qk + d_v) > L2_BYTES:
        cycles *= OVERFLOWS
    return parallel_us(batch * int(shape["heads"]) * blocks, turns / max(blocks, 1) * cycles
                       / GHZ / 1e3, target.threads)


def _decode_us(op: Operator, target: VectorTarget, shape: Shape, config: Config) -> float:
    """Attention over a latent cache: two register tiles, and workers that share the blocks."""
    heads, batch = int(shape["heads"]) * int(shape["s_q"]), int(shape["batch"])
    width, dv = int(shape["head_dim_v"]) + int(shape["rope"]), int(shape["head_dim_v"])
    keys, workers = int(config["keys"]), int(config["workers"])
    cycles = _pair_cycles(target, config, heads, keys, width, dv)
    if 4 * keys * width > L2_BYTES:
        cycles *= OVERFLOWS
    blocks = batch * ceil(int(shape["ctx"]) / keys)
    each = max(cycles / GHZ, 4 * keys * width / GB_S) / 1e3
    turns = ceil(blocks / workers) * ceil(workers / target.threads)
    merge = 0.0 if workers == 1 else WAKE_US + workers * heads * dv / target.lanes / GHZ / 1e3
    return turns * (each + TASK_US) + merge


_Model = Callable[[Operator, VectorTarget, Shape, Config], float]
_MODELS: Mapping[str, _Model] = {
    "gemm_nt": _gemm_us, "m_grouped_gemm_nt_contiguous": _gemm_us,
    "m_grouped_gemm_nt_masked": _gemm_us, "fused_moe": _gemm_us, "mla_decode": _decode_us,
    "mla_prefill": _prefill_us, "mla_kv_append": _rows_us, "moe_route": _rows_us,
    "per_token_group_quant_fp8": _rows_us, "per_token_group_quant_int8": _rows_us,
    "per_token_group_quant_fp8_e5m2": _rows_us,
    "per_block_quant_fp8": _blocks_us, "weight_dequant": _rows_us, "silu_mul": _rows_us,
    "silu_mul_quant_fp8": _rows_us, "silu_mul_quant_fp8_masked": _rows_us}


def estimate_us(op: Operator, target: Target, shape: Shape, config: Config) -> float | None:
    """Modelled microseconds; None for an operator or a target that no model covers."""
    model = _MODELS.get(op.name)
    if target.lang != "tvm" or model is None:
        return None
    return model(op, target, shape, config)  # type: ignore[arg-type]
