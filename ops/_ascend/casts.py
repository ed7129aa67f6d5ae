"""Groups cast to FP8 in tile programs, bit for bit as ops/fp8.py and ops/e5m2.py define it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from ..fp8_format import E4M3, Format
from ..space import Config, Space
from .fp8 import encoded, power_of_two_above
from .tile import Kernel

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget


def row_space(target: AscendTarget, rows: int, row_bytes: int) -> Space:
    """Rows of a tile, and whether copies overlap with work (two buffers of each tile).

    `row_bytes`: what a row needs in the unified buffer, about. Few rows: every vector core gets
    some; many: the largest tile that fits.
    """
    fitting = [r for r in (64, 32, 16, 8, 4, 2, 1) if r * row_bytes <= target.ub_bytes] or [1]
    share = -(-rows // target.vector_cores)
    first = min((r for r in fitting if r >= share), default=fitting[0])
    ordered = (first, *(r for r in fitting if r != first))
    return Space({"rows": ordered, "double_buffer": (True, False), "code_motion": (True, False)})


def compiler_flags(config: Config) -> dict[str, str]:
    """The flags that `row_space`'s knobs mean."""
    return {"enable_auto_multi_buffer": word(config["double_buffer"]),
            "enable_code_motion": word(config["code_motion"])}


def word(flag: object) -> str:
    """A switch as the compiler reads it."""
    return "true" if flag else "false"


def silu_mul(k: Kernel, gate: Any, up: Any) -> Any:
    """float32 silu(gate) * up of two raw tiles."""
    shape = tuple(int(n) for n in gate.shape)
    g = widened(k, gate)
    slope = k.new(shape, "float32", lambda i, j: T.exp(T.float32(0) - g[i, j]) + T.float32(1))
    u = widened(k, up)
    return k.new(shape, "float32", lambda i, j: g[i, j] / slope[i, j] * u[i, j])


def widened(k: Kernel, x: Any) -> Any:
    """A tile in float32."""
    if str(x.dtype) == "float32":
        return x
    return k.new([int(n) for n in x.shape], "float32", lambda *i: T.Cast("float32", x[i]))


def narrowed(value: Any, dtype: str) -> Any:
    """A float32 value in another float dtype."""
    return value if dtype == "float32" else T.Cast(dtype, value)


def cast_rows(k: Kernel, target: AscendTarget, x: Any, eps: Any, ue8m0: bool,
              store_q: Callable[[Any, Any], None], store_s: Callable[[Any], None],
              to: Format = E4M3) -> None:
    """Cast each row of a float32 tile x [rows, width] with one scale.

    store_q(tile, axes-to-value) and store_s(tile) write the results.
    """
    shape = tuple(int(n) for n in x.shape)
    rows = shape[0]
    # from 0, not from eps: the device's reduction overwrites what it starts from (docs/facts.md)
    top = k.new((rows,), "float32", lambda i: T.float32(0))
    k.reduce("max", top, shape, lambda i, j: T.fabs(x[i, j]))
    amax = k.new((rows,), "float32", lambda i: T.max(top[i], eps))
    scale = k.new((rows,), "float32", lambda i: amax[i] / T.float32(to.most))
    if ue8m0:
        scale = k.new((rows,), "float32", lambda i: power_of_two_above(scale[i]))
    store_s(scale)
    ratio = k.new(shape, "float32", lambda i, j: x[i, j] / scale[i])
    write_codes(k, target, ratio, store_q, to)


def write_codes(k: Kernel, target: AscendTarget, ratio: Any,
                store_q: Callable[[Any, Any], None], to: Format = E4M3) -> None:
    """Hand the codes of a float32 tile to store_q(tile, axes-to-value)."""
    rows, columns = (int(n) for n in ratio.shape)
    if target.fp8 == "bits":
        store_q(encoded(k, (rows, columns), ratio, to), lambda tile, i, j: tile[i, j])
        return
    k.put(ratio, lambda i, j: T.max(T.min(ratio[i, j], T.float32(to.most)), T.float32(-to.most)))
    store_q(ratio, lambda tile, i, j: T.Cast(to.dtype, tile[i, j]))
