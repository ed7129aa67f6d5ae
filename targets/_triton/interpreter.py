"""Triton's interpreter, made faithful for bfloat16 and FP8: numerics without a GPU.

Out of the box it cuts bfloat16 off instead of rounding, rounds FP8 wrongly and multiplies the bit
patterns of bfloat16 in `tl.dot` (docs/facts.md); upstream calls that unsupported. Conversions and
dot products go through torch and float32 here. Tried with the versions in TESTED; `self_test` says
whether it holds for the installed one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch

TESTED = ("3.6.0", "3.9.0")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Largest finite values: the GPU's conversions saturate, torch's do not.
_SATURATES = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}


def enable() -> None:
    """Run every Triton kernel of this process in the interpreter, from here on.

    Must come before the first import of triton: whether a kernel is compiled or interpreted is
    decided when `triton.jit` sees it, Triton's own library functions included.
    """
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("this process already compiles Triton kernels; the interpreter needs a "
                           "process of its own, which imports nothing of triton before")
    _patch()


def _torch_types() -> dict[Any, torch.dtype]:
    import triton.language as tl

    return {tl.float64: torch.float64, tl.float32: torch.float32, tl.float16: torch.float16,
            tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn,
            tl.float8e5: torch.float8_e5m2, tl.float8e4b8: torch.float8_e4m3fnuz,
            tl.float8e5b16: torch.float8_e5m2fnuz}


def _as_torch(data: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(np.ascontiguousarray(data).tobytes()),
                           dtype=_BITS[dtype.itemsize])
    return raw.view(dtype)


def _round(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A conversion as the hardware does it: to nearest even, FP8 saturating, NaN kept."""
    wide = values if values.dtype == torch.float64 else values.float()
    if limit := _SATURATES.get(dtype):
        wide = wide.clamp(-limit, limit)
    return wide.to(dtype)


def _bits_of(values: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """As the interpreter holds types that NumPy lacks: unsigned integers."""
    size = values.element_size()
    return values.view(_BITS[size]).numpy().view(f"uint{8 * size}").reshape(shape)


def _patch() -> None:
    from triton._C.libtriton import ir
    from triton.runtime import interpreter

    if getattr(interpreter, "_faithful", False) is True:
        return
    types, original = _torch_types(), interpreter._convert_float
    small = {t for t, d in types.items() if d.itemsize < 4 and d != torch.float16}

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source not in types or target not in types or rounding == ir.ROUNDING_MODE.RTZ:
            return original(data, source, target, rounding)
        return _bits_of(_round(_as_torch(data, types[source]), types[target]), np.shape(data))

    def wide(handle: Any) -> Any:
        scalar = handle.dtype.scalar
        if scalar not in small:
            return handle.data
        return _as_torch(handle.data, types[scalar]).float().numpy().reshape(handle.data.shape)

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        product = np.matmul(wide(a), wide(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def from_integers(self: Any, handle: Any, target: Any) -> Any:
        if target.scalar not in small:           # out of the box, 3 becomes the bits 0x0003
            return self.cast_impl(handle, target)
        out = _round(torch.from_numpy(handle.data.astype(np.float32)), types[target.scalar])
        return interpreter.TensorHandle(_bits_of(out, handle.data.shape), target.scalar)

    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_si_to_fp = from_integers
    interpreter.InterpreterBuilder.create_ui_to_fp = from_integers
    interpreter.InterpreterBuilder.create_dot = create_dot
    _mend_index(interpreter)
    _mend_fnuz(interpreter)
    if not hasattr(getattr(interpreter, "_interpreter", None), "fma_fp32"):
        _mend_fma(interpreter)
    interpreter._faithful = True


def _mend_index(interpreter: Any) -> None:
    """Let one-element tensors be loop bounds: from NumPy 2.4 on, int() of their array raises."""
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(tensor, *args, **kwargs)

        def as_int(self: Any) -> int:
            return int(np.asarray(self.handle.data).reshape(-1)[0])

        tensor.__index__ = tensor.__int__ = as_int
        return result

    interpreter._patch_lang_tensor = patched


def _mend_fnuz(interpreter: Any) -> None:
    """Let kernels name gfx942's FP8 types, which the interpreter of Triton 3.6 forgot."""
    original = interpreter._patch_lang_core

    def patched(lang: Any, *args: Any) -> Any:
        result = original(lang, *args)
        known = lang.dtype.to_ir

        def to_ir(self: Any, builder: Any) -> Any:
            if self.name in ("fp8e4b8", "fp8e5b16"):
                return getattr(builder, f"get_{self.name}_ty")()
            return known(self, builder)

        lang.dtype.to_ir = to_ir
        return result

    interpreter._patch_lang_core = patched


def fma32(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32 arrays, rounded once.

    The product is exact in float64; a sum rounded to odd there rounds to float32 as the exact one
    would (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    with np.errstate(all="ignore"):
        total = product + addend
        back = total - product
        lost = (product - (total - back)) + (addend - back)
        even = (total.view(np.int64) & 1) == 0
        to_odd = (lost != 0) & np.isfinite(total) & even
        total = np.where(to_odd, np.nextafter(total, np.copysign(np.inf, lost)), total)
        return total.astype(np.float32)


def _mend_fma(interpreter: Any) -> None:
    """Round fused multiply-adds once: Triton 3.6 multiplies, rounds, adds and rounds again."""

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        data = np.broadcast_arrays(x.data, y.data, z.data)
        fused = fma32(*data) if x.data.dtype == np.float32 else data[0] * data[1] + data[2]
        return interpreter.TensorHandle(fused, x.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma
