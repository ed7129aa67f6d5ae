"""The 8-bit float formats that casts write, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .fp8 import E4M3_MAX


@dataclass(frozen=True)
class Format:
    """A sign, an exponent and a mantissa, as "FP8 formats for deep learning" (2022) defines it."""

    dtype: str                       # what torch, TVM and MLIR call it
    most: float                      # the largest finite number: what casts saturate to
    mantissa: int                    # bits of it
    least: int                       # 2^least is the least normal number

    @property
    def dropped(self) -> int:
        """Bits that float32's mantissa has more."""
        return 23 - self.mantissa


E4M3 = Format("float8_e4m3fn", E4M3_MAX, 3, -6)
E5M2 = Format("float8_e5m2", 57344.0, 2, -14)        # 1.75 * 2^15; above: infinity and NaN
