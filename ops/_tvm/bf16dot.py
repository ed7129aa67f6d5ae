"""AVX512-BF16: sums of two products of bfloat16 pairs in float32 lanes (`dpbf16ps`).

TVM 0.27 turns every bfloat16 argument of an intrinsic into float32, so the instruction comes in
LLVM's own text, as a function that is inlined: pairs are int32 for TVM, the first in the low half.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_TEXT = """
declare <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float>, <{m} x bfloat>, <{m} x bfloat>)
define internal <{n} x float> @bf16_dot_{n}(<{n} x float> %s, <{n} x i32> %a, <{n} x i32> %b) alwaysinline {{
  %x = bitcast <{n} x i32> %a to <{m} x bfloat>
  %y = bitcast <{n} x i32> %b to <{m} x bfloat>
  %r = call <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float> %s, <{m} x bfloat> %x, <{m} x bfloat> %y)
  ret <{n} x float> %r
}}
"""  # noqa: E501


def imported(lanes: int) -> Any:
    """A frame that must enclose every use of `dot` with that many lanes (4, 8 or 16), once."""
    return T.attr(0, "pragma_import_llvm", _TEXT.format(n=lanes, m=2 * lanes, bits=32 * lanes))


def dot(total: Any, a: Any, b: Any, lanes: int) -> Any:
    """total + a.low * b.low + a.high * b.high in every lane; a and b are vectors of int32 pairs.

    Results round to nearest even after each product; subnormal inputs and results count as 0.
    """
    return T.call_pure_extern(f"float32x{lanes}", f"bf16_dot_{lanes}", total, a, b)
