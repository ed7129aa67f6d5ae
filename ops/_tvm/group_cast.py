"""Groups of columns cast to FP8, GROUPS at a time: their scales are divided out together.

One group's maximum, scale and cast wait for each other; taken one by one they cost twice the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm.script import tirx as T

from ..fp8_format import E4M3, E5M2, Format
from .cast_llvm import DECLARED, STEP, cast_function, prepare_function, top_function
from .plain_cast import FP8, INT8, Codes
from .silu_llvm import LEAD, activate_function

if TYPE_CHECKING:
    from ...targets.base import VectorTarget


@dataclass(frozen=True)
class Cast:
    """What a lowering needs to cast to a format."""

    operator: str                    # whose lowering it is
    codes: Codes
    to: Format | None = None         # whose codes the IR functions here make


TO_E4M3 = Cast("per_token_group_quant_fp8", FP8[E4M3], E4M3)
TO_E5M2 = Cast("per_token_group_quant_fp8_e5m2", FP8[E5M2], E5M2)
TO_INT8 = Cast("per_token_group_quant_int8", INT8)


def takes(group: int) -> bool:
    """Whether full groups of that many columns are cast by the IR functions."""
    return group % STEP == 0


def _quotients(target: VectorTarget, dtype: str, ue8m0: bool) -> str:
    """How a level divides by scales: see `_quotient_lines`."""
    if ue8m0:
        return "once"
    if target.lanes == 4:            # no FMA below x86-64-v3
        return "divide"
    return "two" if dtype == "bfloat16" else "remainder"


def _packs(target: VectorTarget) -> str:
    """Whose instructions make bytes: see `cast_function`."""
    return "vbmi" if "bf16" in target.dots else "avx2" if target.lanes == 8 else ""


def functions(target: VectorTarget, dtype: str, ue8m0: bool, to: Format = E4M3) -> str:
    """The IR that `top_of`, `prepare` and `cast` call."""
    how = _quotients(target, dtype, ue8m0)
    return "\n".join((DECLARED, top_function(dtype), prepare_function(how, ue8m0, to),
                      cast_function(dtype, how, _packs(target), to)))


def silu_functions(target: VectorTarget, dtype: str, ue8m0: bool) -> str:
    """The IR that `activate`, `prepare` and `cast` to e4m3 call; `activate` writes for `cast`.

    Reciprocals do: an activation is a unit in the last place off before the cast as well.
    """
    how = "divide" if target.lanes == 4 else "once"
    return "\n".join((DECLARED, activate_function(dtype, target.lanes),
                      prepare_function(how, ue8m0, E4M3),
                      cast_function("float32", how, _packs(target), E4M3, dtype == "bfloat16")))


def top_of(where: Any, columns: int) -> Any:
    """The largest magnitude's bits of so many columns from there on."""
    return T.call_extern("int32", "expertile_top", T.address_of(where), T.int64(columns))


def fetch(where: Any, length: int, ahead: int) -> None:
    """Fetch `length` bytes that lie `ahead` bytes behind."""
    for line in range(-(-length // 64)):
        T.evaluate(T.call_extern("void", "expertile_prefetch", T.address_of(where),
                                 T.int64(ahead + 64 * line)))


def lead(gate: Any, to: Any) -> Any:
    """What `activate` needs of the first group that it is called for."""
    return T.call_extern("void", "expertile_lead", T.address_of(gate), T.address_of(to),
                         T.int64(LEAD))


def activate(gate: Any, up: Any, to: Any, columns: int, ahead: int) -> Any:
    """silu(gate) * up of so many columns in `cast`'s order; and what `top_of` says of it.

    What lies `ahead` bytes behind is fetched.
    """
    return T.call_extern("int32", "expertile_activate",
                         *(T.address_of(x) for x in (gate, up, to)), T.int64(columns),
                         T.int64(ahead))


def prepare(top: Any, eps: Any, scale: Any, a: Any, b: Any, plain: Any) -> Any:
    """scale, what `cast` takes, and whether it may, from the maxima of GROUPS groups."""
    return T.call_extern("void", "expertile_prepare", T.address_of(top[0]), eps,
                         *(T.address_of(x[0]) for x in (scale, a, b, plain)))


def cast(source: Any, to: Any, columns: int, a: Any, b: Any) -> Any:
    """The codes of so many columns of a plain group."""
    return T.call_extern("void", "expertile_cast", T.address_of(source), T.address_of(to),
                         T.int64(columns), a, b)
