"""a @ b.T by tiles: what GEMM programs share. Products run on the cube, casts on the vector cores.

Operands become what the cube multiplies: float32 if any operand is (or if a float32 result hangs on
scaled weights); the codes themselves where both are e4m3, as e4m3 or exact in float16; float16
where an operand is, codes beside it exact; else bfloat16 with the weights' scales applied: that
rounds each scaled weight to 8 bits, as a conversion at load would. Products of codes are scaled
block by block of K in float32 (DeepSeek-V3 report, section 3.3.2). Two int8 operands are multiplied
as int8 and summed in int32; int8 with one scale for all of K is scaled once, after the last
product, and loses nothing as bfloat16 (8 bits).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from ..space import Config, Space
from ..spec import Shape
from .casts import word
from .fp8 import decoded, stored
from .tile import Kernel, constant

if TYPE_CHECKING:
    from ...targets.ascend.target import AscendTarget

FP8, INT8 = "float8_e4m3fn", "int8"
QUANTISED = (FP8, INT8)              # what comes with scales
_INT32_TERMS = 1 << 17               # products of int8, 2^14 each at most, whose sum fits int32


@dataclass(frozen=True)
class Gemm:
    """One product of tiles and how it is computed."""

    n: int
    k: int
    a: str                           # dtypes as torch names them
    w: str
    out: str
    scale_n: int                     # block of the weights' scales
    scale_k: int
    compute: str                     # what the cube multiplies
    block_m: int
    block_n: int
    block_k: int
    native: bool = False             # the device has e4m3

    @property
    def promoted(self) -> bool:
        """Whether scales apply to products, not to operands."""
        both = self.a == self.w and self.a in QUANTISED
        return both or (self.compute == "float16" and is_scaled(self.a, self.w))

    @property
    def late(self) -> bool:
        """Whether scales apply once, to the sum over K."""
        return one_scale_for_k(self.a, self.w, self.scale_k, self.k)

    @property
    def sums(self) -> str:
        """In what products are summed."""
        return "int32" if self.compute == INT8 else "float32"

    @property
    def unit(self) -> float:
        """What a product must be multiplied by: `decoded` e4m3 is divided by 256."""
        decoded = self.compute == "float16" and not self.native
        return 256.0 ** (self.a, self.w).count(FP8) if decoded else 1.0

    @property
    def ragged_k(self) -> bool:
        """Whether the last block of K is not full: what lies past it must be 0."""
        return self.k % self.block_k != 0


def compute_of(target: AscendTarget, shape: Shape) -> str:
    """What the cube multiplies."""
    a, w, out = str(shape["a_dtype"]), str(shape["w_dtype"]), str(shape["out_dtype"])
    exact = one_scale_for_k(a, w, int(shape["block_k"]), int(shape["k"]))
    if "float32" in (a, w):
        return "float32"
    if "float16" in (a, w):
        return "float16"
    if out != "bfloat16" and is_scaled(a, w) and a != w and not exact:
        return "float32"
    if a == w == INT8:
        return INT8
    if a == w == FP8:
        return FP8 if target.fp8 == "native" else "float16"
    return "bfloat16"


def is_scaled(a: str, w: str) -> bool:
    """Whether an operand comes with scales."""
    return a in QUANTISED or w in QUANTISED


def one_scale_for_k(a: str, w: str, scale_k: int, k: int) -> bool:
    """Whether int8 operands keep one scale along K, so that the sum is scaled and nothing else."""
    return INT8 in (a, w) and scale_k >= k and k < _INT32_TERMS


def gemm_of(target: AscendTarget, shape: Shape, config: Config) -> Gemm:
    """The product of a shape with a config's tiles."""
    block_m, block_n, block_k = (int(config[b]) for b in ("block_m", "block_n", "block_k"))
    return Gemm(int(shape["n"]), int(shape["k"]), str(shape["a_dtype"]), str(shape["w_dtype"]),
                str(shape["out_dtype"]), int(shape["block_n"]), int(shape["block_k"]),
                compute_of(target, shape), block_m, block_n, block_k, target.fp8 == "native")


def tile_space(target: AscendTarget, shape: Shape, rows: int) -> Space:
    """Tiles and compiler switches; what exceeds the chip is left to the compiler to refuse.

    A tile of scaled weights lies in one column of scale blocks, unless these hold a row each, and
    in one row of them.
    """
    compute, n, k = compute_of(target, shape), int(shape["n"]), int(shape["k"])
    a, w = str(shape["a_dtype"]), str(shape["w_dtype"])
    scaled = is_scaled(a, w)
    widths = [b for b in (128, 64, 256, 32) if b < 2 * max(n, 32)]
    depths = [b for b in (128, 256, 64, 512) if b < 2 * max(k, 32)]
    if scaled:
        widths = widths if int(shape["block_n"]) == 1 else _dividing(widths, int(shape["block_n"]))
        if not one_scale_for_k(a, w, int(shape["block_k"]), k):
            depths = _dividing(depths, int(shape["block_k"]))
    if compute == "float32":         # a float32 tile of L1 is twice as large
        depths = sorted(depths)
    heights = [b for b in (128, 64, 32, 16, 256)]
    first = next((b for b in (16, 32, 64, 128) if b >= rows), 128)
    heights.sort(key=lambda b: (b != first, abs(b - first)))
    return Space(
        {"block_m": tuple(heights), "block_n": tuple(widths), "block_k": tuple(depths),
         "double_buffer": (True, False), "workspace_buffers": (2, 1, 4)},
        lambda c: compute not in ("bfloat16", "float16") or scaled
        or c["workspace_buffers"] == 2)


def _dividing(sizes: list[int], block: int) -> list[int]:
    return [s for s in sizes if block % s == 0] or [block]


def gemm_flags(config: Config) -> dict[str, str]:
    """The compiler flags of a config."""
    return {"enable_auto_multi_buffer": word(config["double_buffer"]),
            "set_workspace_multibuffer": str(config["workspace_buffers"])}


@dataclass(frozen=True)
class Operands:
    """The tensors of a program; scales are None for plain operands."""

    a: Any                           # [rows, K]
    a_scale: Any
    b: Any                           # [experts * N, K]
    b_scale: Any                     # [experts * ceil(N / scale_n), ceil(K / scale_k)]
    out: Any                         # [rows, N]
    a_rest: Any = None               # what rounding took from a: another operand of this shape


def operands(k: Kernel, target: AscendTarget, g: Gemm, rows: Any, experts: Any,
             out: tuple[Any, Any] | None = None, rest: bool = False) -> Operands:
    """Declare the tensors, in the order of the operators' arguments; out is [rows, n] if None."""
    scales_n, scales_k = -(-g.n // g.scale_n), -(-g.k // g.scale_k)
    a = k.tensor("a", (rows, g.k), stored(target, g.a))
    a_rest = k.tensor("a_rest", (rows, g.k), g.a) if rest else None
    a_scale = k.tensor("a_scale", (rows, scales_k), "float32") if g.a in QUANTISED else None
    b = k.tensor("b", (experts * g.n, g.k), stored(target, g.w))
    b_scale = (k.tensor("b_scale", (experts * scales_n, scales_k), "float32") if g.w in QUANTISED
               else None)
    return Operands(a, a_scale, b, b_scale, k.tensor("out", out or (rows, g.n), g.out), a_rest)


def product(k: Kernel, g: Gemm, t: Operands, row: Callable[[Any], Any], count: Any, expert: Any,
            column: Any, columns: Any = None) -> Any:
    """A float32 tile of `count` rows a[row(i)] times the block_n weights from `column` on.

    Only the first `columns` of these weights are read; by default all that an expert has. A column
    that is no multiple of block_n may lie in two blocks of scales: pass `columns` then.
    """
    one_scale = columns is None and g.scale_n % g.block_n == 0
    columns = g.n - column if columns is None else columns
    acc = k.fill((g.block_m, g.block_n), g.sums if g.late else "float32", 0)
    scales_n = -(-g.n // g.scale_n)

    def scales_at(at_k: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
        def scale_a(i: Any) -> Any:
            return t.a_scale[row(i), at_k]

        def scale_b(j: Any) -> Any:
            at = column if one_scale else column + j
            at = at if g.scale_n == 1 else at // g.scale_n
            return t.b_scale[expert * scales_n + at, at_k]

        return (None if t.a_scale is None else scale_a), (None if t.b_scale is None else scale_b)

    with k.loop(-(-g.k // g.block_k)) as step:
        first = step * g.block_k
        scale_a, scale_b = (None, None) if g.late else scales_at(first // g.scale_k)
        a = _operand(k, g, g.a, t.a, row, first, (g.block_m, g.block_k), count, scale_a)
        b = _operand(k, g, g.w, t.b, lambda j: expert * g.n + column + j, first,
                     (g.block_n, g.block_k), columns, scale_b, one_scale)
        if g.late or not g.promoted:
            k.matmul(acc, a, b, transposed=True)
            if t.a_rest is not None:
                k.matmul(acc, _operand(k, g, g.a, t.a_rest, row, first, (g.block_m, g.block_k),
                                       count, None), b, transposed=True)
        else:
            part = k.fill((g.block_m, g.block_n), g.sums, 0)
            k.matmul(part, a, b, transposed=True)
            value = _scaled(k, g, part, scale_a, scale_b, count, columns, one_scale)
            k.put(acc, lambda i, j: acc[i, j] + value(i, j))
    if not g.late:
        if t.a_scale is not None or g.unit == 1.0:
            return acc
        return k.new((g.block_m, g.block_n), "float32", lambda i, j: acc[i, j] * T.float32(g.unit))
    value = _scaled(k, g, acc, *scales_at(0), count, columns, one_scale)
    return k.new((g.block_m, g.block_n), "float32", value)


def _scaled(k: Kernel, g: Gemm, part: Any, scale_a: Callable[[Any], Any] | None,
            scale_b: Callable[[Any], Any] | None, count: Any, columns: Any, one_scale: bool
            ) -> Callable[[Any, Any], Any]:
    """Axes to a product of codes times the scales that there are, in float32."""
    factors: list[Callable[[Any, Any], Any]] = []
    if scale_a is not None:
        raw = k.new((g.block_m,), "float32", scale_a, lambda i: i < count)
        of_row = raw if g.unit == 1.0 else k.new((g.block_m,), "float32", lambda i:
                                                 raw[i] * T.float32(g.unit))
        factors.append(lambda i, j: of_row[i])
    if scale_b is not None:
        if one_scale:
            factors.append(lambda i, j: scale_b(j))
        else:
            of_column = k.new((g.block_n,), "float32", scale_b, lambda j: j < columns)
            factors.append(lambda i, j: of_column[j])
    wide = part
    if str(part.dtype) != "float32":
        wide = k.new((g.block_m, g.block_n), "float32",
                     lambda i, j: T.Cast("float32", part[i, j]))

    def value(i: Any, j: Any) -> Any:
        made = factors[0](i, j) * factors[1](i, j) if len(factors) == 2 else factors[0](i, j)
        return wide[i, j] * made

    return value


def _operand(k: Kernel, g: Gemm, dtype: str, tensor: Any, row: Callable[[Any], Any], first: Any,
             shape: tuple[int, int], count: Any, scale: Callable[[Any], Any] | None,
             one_scale: bool = False) -> Any:
    """A tile of one operand as the cube takes it; rows past `count` hold anything."""
    held = str(tensor.dtype)

    def there(i: Any, c: Any) -> Any:
        return T.And(i < count, first + c < g.k) if g.ragged_k else i < count

    if g.ragged_k:
        raw = k.new(shape, held, lambda i, c: T.if_then_else(
            there(i, c), tensor[row(i), first + c], constant(0, held)))
    else:
        raw = k.new(shape, held, lambda i, c: tensor[row(i), first + c], there)
    if dtype == g.compute:
        return raw
    if g.promoted and dtype == FP8 and held != FP8:
        return decoded(k, shape, lambda i, c: raw[i, c], "float16")
    if g.promoted or (dtype == INT8 and g.late and g.compute != "float32"):
        wide = k.new(shape, "float32", lambda i, c: T.Cast("float32", raw[i, c]))
        return k.new(shape, g.compute, lambda i, c: T.Cast(g.compute, wide[i, c]))
    if dtype not in QUANTISED or g.late:
        return k.new(shape, g.compute, lambda i, c: T.Cast(g.compute, raw[i, c]))
    if held == FP8 or dtype == INT8:
        wide = k.new(shape, "float32", lambda i, c: T.Cast("float32", raw[i, c]))
    else:
        wide = decoded(k, shape, lambda i, c: raw[i, c], "float32")
    assert scale is not None
    if one_scale:
        scaled = k.new(shape, "float32", lambda i, c: wide[i, c] * scale(i))
    else:
        of_row = k.new((shape[0],), "float32", scale, lambda i: i < count)
        scaled = k.new(shape, "float32", lambda i, c: wide[i, c] * of_row[i])
    if g.compute == "float32":
        return scaled
    return k.new(shape, g.compute, lambda i, c: T.Cast(g.compute, scaled[i, c]))


def write(k: Kernel, g: Gemm, t: Operands, acc: Any, row: Callable[[Any], Any], count: Any,
          column: Any) -> None:
    """Store the `count` rows of a product."""
    k.store(t.out, (g.block_m, g.block_n), lambda i, j: (row(i), column + j),
            lambda i, j: T.Cast(g.out, acc[i, j]) if g.out != "float32" else acc[i, j],
            lambda i, j: T.And(i < count, column + j < g.n))
