"""Records made up for the tests of the database."""

from __future__ import annotations

from typing import Any

from expertile import ops
from expertile.ops.spec import Operator, Shape
from expertile.targets.null import NullTarget
from expertile.tuning_db.key import Key, key_of
from expertile.tuning_db.record import Provenance, Record

OP = ops.load("per_token_group_quant_fp8")
SHAPE: dict[str, Any] = {"k": 256, "group_size": 128, "dtype": "bfloat16", "ue8m0": False,
                         "tokens": 64}
TARGET = NullTarget()
CONFIG = {"tile": 128, "unroll": 4, "split": 1}


def winner(op: Operator = OP, shape: Shape = SHAPE, **changes: Any) -> Record:
    """A tuned record; `key_*` arguments change fields of its key."""
    key = key_of(op, TARGET, shape)
    fields = {f: getattr(key, f) for f in Key.__dataclass_fields__}
    fields |= {k.removeprefix("key_"): changes.pop(k) for k in list(changes) if k[:4] == "key_"}
    have: dict[str, Any] = dict(
        key=Key(**fields), config=CONFIG, status="ok", role="winner", evidence="L4 timed",
        kind="measured", provenance=Provenance("0.1.0", "2026-11-22T00:00:00Z", seed=3,
                                               versions={"tvm": "0.27.0"}, budget={"trials": 9}),
        decision="tuned", us=10.0, default_us=15.0, floor_us=4.0, speedup=1.5,
        speedup_ci=(1.4, 1.6), samples=(10.0, 10.5), default_samples=(15.0, 15.5),
        equivalents=(CONFIG,))
    return Record(**{**have, **changes})


def candidate(i: int, **changes: Any) -> Record:
    """The i-th of many candidates."""
    return winner(role="candidate", decision=None, config={"i": i}, **changes)
