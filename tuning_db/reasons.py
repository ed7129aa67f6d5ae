"""How far sizes are apart, and how an answer is put into words."""

from __future__ import annotations

from math import log2

from ..ops.spec import Shape
from .key import Difference, Tier
from .record import Record

MAX_SIZE_RATIO = 2.0                 # a record further off than this is no answer (vLLM#52192)


def size_step(have: Shape, want: Shape) -> tuple[float, float] | None:
    """(0 if every axis is at least the wanted one, distance in octaves), or None when too far."""
    below, distance = 0.0, 0.0
    for axis, wanted in want.items():
        size = have.get(axis)
        if size == wanted:
            continue
        if not isinstance(size, int | float) or not isinstance(wanted, int | float):
            return None
        ratio = max(size, 1) / max(wanted, 1)
        if not 1 / MAX_SIZE_RATIO <= ratio <= MAX_SIZE_RATIO:
            return None
        below = max(below, float(size < wanted))
        distance += max(abs(log2(ratio)), 1e-9)
    return below, distance


def why_served(record: Record, layer: str, tier: Tier, differs: tuple[Difference, ...]
               ) -> str:
    """Why a record answers, in a line."""
    if record.is_modelled:
        return (f"{tier} record of the {layer} layer: "
                + ("the default config" if record.decision == "default kept" else "a config")
                + f" that a model ranks first of {record.provenance.trials} (modelled "
                f"{record.us:.1f} us, never measured)" + _named(differs))
    kept = record.decision == "default kept"
    what = "the default config was kept after tuning" if kept else "tuned"
    if record.speedup and not kept:
        what += f", {record.speedup:.2f}x the default"
    if record.kind == "modelled":
        what += " (modelled, not measured)"
    return f"{tier} record of the {layer} layer: {what}{_named(differs)}"


def _named(differs: tuple[Difference, ...]) -> str:
    named = "; ".join(f"{name} was {have}, is {want}" for name, have, want in differs)
    return f" ({named})" if named else ""


UNMEASURED = ("its time is modelled and this device can measure: it seeds a tune; to let it answer "
              "until then, set EXPERTILE_MODELLED=serve")


def why_none(tier: Tier) -> str:
    """Why no record of a tier answers, in a line."""
    return {
        "minor": "records differ in a minor compiler version: they seed a tune, they do not answer",
        "family": "records are of another device, routing or compiler generation: they seed a "
                  "tune, they do not answer",
        "stale": "records are stale: the operator's source code has changed since",
        "none": "no record of these static axes on this architecture",
    }.get(tier, "no record is near enough in size, in the same regime and in the space"
          ) + "; the default config answers"
